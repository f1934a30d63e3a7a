"""What the priors are trained on: the training rows of the embedding store, as batches of captions and image embeddings."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from unclip.data.cache import Reading, open_pairs
from unclip.data.loader import Piece, as_floats, batches_of, padded_states
from unclip.data.stats import read_stats
from unclip.data.store import Pairs, Ragged
from unclip.files import UnclipError
from unclip.prior.caption import CaptionTokens
from unclip.prior.condition import TextCondition
from unclip.training.config import TrainingConfig


@dataclass(frozen=True)
class PriorData:
    """Training rows with the text states of their captions."""

    pairs: Pairs
    states: Ragged

    def __len__(self) -> int:
        return len(self.pairs)

    def condition(self, rows: np.ndarray, device: torch.device) -> TextCondition:
        """The captions of these rows, as long as the longest of them."""
        tokens, mask = padded_states(self.states.take(rows))
        return TextCondition(as_floats(self.pairs.text_emb[rows]).to(device), tokens.to(device), mask.to(device))

    def image_emb(self, rows: np.ndarray, device: torch.device) -> Tensor:
        """(B, E) float32, raw."""
        return as_floats(self.pairs.image_emb[rows]).to(device)

    def batches(self, training: TrainingConfig) -> Callable[[int, Piece], Iterator[np.ndarray]]:
        """Row numbers of a piece of each batch from a batch on, captions of like length together."""
        return lambda start, own: batches_of(len(self), training.batch_size, seed=training.seed, start=start, lengths=self.states.lengths, piece=own)


def read_prior_data(store: Path, *, reading: Reading, max_text_tokens: int, setting: str) -> PriorData:
    """The training split of a store.

    Args:
        max_text_tokens, setting: the longest caption that the network takes, and the setting that says so.

    Raises:
        UnclipError: the store has no text states, or captions longer than the network takes.
    """
    pairs = open_pairs(store, split="train", text_tokens=True, reading=reading)
    if pairs.text_tokens is None:
        raise AssertionError("text tokens were asked for")
    if (longest := int(pairs.text_tokens.lengths.max())) > max_text_tokens:
        raise UnclipError(f"{setting} is {max_text_tokens}, but the longest caption in {store} has {longest} tokens")
    return PriorData(pairs, pairs.text_tokens)


def set_whitening(store: Path, *, image: nn.Module | None, text: CaptionTokens) -> None:
    """Copies the store's statistics into the buffers of a prior (emb_mean, emb_std) and of what reads its captions."""
    stats = read_stats(store)
    for module, prefix, key in ((image, "emb", "image_emb"), (text, "text", "text_emb")):
        for name in ("mean", "std") if module is not None else ():
            getattr(module, f"{prefix}_{name}").copy_(torch.tensor(stats[key][name]))
