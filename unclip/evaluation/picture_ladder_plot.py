"""The ladder of pictures as one plot: a bar for each way, a panel for each split, ways that see the same together."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from unclip.evaluation.curves import DOTS, INK
from unclip.evaluation.heldout import TEXT, TRUE
from unclip.evaluation.ladder_plot import dress
from unclip.evaluation.ways import GROUPS, REAL
from unclip.files import replacing

OURS, ENDS, BARS = "#d9822b", "#4fa36a", "#8fb4d9"
WIDTH, BAR, MARGIN = 10.5, 0.27, 1.0  # inches
GAP = 0.6  # bars, between ways that see different things
SHORT = {TRUE: "true embedding", TEXT: "text as image", "decoder trained on text embeddings": "decoder trained on text"}

SEES = {GROUPS["nothing"]: "both conditions", GROUPS["text"]: "embedding alone", GROUPS["image"]: "caption alone"}


def draw_picture_ladder(path: Path, ladder: Mapping[str, Any], *, chosen: str) -> None:
    """Writes the share that is right of each row with its interval, as a PNG without a ground."""
    places = places_of(ladder["rows"])
    figure = Figure(figsize=(WIDTH, BAR * (max(places) + 1) + MARGIN), dpi=DOTS, layout="constrained")
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0.0)
    for axes, split in zip(figure.subplots(1, len(ladder["splits"]), squeeze=False, sharey=True)[0], ladder["splits"], strict=True):
        _draw_bars(axes, ladder, split, places, chosen)
    with replacing(path) as aside:
        figure.savefig(aside, format="png")


def places_of(rows: list[Mapping[str, Any]]) -> list[float]:
    """Where each bar stands, from the top: one under the other, with a gap where what the decoder sees changes."""
    places = [0.0]
    for before, row in pairwise(rows):
        places.append(places[-1] + 1.0 + (GAP if row["sees"] != before["sees"] else 0.0))
    return places


def _draw_bars(axes: Axes, ladder: Mapping[str, Any], split: str, places: list[float], chosen: str) -> None:
    found = [row["splits"][split] for row in ladder["rows"]]
    values = [one["mean"] for one in found]
    errors = [[one["mean"] - one["low"] for one in found], [one["high"] - one["mean"] for one in found]]
    errors = [[max(0.0, error) for error in side] for side in errors]
    names = [row["name"].removesuffix(", caption hidden") for row in ladder["rows"]]
    colours = [OURS if name == chosen else ENDS if name in (REAL, TRUE) else BARS for name in names]
    axes.barh(places, values, xerr=errors, color=colours, ecolor=INK, height=0.65, capsize=2)
    axes.set_yticks(places, [SHORT.get(name, name) for name in names])
    axes.set_ylim(places[-1] + 0.6, -0.6)  # the first row on top, in every panel
    axes.set_xlim(0.0, 1.0)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_title(split, color=INK, fontsize=10, parse_math=False)
    axes.set_xlabel(f"{ladder['metric'].replace('_', ' ')}, {found[0]['number']} pictures", color=INK, fontsize=9)
    dress(axes)
    for place, (before, row) in zip(places[1:], pairwise(ladder["rows"]), strict=True):
        if row["sees"] != before["sees"]:
            axes.text(0.01, place - 0.5 - GAP / 2, SEES[row["sees"]], color=INK, fontsize=7.5, va="center", transform=axes.get_yaxis_transform())
