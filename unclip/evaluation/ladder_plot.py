"""The ladder and the curves of the priors as one picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator, PercentFormatter

from unclip.evaluation.curves import DOTS, INK
from unclip.evaluation.heldout import NEAREST, TEXT, TRUE
from unclip.evaluation.sweeps import BEST_OF, GUIDANCE, STEPS
from unclip.files import replacing

COLOURS = ("#d9822b", "#4a8fd0", "#4fa36a", "#a86fb8", "#c95d63", "#8a8a3c")
OURS, BARS = "#d9822b", "#8fb4d9"
SHORT = {TRUE: "true embedding", TEXT: "text as image", NEAREST: "nearest training"}
WIDTH, LADDER_HEIGHT, CURVES_HEIGHT = 10.5, 0.27, 4.2  # inches; the ladder's height is that of one bar
MEASURED = {"recall_at_10": "recall@10", "image_cosine": "cosine to the true image"}
LABELS = {BEST_OF: "draws that the best is taken of", GUIDANCE: "guidance scale", STEPS: "sampling steps"}


def draw_ladder(path: Path, prior: Mapping[str, Any], sweeps: Mapping[str, Any]) -> None:
    """Writes recall@10 of each row with its interval, a panel a split, and below them the curves, as a PNG without a ground."""
    num_bars = max(len(found["rows"]) for found in prior.values())
    heights = [LADDER_HEIGHT * num_bars + 0.9] + ([CURVES_HEIGHT] if sweeps["points"] else [])
    figure = Figure(figsize=(WIDTH, sum(heights)), dpi=DOTS, layout="constrained")
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0.0)
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (split, found) in zip(parts[0].subplots(1, len(prior), squeeze=False, sharey=True)[0], prior.items(), strict=True):
        _draw_bars(axes, split, found)
    if sweeps["points"]:
        panels = parts[1].subplots(len(MEASURED), len(LABELS), sharex="col", sharey="row")
        for row, (metric, name) in zip(panels, MEASURED.items(), strict=True):
            for axes, curve in zip(row, LABELS, strict=True):
                _draw_curve(axes, curve, metric, [point for point in sweeps["points"] if point["curve"] == curve])
            row[0].set_ylabel(name, color=INK, fontsize=9)
        panels[0][0].set_ylim(0.0, max(0.05, *(1.05 * point["high"] for point in sweeps["points"])))
        for axes, label in zip(panels[-1], LABELS.values(), strict=True):
            axes.set_xlabel(label, color=INK, fontsize=9)
        parts[1].suptitle(f"on {sweeps['captions']} validation captions", color=INK, fontsize=10)
    with replacing(path) as aside:
        figure.savefig(aside, format="png")


def _draw_bars(axes: Axes, split: str, found: Mapping[str, Any]) -> None:
    names = list(found["rows"])
    recalls = [row["recall_at_10"] for row in found["rows"].values()]
    ends = [row["intervals"]["recall_at_10"] for row in found["rows"].values()]
    errors = [
        [max(0.0, value - low) for value, (low, _) in zip(recalls, ends, strict=True)],
        [max(0.0, high - value) for value, (_, high) in zip(recalls, ends, strict=True)],
    ]
    colours = [OURS if name == found["chosen"] else BARS for name in names]
    axes.barh(range(len(names)), recalls, xerr=errors, color=colours, ecolor=INK, height=0.65, capsize=2)
    axes.axvline(found["chance"]["recall_at_10"], color=INK, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(names)), [SHORT.get(name, name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)  # the first row on top, in every panel
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlim(0.0, 1.0)
    axes.set_title(f"recall@10, {split}", color=INK, fontsize=10, parse_math=False)
    axes.set_xlabel(f"{found['captions']} captions among {found['gallery']:,} images; dotted: chance", color=INK, fontsize=9)
    dress(axes)


def _draw_curve(axes: Axes, curve: str, metric: str, points: list[Mapping[str, Any]]) -> None:
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for point in points:
        lines.setdefault(point["sampler"] if curve == STEPS else point["prior"], []).append(point)
    for colour, (name, line) in zip(COLOURS, lines.items(), strict=False):
        x = [point["value"] for point in line]
        axes.plot(x, [point[metric] for point in line], color=colour, marker="o", markersize=3.5, linewidth=1.6, label=name)
        if metric == "recall_at_10" and curve != STEPS:  # several samplers' bands over each other hide the lines
            axes.fill_between(x, [point["low"] for point in line], [point["high"] for point in line], color=colour, alpha=0.15, linewidth=0)
    ticks = sorted({point["value"] for point in points})
    if ticks and ticks[0] > 0:
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if lines:
        axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    dress(axes)


def dress(axes: Axes) -> None:
    """Axes that read on white and on black."""
    axes.patch.set_alpha(0.0)
    axes.tick_params(colors=INK, labelsize=8.5)
    axes.grid(visible=True, color=INK, alpha=0.2)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color(INK)
