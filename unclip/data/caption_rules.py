"""Is a caption worth learning from? Measures of a text that hold for any language, and the rules that are made of them."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from unclip.data.contracts import Reason

# Scripts that put no space between words (Thai, Lao, Tibetan, Burmese, Khmer, kana, Chinese): each of their letters counts as a word.
_SPACELESS = "\u0e00-\u0eff\u0f00-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORDS = re.compile(rf"[{_SPACELESS}]|[^\W_{_SPACELESS}]+(?:['’-][^\W_{_SPACELESS}]+)*")
_LINK = re.compile(r"(?:[a-z][a-z0-9+.-]*://|www\.)\S+", re.IGNORECASE)
_FILE_NAMES = re.compile(
    r"""
      [^/\\]*\S\.(?:jpe?g|jfif|png|gif|webp|bmp|tiff?|svg|heic|avif|psd|cr2|nef|dng)   # ends like a file
    | (?:img|dsc[nf]?|dscf|dcim|pxl|mvimg|vid|gopr|sam|screenshot|photo|image|untitled)[\s_-]*\(?[\d\s_.-]*\d\)?   # what cameras and programs write
    | [0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}   # a UUID
    | (?=[0-9a-f]*\d)[0-9a-f]{16,}   # a hash
    """,
    re.IGNORECASE | re.VERBOSE,
)
_ALLOWED_CONTROLS = "\t\n\r"
_REPLACEMENT = "\ufffd"  # stands where a text was decoded wrongly


@dataclass(frozen=True, kw_only=True)
class CaptionRules:
    """What a caption must be; 0 (of a largest share: 1) leaves a rule out. Shares are of its characters without spaces.

    Attributes:
        min_chars, max_chars: its length in characters.
        min_words, max_words: in words; a letter of a script without spaces between words counts as one.
        min_letters, max_digits, max_punctuation: shares of letters (with their marks), digits, punctuation and symbols.
        max_repetition: share of its words that have come before in it.
        drop_links, drop_file_names: whether a caption that is nothing but a link, or the name of a file, is dropped.
        drop_control_characters: whether one with control, private or replacement characters is.
        max_pictures: how many pictures may have the same caption, but for case and spaces; the first ones are kept.
    """

    __pydantic_config__ = {"extra": "forbid"}

    min_chars: int = 0
    max_chars: int = 0
    min_words: int = 0
    max_words: int = 0
    min_letters: float = 0.0
    max_digits: float = 1.0
    max_punctuation: float = 1.0
    max_repetition: float = 1.0
    drop_links: bool = True
    drop_file_names: bool = True
    drop_control_characters: bool = True
    max_pictures: int = 0

    def __post_init__(self) -> None:
        for name in ("min_chars", "max_chars", "min_words", "max_words", "max_pictures"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("min_letters", "max_digits", "max_punctuation", "max_repetition"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for unit in ("chars", "words"):
            least, most = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if most and least > most:
                raise ValueError(f"min_{unit} must not be more than max_{unit}, got {least} and {most}")


@dataclass(frozen=True)
class Broken:
    """A rule that a row breaks: the reason, what was measured, and what is allowed."""

    reason: Reason
    value: float
    limit: float


def words(caption: str) -> list[str]:
    """Its words, folded to one case and without the marks that Indic scripts write their vowels with."""
    if not caption.isascii():
        composed = unicodedata.normalize("NFC", caption)
        caption = "".join(character for character in composed if not unicodedata.category(character).startswith("M"))
    return [word.casefold() for word in _WORDS.findall(caption)]


def repetition(caption: str) -> float:
    """The share of its words that have come before in it: 0 where all differ, near 1 where one word is said over and over."""
    found = words(caption)
    return 1 - len(set(found)) / len(found) if found else 0.0


def shares(caption: str) -> dict[str, float]:
    """The shares of "letters" (with the marks that belong to them), "digits" and "punctuation" (with symbols), spaces left out."""
    kinds = [unicodedata.category(character)[0] for character in caption if not character.isspace()]
    num = max(1, len(kinds))
    of_kind = {"letters": "LM", "digits": "N", "punctuation": "PS"}
    return {name: sum(kind in wanted for kind in kinds) / num for name, wanted in of_kind.items()}


def is_link(caption: str) -> bool:
    """Whether it is one link or several, and nothing else."""
    return all(_LINK.fullmatch(piece) for piece in caption.split()) and bool(caption.strip())


def is_file_name(caption: str) -> bool:
    """Whether it is the name of a file, or what a camera or a program calls one."""
    return _FILE_NAMES.fullmatch(caption.strip()) is not None


def control_characters(caption: str) -> int:
    """How many control, private-use and replacement characters it has; line ends, tabs and joiners are none of them."""
    return sum(character == _REPLACEMENT or (unicodedata.category(character) in ("Cc", "Co") and character not in _ALLOWED_CONTROLS) for character in caption)


def folded(caption: str) -> str:
    """The caption as others are compared with it: one case, single spaces."""
    return " ".join(caption.casefold().split())


def broken_rules(caption: str, rules: CaptionRules) -> Iterator[Broken]:
    """The rules that a caption breaks by itself, in a fixed order; `max_pictures` needs the others."""
    if rules.drop_control_characters and (num := control_characters(caption)):
        yield Broken("caption has control characters", num, 0)
    if rules.drop_links and is_link(caption):
        yield Broken("caption is a link", 1, 0)
    if rules.drop_file_names and is_file_name(caption):
        yield Broken("caption is a file name", 1, 0)
    for least, most, measure in ((rules.min_chars, rules.max_chars, len), (rules.min_words, rules.max_words, lambda text: len(words(text)))):
        if least or most:
            length = measure(caption)
            if length < least:
                yield Broken("caption too short", length, least)
            if most and length > most:
                yield Broken("caption too long", length, most)
    if rules.min_letters > 0 or rules.max_digits < 1 or rules.max_punctuation < 1:
        found = shares(caption)
        if found["letters"] < rules.min_letters:
            yield Broken("caption has too few letters", found["letters"], rules.min_letters)
        if found["digits"] > rules.max_digits:
            yield Broken("caption has too many digits", found["digits"], rules.max_digits)
        if found["punctuation"] > rules.max_punctuation:
            yield Broken("caption has too much punctuation", found["punctuation"], rules.max_punctuation)
    if rules.max_repetition < 1 and (share := repetition(caption)) > rules.max_repetition:
        yield Broken("caption repeats itself", share, rules.max_repetition)
