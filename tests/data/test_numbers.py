"""The compact map is a dictionary, whatever is set in which order."""

from hypothesis import given
from hypothesis import strategies as st

from unclip.data.numbers import Numbers, fingerprint64

NAMES = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**63, 2**64 - 1])


@given(st.lists(st.tuples(NAMES, st.integers(-(2**40), 2**40))), st.lists(NAMES), st.integers(1, 7))
def test_it_is_a_dictionary(entries: list[tuple[int, int]], asked: list[int], max_recent: int) -> None:
    ours, theirs = Numbers(missing=-5, max_recent=max_recent), dict(entries)
    for name, value in entries:
        ours[name] = value
    assert [ours[name] for name in [*theirs, *asked]] == [theirs.get(name, -5) for name in [*theirs, *asked]]


def test_fingerprints_are_those_of_sha256() -> None:
    assert fingerprint64("") == 0xE3B0C44298FC1C14
