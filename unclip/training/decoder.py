"""The decoder stage: the U-Net on pictures of the shards, joined by key with the embedding store."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from unclip import checkpoint
from unclip.data.loader import Piece, as_pixels
from unclip.data.manifest import Manifest, finished_manifest, runtime
from unclip.data.pictures import PictureBatch, PictureConfig, open_pictures
from unclip.data.stats import read_stats
from unclip.data.store import emb_width, rows_digest, text_width
from unclip.decoder import Decoder, DecoderConfig
from unclip.diffusion.loss import StepSampling
from unclip.layout import require_plain_name
from unclip.training.config import TrainingConfig
from unclip.training.decoder_loss import DecoderBatch, decoder_loss
from unclip.training.draws import Draws
from unclip.training.loop import train
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
        pictures: how they are read.
        checkpoint_activations: whether activations are computed again in the backward pass instead of being kept.
    """

    __pydantic_config__ = {"extra": "forbid"}

    run: str = "main"
    network: DecoderConfig = field(default_factory=DecoderConfig)
    drop_image_prob: float = 0.1
    drop_text_prob: float = 0.5
    drop_both_prob: float = 0.0
    step_sampling: StepSampling = "uniform"
    min_snr_gamma: float = 0.0
    checkpoint_activations: bool = runtime(False)
    pictures: PictureConfig = field(default_factory=PictureConfig)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(batch_size=64, betas=(0.9, 0.999)))

    def __post_init__(self) -> None:
        require_plain_name("run", self.run)
        for name in ("drop_image_prob", "drop_text_prob", "drop_both_prob"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.drop_text_prob < 1.0 and not self.network.sees_text:
            raise ValueError(f"drop_text_prob has no effect without network.text_states or text_to_step; expected 1.0, got {self.drop_text_prob}")
        if self.min_snr_gamma < 0.0:
            raise ValueError(f"min_snr_gamma must be at least 0, got {self.min_snr_gamma}")


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
    pictures = open_pictures(
        shards, store, config.pictures, split="train", image_size=config.network.unet.image_size,
        text_tokens=config.network.text_states, seed=config.training.seed,
    )  # fmt: skip
    torch.manual_seed(config.training.seed)
    model = Decoder(config.network, emb_width=emb_width(store), text_width=text_width(store))
    stats = read_stats(store)[f"{config.network.embedding}_emb"]
    model.emb_mean.copy_(torch.tensor(stats["mean"]))
    model.emb_std.copy_(torch.tensor(stats["std"]))
    model = model.to(memory_format=torch.channels_last)
    model.unet.checkpoint_activations = config.checkpoint_activations

    def loss_fn(prepared: nn.Module, batch: PictureBatch, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        device = next(prepared.parameters()).device
        held = batch.to(device)
        x0 = as_pixels(held.pictures).to(memory_format=torch.channels_last)
        embedding = {"image": held.image_emb, "text": held.text_emb}[config.network.embedding]
        return decoder_loss(prepared, model, DecoderBatch(x0, embedding, held.text_tokens, held.text_mask, held.text_emb), draws, config)

    def batches(start: int, own: Piece) -> Iterator[PictureBatch]:
        pin = model.emb_mean.is_cuda
        return pictures.batches(config.training.batch_size, start=start, piece=own, num_workers=config.pictures.num_workers, pin=pin)

    network = checkpoint.as_json(config.network) | {"emb_width": emb_width(store), "text_width": text_width(store)}
    last = train(run, model=model, kind="decoder", network=network, loss_fn=loss_fn, batches=batches, config=config.training)
    return last, len(pictures), dict(pictures.joined.rejected)
