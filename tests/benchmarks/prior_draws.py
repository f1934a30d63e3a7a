"""How many noise draws should share a caption in training: validation loss of the diffusion prior against seconds, by k.

    python tests/benchmarks/prior_draws.py [--seconds 25]

Each k trains the same network on the same made-up captions for the same time. Seconds are those of this process on one
thread, so that a busy machine does not bend the curves; validation is not counted.
"""

import argparse
import json
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor

from unclip.data.loader import batches_of
from unclip.diffusion.process import add_noise
from unclip.prior.condition import TextCondition
from unclip.prior.diffusion import DiffusionPrior, DiffusionPriorConfig
from unclip.training.draws import Draws
from unclip.training.ema import Ema
from unclip.training.optim import make_optimizers
from unclip.training.prior_diffusion import DiffusionPriorTraining, diffusion_loss

mpl.use("agg")
from matplotlib import pyplot as plt  # the backend comes first

RESULTS = Path(__file__).parent / "results"
DRAWS = (1, 2, 4, 8, 16)
NUM_TRAIN, NUM_VALID, VALID_DRAWS = 16_000, 512, 8
E, S, WORDS, NOISE = 64, 64, 48, 0.5
SHORTEST, LONGEST = 8, 20
BATCH, LEARNING_RATE, WARMUP, EMA_DECAY = 32, 2e-3, 20, 0.98
NETWORK = DiffusionPriorConfig(width=64, depth=3, head_width=32, max_text_tokens=LONGEST)


class Captions:
    """Sentences of random words; the image embedding is a random network's answer to the words and where they stand, and noise."""

    def __init__(self, num: int, seed: int) -> None:
        world, own = np.random.default_rng(0), np.random.default_rng([1, seed])
        words, places = world.normal(size=(WORDS, S)), world.normal(size=(LONGEST, S))
        layers = [world.normal(size=shape) / shape[0] ** 0.5 for shape in ((S, 2 * S), (2 * S, E))]
        lengths = own.integers(SHORTEST, LONGEST + 1, num)
        self.mask = np.arange(LONGEST) < lengths[:, None]
        self.states = (words[own.integers(0, WORDS, (num, LONGEST))] * self.mask[..., None]).astype(np.float32)
        summed = (self.states * places).sum(1) / lengths[:, None] ** 0.5
        self.text_emb = np.tanh(summed @ world.normal(size=(S, E)) / S**0.5).astype(np.float32)
        clean = np.tanh(2 * summed @ layers[0]) @ layers[1]
        self.image_emb = (clean / clean.std() * (1 - NOISE**2) ** 0.5 + NOISE * own.normal(size=clean.shape)).astype(np.float32)

    def batch(self, rows: np.ndarray) -> tuple[TextCondition, Tensor]:
        """Captions trimmed to the longest of the batch, and their image embeddings."""
        length = int(self.mask[rows].sum(1).max())
        states, mask = torch.from_numpy(self.states[rows, :length]), torch.from_numpy(self.mask[rows, :length])
        return TextCondition(torch.from_numpy(self.text_emb[rows]), states, mask), torch.from_numpy(self.image_emb[rows])


@torch.no_grad()
def validation_loss(model: DiffusionPrior, captions: Captions) -> float:
    """Mean squared error of x0 on captions never trained on, at the same evenly spread steps and the same noise each time."""
    generator, losses = torch.Generator().manual_seed(2), []
    for rows in np.split(np.arange(NUM_VALID), 4):
        condition, image_emb = captions.batch(rows)
        x0 = image_emb.repeat_interleave(VALID_DRAWS, 0)
        i = torch.arange(len(x0)) * len(model.schedule()) // len(x0)
        i = i[torch.randperm(len(i), generator=generator)]
        x_t = add_noise(model.schedule(), x0, i, torch.randn(x0.shape, generator=generator))
        out = model(condition, torch.ones(len(rows), dtype=torch.bool), x_t.view(len(rows), VALID_DRAWS, E), i.view(len(rows), VALID_DRAWS))
        losses.append((out.flatten(0, 1) - x0).square().mean().item())
    return float(np.mean(losses))


def train(num_draws: int, seconds: float, training: Captions, valid: Captions) -> list[tuple[float, int, float]]:
    """(seconds, steps, validation loss of the EMA weights), from the first warm step on."""
    torch.manual_seed(0)
    config = DiffusionPriorTraining(network=NETWORK, draws=num_draws)
    model, averaged = (DiffusionPrior(NETWORK, emb_width=E, text_width=S) for _ in range(2))
    optimizers = make_optimizers(model, "muon", lr=LEARNING_RATE, weight_decay=0.06, betas=(0.9, 0.96), eps=1e-6)
    ema, curve, spent, step = Ema(model, EMA_DECAY), [], 0.0, 0
    batches = batches_of(NUM_TRAIN, BATCH, seed=0, start=0)
    while spent < seconds:
        began = time.process_time()
        condition, image_emb = training.batch(next(batches))
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP)
        loss, _ = diffusion_loss(model, model, condition, image_emb, Draws(0, step), config)
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        ema.update(model, step)
        spent += time.process_time() - began
        if spent > (len(curve) + 1) * seconds / 12:
            averaged.load_state_dict(ema.state)
            curve.append((round(spent, 2), step, round(validation_loss(averaged, valid), 5)))
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=25.0, help="of training for each k")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    training, valid = Captions(NUM_TRAIN, 0), Captions(NUM_VALID, 1)
    curves = {num: train(num, seconds, training, valid) for num in DRAWS}
    print("  k   steps   ms/step   validation loss after 1/4, 1/2 and all of the time")
    for num, curve in curves.items():
        spent, steps, _ = curve[-1]
        print(f"{num:3} {steps:7} {1000 * spent / steps:9.1f}   {curve[len(curve) // 4 - 1][2]:.4f}  {curve[len(curve) // 2 - 1][2]:.4f}  {curve[-1][2]:.4f}")
        plt.plot(*zip(*[(at, loss) for at, _, loss in curve], strict=True), marker=".", label=f"k = {num}")
    RESULTS.mkdir(exist_ok=True)
    content = {"batch": BATCH, "network": {"width": NETWORK.width, "depth": NETWORK.depth}, "torch": torch.__version__, "noise_floor": NOISE**2}
    content |= {"columns": ["seconds", "steps", "validation_loss"], "curves": {str(num): curve for num, curve in curves.items()}}
    (RESULTS / "prior_draws.json").write_text(json.dumps(content, indent=1) + "\n")
    plt.xlabel("seconds of one thread")
    plt.ylabel("validation loss (x0, unit variance)")
    plt.legend()
    plt.savefig(RESULTS / "prior_draws.png", dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
