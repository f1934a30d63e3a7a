"""The order of training: every row once an epoch, exact to resume, captions of like length together; and their padding."""

import itertools

import numpy as np
import pytest
import torch

from unclip.data.loader import BUCKETED_BATCHES, EpochOrder, batches_of, padded_states
from unclip.data.store import Ragged

LENGTHS = np.random.default_rng(5).integers(3, 40, 1003)


def stream(batch_size: int, num: int, *, seed: int = 3, start: int = 0, lengths: np.ndarray | None = LENGTHS) -> list[np.ndarray]:
    return [rows for rows, _ in zip(batches_of(len(LENGTHS), batch_size, seed=seed, start=start, lengths=lengths), range(num), strict=False)]


def padding(batches: list[np.ndarray]) -> float:
    """The share of a padded batch that is no token."""
    padded = sum(LENGTHS[rows].max() * len(rows) for rows in batches)
    return 1 - sum(LENGTHS[rows].sum() for rows in batches) / padded


def test_every_epoch_has_every_row_once_and_batches_depend_on_their_number_alone() -> None:
    order = EpochOrder(10, seed=3)
    epochs = [sorted(order[start : start + 10].tolist()) for start in (0, 10, 50)]
    assert epochs == [list(range(10))] * 3
    assert order[0:10].tolist() != order[10:20].tolist()
    whole = batches_of(10, 4, seed=3, start=0)
    first = [next(whole).tolist() for _ in range(9)]
    resumed = batches_of(10, 4, seed=3, start=6)
    assert [next(resumed).tolist() for _ in range(3)] == first[6:]
    assert next(batches_of(10, 4, seed=4, start=0)).tolist() != first[0]


@pytest.mark.parametrize("batch_size", [1, 8, 64, 1003, 3000])
def test_buckets_keep_every_row_once_an_epoch_across_batches_that_cross_epochs(batch_size: int) -> None:
    rows = np.concatenate(stream(batch_size, -(-5 * 1003 // batch_size)))
    epochs = [rows[epoch * 1003 : (epoch + 1) * 1003] for epoch in range(5)]
    assert all(np.array_equal(np.sort(epoch), np.arange(1003)) for epoch in epochs)
    assert len({epoch.tobytes() for epoch in epochs}) == 5


def test_buckets_depend_on_seed_and_number_alone() -> None:
    whole = stream(16, 200)
    for start in (1, 62, 63, 130):  # 1003 is no multiple of 16: batch 62 crosses the first epoch
        assert all(map(np.array_equal, stream(16, 20, start=start), whole[start : start + 20]))
    assert not np.array_equal(stream(16, 1, seed=4)[0], whole[0])


def test_every_whole_batch_of_a_window_is_a_slice_of_its_sorted_lengths_and_their_order_is_shuffled() -> None:
    for first in (0, 63):  # an epoch's first window begins at its first whole batch
        window = stream(16, BUCKETED_BATCHES, start=first)
        spans = sorted((int(LENGTHS[rows].min()), int(LENGTHS[rows].max())) for rows in window)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
        longest = [int(LENGTHS[rows].max()) for rows in window]
        assert longest != sorted(longest)


def test_buckets_save_most_of_the_padding_and_without_lengths_the_order_is_the_plain_one() -> None:
    assert padding(stream(16, 600)) < 0.25 * padding(stream(16, 600, lengths=None))
    plain = np.concatenate(stream(16, 60, lengths=None))
    assert np.array_equal(plain, EpochOrder(1003, seed=3)[0:960])


def test_rows_of_a_window_are_those_that_the_plain_order_would_have_there() -> None:
    bucketed, plain = (np.concatenate(stream(16, BUCKETED_BATCHES, lengths=lengths)) for lengths in (LENGTHS, None))
    assert np.array_equal(np.sort(bucketed), np.sort(plain))


def test_states_are_padded_with_zeros_to_the_longest_of_the_batch() -> None:
    generator = np.random.default_rng(0)
    held = [generator.normal(size=(length, 3)).astype(np.float16) for length in (2, 5, 1, 4)]
    ragged = Ragged.from_offsets(np.concatenate(held), np.cumsum([0, 2, 5, 1, 4]))
    rows = np.array([3, 0, 2, 0])
    states, mask = padded_states(ragged.take(rows))
    assert states.shape == (4, 4, 3)
    assert mask.sum(1).tolist() == [4, 2, 1, 2]
    for at, row in enumerate(rows):
        assert torch.equal(states[at, mask[at]], torch.from_numpy(held[row]).float())
        assert mask[at].tolist() == sorted(mask[at].tolist(), reverse=True)
    assert states[~mask].abs().max() == 0
    assert np.shares_memory(ragged.take(rows)[1], ragged.flat)
