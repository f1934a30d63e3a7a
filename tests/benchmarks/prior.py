"""Our diffusion prior beside DALLE2-pytorch and diffusers, in one run.

Every contender runs in a process of its own, with one thread; they take turns, so that a machine that slows down slows
all of them. The peers pad every caption to 77 tokens, so their one measurement stands for both kinds of text.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import psutil
import torch
from rich.console import Console
from rich.table import Table

from unclip.training.prior_diffusion import DiffusionPriorTraining

PEERS = ("DALLE2-pytorch", "diffusers")
SAME_PARAMETERS = 0.02
NUM_SAMPLES = 2  # a caption, of which the paper keeps the better
NUM_CALLS = {8: 3, 25: 2, 64: 1}  # network calls of one draw: how often it is repeated
TRAINING = {"task": "train", "num": 16, "steps": 2}
DRAWING = {"task": "draw", "num": 4, "num_samples": NUM_SAMPLES}


@dataclass
class Measured:
    """A contender in one case, and what its repeats gave."""

    contender: str
    case: str
    texts: str
    asked: dict[str, Any]
    repeats: int = 3
    answers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Median, in samples or embeddings a CPU-second."""
        return statistics.median(answer["rate"] for answer in self.answers)

    @property
    def spread(self) -> float:
        """Half the distance of the fastest and the slowest repeat, as a share of the median."""
        rates = [answer["rate"] for answer in self.answers]
        return (max(rates) - min(rates)) / 2 / self.rate


def cases(draws: int) -> list[Measured]:
    """What is measured, in the order of the table."""
    found = [Measured("unclip", "training", texts, TRAINING | {"texts": texts, "draws": 1}) for texts in ("full", "realistic")]
    found += [Measured("unclip", f"training, {draws} draws a caption", texts, TRAINING | {"texts": texts, "draws": draws}) for texts in ("full", "realistic")]
    found += [Measured(peer, "training", "full", TRAINING | {"texts": "full", "draws": 1}) for peer in PEERS]
    for calls, repeats in NUM_CALLS.items():
        drawing = DRAWING | {"num_calls": calls}
        found += [Measured("unclip", f"sampling, {calls} calls", texts, drawing | {"texts": texts}, repeats) for texts in ("full", "realistic")]
        found += [Measured(peer, f"sampling, {calls} calls", "full", drawing | {"texts": "full"}, repeats) for peer in PEERS]
    return found


class Child:
    """A measured process, asked one thing at a time."""

    def __init__(self, name: str, process: "subprocess.Popen[str]") -> None:
        self.name, self._process = name, process
        self.facts: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        """The next line that it writes.

        Raises:
            RuntimeError: it has ended instead.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that measures {self.name} ended with code {self._process.wait()}; its message stands above")
        return json.loads(line)

    def ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return self.read()


@contextmanager
def child(name: str, peers: Path, *more: str, module: str = "tests.benchmarks.child") -> Iterator[Child]:
    """Starts the process of a contender; only DALLE2-pytorch's sees the folder of packages that it was installed to."""
    here = str(Path(__file__).parents[2])
    path = [here, str(peers)] if name == "DALLE2-pytorch" else [here]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, "-W", "ignore", "-m", module, name, *more]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            started = Child(name, process)
            started.facts = started.read()
            yield started
        finally:
            process.kill()


def measure(measured: list[Measured], peers: Path, console: Console) -> dict[str, dict[str, Any]]:
    """Fills in the answers; returns the facts of each contender."""
    with ExitStack() as running:
        names = {(each.contender, each.asked["task"]) for each in measured}  # a process a task: each has a peak of memory of its own
        children = {key: running.enter_context(child(key[0], peers)) for key in sorted(names)}
        facts = {name: started.facts for (name, _), started in children.items()}
        ours = facts["unclip"]["parameters"]
        for name, fact in facts.items():
            if abs(fact["parameters"] / ours - 1) > SAME_PARAMETERS:
                raise RuntimeError(f"{name} has {fact['parameters']:,} parameters, expected {ours:,} within {SAME_PARAMETERS:.0%}")
        for (_, task), started in children.items():
            if task == "draw":
                started.ask(DRAWING | {"num": 1, "texts": "full", "num_calls": 2})  # warm; not counted
        for turn in range(max(each.repeats for each in measured)):
            for each in measured:
                if turn < each.repeats:
                    each.answers.append(children[each.contender, each.asked["task"]].ask(each.asked))
            console.print(f"turn {turn + 1} done")
    return facts


def fastest_peer(measured: list[Measured], each: Measured) -> float:
    """The rate that a row is compared with: the faster peer's at this task and number of calls."""
    work = [(other.asked["task"], other.asked.get("num_calls")) for other in (each, *measured)]
    return max(other.rate for other, its in zip(measured, work[1:], strict=True) if other.contender in PEERS and its == work[0])


def table(measured: list[Measured], facts: dict[str, dict[str, Any]], peak: float) -> Table:
    columns = ("", "", "text tokens", "a CPU-second", "spread", "times the faster peer", "of the matmul peak", "peak memory")
    shown = Table(*columns, title="samples or embeddings; one thread, float32", title_justify="left")
    last = ""
    for each in sorted(measured, key=lambda one: (one.asked["task"] == "draw", one.asked.get("num_calls", 0))):
        texts = {"full": "77", "realistic": "8 to 20"}[each.texts] if each.contender == "unclip" else "77, or padded to it"
        utilisation = statistics.median(answer["flops_per_second"] for answer in each.answers) / peak
        memory = max(answer["peak_memory_bytes"] for answer in each.answers)
        ratio = "" if each.contender in PEERS else f"{each.rate / fastest_peer(measured, each):.1f}"
        name = f"{each.contender} {facts[each.contender]['version']}"
        case = "" if each.case == last else each.case
        shown.add_row(case, name, texts, f"{each.rate:.2f}", f"± {each.spread:.0%}", ratio, f"{utilisation:.0%}", f"{memory / 1e6:,.0f} MB")
        last = each.case
    return shown


def chart(measured: list[Measured], path: Path) -> None:
    """Rates relative to the faster peer, a bar a row."""
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.34 * len(measured) + 1.2), layout="constrained")
    names = [
        f"{each.case}: {each.contender}{'' if each.contender in PEERS else ', 77 tokens' if each.texts == 'full' else ', 8 to 20 tokens'}" for each in measured
    ]
    values = [each.rate / fastest_peer(measured, each) for each in measured]
    bars = axes.barh(names, values, color=["#bbbbbb" if each.contender in PEERS else "#3465a4" for each in measured])
    axes.bar_label(bars, labels=[f"{value:.1f} ({each.rate:.1f}/s)" for value, each in zip(values, measured, strict=True)], padding=3, fontsize=8)
    axes.set(xscale="log", xlabel="times the faster peer (rate a CPU-second of one thread)", xlim=(0.4, max(values) * 2.5))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(1.0, color="#555555", linewidth=0.8)
    axes.invert_yaxis()
    figure.savefig(path, dpi=120)


def machine() -> dict[str, Any]:
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), platform.processor())
    return {"cpu": cpu, "cores": psutil.cpu_count(), "memory_bytes": psutil.virtual_memory().total, "system": platform.platform(), "load": os.getloadavg()[0]}


def run(peers: Path, out: Path, console: Console) -> None:
    """Measures and writes prior.json and prior.png; DALLE2-pytorch was installed to `peers`."""
    before, draws = machine(), DiffusionPriorTraining().draws
    measured = cases(draws)
    with child("matmul", peers) as limit:
        peak = limit.facts["peak"]
    facts = measure(measured, peers, console)
    console.print(table(measured, facts, peak))
    console.print(f"The matmul peak of one thread is {peak / 1e9:.1f} GFLOP/s; counted are the matrices of the transformer, over the tokens that really run.")
    console.print(f"With {draws} draws a caption a sample is one draw: noise and step are new, the caption is shared.")
    gpu = None
    if torch.cuda.is_available():
        with child("gpu", peers) as started:
            gpu = started.facts
        console.print(
            f"karlo size on {gpu['device']}, bf16: {gpu['utilisation']:.0%} of its measured matmul peak of {gpu['peak'] / 1e12:.0f} TFLOP/s in training"
        )
    content = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": before, "python": platform.python_version(), "torch": torch.__version__,
        "matmul_peak_flops_per_second": peak, "contenders": facts, "gpu": gpu,
        "measured": [asdict(each) | {"rate": each.rate, "spread": each.spread} for each in measured],
    }  # fmt: skip
    (out / "prior.json").write_text(json.dumps(content, indent=1) + "\n")
    chart(measured, out / "prior.png")
    console.print(f"{out / 'prior.json'} and prior.png hold this.")
