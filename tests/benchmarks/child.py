"""One measured process: `python -m tests.benchmarks.child NAME`. It answers each line of JSON on stdin with one on stdout.

Time is the CPU time of this process, which runs on one thread: on a machine that does other work too it says what the
wall clock says on an idle one.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.benchmarks.contenders import CONTENDERS, LAST_TOKENS, MAX_TEXT, Captions, Contender, make_captions, ours

MATMUL_SIZE = 1536
GPU_BATCH = 128


def train_steps(contender: Contender, captions: Captions, *, draws: int, steps: int) -> float:
    """Seconds of whole training steps: forward, backward, AdamW."""
    optimizer = torch.optim.AdamW(contender.network.parameters(), lr=1e-4, fused=True)
    contender.network.train()
    started = 0.0
    for step in range(steps + 1):  # the first allocates gradients and the optimizer's state, and is not counted
        if step == 1:
            started = time.process_time()
        contender.loss(captions, draws).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.process_time() - started


def draw(contender: Contender, captions: Captions, *, num_samples: int, num_calls: int) -> float:
    """Seconds of one draw.

    Raises:
        AssertionError: the library ran another number of network calls than it was asked for.
    """
    contender.network.eval()
    before, started = contender.network_calls(), time.process_time()
    out = contender.draw(captions, num_samples, num_calls)
    seconds = time.process_time() - started
    assert contender.network_calls() - before == num_calls, f"{num_calls} calls were asked for, {contender.network_calls() - before} made"
    assert out.shape[0] == len(captions.text_emb) * num_samples
    return seconds


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def matrices(blocks: nn.Module) -> int:
    """Weights of the transformer's matrices: each costs two operations a token and pass."""
    return sum(parameter.numel() for parameter in blocks.parameters() if parameter.ndim == 2)


def train_flops(contender: Contender, captions: Captions, draws: int) -> float:
    """Operations of the transformer's matrices in one step, forward and backward, over the tokens that really run."""
    length = captions.text_tokens.shape[1] if contender.trims else MAX_TEXT
    return 6.0 * matrices(contender.blocks) * len(captions.text_emb) * (length + 1 + (LAST_TOKENS - 1) * draws)


def draw_flops(contender: Contender, captions: Captions, num_samples: int, num_calls: int) -> float:
    """The same for a draw, forward only."""
    num, length = captions.text_tokens.shape[:2]
    whole = num * num_samples * num_calls * (MAX_TEXT + LAST_TOKENS)
    tokens = num * (length + 1) + num * num_samples * num_calls * (LAST_TOKENS - 1) if contender.trims else whole
    return 2.0 * matrices(contender.blocks) * tokens


def matmul_peak(*, repeats: int = 3) -> float:
    """The best rate of a square float32 product on one thread, in operations a second: the limit of this machine."""
    a = torch.randn(MATMUL_SIZE, MATMUL_SIZE)
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        a @ a
        seconds.append(time.process_time() - started)
    return 2 * MATMUL_SIZE**3 / min(seconds)


def answer(contender: Contender, asked: dict[str, Any]) -> dict[str, Any]:
    captions = make_captions(asked["num"], asked["texts"], seed=0)
    if asked["task"] == "train":
        seconds = train_steps(contender, captions, draws=asked["draws"], steps=asked["steps"])
        rows, flops = asked["num"] * asked["draws"] * asked["steps"], train_flops(contender, captions, asked["draws"]) * asked["steps"]
    else:
        seconds = draw(contender, captions, num_samples=asked["num_samples"], num_calls=asked["num_calls"])
        rows, flops = asked["num"] * asked["num_samples"], draw_flops(contender, captions, asked["num_samples"], asked["num_calls"])
    return {"rate": rows / seconds, "seconds": seconds, "flops_per_second": flops / seconds, "peak_memory_bytes": peak_memory()}


def gpu_utilisation() -> dict[str, Any]:
    """Training of our prior in Karlo's size, in bf16, beside the GPU's best rate of a bf16 product."""
    from unclip.training.prior_diffusion import DiffusionPriorTraining

    contender = ours(width=2048, depth=20, emb=768)
    contender.network.cuda().train()
    optimizer = torch.optim.AdamW(contender.network.parameters(), lr=1e-4, fused=True)
    captions, draws = make_captions(GPU_BATCH, "full", seed=0, width=768).to("cuda"), DiffusionPriorTraining().draws

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = contender.loss(captions, draws)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    peak = 2 * 8192**3 / gpu_seconds(lambda: a @ a)
    rate = train_flops(contender, captions, draws) / gpu_seconds(step)
    return {"device": torch.cuda.get_device_name(), "peak": peak, "utilisation": rate / peak, "peak_memory_bytes": torch.cuda.max_memory_allocated()}


def gpu_seconds(work: Callable[[], object], *, repeats: int = 10) -> float:
    """Seconds of one of several repeats, after as many to warm up."""
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats


def peak_memory() -> int:
    """Bytes, of this program alone (Linux): `ru_maxrss` would begin at what the process that started it holds."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main(name: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if name == "matmul":
        print(json.dumps({"peak": matmul_peak()}), flush=True)
        return
    if name == "gpu":
        print(json.dumps(gpu_utilisation()), flush=True)
        return
    contender = CONTENDERS[name]()
    print(json.dumps({"version": contender.version, "parameters": parameters(contender.network), "imported_bytes": peak_memory()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(contender, json.loads(line))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
