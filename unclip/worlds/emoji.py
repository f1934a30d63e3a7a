"""The emoji world: the glyphs of an installed Noto Color Emoji, with their Unicode CLDR names as captions.

The font and the names are installed by other packages (Debian's fonts-noto-color-emoji, PyPI's `emoji`); nothing is
fetched and nothing of theirs is kept in this repository.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import emoji
import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from unclip.files import UnclipError

Split = Literal["train", "heldout-combination"]

FONT_FILE = "NotoColorEmoji.ttf"
# fontconfig's usual places: Debian and most of Linux, a user's own, Homebrew and macOS
FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts", "/Library/Fonts", "~/Library/Fonts")
STRIKE = 109  # the only size that the font's bitmaps come in
HELDOUT_FRACTION = 0.08  # of the combinations

_JOINER, _COLOUR_MARK = "\u200d", "\ufe0f"  # zero-width joiner, variation selector 16
_TONES = frozenset(map(chr, range(0x1F3FB, 0x1F400)))
_REGIONS = frozenset(map(chr, range(0x1F1E6, 0x1F200)))
_BLACK_FLAG, _TAG_END = "\U0001f3f4", "\U000e007f"

TONES = tuple(f"{shade} skin tone" for shade in ("light", "medium-light", "medium", "medium-dark", "dark"))
PERSONS = ("man", "woman", "person")

_PERSON = re.compile(rf"\b({'|'.join(PERSONS)})\b(?!['’])")  # a man's shoe shows no man
_TONE = re.compile(r" ((?:medium-)?(?:dark|light|medium) skin tone)")
_HAIR = re.compile(r"^((?:man|woman|person)) ((?:red|curly|white|blond) hair|bald|beard)$")
_MEMBERS = re.compile(r"^(kiss|couple with heart|family|keycap) ((?:(?:man|woman|person|boy|girl|adult|child) ?)+|#|\*|\d+)$")


@dataclass(frozen=True)
class Glyph:
    """One emoji: its code points as text, its name, where it belongs, and its picture, (size, size, 3) uint8 on white."""

    text: str
    caption: str
    split: Split
    picture: np.ndarray

    @property
    def name(self) -> str:
        """The code points in hexadecimal, as emoji files are usually named."""
        return "-".join(f"{ord(c):x}" for c in self.text)


def find_font(path: str) -> Path:
    """The font file: `path`, or with "" the one that is installed.

    Raises:
        UnclipError: there is none.
    """
    if path:
        if not Path(path).is_file():
            raise UnclipError(f"expected a font file at {path}, but there is none")
        return Path(path)
    for folder in FONT_FOLDERS:
        for found in sorted(Path(folder).expanduser().rglob(FONT_FILE)):
            return found
    raise UnclipError(
        f"found no {FONT_FILE} in {', '.join(FONT_FOLDERS)}; install it (Debian, Ubuntu: apt-get install fonts-noto-color-emoji) or set `font` to its path"
    )


def caption_of(text: str) -> str:
    """The CLDR name of an emoji: "woman firefighter: dark skin tone" for ":woman_firefighter_dark_skin_tone:"."""
    name = str(emoji.EMOJI_DATA[text]["en"]).strip(":").replace("_", " ")
    if text[0] in _REGIONS or (text[0] == _BLACK_FLAG and text[-1] == _TAG_END):
        return f"flag: {name}"
    tones = _TONE.findall(name)
    base = _TONE.sub("", name)
    if group := _MEMBERS.match(base):
        return ": ".join((group[1], ", ".join(group[2].split() + tones)))
    if hair := _HAIR.match(base):
        return f"{hair[1]}: {', '.join([*tones, hair[2]])}"
    return f"{base}: {', '.join(tones)}" if tones else base


def tones_of(caption: str) -> list[str]:
    """The skin tones that a caption of this world names, in its order."""
    return [part for part in caption.partition(": ")[2].split(", ") if part in TONES]


def family_of(caption: str) -> str:
    """What a caption says without the skin tones: "woman firefighter" for "woman firefighter: dark skin tone"."""
    base, _, rest = caption.partition(": ")
    parts = [part for part in rest.split(", ") if part and part not in TONES]
    return f"{base}: {', '.join(parts)}" if parts else base


def person_of(caption: str) -> str | None:
    """Which of PERSONS a caption names; None where it names none, or several."""
    named = _PERSON.findall(caption)
    return named[0] if len(named) == 1 else None


def glyphs(*, size: int, font: str = "") -> tuple[list[Glyph], int]:
    """Every emoji that the font draws as one glyph, ordered by code points, and how many it has none for.

    Args:
        size: width and height of the pictures in pixels.
        font: path of the font, "" for the installed one.

    Raises:
        UnclipError: no font, or Pillow was built without Raqm.
    """
    if not features.check("raqm"):
        raise UnclipError(
            "Pillow has no Raqm layout, without which joined emoji fall apart; install libraqm0 and libfribidi0 (Debian's names) or Pillow's own wheel"
        )
    drawn_by = ImageFont.truetype(find_font(font), STRIKE, layout_engine=ImageFont.Layout.RAQM)
    texts = sorted(text for text, entry in emoji.EMOJI_DATA.items() if entry["status"] == emoji.STATUS["fully_qualified"])
    pictures = {text: drawn for text in texts if (drawn := _draw(text, drawn_by)) is not None}
    splits = split_of(pictures)
    made = [Glyph(text, caption_of(text), splits[text], _scaled(picture, size)) for text, picture in pictures.items()]
    return made, len(texts) - len(made)


def _draw(text: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    # a sequence that the font doesn't know is laid out as several glyphs, a code point that it doesn't know as an empty one
    left, top, right, bottom = font.getbbox(text)
    if font.getlength(text) != font.getlength("\N{GRINNING FACE}") or bottom <= top or right <= left:
        return None
    side = int(np.ceil(max(right - left, bottom - top)))
    picture = Image.new("RGBA", (side, side), (255, 255, 255, 255))
    place = ((side - (right - left)) / 2 - left, (side - (bottom - top)) / 2 - top)
    ImageDraw.Draw(picture).text(place, text, font=font, embedded_color=True)
    return picture.convert("RGB")


def _scaled(picture: Image.Image, size: int) -> np.ndarray:
    return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS))


def _parts(text: str) -> list[str]:
    return [c for c in text if c not in (_JOINER, _COLOUR_MARK)]


def _is_combination(text: str) -> bool:
    return _JOINER in text or any(c in _TONES for c in text)


def _draw_number(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def split_of(pictures: dict[str, Image.Image]) -> dict[str, Split]:
    """Holds out about 8 % of the combinations (skin tones, joined sequences), by a hash of each alone.

    One is held out only while each of its parts, and the same emoji with another skin tone or none, stay in training,
    and never when another emoji has the very same picture.
    """
    looks = {text: hashlib.sha256(picture.tobytes()).digest() for text, picture in pictures.items()}
    same = Counter(looks.values())
    left = Counter(part for text in pictures for part in {*_parts(text), _without_tone(text)})
    splits: dict[str, Split] = dict.fromkeys(pictures, "train")
    for text in _candidates(pictures):
        needed = {*_parts(text), _without_tone(text)}
        if same[looks[text]] == 1 and all(left[part] > 1 for part in needed):
            splits[text] = "heldout-combination"
            left.subtract(needed)
    return splits


def _candidates(pictures: dict[str, Image.Image]) -> Iterator[str]:
    drawn = sorted((_draw_number(text), text) for text in pictures if _is_combination(text))
    return (text for number, text in drawn if number < HELDOUT_FRACTION)


def _without_tone(text: str) -> str:
    # the whole as one more part; the marker keeps it apart from the code point itself
    return "whole:" + "".join(c for c in _parts(text) if c not in _TONES)
