"""The regression prior of the prior stage: trained on cached embeddings to hit the image embedding in one pass."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unclip import checkpoint
from unclip.data.loader import batches_of, padded_states
from unclip.data.stats import STATS
from unclip.data.store import emb_width, read_pairs, text_width
from unclip.files import UnclipError, read_json
from unclip.prior.condition import TextCondition
from unclip.prior.regression import RegressionPrior, RegressionPriorConfig
from unclip.training.draws import Draws
from unclip.training.loop import TrainingConfig, train

TEMPERATURE = 0.07  # CLIP's at the start of its training; what ECLIPSE's was is not known here


@dataclass(frozen=True, kw_only=True)
class RegressionPriorTraining:
    """The regression prior and how it is trained.

    The projection loss is the mean squared error of whitened embeddings, so that its size, and with it the weight of the
    contrastive one, does not depend on the CLIP.

    Attributes:
        contrastive_weight: of the contrastive loss beside the projection loss; ECLIPSE's 0.2. Much more leaves the image embeddings' space.
    """

    __pydantic_config__ = {"extra": "forbid"}

    network: RegressionPriorConfig = field(default_factory=RegressionPriorConfig)
    contrastive_weight: float = 0.2
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(batch_size=256, weight_decay=0.06, betas=(0.9, 0.96), adam_eps=1e-6))

    def __post_init__(self) -> None:
        if self.contrastive_weight < 0.0:
            raise ValueError(f"contrastive_weight must not be negative, got {self.contrastive_weight}")


def train_regression_prior(store: Path, run: Path, config: RegressionPriorTraining) -> Path:
    """Trains on the training split of the store; returns the folder of the last checkpoint.

    Raises:
        UnclipError: the store has no text states, or captions longer than the network takes.
    """
    pairs = read_pairs(store, split="train", text_tokens=True)
    states = pairs.text_tokens
    if states is None or max(map(len, states)) > config.network.max_text_tokens:
        raise UnclipError(
            f"prior.regression.network.max_text_tokens is {config.network.max_text_tokens}, "
            f"but the longest caption in {store} has {max(map(len, states or []))} tokens"
        )
    image_emb, text_emb = (torch.from_numpy(values.astype(np.float32)) for values in (pairs.image_emb, pairs.text_emb))
    torch.manual_seed(config.training.seed)
    widths = {"emb_width": emb_width(store), "text_width": text_width(store)}
    model = RegressionPrior(config.network, **widths)
    stats = read_json(store / STATS)
    for mean, std, key in ((model.emb_mean, model.emb_std, "image_emb"), (model.caption.text_mean, model.caption.text_std, "text_emb")):
        mean.copy_(torch.tensor(stats[key]["mean"]))
        std.copy_(torch.tensor(stats[key]["std"]))

    def loss_fn(prepared: nn.Module, rows: np.ndarray, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        device = next(prepared.parameters()).device
        tokens, mask = padded_states([states[row] for row in rows])
        condition = TextCondition(text_emb[rows].to(device), tokens.to(device), mask.to(device))
        predicted = prepared(condition)
        projection = F.mse_loss(predicted, model.whiten(image_emb[rows].to(device)))
        contrast = contrastive_loss(model.unwhiten(predicted), condition.text_emb)
        return projection + config.contrastive_weight * contrast, {"loss_projection": projection, "loss_contrastive": contrast}

    def batches(start: int) -> Iterator[np.ndarray]:
        return batches_of(len(pairs), config.training.batch_size, seed=config.training.seed, start=start)

    network = checkpoint.as_json(config.network) | widths
    return train(run, model=model, kind="prior-regression", network=network, loss_fn=loss_fn, batches=batches, config=config.training)


def contrastive_loss(predicted: Tensor, text_emb: Tensor) -> Tensor:
    """How badly each raw predicted image embedding (B, E) finds its own among the batch's text embeddings (B, E), in nats (arXiv 2312.04655).

    Only the rows of this call compete: a batch that is spread over processes or taken in several goes has fewer rivals.
    """
    logits = F.normalize(predicted, dim=-1) @ F.normalize(text_emb, dim=-1).T / TEMPERATURE
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
