"""A small root that every stage was really run in: a tiny shapes world, and models trained for three steps."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from unclip.clip import TowerConfig, load_clip
from unclip.data.curate import CurateConfig, curate
from unclip.data.download import DownloadConfig, download
from unclip.data.embed import EmbedConfig, embed
from unclip.data.index import IndexConfig, build_index
from unclip.data.select import SelectConfig, select
from unclip.data.source import SourceConfig, build_source
from unclip.decoder import DecoderConfig, load_decoder
from unclip.evaluation.config import EvaluateConfig, EvaluateSection
from unclip.generate import GenerateConfig, Models
from unclip.layout import Paths, lay_out
from unclip.nn.unet import UNetConfig
from unclip.prior.condition import Prior, PriorKind, PriorSampling
from unclip.prior.diffusion import DiffusionPriorConfig
from unclip.training.clip import ClipConfig, make_or_import_clip
from unclip.training.config import TrainingConfig
from unclip.training.decoder import DecoderStageConfig, train_decoder
from unclip.training.prior import PriorConfig, train_priors, trained_priors
from unclip.training.run import last_checkpoint
from unclip.worlds.write import WorldConfig, write_world

SIDE = 16
NUM_TRAIN, NUM_HELDOUT = 40, 5
TOWER = TowerConfig(
    emb_width=16, image_size=SIDE, patch_size=8, vision_width=16, vision_layers=1, text_width=16, text_layers=1, head_width=8, context_length=32
)
UNET = UNetConfig(image_size=SIDE, channels=16, channel_mult=(1, 2), depth=1, attention_sizes=(8,), head_width=8)
SECTION = EvaluateSection(
    world="shapes",
    prior="diffusion",
    evaluate=EvaluateConfig(
        num_captions=4,
        num_pictures=3,
        num_seen=2,
        num_shown=2,
        batch_size=2,
        sweep_guidance=(1.0, 2.0),
        sweep_steps=(2, 4),
        judge_steps=2,
        num_manipulated=2,
        manipulation_steps=(1, 2),
    ),
    generate=GenerateConfig(prior=PriorSampling(num_steps=3), decoder_steps=2),
)
# the same without what is not asked about
BRIEF = dataclasses.replace(
    SECTION, evaluate=dataclasses.replace(SECTION.evaluate, num_seen=0, rungs=(), judge_steps=0, num_manipulated=0, max_training_pictures=0)
)


@dataclass(frozen=True)
class Root:
    """A root with all stages but the last, and its models."""

    paths: Paths
    models: Models
    priors: dict[PriorKind, Prior]


def training(steps: int = 3) -> TrainingConfig:
    return TrainingConfig(num_steps=steps, batch_size=16, warmup_steps=1, log_every=1, device="cpu", num_threads=1)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    torch.set_num_threads(1)
    return make_root(tmp_path_factory.mktemp("root") / "tiny")


def make_root(folder: Path, *, num_heldout: int = NUM_HELDOUT) -> Root:
    paths = lay_out(folder, clip="own", prior="main", decoder="main", upsampler="main", report="main")
    write_world(paths.world, WorldConfig(image_size=SIDE, num_train=NUM_TRAIN, num_heldout=num_heldout))
    build_source(paths.source, SourceConfig(path=str(paths.world)))
    download(paths.source, paths.shards, DownloadConfig(image_size=SIDE, encode_format="png", encode_quality=1, threads=2))
    curate(paths.source, paths.shards, CurateConfig())
    make_or_import_clip(paths.shards, paths.clip, ClipConfig(tower=TOWER, training=training()))
    embed(paths.shards, paths.clip, paths.embeddings, EmbedConfig(num_workers=0))
    select(paths.embeddings, SelectConfig())
    build_index(paths.embeddings, paths.index, IndexConfig())
    prior = PriorConfig(network=DiffusionPriorConfig(width=16, depth=1, head_width=8, max_text_tokens=32), draws=2, training=training())
    train_priors(paths.embeddings, paths.prior, prior)
    train_decoder(paths.shards, paths.embeddings, paths.decoder, DecoderStageConfig(network=DecoderConfig(unet=UNET, context_width=16), training=training()))
    priors = trained_priors(paths.prior)
    models = Models(load_clip(paths.clip), priors["diffusion"], load_decoder(last_checkpoint(paths.decoder, "decoder")))
    return Root(paths, models, priors)
