"""The clip stage: a CLIP trained here on the shards, or one taken from open_clip or a checkpoint file."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from unclip import checkpoint
from unclip.clip import TowerConfig, contrastive_loss, import_clip, make_clip, save_clip
from unclip.data.loader import Piece
from unclip.data.manifest import Manifest, finished_manifest, runtime
from unclip.files import sha256_file
from unclip.layout import require_plain_name
from unclip.training.clip_data import PairBatch, open_clip_pairs
from unclip.training.config import TrainingConfig
from unclip.training.draws import Draws
from unclip.training.loop import train
from unclip.training.run import has_all_steps, open_run

WEIGHTS_DIGEST = 16  # hexadecimal digits


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Which CLIP everything stands on.

    Attributes:
        name: of the CLIP's folder; embeddings and index are kept apart by it.
        model, pretrained: a model of open_clip and a tag or checkpoint file of it; both empty trains one here.
        tower, training: the CLIP that is trained here, and how.
        num_workers: processes that decode pictures ahead of the model; 0 decodes in the training process.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: str = "own"
    model: str = ""
    pretrained: str = ""
    tower: TowerConfig = field(default_factory=TowerConfig)
    num_workers: int = runtime(0)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(batch_size=256, weight_decay=0.1, betas=(0.9, 0.98), ema_decays=(0.99,)))

    def __post_init__(self) -> None:
        if bool(self.model) != bool(self.pretrained):
            raise ValueError(f"model and pretrained go together, got model={self.model!r} and pretrained={self.pretrained!r}")
        if self.num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {self.num_workers}")
        require_plain_name("name", self.name)
        if self.training.accumulate != 1:
            raise ValueError(f"CLIP's loss compares the whole batch; expected training.accumulate 1, got {self.training.accumulate}")


def clip_inputs(shards: Path, config: ClipConfig) -> dict[str, str]:
    """What the stage would read today: a CLIP trained here is made once, and not again when the shards grow."""
    if not config.model:
        return {"shards": "those of its first run"}
    file = Path(config.pretrained)
    return {"checkpoint": sha256_file(file)} if file.is_file() else {}


def clip_is_trained(out: Path, config: ClipConfig) -> bool:
    """Whether the CLIP in a folder was taken from elsewhere, or came to its last step."""
    return has_all_steps(out, 0 if config.model else config.training.num_steps)


def make_or_import_clip(shards: Path, out: Path, config: ClipConfig) -> Manifest:
    """Leaves an open_clip local-dir in `out`.

    Raises:
        UnclipError: the model or tag is unknown, weights can't be had, or the shards hold no training pair.
    """
    stage = open_run(out, "clip", config, clip_inputs(shards, config))
    if config.model:
        import_clip(out, config.model, config.pretrained)
        counts: dict[str, object] = {"steps": 0}
    else:
        counts = _train(shards, out, config)
    return stage.finish(counts=counts, digest=sha256_file(out / "open_clip_model.safetensors")[:WEIGHTS_DIGEST])


def _train(shards: Path, out: Path, config: ClipConfig) -> dict[str, object]:
    finished_manifest(shards, "download")
    pairs = open_clip_pairs(shards, config.tower)
    torch.manual_seed(config.training.seed)
    model = make_clip(config.tower)

    def loss_fn(model: nn.Module, batch: PairBatch, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        device = next(model.parameters()).device
        pixels, token_ids = (value.to(device, non_blocking=True) for value in (batch.pixels, batch.token_ids))
        return contrastive_loss(model, pixels.float(), token_ids), {}

    def batches(start: int, own: Piece) -> Iterator[PairBatch]:
        pin, workers = next(model.parameters()).is_cuda, config.num_workers
        return pairs.batches(config.training.batch_size, seed=config.training.seed, start=start, piece=own, num_workers=workers, pin=pin)

    network = checkpoint.as_json(config.tower)
    last = train(out / "training", model=model, kind="clip", network=network, loss_fn=loss_fn, batches=batches, config=config.training)
    save_clip(out, config.tower, checkpoint.read_tensors(last / checkpoint.EMA), origin="trained here")
    return {"steps": checkpoint.step_of(last), "rows_in": len(pairs), "kept": len(pairs), "rejected": {}}
