"""Pictures that come from anybody's file: opened with bounds, turned upright, made RGB, and cut to the models' square."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from unclip.files import UnclipError

MAX_PIXELS = 50_000_000  # as in the download stage; what a header of a few bytes may ask memory for
MIN_SIDE = 2
PAPER = (255, 255, 255)  # what shows through where a picture is transparent, as img2dataset has it
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B")  # modes that `convert` would clip to white
SCALE_OF_16_BITS = 257  # 65535 / 255


def open_picture(path: Path) -> Image.Image:
    """The picture of a file as RGB, upright by its EXIF, on white where it is transparent; of an animation the first frame.

    Raises:
        UnclipError: there is no such file, it is no picture or a broken one, or it has too many pixels or too few.
    """
    return _opened(path, as_rgb)


def open_mask(path: Path) -> Image.Image:
    """The picture of a file upright and otherwise as it is, for its transparency may matter.

    Raises:
        UnclipError: as `open_picture`.
    """
    return _opened(path, ImageOps.exif_transpose)


def _opened(path: Path, read: Callable[[Image.Image], Image.Image]) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, which are bounded below, and of odd EXIF
            with Image.open(path) as file:
                _check_size(file.size, str(path))
                file.load()
                return read(file)
    except FileNotFoundError:
        raise UnclipError(f"expected a picture in {path}, but there is no such file") from None
    except IsADirectoryError:
        raise UnclipError(f"expected a picture in {path}, but it is a folder") from None
    except UnidentifiedImageError:
        raise UnclipError(f"{path} is not a picture that Pillow reads") from None
    except Image.DecompressionBombError:
        raise UnclipError(f"{path} has more than {MAX_PIXELS:,} pixels; scale it down first") from None
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError) as error:  # what Pillow's readers raise on files that are cut or damaged
        raise UnclipError(f"{path} does not open as a picture ({' '.join(str(error).split())[:200]})") from None


def _check_size(size: tuple[int, int], what: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise UnclipError(f"{what} has {width} x {height} pixels; at most {MAX_PIXELS:,} are read, scale it down first")
    if min(size) < MIN_SIDE:
        raise UnclipError(f"{what} has {width} x {height} pixels; expected at least {MIN_SIDE} on each side")


def as_rgb(picture: Image.Image) -> Image.Image:
    """Any picture as RGB: upright, 16 bits scaled to 8, transparent parts on white. A plain RGB picture keeps every bit.

    Raises:
        UnclipError: it has too many pixels or too few.
    """
    _check_size(picture.size, "the picture")
    upright = ImageOps.exif_transpose(picture)
    if upright.mode in ("I", "F"):
        raise UnclipError(f"expected a picture of 8 or 16 bits a channel, got Pillow's mode {upright.mode!r}, whose white could be anything")
    if upright.mode in SIXTEEN_BITS:
        return Image.fromarray((np.asarray(upright) / SCALE_OF_16_BITS).round().astype(np.uint8)).convert("RGB")
    if upright.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (*PAPER, 255)), rgba).convert("RGB")
    return upright.convert("RGB")


def middle_square(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the square in the middle of a picture of (width, height)."""
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return left, top, left + side, top + side


def as_square(picture: Image.Image, side: int) -> np.ndarray:
    """An RGB picture cut to its middle square and scaled to (side, side, 3) uint8, with antialiasing."""
    box = middle_square(picture.size)
    whole = (box[2] - box[0]) % side == 0
    return np.asarray(picture.resize((side, side), Image.Resampling.BOX if whole else Image.Resampling.BICUBIC, box=box))


def as_images(pictures: np.ndarray) -> list[Image.Image]:
    """(n, H, W, 3) uint8 -> PIL images."""
    return [Image.fromarray(picture) for picture in pictures]
