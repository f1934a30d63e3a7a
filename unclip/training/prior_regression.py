"""The regression prior of the prior stage: trained on cached embeddings to hit the image embedding in one pass."""

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
from unclip.data.store import emb_width, text_width
from unclip.prior.regression import RegressionPrior, RegressionPriorConfig
from unclip.training.config import TrainingConfig
from unclip.training.draws import Draws
from unclip.training.loop import train
from unclip.training.prior_data import read_prior_data, set_whitening

TEMPERATURE = 0.07  # CLIP's at the start of its training; what ECLIPSE's was is not known here


@dataclass(frozen=True, kw_only=True)
class RegressionPriorTraining:
    """The regression prior and how it is trained.

    The projection loss is the mean squared error of whitened embeddings, so that its size, and with it the weight of the
    contrastive one, does not depend on the CLIP.

    Attributes:
        contrastive_weight: of the contrastive loss beside the projection loss; ECLIPSE's 0.2. Much more leaves the image embeddings' space.
        reading: from the mapped cache, or straight from the Parquet store into memory.
    """

    __pydantic_config__ = {"extra": "forbid"}

    network: RegressionPriorConfig = field(default_factory=RegressionPriorConfig)
    contrastive_weight: float = 0.2
    reading: Literal["cache", "store"] = runtime("cache")
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(batch_size=256, weight_decay=0.06, betas=(0.9, 0.96), adam_eps=1e-6))

    def __post_init__(self) -> None:
        if self.contrastive_weight < 0.0:
            raise ValueError(f"contrastive_weight must not be negative, got {self.contrastive_weight}")
        if self.contrastive_weight and self.training.accumulate != 1:
            raise ValueError(f"the contrastive loss compares the whole batch; expected training.accumulate 1, got {self.training.accumulate}")


def train_regression_prior(store: Path, run: Path, config: RegressionPriorTraining) -> Path:
    """Trains on the training split of the store; returns the folder of the last checkpoint.

    Raises:
        UnclipError: the store has no text states, or captions longer than the network takes.
    """
    data = read_prior_data(store, reading=config.reading, max_text_tokens=config.network.max_text_tokens, setting="prior.regression.network.max_text_tokens")
    torch.manual_seed(config.training.seed)
    widths = {"emb_width": emb_width(store), "text_width": text_width(store)}
    model = RegressionPrior(config.network, **widths)
    set_whitening(store, image=model, text=model.caption)

    def loss_fn(prepared: nn.Module, rows: np.ndarray, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        device = next(prepared.parameters()).device
        condition = data.condition(rows, device)
        predicted = prepared(condition)
        projection = F.mse_loss(predicted, model.whiten(data.image_emb(rows, device)))
        contrast = contrastive_loss(model.unwhiten(predicted), condition.text_emb)
        return projection + config.contrastive_weight * contrast, {"loss_projection": projection, "loss_contrastive": contrast}

    network = checkpoint.as_json(config.network) | widths
    return train(run, model=model, kind="prior-regression", network=network, loss_fn=loss_fn, batches=data.batches(config.training), config=config.training)


def contrastive_loss(predicted: Tensor, text_emb: Tensor) -> Tensor:
    """How badly each raw predicted image embedding (B, E) finds its own among the batch's text embeddings (B, E), in nats (arXiv 2312.04655).

    Only the rows of this call compete: in a batch that is spread over processes each row has fewer rivals.
    """
    logits = F.normalize(predicted, dim=-1) @ F.normalize(text_emb, dim=-1).T / TEMPERATURE
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
