"""A full disk is foreseen: what a stage will write, by the formulas of `unclip plan`, against what is free."""

import shutil
from pathlib import Path

import torch

from unclip.config import RunConfig
from unclip.data.manifest import read_manifest, read_part
from unclip.data.rounds import SHARDS_AT_ONCE
from unclip.data.store import emb_width, text_width
from unclip.decoder import Decoder
from unclip.files import UnclipError
from unclip.layout import Paths
from unclip.plan import sizes
from unclip.plan.assumed import Assumed
from unclip.prior.diffusion import DiffusionPrior
from unclip.training.config import TrainingConfig
from unclip.training.snapshot import KEPT_CHECKPOINTS
from unclip.upsampler import Upsampler

SPARE_BYTES = 200e6  # that are left alone: logs, records, the report
WIDEST = 1024  # embeddings of a published CLIP, and states of its captions, before the first is made
MOMENTS = 2  # of an optimizer, at the most


def require_space(stage: str, config: RunConfig, paths: Paths) -> None:
    """Refuses to begin what the disk has no room for.

    Raises:
        UnclipError: it has not; the message says how much is needed.
    """
    needed, free = expected_bytes(stage, config, paths), free_bytes(paths.root)
    if needed + SPARE_BYTES > free:
        raise UnclipError(
            f"{stage} will write about {needed / 1e9:,.2f} GB below {paths.root}, where {free / 1e9:,.2f} GB are free and {SPARE_BYTES / 1e9:.2f} are left "
            "alone; free some space, or use a root on another disk"
        )


def free_bytes(root: Path) -> float:
    """What is free on the disk of a root."""
    return float(shutil.disk_usage(_existing(root)).free)


def expected_bytes(stage: str, config: RunConfig, paths: Paths) -> float:
    """About how much a stage has still to write; 0 where that is little, or not known before the stage begins."""
    assumed = Assumed()
    if stage == "download":
        rows = max(0, _rows(paths.source) - _done(paths.shards))
        scratch = min(rows, SHARDS_AT_ONCE * config.source.shard_size)  # pictures that have come, and are not yet in their shard
        return sizes.shard_bytes(rows + scratch, sizes.picture_bytes(config.download.image_size, assumed), assumed)
    if stage == "embed":
        return _vector_bytes(max(0, _kept(paths.shards) - _done(paths.embeddings)), config, paths, assumed)
    if stage == "index":  # no kind takes more for a vector than the exact one
        return _kept(paths.embeddings) * 4.0 * _emb_width(config, paths) + sizes.keys_bytes(_kept(paths.embeddings), assumed)
    if stage == "prior":
        network = config.prior.network
        with torch.device("meta"):
            model = DiffusionPrior(network, emb_width=emb_width(paths.embeddings), text_width=text_width(paths.embeddings))
        cache = _vector_bytes(_kept(paths.embeddings), config, paths, assumed) if config.prior.reading == "cache" else 0.0
        return len(config.prior.kinds) * _checkpoints(model, config.prior.training) + cache
    if stage == "decoder":
        with torch.device("meta"):
            decoder = Decoder(config.decoder.network, emb_width=emb_width(paths.embeddings), text_width=text_width(paths.embeddings))
        return _checkpoints(decoder, config.decoder.training)
    if stage == "upsampler":
        with torch.device("meta"):
            return sum(_checkpoints(Upsampler(section.network), section.training) for section in config.upsampler.wanted.values())
    return 0.0


def _checkpoints(model: torch.nn.Module, training: TrainingConfig) -> float:
    """Of a training: those that are kept, and the one that is being written."""
    parameters = sum(value.numel() for value in model.parameters())
    return sizes.checkpoint_bytes(parameters, num_averages=len(training.ema_decays), num_moments=MOMENTS, kept=KEPT_CHECKPOINTS + 1)


def _vector_bytes(rows: float, config: RunConfig, paths: Paths, assumed: Assumed) -> float:
    width = _emb_width(config, paths)
    states = sizes.text_state_bytes(rows, width, assumed) if config.embed.text_tokens else 0.0
    return sizes.pooled_bytes(rows, width) + states + sizes.store_rest_bytes(rows, assumed)


def _emb_width(config: RunConfig, paths: Paths) -> int:
    if any(paths.embeddings.glob("[0-9]*.parquet")):
        return emb_width(paths.embeddings)
    return WIDEST if config.clip.model else config.clip.tower.emb_width


def _rows(source: Path) -> int:
    manifest = read_manifest(source)
    return 0 if manifest is None else int(manifest.counts.get("rows", 0))


def _done(folder: Path) -> int:
    """The rows of the parts that are there, whether their stage has finished or not."""
    parts = (read_part(folder, path.stem) for path in folder.glob("[0-9]*.json") if path.stem.isdigit())
    return sum(part.rows_in for part in parts if part is not None)


def _kept(folder: Path) -> int:
    manifest = read_manifest(folder)
    return 0 if manifest is None else int(manifest.counts.get("kept", 0))


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return path if path.exists() else _existing(path.absolute().parent)
