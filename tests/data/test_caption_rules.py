"""The measures of a caption: closed forms in many scripts, and what must hold for any text."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unclip.data.caption_rules import CaptionRules, broken_rules, control_characters, folded, is_file_name, is_link, repetition, shares, words
from unclip.data.contracts import REASONS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A small blue circle", 4),
        ("don't look-back now", 3),
        ("", 0),
        ("!!! ---", 0),
        ("собака на траве", 3),
        ("एक लाल घर", 3),  # vowel signs are no letters of their own
        ("赤い家", 3),  # no spaces: a letter is a word
        ("บ้าน", 3),  # the tone mark is none
        ("2 cats", 2),
    ],
)
def test_words_of_many_scripts(text: str, expected: int) -> None:
    assert len(words(text)) == expected


@pytest.mark.parametrize("text", ["https://a.example/1.png", "www.a.example", "http://a.example/ HTTPS://b.example/x?y", "ftp://a"])
def test_nothing_but_links(text: str) -> None:
    assert is_link(text)
    assert not is_link(f"a cat {text}")
    assert not is_link("")


@pytest.mark.parametrize(
    "text",
    ["IMG_1234.JPG", "IMG_1234", "DSC00042", "my holiday.jpeg", "image (3)", "Screenshot_2020-01-01", "d41d8cd98f00b204e9800998ecf8427e", " a.webp "],
)
def test_file_names(text: str) -> None:
    assert is_file_name(text)


@pytest.mark.parametrize(
    "text", ["a photo", "image of a cat", "a cat. jpg is what it is", "facade", "deadbeef cafe", "photo 12 of the house", "1st place medal", "keycap: 1", "SAM"]
)
def test_no_file_names(text: str) -> None:
    assert not is_file_name(text)


def test_shares_and_repetition() -> None:
    assert shares("ab 1!") == {"letters": 0.5, "digits": 0.25, "punctuation": 0.25}
    assert shares("घर") == {"letters": 1.0, "digits": 0.0, "punctuation": 0.0}
    assert shares("") == {"letters": 0.0, "digits": 0.0, "punctuation": 0.0}
    assert repetition("buy Buy buy BUY") == 0.75
    assert repetition("a red star above a blue star") == pytest.approx(2 / 7)
    assert repetition("!!") == 0.0
    assert control_characters("a\x00b\ufffd\ue000\n\t\u200d\u202e") == 3  # line ends, joiners and marks of direction are allowed


BREAKS = [
    ("a\x07b", {}, "caption has control characters", 1, 0),
    ("http://a.example/", {}, "caption is a link", 1, 0),
    ("IMG_1.jpg", {}, "caption is a file name", 1, 0),
    ("abc", {"min_chars": 4}, "caption too short", 3, 4),
    ("abcde", {"max_chars": 4}, "caption too long", 5, 4),
    ("one two", {"min_words": 3}, "caption too short", 2, 3),
    ("one two", {"max_words": 1}, "caption too long", 2, 1),
    ("a 1234", {"min_letters": 0.5}, "caption has too few letters", 0.2, 0.5),
    ("a 1234", {"max_digits": 0.5}, "caption has too many digits", 0.8, 0.5),
    ("a !!!!", {"max_punctuation": 0.5}, "caption has too much punctuation", 0.8, 0.5),
    ("a a a a", {"max_repetition": 0.5}, "caption repeats itself", 0.75, 0.5),
]


@pytest.mark.parametrize(("text", "rules", "reason", "value", "limit"), BREAKS)
def test_each_rule_says_what_it_measured_and_allows(text: str, rules: dict[str, float], reason: str, value: float, limit: float) -> None:
    (broken,) = broken_rules(text, CaptionRules(**rules))  # type: ignore[arg-type]
    assert (broken.reason, broken.limit) == (reason, limit)
    assert broken.value == pytest.approx(value)
    assert reason in REASONS


@pytest.mark.parametrize("wrong", [{"min_chars": -1}, {"max_digits": 1.5}, {"min_words": 5, "max_words": 3}, {"min_letters": -0.1}, {"max_repetition": 2}])
def test_rules_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CaptionRules(**wrong)  # type: ignore[arg-type]


ANY = st.text(max_size=60)
STRICT = CaptionRules(min_chars=5, max_chars=40, min_words=2, max_words=9, min_letters=0.5, max_digits=0.3, max_punctuation=0.3, max_repetition=0.4)


@settings(deadline=None)  # the first example waits for Hypothesis to read its table of characters
@given(ANY)
def test_any_text_is_measured_and_rules_are_its_measures(text: str) -> None:
    found = shares(text)
    assert all(0 <= share <= 1 for share in found.values())
    assert sum(found.values()) <= 1 + 1e-9
    assert 0 <= repetition(text) < 1
    reasons = {broken.reason for broken in broken_rules(text, STRICT)}
    assert ("caption has too many digits" in reasons) == (found["digits"] > 0.3)
    assert ("caption repeats itself" in reasons) == (repetition(text) > 0.4)
    assert reasons <= set(REASONS)
    assert all(broken.value != broken.limit for broken in broken_rules(text, STRICT))


@given(ANY)
def test_what_passes_strict_rules_passes_the_default_ones(text: str) -> None:
    if not list(broken_rules(text, STRICT)):
        assert not list(broken_rules(text, CaptionRules()))


@given(ANY)
def test_folding_is_idempotent_and_blind_to_case_and_spaces(text: str) -> None:
    assert folded(folded(text)) == folded(text)
    assert folded(f"  {text}\n") == folded(text)
    if text.isascii():
        assert folded(text.upper()) == folded(text.lower())


@given(st.lists(st.sampled_from(["red", "star", "a", "7"]), min_size=1), st.sampled_from(list(string.whitespace[:3])))
def test_saying_it_twice_repeats_all_of_it(said: list[str], space: str) -> None:
    once = space.join(said)
    assert repetition(f"{once} {once}") == pytest.approx((1 + repetition(once)) / 2)
