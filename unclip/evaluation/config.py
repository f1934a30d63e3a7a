"""The settings of the evaluate stage, and what it reads."""

from dataclasses import dataclass

from unclip.data.manifest import finished_manifest, runtime
from unclip.data.store import rows_digest
from unclip.generate import GenerateConfig
from unclip.layout import Paths
from unclip.prior.condition import PriorKind


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How much is measured.

    Attributes:
        num_captions: held-out captions of each split that the ladder is measured on; all that are left where there are fewer.
        num_validation: held-out captions of each split kept for the curves (best of n, guidance, steps), which the
            ladder never sees; at most a quarter of the split, and 0 leaves the curves out.
        sweep_guidance, sweep_steps: guidance scales, and numbers of steps for each sampler, that the curves try.
        num_pictures: of the captions of the ladder, how many are made into pictures and judged, each four times: from
            the true embedding and by three ways to predict one. At 0.08 s a picture, 96 take a minute for two splits.
        num_shown: pictures of each split in the grids of the report.
        batch_size: captions in one pass of the prior, and pictures in one of the decoder.
    """

    __pydantic_config__ = {"extra": "forbid"}

    num_captions: int = 500
    num_validation: int = 64
    sweep_guidance: tuple[float, ...] = (1.0, 1.5, 2.0, 4.0)
    sweep_steps: tuple[int, ...] = (4, 8, 16, 32, 64)
    num_pictures: int = 96
    num_shown: int = 16
    batch_size: int = runtime(64)

    def __post_init__(self) -> None:
        if not 1 <= self.num_shown <= self.num_pictures <= self.num_captions:
            raise ValueError(f"expected 1 <= num_shown <= num_pictures <= num_captions, got {self.num_shown}, {self.num_pictures}, {self.num_captions}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.num_validation < 0:
            raise ValueError(f"num_validation must not be negative, got {self.num_validation}")
        for name, least in (("sweep_guidance", 0.0), ("sweep_steps", 1)):
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


def evaluate_inputs(paths: Paths) -> dict[str, str]:
    """What the stage would read today.

    Raises:
        UnclipError: an earlier stage has not finished.
    """
    folders = {"shards": ("download", paths.shards), "index": ("index", paths.index)}
    folders |= {"clip": ("clip", paths.clip), "prior": ("prior", paths.prior), "decoder": ("decoder", paths.decoder)}
    digests = {name: finished_manifest(folder, stage).digest for name, (stage, folder) in folders.items()}
    return digests | {"embeddings": rows_digest(paths.embeddings)}
