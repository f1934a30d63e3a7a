"""The random numbers of a training step, the same however its batch is cut."""

import torch
from torch import Tensor

STEPS_A_SEED = 1_000_003  # a prime; seeds whose runs would meet lie further apart than any run is long


def step_seed(seed: int, step: int) -> int:
    """What the random numbers of a step (from 0) are seeded with."""
    return seed * STEPS_A_SEED + step


class Draws:
    """Random numbers for one chunk of a step's batch.

    They are drawn for the whole batch from (seed, step) and cut like it, so that a batch that is spread over processes
    or taken in several goes sees the same numbers as one that is not.

    Args:
        chunk, num_chunks: which of how many equal pieces of the batch this is.
    """

    def __init__(self, seed: int, step: int, *, chunk: int = 0, num_chunks: int = 1) -> None:
        self._generator = torch.Generator().manual_seed(step_seed(seed, step))
        self._chunk, self._num_chunks = chunk, num_chunks

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers of this shape, its first dimension being rows of the chunk."""
        return self._own(torch.randn((shape[0] * self._num_chunks, *shape[1:]), generator=self._generator), shape[0])

    def uniform(self, *shape: int) -> Tensor:
        """Numbers from [0, 1), float64, of this shape."""
        return self._own(torch.rand((shape[0] * self._num_chunks, *shape[1:]), generator=self._generator, dtype=torch.float64), shape[0])

    def keep(self, num: int, drop_prob: float) -> Tensor:
        """(num,) bool, False with probability `drop_prob`."""
        return self.uniform(num) >= drop_prob

    def _own(self, values: Tensor, rows: int) -> Tensor:
        return values[self._chunk * rows : (self._chunk + 1) * rows]
