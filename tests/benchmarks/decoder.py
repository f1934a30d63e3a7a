"""Our decoder beside DALLE2-pytorch's and diffusers', in one run: training and sampling at 32 and 64 pixels.

Every contender runs in a process of its own, with one thread; they take turns, so that a machine that slows down slows
all of them.
"""

import json
import platform
import statistics
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.prior import PEERS, SAME_PARAMETERS, child, machine

CHILD = "tests.benchmarks.decoder_child"
NUM = {32: 8, 64: 4}  # pictures in a batch at each side
TRAINING = {"task": "train", "steps": 1}
DRAWING = {"task": "draw", "num_calls": 4}
CONTENDERS = {"train": ("unclip", "unclip, patches", *PEERS), "draw": ("unclip", "unclip, context at every step", "unclip, patches", *PEERS)}
REPEATS = 4  # the first is not counted


@dataclass
class Measured:
    """A contender in one case, and what its repeats gave."""

    contender: str
    size: int
    asked: dict[str, Any]
    answers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def case(self) -> str:
        work = "training" if self.asked["task"] == "train" else f"sampling, {self.asked['num_calls']} calls"
        return f"{work}, {self.size} pixels"

    @property
    def rate(self) -> float:
        """Median, in pictures a CPU-second."""
        return statistics.median(answer["rate"] for answer in self.answers)

    @property
    def spread(self) -> float:
        """Half the distance of the fastest and the slowest repeat, as a share of the median."""
        rates = [answer["rate"] for answer in self.answers]
        return (max(rates) - min(rates)) / 2 / self.rate

    def median(self, name: str) -> float:
        """The median of a number over the repeats."""
        return statistics.median(answer[name] for answer in self.answers)


def measure(peers: Path, console: Console) -> tuple[list[Measured], dict[str, dict[str, Any]]]:
    """All cases, one after the other; and the facts of each contender."""
    measured: list[Measured] = []
    facts: dict[str, dict[str, Any]] = {}
    for size, num in NUM.items():
        for asked in (TRAINING, DRAWING):
            with ExitStack() as running:  # a process a case: each has a peak of memory of its own
                names = CONTENDERS[str(asked["task"])]
                children = {name: running.enter_context(child(name, peers, str(size), module=CHILD)) for name in names}
                facts |= {name: started.facts for name, started in children.items()}
                require_same_size(facts)
                case = [Measured(name, size, asked | {"num": num}) for name in names]
                for _ in range(REPEATS):
                    for each in case:
                        each.answers.append(children[each.contender].ask(each.asked))
            for each in case:
                del each.answers[0]  # the first repeat warms up
            measured += case
            console.print(f"{case[0].case}: done")
    return measured, facts


def require_same_size(facts: dict[str, dict[str, Any]]) -> None:
    """Refuses a comparison of networks of different sizes."""
    ours = facts["unclip"]["parameters"]
    for name, fact in facts.items():
        if abs(fact["parameters"] / ours - 1) > SAME_PARAMETERS:
            raise RuntimeError(f"{name} has {fact['parameters']:,} parameters, expected {ours:,} within {SAME_PARAMETERS:.0%}")


def fastest_peer(measured: list[Measured], each: Measured) -> float:
    """The rate that a row is compared with."""
    return max(other.rate for other in measured if other.contender in PEERS and other.case == each.case)


def table(measured: list[Measured], facts: dict[str, dict[str, Any]], peak: float) -> Table:
    columns = ("", "", "pictures a CPU-second", "spread", "times the faster peer", "GFLOP a picture", "of the matmul peak", "peak memory")
    shown = Table(*columns, title="one thread, float32, AdamW", title_justify="left")
    last = ""
    for each in measured:
        rows = each.asked["num"] * each.asked.get("steps", 1)
        ratio = "" if each.contender in PEERS else f"{each.rate / fastest_peer(measured, each):.2f}"
        memory = max(answer["peak_memory_bytes"] for answer in each.answers)
        shown.add_row(
            "" if each.case == last else each.case, f"{each.contender} ({facts[each.contender]['parameters'] / 1e6:.2f} M)", f"{each.rate:.2f}",
            f"± {each.spread:.0%}", ratio, f"{each.median('flops') / rows / 1e9:.1f}", f"{each.median('flops_per_second') / peak:.0%}",
            f"{memory / 1e6:,.0f} MB",
        )  # fmt: skip
        last = each.case
    return shown


def chart(measured: list[Measured], path: Path) -> None:
    """Rates relative to the faster peer, a bar a row."""
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.34 * len(measured) + 1.2), layout="constrained")
    values = [each.rate / fastest_peer(measured, each) for each in measured]
    colors = {"unclip": "#3465a4", "unclip, patches": "#73a0d8", "unclip, context at every step": "#d3dfef"}
    bars = axes.barh([f"{each.case}: {each.contender}" for each in measured], values, color=[colors.get(each.contender, "#bbbbbb") for each in measured])
    axes.bar_label(bars, labels=[f"{value:.2f} ({each.rate:.2f}/s)" for value, each in zip(values, measured, strict=True)], padding=3, fontsize=8)
    axes.set(xlabel="times the faster peer (pictures a CPU-second of one thread)", xlim=(0, max(values) * 1.25))
    axes.axvline(1.0, color="#555555", linewidth=0.8)
    axes.invert_yaxis()
    figure.savefig(path, dpi=120)


def run(peers: Path, out: Path, console: Console) -> None:
    """Measures and writes decoder.json and decoder.png; DALLE2-pytorch was installed to `peers`."""
    before = machine()
    with child("matmul", peers) as limit:
        peak = limit.facts["peak"]
    measured, facts = measure(peers, console)
    console.print(table(measured, facts, peak))
    console.print(f"The matmul peak of one thread is {peak / 1e9:.1f} GFLOP/s. unclip and diffusers run the same network, layer by layer.")
    console.print("With patches the network has as many parameters and a quarter of the pixels: another network, for less work.")
    content = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": before, "load_after": machine()["load"], "python": platform.python_version(),
        "torch": torch.__version__, "matmul_peak_flops_per_second": peak, "contenders": facts,
        "measured": [asdict(each) | {"case": each.case, "rate": each.rate, "spread": each.spread} for each in measured],
    }  # fmt: skip
    (out / "decoder.json").write_text(json.dumps(content, indent=1) + "\n")
    chart(measured, out / "decoder.png")
    console.print(f"{out / 'decoder.json'} and decoder.png hold this.")
