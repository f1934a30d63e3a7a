"""The autoregressive prior of the prior stage: codes fitted to cached embeddings, and a transformer trained to say them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unclip import checkpoint
from unclip.data.manifest import runtime
from unclip.data.store import emb_width, text_width, training_rows
from unclip.prior.autoregressive import AutoregressivePrior, AutoregressivePriorConfig, load_autoregressive_prior
from unclip.prior.codes import EmbeddingCodes, fit_codes
from unclip.training.config import TrainingConfig
from unclip.training.draws import Draws
from unclip.training.loop import train
from unclip.training.prior_data import read_prior_data, set_whitening
from unclip.training.snapshot import whence


@dataclass(frozen=True, kw_only=True)
class AutoregressivePriorTraining:
    """The autoregressive prior and how it is trained.

    Attributes:
        drop_prob: how often the caption is hidden, for guidance (paper, section 2.2).
        reading: from the mapped cache, or straight from the Parquet store into memory.
    """

    __pydantic_config__ = {"extra": "forbid"}

    network: AutoregressivePriorConfig = field(default_factory=AutoregressivePriorConfig)
    drop_prob: float = 0.1
    reading: Literal["cache", "store"] = runtime("cache")
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(batch_size=256, weight_decay=0.04, betas=(0.9, 0.91), adam_eps=1e-10))

    def __post_init__(self) -> None:
        if not 0.0 <= self.drop_prob < 1.0:
            raise ValueError(f"drop_prob must be in [0, 1), got {self.drop_prob}")


def train_autoregressive_prior(store: Path, run: Path, config: AutoregressivePriorTraining) -> Path:
    """Trains on the training split of the store; returns the folder of the last checkpoint.

    Raises:
        UnclipError: the store has no text states, or captions longer than the network takes; or the image embeddings
            need more components than the config allows.
    """
    data = read_prior_data(
        store, reading=config.reading, max_text_tokens=config.network.max_text_tokens, setting="prior.autoregressive.network.max_text_tokens"
    )
    fitted = _codes(store, run, config)
    torch.manual_seed(config.training.seed)
    widths = {"emb_width": emb_width(store), "text_width": text_width(store), "num_components": len(fitted.stds)}
    model = AutoregressivePrior(config.network, **widths)
    model.codes.load_state_dict(fitted.state_dict())
    set_whitening(store, image=None, text=model.caption)

    def loss_fn(prepared: nn.Module, rows: np.ndarray, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        device = next(prepared.parameters()).device
        condition, image_emb = data.condition(rows, device), data.image_emb(rows, device)
        keep = draws.keep(len(rows), config.drop_prob).to(device)
        dot, code = model.codes.dot_tokens(image_emb, condition.text_emb), model.codes.encode(image_emb)
        dot_logits, code_logits = prepared(condition, keep, dot, code)
        return token_loss(dot_logits, code_logits, dot, code)

    network = checkpoint.as_json(config.network) | widths
    return train(run, model=model, kind="prior-autoregressive", network=network, loss_fn=loss_fn, batches=data.batches(config.training), config=config.training)


def token_loss(dot_logits: Tensor, code_logits: Tensor, dot: Tensor, codes: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean cross-entropy of a token in nats, the dot token being one of them, and its parts.

    Args:
        dot_logits, code_logits: (B, num_dot_buckets) and (B, num_components, num_buckets).
        dot, codes: (B,) and (B, num_components), the true tokens.
    """
    dot_loss, code_loss = F.cross_entropy(dot_logits, dot), F.cross_entropy(code_logits.flatten(0, 1), codes.flatten())
    num_codes = codes.shape[1]
    return (dot_loss + num_codes * code_loss) / (1 + num_codes), {"loss_dot": dot_loss, "bits_per_code": code_loss / math.log(2)}


def _codes(store: Path, run: Path, config: AutoregressivePriorTraining) -> EmbeddingCodes:
    """The codes that the network says: fitted to the store, or those of the network that it begins with."""
    if config.training.warm_start:
        return load_autoregressive_prior(whence(run, config.training.warm_start)).codes
    network = config.network
    return fit_codes(
        ((batch["image_emb"], batch["text_emb"]) for batch in training_rows(store, ["image_emb", "text_emb"])),
        emb_width(store),
        explained=network.explained,
        max_components=network.max_components,
        num_buckets=network.num_buckets,
        num_dot_buckets=network.num_dot_buckets,
    )
