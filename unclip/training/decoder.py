"""The decoder stage: the U-Net on pictures of the shards, joined by key with the embedding store."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from unclip import checkpoint
from unclip.data.loader import as_pixels, batches_of, join_shards, padded_states
from unclip.data.manifest import Manifest, finished_manifest
from unclip.data.stats import read_stats
from unclip.data.store import emb_width, rows_digest, text_width
from unclip.decoder import Decoder, DecoderCondition, DecoderConfig
from unclip.diffusion.loss import StepSampling, min_snr_weight, steps_at
from unclip.diffusion.process import add_noise, target
from unclip.diffusion.schedule import make_schedule
from unclip.training.config import TrainingConfig
from unclip.training.draws import Draws
from unclip.training.loop import train
from unclip.training.metrics import loss_by_step
from unclip.training.processes import together
from unclip.training.run import has_all_steps, open_run


@dataclass(frozen=True, kw_only=True)
class DecoderStageConfig:
    """The decoder and how it is trained.

    Attributes:
        run: name of the run's folder.
        drop_image_prob, drop_text_prob: how often each condition is hidden, independently (paper: 0.1 and 0.5).
        drop_both_prob: how often both are hidden besides, so that guidance has learnt what it moves away from.
        step_sampling: which noise levels are trained more often.
        min_snr_gamma: weight of the loss by Min-SNR; 0 leaves it unweighted.
    """

    __pydantic_config__ = {"extra": "forbid"}

    run: str = "main"
    network: DecoderConfig = field(default_factory=DecoderConfig)
    drop_image_prob: float = 0.1
    drop_text_prob: float = 0.5
    drop_both_prob: float = 0.0
    step_sampling: StepSampling = "uniform"
    min_snr_gamma: float = 0.0
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(batch_size=64, betas=(0.9, 0.999)))

    def __post_init__(self) -> None:
        for name in ("drop_image_prob", "drop_text_prob", "drop_both_prob"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.drop_text_prob < 1.0 and not self.network.text_states:
            raise ValueError(f"drop_text_prob has no effect without network.text_states; expected 1.0, got {self.drop_text_prob}")


def decoder_inputs(shards: Path, store: Path) -> dict[str, str]:
    """What the stage would read today."""
    return {"shards": finished_manifest(shards, "download").digest, "embeddings": rows_digest(store)}


def decoder_is_trained(run: Path, config: DecoderStageConfig) -> bool:
    """Whether the run in a folder came to its last step."""
    return has_all_steps(run, config.training.num_steps)


def train_decoder(shards: Path, store: Path, run: Path, config: DecoderStageConfig) -> Manifest:
    """Trains the decoder on the training split.

    Raises:
        UnclipError: no picture has an embedding, or the store has no text states while the network wants them.
    """
    stage = open_run(run, "decoder", config, decoder_inputs(shards, store))
    last, rows, rejected = together(_fit, shards, store, run, config)
    counts = {"steps": checkpoint.step_of(last), "rows_in": rows + sum(rejected.values()), "kept": rows, "rejected": rejected}
    return stage.finish(counts=counts, digest=checkpoint.digest(last))


def _fit(shards: Path, store: Path, run: Path, config: DecoderStageConfig) -> tuple[Path, int, dict[str, int]]:
    """Trains; returns the folder of the last checkpoint, the number of training rows, and how many were left out for which reason."""
    joined = join_shards(shards, store, image_size=config.network.unet.image_size, split="train", text_tokens=config.network.text_states)
    pairs, states = joined.pairs, joined.pairs.text_tokens
    image_emb = torch.from_numpy(pairs.image_emb.astype(np.float32))
    torch.manual_seed(config.training.seed)
    model = Decoder(config.network, emb_width=emb_width(store), text_width=text_width(store))
    stats = read_stats(store)["image_emb"]
    model.emb_mean.copy_(torch.tensor(stats["mean"]))
    model.emb_std.copy_(torch.tensor(stats["std"]))
    model = model.to(memory_format=torch.channels_last)
    schedule = make_schedule(config.network.schedule, config.network.num_train_steps)

    def loss_fn(prepared: nn.Module, rows: np.ndarray, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        device = next(prepared.parameters()).device
        x0 = as_pixels(joined.pictures[rows]).to(device, memory_format=torch.channels_last)
        eps = draws.normal(*x0.shape).to(device, memory_format=torch.channels_last)
        i = steps_at(schedule, draws.uniform(len(rows)), config.step_sampling)
        kept = [draws.keep(len(rows), prob) for prob in (config.drop_image_prob, config.drop_text_prob, config.drop_both_prob)]
        keep_image, keep_text = (kept[0] & kept[2]).to(device), (kept[1] & kept[2]).to(device)
        tokens, mask = padded_states(states.take(rows)) if states is not None else (None, None)
        condition = DecoderCondition(
            image_emb[rows].to(device), None if tokens is None else tokens.to(device), None if mask is None else mask.to(device), keep_image, keep_text
        )
        output = prepared(add_noise(schedule, x0, i, eps), schedule.timesteps[i].to(device), condition)
        errors = (output - target(schedule, config.network.prediction, x0, i, eps)).square().mean(dim=(1, 2, 3))
        if config.min_snr_gamma:
            errors = errors * min_snr_weight(schedule, config.network.prediction, i, config.min_snr_gamma).to(device)
        return errors.mean(), loss_by_step(errors, i, len(schedule))

    def batches(start: int) -> Iterator[np.ndarray]:
        return batches_of(len(pairs), config.training.batch_size, seed=config.training.seed, start=start)

    network = checkpoint.as_json(config.network) | {"emb_width": emb_width(store), "text_width": text_width(store)}
    last = train(run, model=model, kind="decoder", network=network, loss_fn=loss_fn, batches=batches, config=config.training)
    return last, len(pairs), dict(joined.rejected)
