"""What a plan has to be told: how many pairs, what they are like, and which machines there are."""

from dataclasses import dataclass

from unclip.files import UnclipError


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What a plan rests on; look at a sample of your own rows for the first half.

    Attributes:
        found: Share of the links that still give a picture.
        bytes_per_pixel: Of a stored picture, over the square of its shorter side.
        caption_bytes: Of a caption.
        caption_tokens: CLIP's tokens in a caption, with the two that begin and end it.
        url_bytes: Of a link.
        text_left: What compression leaves of captions and links.
        gpus: GPUs that work at once; 0 plans with CPU cores alone.
        cores: CPU cores that work at once.
        gpu_tflops: What a GPU could do, as its data sheet has it for the precision that is used; 312 is an A100 in bf16.
        utilisation: How much of that it does do.
        price_gpu_hour: Of a GPU for an hour, in any currency; 0 leaves it out.
        price_core_hour: Of a CPU core for an hour.
        price_tb_month: Of a terabyte for a month.
    """

    found: float = 0.8
    bytes_per_pixel: float = 0.38
    caption_bytes: float = 60.0
    caption_tokens: float = 16.0
    url_bytes: float = 90.0
    text_left: float = 0.45
    gpus: int = 8
    cores: int = 64
    gpu_tflops: float = 312.0
    utilisation: float = 0.35
    price_gpu_hour: float = 0.0
    price_core_hour: float = 0.0
    price_tb_month: float = 0.0

    def __post_init__(self) -> None:
        for name in ("found", "text_left", "utilisation"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise UnclipError(f"{name} must be in (0, 1], got {getattr(self, name)}")
        for name in ("bytes_per_pixel", "caption_bytes", "caption_tokens", "url_bytes", "gpu_tflops"):
            if getattr(self, name) <= 0:
                raise UnclipError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("gpus", "price_gpu_hour", "price_core_hour", "price_tb_month"):
            if getattr(self, name) < 0:
                raise UnclipError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.cores < 1:
            raise UnclipError(f"cores must be at least 1, got {self.cores}")
