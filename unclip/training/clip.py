"""The clip stage: a CLIP trained here on the shards, or one taken from open_clip or a checkpoint file."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from unclip import checkpoint
from unclip.clip import TowerConfig, contrastive_loss, import_clip, make_clip, make_tokenizer, save_clip, training_preprocess
from unclip.data.contracts import SHARD, read_table
from unclip.data.loader import Piece, batches_of
from unclip.data.manifest import Manifest, finished_manifest
from unclip.data.shards import read_shard
from unclip.files import UnclipError, sha256_file
from unclip.progress import progress
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
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: str = "own"
    model: str = ""
    pretrained: str = ""
    tower: TowerConfig = field(default_factory=TowerConfig)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(batch_size=256, weight_decay=0.1, betas=(0.9, 0.98), ema_decays=(0.99,)))

    def __post_init__(self) -> None:
        if bool(self.model) != bool(self.pretrained):
            raise ValueError(f"model and pretrained go together, got model={self.model!r} and pretrained={self.pretrained!r}")
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"name must be a plain folder name, got {self.name!r}")
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
    pixels, captions = _read_training_pairs(shards, config.tower)
    token_ids = make_tokenizer(config.tower)(captions)
    torch.manual_seed(config.training.seed)
    model = make_clip(config.tower)

    def loss_fn(model: nn.Module, rows: Tensor, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        device = next(model.parameters()).device
        batch = pixels[rows].float().to(device)
        return contrastive_loss(model, batch, token_ids[rows].to(device)), {}

    def batches(start: int, own: Piece) -> Iterator[Tensor]:
        return (torch.from_numpy(rows) for rows in batches_of(len(pixels), config.training.batch_size, seed=config.training.seed, start=start, piece=own))

    network = checkpoint.as_json(config.tower)
    last = train(out / "training", model=model, kind="clip", network=network, loss_fn=loss_fn, batches=batches, config=config.training)
    save_clip(out, config.tower, checkpoint.read_tensors(last / checkpoint.EMA), origin="trained here")
    return {"steps": checkpoint.step_of(last), "rows_in": len(pixels), "kept": len(pixels), "rejected": {}}


def _read_training_pairs(shards: Path, tower: TowerConfig) -> tuple[Tensor, list[str]]:
    """Preprocessed pictures (n, 3, H, H) in half precision, and captions, of the training split."""
    preprocess = training_preprocess(tower)
    pixels, captions = [], []
    paths = sorted(shards.glob("*.tar"))
    with progress("pictures", len(paths), unit="shard") as bar:
        for path in paths:
            listed = read_table(path.with_suffix(".parquet"), SHARD)
            training = {key for key, split in zip(listed["key"].to_pylist(), listed["split"].to_pylist(), strict=True) if split == "train"}
            for sample in read_shard(path):
                if sample.key in training:
                    pixels.append(preprocess(Image.open(io.BytesIO(sample.image))).half())
                    captions.append(sample.caption)
            bar.advance()
    if not pixels:
        raise UnclipError(f"{shards} holds no pair of the split 'train', so there is nothing to train a CLIP on")
    return torch.stack(pixels), captions
