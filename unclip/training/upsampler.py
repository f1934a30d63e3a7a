"""The upsampler stage: one or two upsamplers on crops of the training pictures, each in a folder of its own."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from unclip import checkpoint
from unclip.data.crops import CropBatch, Crops
from unclip.data.degrade import Corruption
from unclip.data.loader import Piece, as_pixels
from unclip.data.manifest import Manifest, Stage, finished_manifest, is_current, runtime
from unclip.data.pictures import PictureConfig, open_pictures
from unclip.data.store import rows_digest
from unclip.diffusion.loss import StepSampling, min_snr_weight, steps_at
from unclip.diffusion.process import add_noise, target
from unclip.diffusion.schedule import make_schedule
from unclip.files import UnclipError, fingerprint
from unclip.layout import require_plain_name
from unclip.nn.unet import UNetConfig
from unclip.training.config import TrainingConfig
from unclip.training.draws import Draws
from unclip.training.loop import train
from unclip.training.metrics import loss_by_step
from unclip.training.processes import together
from unclip.training.run import has_all_steps, last_checkpoint, open_run
from unclip.upsampler import Upsampler, UpsamplerConfig, load_upsampler

STAGE = "upsampler"
Place = Literal["first", "second"]
PLACES: tuple[Place, ...] = get_args(Place)


@dataclass(frozen=True, kw_only=True)
class UpsamplerTraining:
    """One upsampler and how it is trained.

    Attributes:
        corruption: what is done in training to the small picture, so that the flaws of a generated one are not taken for
            detail: "blur" or "bsr" (`unclip.data.degrade`), which the paper has for the first and the second upsampler.
        corruption_prob: how often; the other crops are only shrunk.
        crop_fraction: side of the random crops that are trained on, in sides of the large picture (paper: a quarter).
        pictures: how they are read; mirrored too, since an upsampler reads no caption that could say left or right.
        step_sampling: which noise levels are trained more often.
        min_snr_gamma: weight of the loss by Min-SNR; 0 leaves it unweighted.
    """

    __pydantic_config__ = {"extra": "forbid"}

    network: UpsamplerConfig = field(default_factory=UpsamplerConfig)
    corruption: Corruption = "blur"
    corruption_prob: float = 1.0
    crop_fraction: float = 0.25
    step_sampling: StepSampling = "uniform"
    min_snr_gamma: float = 0.0
    pictures: PictureConfig = field(default_factory=lambda: PictureConfig(flip=True, unflipped=()))
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(batch_size=64, betas=(0.9, 0.999)))

    def __post_init__(self) -> None:
        if not 0.0 < self.corruption_prob <= 1.0:
            raise ValueError(f"corruption_prob must be in (0, 1], got {self.corruption_prob}; without corruption, corruption is 'none'")
        if not 0.0 < self.crop_fraction <= 1.0:
            raise ValueError(f"crop_fraction must be in (0, 1], got {self.crop_fraction}")
        unet = self.network.unet
        multiple = math.lcm(self.network.scale, unet.patch_size * 2 ** (len(unet.channel_mult) - 1))
        if self.crop_fraction * unet.image_size % multiple:
            raise ValueError(
                f"a crop's side must be a multiple of {multiple} pixels (the scale, and what the U-Net halves),"
                f" got {self.crop_fraction} of {unet.image_size}, which is {self.crop_fraction * unet.image_size:g}"
            )


def _second() -> UpsamplerTraining:
    return UpsamplerTraining(network=UpsamplerConfig(low_size=128, unet=UNetConfig(image_size=512, attention_sizes=(), attend_middle=False)), corruption="bsr")


@dataclass(frozen=True, kw_only=True)
class UpsamplerStageConfig:
    """The upsamplers of a run.

    Attributes:
        run: name of the run's folder, which holds a folder for each upsampler.
        num_upsamplers: 0, 1 (the first) or 2. The first starts from the decoder's pictures, the second from the first's.
    """

    __pydantic_config__ = {"extra": "forbid"}

    run: str = "main"
    num_upsamplers: int = runtime(0)
    first: UpsamplerTraining = field(default_factory=UpsamplerTraining)
    second: UpsamplerTraining = field(default_factory=_second)

    def __post_init__(self) -> None:
        require_plain_name("run", self.run)
        if not 0 <= self.num_upsamplers <= len(PLACES):
            raise ValueError(f"num_upsamplers must be 0, 1 or 2, got {self.num_upsamplers}")
        if self.num_upsamplers == 2 and self.second.network.low_size != self.first.network.unet.image_size:
            made = self.first.network.unet.image_size
            raise ValueError(f"second.network.low_size must be the {made} pixels that the first upsampler makes, got {self.second.network.low_size}")

    @property
    def wanted(self) -> dict[Place, UpsamplerTraining]:
        """The upsamplers that there shall be, in the order that they work in."""
        return {place: getattr(self, place) for place in PLACES[: self.num_upsamplers]}

    def check_sizes(self, *, decoder_size: int, stored_size: int) -> None:
        """Whether the first fits the decoder's pictures, and the stored ones are as large as the last makes them.

        Raises:
            ValueError: they are not.
        """
        if self.num_upsamplers == 0:
            return
        if self.first.network.low_size != decoder_size:
            raise ValueError(f"upsampler.first.network.low_size must be the {decoder_size} pixels that the decoder makes, got {self.first.network.low_size}")
        place, last = list(self.wanted.items())[-1]
        if last.network.unet.image_size > stored_size:
            raise ValueError(
                f"upsampler.{place} learns to make pictures of {last.network.unet.image_size} pixels, but those in the shards have {stored_size};"
                " expected download.image_size to be as large"
            )


@dataclass(frozen=True, kw_only=True)
class UpsamplerFamily:
    """What a run of several upsamplers is known by; each one's own folder holds its settings."""

    run: str


def upsampler_inputs(shards: Path, store: Path) -> dict[str, str]:
    """What the stage would read today."""
    return {"shards": finished_manifest(shards, "download").digest, "embeddings": rows_digest(store)}


def upsamplers_are_current(shards: Path, store: Path, run: Path, config: UpsamplerStageConfig) -> bool:
    """Whether every upsampler that is wanted has been trained on these pictures.

    Raises:
        UnclipError: one was trained with other settings.
    """
    inputs = upsampler_inputs(shards, store)
    done = [_is_done(run / place, place, section, inputs) for place, section in config.wanted.items()]  # all are looked at, and another config refused
    return all(done)


def train_upsamplers(shards: Path, store: Path, run: Path, config: UpsamplerStageConfig) -> Manifest:
    """Trains the upsamplers that are not yet done, on the pictures that the decoder is trained on.

    Raises:
        UnclipError: none is wanted; no picture has an embedding; or an upsampler was trained with other settings.
    """
    if not config.wanted:
        raise UnclipError("no upsampler is wanted: expected upsampler.num_upsamplers to be 1 or 2, got 0")
    inputs = upsampler_inputs(shards, store)
    stage = Stage(run, STAGE, UpsamplerFamily(run=config.run), inputs)
    steps: dict[str, int] = {}
    digests: dict[str, str] = {}
    rows: dict[str, Any] = {}
    for place, section in config.wanted.items():
        folder = run / place
        if not _is_done(folder, place, section, inputs):
            child = open_run(folder, _stage_of(place), section, inputs)
            last, kept, rejected = together(_fit, shards, store, folder, section)
            counts = {"steps": checkpoint.step_of(last), "rows_in": kept + sum(rejected.values()), "kept": kept, "rejected": rejected}
            child.finish(counts=counts, digest=checkpoint.digest(last))
        manifest = finished_manifest(folder, _stage_of(place))
        steps[place], digests[place] = int(manifest.counts["steps"]), manifest.digest
        rows = {name: manifest.counts[name] for name in ("rows_in", "kept", "rejected")}  # the same for each: all see the same pictures
    return stage.finish(counts={"steps": sum(steps.values()), **rows, "upsamplers": steps}, digest=fingerprint(digests))


def load_trained_upsamplers(run: Path, config: UpsamplerStageConfig, *, device: str = "cpu") -> tuple[Upsampler, ...]:
    """The upsamplers that a config wants, in the order that they work in.

    Raises:
        UnclipError: one has not been trained.
    """
    if config.wanted:
        finished_manifest(run, STAGE)
    return tuple(load_upsampler(last_checkpoint(run / place, _stage_of(place)), device=device) for place in config.wanted)


def _stage_of(place: Place) -> str:
    return f"{STAGE}-{place}"


def _is_done(folder: Path, place: Place, section: UpsamplerTraining, inputs: Mapping[str, str]) -> bool:
    return is_current(folder, _stage_of(place), section, inputs) and has_all_steps(folder, section.training.num_steps)


def _fit(shards: Path, store: Path, run: Path, config: UpsamplerTraining) -> tuple[Path, int, dict[str, int]]:
    """Trains; returns the folder of the last checkpoint, the number of training rows, and how many were left out for which reason."""
    pictures = open_pictures(
        shards, store, config.pictures, split="train", image_size=config.network.unet.image_size,
        text_tokens=False, seed=config.training.seed, crop=config.crop_fraction,
    )  # fmt: skip
    crops = Crops(pictures, config.network.scale, config.corruption, config.corruption_prob)
    torch.manual_seed(config.training.seed)
    model = Upsampler(config.network).to(memory_format=torch.channels_last)
    schedule = make_schedule(config.network.schedule, config.network.num_train_steps)

    def loss_fn(prepared: nn.Module, batch: CropBatch, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        device = next(prepared.parameters()).device
        batch = batch.to(device)
        pixels, low_res = (value.to(memory_format=torch.channels_last) for value in (as_pixels(batch.crops), batch.low_res))
        x0 = model.to_sample(pixels, low_res)
        eps = draws.normal(*x0.shape).to(device, memory_format=torch.channels_last)
        i = steps_at(schedule, draws.uniform(len(batch)), config.step_sampling)
        output = prepared(add_noise(schedule, x0, i, eps), schedule.timesteps[i].to(device), low_res)
        errors = (output - target(schedule, config.network.prediction, x0, i, eps)).square().mean(dim=(1, 2, 3))
        if config.min_snr_gamma:
            errors = errors * min_snr_weight(schedule, config.network.prediction, i, config.min_snr_gamma).to(device)
        return errors.mean(), loss_by_step(errors, i, len(schedule))

    def batches(start: int, own: Piece) -> Iterator[CropBatch]:
        pin = next(model.parameters()).is_cuda
        return crops.batches(config.training.batch_size, start=start, piece=own, num_workers=config.pictures.num_workers, pin=pin)

    network = checkpoint.as_json(config.network)
    last = train(run, model=model, kind=STAGE, network=network, loss_fn=loss_fn, batches=batches, config=config.training)
    return last, len(pictures), dict(pictures.joined.rejected)
