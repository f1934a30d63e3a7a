"""What every prior is given, and how the best of several candidates is chosen."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class TextCondition:
    """A batch of captions as CLIP sees them, raw.

    Attributes:
        text_emb: (B, E), not normalised.
        text_tokens, text_mask: (B, L, S) states after the final norm and (B, L) True = real token.
    """

    text_emb: Tensor
    text_tokens: Tensor
    text_mask: Tensor

    def __len__(self) -> int:
        return len(self.text_emb)


def similarities(candidates: Tensor, text_emb: Tensor) -> Tensor:
    """Cosine of each candidate with its caption: (B, n, E), (B, E) -> (B, n)."""
    return F.cosine_similarity(candidates, text_emb[:, None, :], dim=-1)


def best_of(candidates: Tensor, text_emb: Tensor) -> Tensor:
    """The candidate most similar to the text embedding (paper, section 2.2): (B, n, E) -> (B, E)."""
    chosen = similarities(candidates, text_emb).argmax(dim=1)
    return candidates[torch.arange(len(candidates), device=candidates.device), chosen]
