"""How did the losses fall? The curves of CLIP, priors and decoder, from the metrics beside their last checkpoints."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from unclip.checkpoint import step_folder, steps_of
from unclip.files import replacing
from unclip.layout import Paths
from unclip.prior.condition import PriorKind
from unclip.training.metrics import METRICS
from unclip.training.run import last_checkpoint

INK = "#808080"  # reads on white and on black, since the figure has no ground of its own
LINE, TREND = "#8fb4d9", "#d9822b"
PANEL = (4.2, 2.8)  # inches
DOTS = 110  # an inch
FALL = 10.0  # a loss that falls further than by this factor is drawn on a logarithmic scale
WINDOW = 0.1  # of the recorded steps, for the running mean

Curve = tuple[np.ndarray, np.ndarray]


def read_curves(paths: Paths, kinds: Iterable[PriorKind]) -> dict[str, Curve]:
    """The recorded steps and losses, both (n,), of each model that was trained here; a published CLIP has none, nor a fitted prior.

    Raises:
        UnclipError: a prior of these kinds, or the decoder, has not finished.
    """
    priors = {f"{kind} prior": last_checkpoint(paths.prior / kind, f"prior-{kind}") for kind in kinds}
    folders = {name: folder for name, folder in priors.items() if (folder / METRICS).exists()}
    folders |= {"decoder": last_checkpoint(paths.decoder, "decoder")}
    trained = paths.clip / "training"
    if steps := steps_of(trained):
        folders = {"clip": step_folder(trained, steps[-1])} | folders
    return {name: _read(folder / METRICS) for name, folder in folders.items()}


def _read(path: Path) -> Curve:
    table = pq.read_table(path, columns=["step", "loss"])
    return table["step"].to_numpy(), table["loss"].to_numpy().astype(np.float64)


def summarise_curves(curves: dict[str, Curve]) -> dict[str, dict[str, Any]]:
    """The steps of each curve, and its mean loss over the first and the last tenth of what was recorded."""
    return {
        name: {"steps": int(steps[-1]), "first_loss": float(losses[: _window(losses)].mean()), "last_loss": float(losses[-_window(losses) :].mean())}
        for name, (steps, losses) in curves.items()
    }


def running_mean(losses: np.ndarray) -> np.ndarray:
    """(n,) the mean of each loss and those before it, over a tenth of the curve."""
    sums = np.cumsum(np.concatenate([[0.0], losses]))
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(0, ends - _window(losses))
    out: np.ndarray = (sums[ends] - sums[starts]) / (ends - starts)
    return out


def _window(losses: np.ndarray) -> int:
    return max(1, round(WINDOW * len(losses)))


def draw_curves(path: Path, curves: dict[str, Curve]) -> None:
    """Writes the curves side by side as a PNG without a ground."""
    figure = Figure(figsize=(PANEL[0] * len(curves), PANEL[1]), dpi=DOTS, layout="constrained")
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0.0)
    for axes, (name, (steps, losses)) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        axes.patch.set_alpha(0.0)
        axes.plot(steps, losses, color=LINE, linewidth=0.8, marker="." if len(steps) < 20 else None)
        axes.plot(steps, running_mean(losses), color=TREND, linewidth=1.8)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        if losses.min() > 0 and losses.max() > FALL * losses.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(name, color=INK)
        axes.set_xlabel("step", color=INK)
        axes.set_ylabel("loss", color=INK)
        axes.tick_params(colors=INK, which="both")
        axes.grid(visible=True, color=INK, alpha=0.2)
        for spine in axes.spines.values():
            spine.set_color(INK)
    with replacing(path) as aside:
        figure.savefig(aside, format="png")
