"""The emoji world: one glyph a picture, CLDR's names, and held-out combinations of parts that training has seen."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from emoji import EMOJI_DATA, STATUS

from unclip.files import UnclipError
from unclip.worlds import emoji
from unclip.worlds.emoji import Glyph, caption_of, family_of, find_font, glyphs, person_of, tones_of


@pytest.fixture(scope="module")
def made() -> tuple[list[Glyph], int]:
    return glyphs(size=32)


def test_most_emoji_have_a_glyph_and_the_others_are_counted(made: tuple[list[Glyph], int]) -> None:
    pictures, dropped = made
    total = sum(entry["status"] == STATUS["fully_qualified"] for entry in EMOJI_DATA.values())
    assert len(pictures) + dropped == total
    assert len(pictures) >= 3500
    assert len({glyph.name for glyph in pictures}) == len({glyph.caption for glyph in pictures}) == len(pictures)
    for glyph in pictures:
        assert glyph.picture.shape == (32, 32, 3)
        assert glyph.picture.dtype == np.uint8
        assert glyph.picture.std() > 1  # something is drawn


def test_a_joined_sequence_is_one_picture_of_its_own(made: tuple[list[Glyph], int]) -> None:
    by_name = {glyph.caption: glyph.picture.astype(int) for glyph in made[0]}
    plain, dark, family = by_name["woman firefighter"], by_name["woman firefighter: dark skin tone"], by_name["flag: Norway"]
    assert np.abs(plain - dark).mean() > 5
    assert np.abs(plain - family).mean() > 20
    # two glyphs side by side would leave the upper and lower quarters white
    assert (dark[:6] < 250).any()
    assert (dark[-6:] < 250).any()


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("\U0001f469\U0001f3ff\u200d\U0001f692", "woman firefighter: dark skin tone"),
        ("\U0001f44b\U0001f3fe", "waving hand: medium-dark skin tone"),
        ("\U0001f468\U0001f3fb\u200d\U0001f9b0", "man: light skin tone, red hair"),
        ("\U0001f1f3\U0001f1f4", "flag: Norway"),
        ("\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", "flag: Scotland"),
        ("3\ufe0f\u20e3", "keycap: 3"),
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "family: man, woman, girl, boy"),
        ("\U0001f469\U0001f3fb\u200d\u2764\ufe0f\u200d\U0001f48b\u200d\U0001f468\U0001f3ff", "kiss: woman, man, light skin tone, dark skin tone"),
        ("\U0001f469\U0001f3fb\u200d\U0001f91d\u200d\U0001f468\U0001f3ff", "woman and man holding hands: light skin tone, dark skin tone"),
        ("\U0001f431", "cat face"),
        ("\U0001f3f4\u200d\u2620\ufe0f", "pirate flag"),
    ],
)
def test_names_are_those_of_unicode(text: str, caption: str) -> None:
    assert caption_of(text) == caption


def test_what_is_held_out_is_made_of_parts_that_training_shows(made: tuple[list[Glyph], int]) -> None:
    splits = {split: [glyph for glyph in made[0] if glyph.split == split] for split in ("train", "heldout-combination")}
    assert 100 <= len(splits["heldout-combination"]) <= 350
    assert len(made[0]) == sum(map(len, splits.values()))
    parts = Counter(part for glyph in splits["train"] for part in glyph.text)
    bases = {"".join(part for part in glyph.text if part not in emoji._TONES and part != "\ufe0f") for glyph in splits["train"]}
    looks = {glyph.picture.tobytes() for glyph in splits["train"]}
    for glyph in splits["heldout-combination"]:
        assert all(parts[part] for part in glyph.text)
        assert "".join(part for part in glyph.text if part not in emoji._TONES and part != "\ufe0f") in bases
        assert glyph.picture.tobytes() not in looks


def test_without_a_font_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(emoji, "FONT_FOLDERS", (str(tmp_path),))
    with pytest.raises(UnclipError, match="fonts-noto-color-emoji"):
        find_font("")
    with pytest.raises(UnclipError, match="expected a font file"):
        find_font(str(tmp_path / "none.ttf"))
    monkeypatch.setattr("unclip.worlds.emoji.features.check", lambda name: False)
    with pytest.raises(UnclipError, match="libraqm"):
        glyphs(size=32)


def test_a_family_is_a_caption_without_its_skin_tones() -> None:
    captions = {
        "woman firefighter: dark skin tone": ("woman firefighter", ["dark skin tone"], "woman"),
        "man: medium-light skin tone, red hair": ("man: red hair", ["medium-light skin tone"], "man"),
        "couple with heart: woman, man, light skin tone, dark skin tone": (
            "couple with heart: woman, man", ["light skin tone", "dark skin tone"], None,
        ),
        "flag: Malta": ("flag: Malta", [], None),
        "man’s shoe": ("man’s shoe", [], None),
        "snowman": ("snowman", [], None),
    }  # fmt: skip
    for caption, (family, tones, person) in captions.items():
        assert (family_of(caption), tones_of(caption), person_of(caption)) == (family, tones, person)
