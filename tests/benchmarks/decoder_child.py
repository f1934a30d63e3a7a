"""One measured process: `python -m tests.benchmarks.decoder_child NAME SIZE`. It answers each line of JSON on stdin with one on stdout.

Time is the CPU time of this process, which runs on one thread.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.child import parameters, peak_memory
from tests.benchmarks.decoder_contenders import CONTENDERS, Batch, Contender, make_batch


def train_steps(contender: Contender, batch: Batch, *, steps: int) -> float:
    """Seconds of whole training steps: forward, backward, AdamW."""
    optimizer = torch.optim.AdamW(contender.network.parameters(), lr=1e-4, fused=True)
    contender.network.train()
    started = 0.0
    for step in range(steps + 1):  # the first allocates gradients and the optimizer's state, and is not counted
        if step == 1:
            started = time.process_time()
        contender.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.process_time() - started


def draw(contender: Contender, batch: Batch, *, num_calls: int) -> float:
    """Seconds of one draw.

    Raises:
        AssertionError: the library ran another number of network calls than it was asked for, or made something else.
    """
    contender.network.eval()
    before, started = contender.network_calls(), time.process_time()
    out = contender.draw(batch, num_calls)
    seconds = time.process_time() - started
    assert contender.network_calls() - before == num_calls, f"{num_calls} calls were asked for, {contender.network_calls() - before} made"
    assert out.shape == batch.pictures.shape
    return seconds


def operations(work: Callable[[], object]) -> int:
    """Those of all products and convolutions, as torch counts them."""
    with FlopCounterMode(display=False) as counted:
        work()
    return counted.get_total_flops()


def answer(contender: Contender, asked: dict[str, Any], size: int, known: dict[str, int]) -> dict[str, Any]:
    batch, task = make_batch(asked["num"], size), asked["task"]
    if task == "train":
        if task not in known:
            known[task] = operations(lambda: contender.loss(batch).backward())
        seconds, flops = train_steps(contender, batch, steps=asked["steps"]), known[task] * asked["steps"]
        rows = asked["num"] * asked["steps"]
    else:
        if task not in known:
            known[task] = operations(lambda: contender.draw(batch, asked["num_calls"]))
        seconds, flops, rows = draw(contender, batch, num_calls=asked["num_calls"]), known[task], asked["num"]
    return {"rate": rows / seconds, "seconds": seconds, "flops": flops, "flops_per_second": flops / seconds, "peak_memory_bytes": peak_memory()}


def main(name: str, size: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    contender = CONTENDERS[name](size)
    facts = {"version": contender.version, "parameters": parameters(contender.network), "imported_bytes": peak_memory()}
    print(json.dumps(facts), flush=True)
    known: dict[str, int] = {}
    for line in sys.stdin:
        print(json.dumps(answer(contender, json.loads(line), size, known)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
