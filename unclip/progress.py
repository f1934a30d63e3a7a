"""Progress of long work: a bar with rate and time left on a terminal, a line every few seconds elsewhere."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from unclip.printable import printable

SECONDS_BETWEEN_LINES = 10.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f} {task.fields['unit']}/s", style="progress.data.speed")


class Bar:
    """What `progress` yields: call `advance` as the work goes on; `note` shows a few words beside the bar."""

    def __init__(self, description: str, total: int, unit: str, done: int, bar: Progress | None, *, is_silent: bool = False) -> None:
        self._description, self._total, self._unit, self._bar = description, total, unit, bar
        self._done, self._first = done, done
        self._started = self._spoken = time.monotonic()
        self._note = ""
        self._is_silent = is_silent
        self._task = bar.add_task(description, total=total or None, completed=done, unit=unit, note="") if bar else None

    def advance(self, steps: int = 1, *, note: str | None = None) -> None:
        """Counts steps done."""
        self._done += steps
        self._note = self._note if note is None else note
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=steps, note=self._note)
        elif not self._is_silent and time.monotonic() - self._spoken >= SECONDS_BETWEEN_LINES:
            self._speak()

    def _speak(self) -> None:
        self._spoken = time.monotonic()
        rate = (self._done - self._first) / max(self._spoken - self._started, 1e-9)
        left = f", {(self._total - self._done) / rate:,.0f} s left" if rate and self._done < self._total else ""
        note = f" ({self._note})" if self._note else ""
        of = f"/{self._total:,}" if self._total or not self._done else ""  # a total of 0 is not known beforehand
        print(f"{self._description}: {self._done:,}{of}, {rate:,.1f} {self._unit}/s{left}{note}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Says the last line where there is no bar to keep standing."""
        if self._bar is None:
            self._speak()


@contextmanager
def progress(description: str, total: int, *, unit: str, done: int = 0) -> Iterator[Bar]:
    """Shows the progress of `total` steps, of which `done` were done by an earlier run. Of several processes the first speaks."""
    description = printable(description)  # the name of a split may be in it
    if os.environ.get("RANK", "0") != "0":  # as torchrun sets it
        yield Bar(description, total, unit, done, None, is_silent=True)
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        bar = Bar(description, total, unit, done, None)
        yield bar
        bar.end()
        return
    columns = (
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as shown:
        yield Bar(description, total, unit, done, shown)
