"""The settings of the evaluate stage."""

from dataclasses import dataclass

from unclip.data.manifest import runtime


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How much is measured.

    Attributes:
        num_captions: held-out captions of each split that embeddings are predicted for; all of them where there are fewer.
        num_pictures: of these, how many are made into pictures and judged, each four times: from the true embedding and
            by three ways to predict one. At 0.08 s a picture, 96 take a minute for two splits.
        num_shown: pictures of each split in the grids of the report.
        batch_size: captions in one pass of the prior, and pictures in one of the decoder.
    """

    __pydantic_config__ = {"extra": "forbid"}

    num_captions: int = 500
    num_pictures: int = 96
    num_shown: int = 16
    batch_size: int = runtime(64)

    def __post_init__(self) -> None:
        if not 1 <= self.num_shown <= self.num_pictures <= self.num_captions:
            raise ValueError(f"expected 1 <= num_shown <= num_pictures <= num_captions, got {self.num_shown}, {self.num_pictures}, {self.num_captions}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
