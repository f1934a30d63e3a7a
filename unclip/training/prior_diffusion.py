"""The diffusion prior of the prior stage: trained on cached embeddings."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from unclip import checkpoint
from unclip.data.cache import open_pairs
from unclip.data.loader import as_floats, batches_of, padded_states
from unclip.data.manifest import runtime
from unclip.data.stats import STATS
from unclip.data.store import emb_width, text_width
from unclip.diffusion.loss import steps_at
from unclip.diffusion.process import add_noise, target
from unclip.files import UnclipError, read_json
from unclip.prior.condition import TextCondition
from unclip.prior.diffusion import DiffusionPrior, DiffusionPriorConfig
from unclip.training.config import TrainingConfig
from unclip.training.draws import Draws
from unclip.training.loop import train


@dataclass(frozen=True, kw_only=True)
class DiffusionPriorTraining:
    """The diffusion prior and how it is trained.

    Attributes:
        drop_prob: how often the caption is hidden, for guidance (paper, section 2.2).
        draws: noise draws that share one caption's prefix in a step; the caption's part of the work is done once for all.
        reading: "cache" maps the training rows from plain files beside the store, "store" reads them into memory.
    """

    __pydantic_config__ = {"extra": "forbid"}

    network: DiffusionPriorConfig = field(default_factory=DiffusionPriorConfig)
    drop_prob: float = 0.1
    draws: int = 4
    reading: Literal["cache", "store"] = runtime("cache")
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(batch_size=256, weight_decay=0.06, betas=(0.9, 0.96), adam_eps=1e-6))

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"draws must be at least 1, got {self.draws}")
        if not 0.0 <= self.drop_prob < 1.0:
            raise ValueError(f"drop_prob must be in [0, 1), got {self.drop_prob}")


def train_diffusion_prior(store: Path, run: Path, config: DiffusionPriorTraining) -> Path:
    """Trains on the training split of the store; returns the folder of the last checkpoint.

    Raises:
        UnclipError: the store has no text states, or captions longer than the network takes.
    """
    pairs = open_pairs(store, split="train", text_tokens=True, reading=config.reading)
    states = pairs.text_tokens
    if states is None or states.lengths.max() > config.network.max_text_tokens:
        longest = 0 if states is None else states.lengths.max()
        raise UnclipError(f"prior.network.max_text_tokens is {config.network.max_text_tokens}, but the longest caption in {store} has {longest} tokens")
    torch.manual_seed(config.training.seed)
    model = DiffusionPrior(config.network, emb_width=emb_width(store), text_width=text_width(store))
    set_whitening(model, read_json(store / STATS))
    schedule = model.schedule()

    def loss_fn(prepared: nn.Module, rows: np.ndarray, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        device = next(prepared.parameters()).device
        tokens, mask = padded_states(states.take(rows))
        condition = TextCondition(as_floats(pairs.text_emb[rows]).to(device), tokens.to(device), mask.to(device))
        keep = draws.keep(len(rows), config.drop_prob)
        x0 = model.whiten(as_floats(pairs.image_emb[rows]).to(device)).repeat_interleave(config.draws, 0)
        i = steps_at(schedule, draws.uniform(len(x0)), "uniform")
        eps = draws.normal(*x0.shape).to(device)
        prefix = model.read_text(condition, keep.to(device)).repeat(config.draws)
        output = prepared(add_noise(schedule, x0, i, eps), schedule.timesteps[i].to(device), prefix)
        errors = (output - target(schedule, config.network.prediction, x0, i, eps)).square().mean(dim=1)
        noisy = i.to(device) >= len(schedule) // 2
        return errors.mean(), {"loss_less_noise": errors[~noisy].mean(), "loss_more_noise": errors[noisy].mean()}

    def batches(start: int) -> Iterator[np.ndarray]:
        return batches_of(len(pairs), config.training.batch_size, seed=config.training.seed, start=start, lengths=states.lengths)

    network = checkpoint.as_json(config.network) | {"emb_width": emb_width(store), "text_width": text_width(store)}
    return train(run, model=model, kind="prior-diffusion", network=network, loss_fn=loss_fn, batches=batches, config=config.training)


def set_whitening(model: DiffusionPrior, stats: Mapping[str, Mapping[str, list[float]]]) -> None:
    """Copies the store's statistics into the prior's buffers."""
    for name, key in (("emb", "image_emb"), ("text", "text_emb")):
        getattr(model, f"{name}_mean").copy_(torch.tensor(stats[key]["mean"]))
        getattr(model, f"{name}_std").copy_(torch.tensor(stats[key]["std"]))
