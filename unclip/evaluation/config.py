"""The settings of the evaluate stage."""

from dataclasses import dataclass

from unclip.data.manifest import runtime


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How much is measured.

    Attributes:
        num_captions: held-out captions of each split that embeddings are predicted for.
        num_pictures: of these, how many are made into pictures and judged.
        num_shown: pictures in the grids of the report.
    """

    __pydantic_config__ = {"extra": "forbid"}

    num_captions: int = 500
    num_pictures: int = 160
    num_shown: int = 16
    batch_size: int = runtime(64)

    def __post_init__(self) -> None:
        if not 1 <= self.num_shown <= self.num_pictures <= self.num_captions:
            raise ValueError(f"expected 1 <= num_shown <= num_pictures <= num_captions, got {self.num_shown}, {self.num_pictures}, {self.num_captions}")
