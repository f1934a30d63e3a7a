"""The settings of the evaluate stage, and what it reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from unclip.data.manifest import MANIFEST, finished_manifest, runtime
from unclip.data.store import rows_digest
from unclip.generate import GenerateConfig
from unclip.layout import Paths, require_plain_name
from unclip.prior.condition import PriorKind

RungName = Literal["draw", "priors", "image", "caption"]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How much is measured.

    Attributes:
        run: name of the report's folder.
        num_captions: held-out captions of each split that the ladder is measured on; all that are left where there are fewer.
        num_validation: held-out captions of each split kept for the curves (best of n, guidance, steps), which the
            ladder never sees; at most a quarter of the split, and 0 leaves the curves out.
        sweep_guidance, sweep_steps: guidance scales, and numbers of steps for each sampler, that the curves try.
        num_pictures: of the captions of each held-out split, how many are made into pictures and judged, each in all ways:
            from the true embedding, by the prior that pictures are made with, by the baseline, from the text embedding in the
            place of the image's, and by what `rungs` adds.
        num_seen: captions of training pictures that are made into pictures and judged too; 0 leaves them out.
        rungs: further ways. "draw": one draw of the prior beside its best; "priors": all other trained priors; "image": every
            embedding once more with the caption hidden, where the embedding alone counts; "caption": the caption alone.
        text_decoder: a run of the decoder that was trained on text embeddings (decoder.embedding = "text"), to be judged
            beside the root's; "" for none.
        num_shown: pictures of each split in the grids of the report.
        judge_steps: training steps of the judge that is a network (the second one of the shapes world, that of skin tones
            and persons in the emoji world); 0 leaves it out.
        max_training_pictures: training pictures among which the nearest to a generated one is sought; 0 leaves that out.
        num_manipulated: held-out pictures that are inverted, varied, interpolated, edited and taken to principal components;
            0 leaves that out.
        num_edited: of the held-out pictures that are judged in the shapes world, how many are edited by words, so that the report
            says how often the edit comes out and all else stays (only where pictures are manipulated at all); 0 leaves that out.
        manipulation_steps: sampling steps that the round trip through inversion is measured with; the sheets take the last.
        last_shard: held-out rows of later shards are left out, so that what is measured every night stays the same; "" for none.
        batch_size: captions in one pass of the prior, and pictures in one of the decoder.
    """

    __pydantic_config__ = {"extra": "forbid"}

    run: str = "main"
    num_captions: int = 500
    num_validation: int = 64
    sweep_guidance: tuple[float, ...] = (1.0, 1.5, 2.0, 4.0)
    sweep_steps: tuple[int, ...] = (4, 8, 16, 32, 64)
    num_pictures: int = 96
    num_seen: int = 48
    rungs: tuple[RungName, ...] = get_args(RungName)
    text_decoder: str = ""
    num_shown: int = 16
    judge_steps: int = 600
    max_training_pictures: int = 20_000
    num_manipulated: int = 4
    num_edited: int = 16
    manipulation_steps: tuple[int, ...] = (10, 25, 50)
    last_shard: str = runtime("")  # of rows that came later, the inputs tell
    batch_size: int = runtime(64)

    def __post_init__(self) -> None:
        require_plain_name("run", self.run)
        if not 1 <= self.num_shown <= self.num_pictures <= self.num_captions:
            raise ValueError(f"expected 1 <= num_shown <= num_pictures <= num_captions, got {self.num_shown}, {self.num_pictures}, {self.num_captions}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        for name in ("num_validation", "num_seen", "judge_steps", "max_training_pictures", "num_manipulated", "num_edited"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.num_manipulated and not self.manipulation_steps:
            raise ValueError("manipulation_steps must hold at least one number of steps, or num_manipulated be 0; got []")
        if unknown := sorted(set(self.rungs) - set(get_args(RungName))):
            raise ValueError(f"rungs must be of {', '.join(get_args(RungName))}, got {', '.join(unknown)}")
        for name, least in (("sweep_guidance", 0.0), ("sweep_steps", 1), ("manipulation_steps", 1)):
            if any(value < least for value in getattr(self, name)):
                raise ValueError(f"{name} must hold nothing under {least}, got {list(getattr(self, name))}")


@dataclass(frozen=True, kw_only=True)
class EvaluateSection:
    """What decides what the stage measures.

    Attributes:
        world: which data set made here it is, "" for one's own.
        prior: the kind of prior that pictures are made with.
        evaluate, generate: how much is made, and how.
    """

    world: str
    prior: PriorKind
    evaluate: EvaluateConfig
    generate: GenerateConfig


def evaluate_inputs(paths: Paths, config: EvaluateConfig) -> dict[str, str]:
    """What the stage would read today.

    Raises:
        UnclipError: an earlier stage has not finished.
    """
    folders = {"shards": ("download", paths.shards), "index": ("index", paths.index)}
    folders |= {"clip": ("clip", paths.clip), "prior": ("prior", paths.prior), "decoder": ("decoder", paths.decoder)}
    if config.text_decoder:
        folders |= {"text decoder": ("decoder", text_decoder_folder(paths, config))}
    if (paths.upsampler / MANIFEST).is_file():
        folders |= {"upsampler": ("upsampler", paths.upsampler)}
    digests = {name: finished_manifest(folder, stage).digest for name, (stage, folder) in folders.items()}
    return digests | {"embeddings": rows_digest(paths.embeddings)}


def text_decoder_folder(paths: Paths, config: EvaluateConfig) -> Path:
    """Where the run of the decoder that was trained on text embeddings lies."""
    return paths.decoder.with_name(config.text_decoder)
