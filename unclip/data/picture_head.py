"""Is what came a picture that may be decoded? Its head says so, before a byte of it is unpacked."""

import io

from PIL import Image, UnidentifiedImageError

from unclip.data.links import RefusedError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")  # a decoder of anything else is a door that strangers can knock at
TRANSPARENT_COST = 4  # img2dataset blends transparent pictures in float64: 75 bytes a pixel at its peak, not 6
PNG_SIGNATURE, PNG_DEPTH_AT = b"\x89PNG\r\n\x1a\n", 24  # after the signature, and the length, name, width and height of IHDR


def refuse_picture(body: bytes, max_pixels: int) -> None:
    """Reads the head of an encoded picture.

    Raises:
        RefusedError: it is none of FORMATS, or would have too many pixels.
    """
    if body.startswith(PNG_SIGNATURE) and body[PNG_DEPTH_AT : PNG_DEPTH_AT + 1] == b"\x10":
        raise RefusedError("image broken", "16 bits a channel, which img2dataset would store as white")
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as picture:
            (width, height), is_transparent = picture.size, picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
    except Image.DecompressionBombError as error:
        raise RefusedError("too large", str(error)) from None
    except UnidentifiedImageError:
        raise RefusedError("image broken", f"not a picture in one of {', '.join(FORMATS)}") from None
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, OverflowError, MemoryError) as error:  # what Pillow raises on nonsense
        raise RefusedError("image broken", f"its head does not read ({type(error).__name__}: {str(error)[:100]})") from None
    limit = max_pixels // TRANSPARENT_COST if is_transparent else max_pixels
    if width * height > limit:
        raise RefusedError("too large", f"{width} x {height} pixels, the limit is {limit:,}{' for a transparent picture' if is_transparent else ''}")
