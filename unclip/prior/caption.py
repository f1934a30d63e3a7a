"""How a prior reads a caption: the tokens that stand before all others."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unclip.prior.condition import TextCondition

INIT_STD = 0.02


class CaptionTokens(nn.Module):
    """Text states | text embedding, as tokens of the prior's width.

    The buffers whiten the text embedding: raw = whitened * text_std + text_mean. With `num_null_text`, so many learned
    tokens and a learned embedding stand in for a hidden caption.
    """

    text_mean: Tensor
    text_std: Tensor

    def __init__(self, *, width: int, max_text_tokens: int, emb_width: int, text_width: int, num_null_text: int = 0) -> None:
        super().__init__()
        self.text_in = nn.Linear(text_width, width)
        self.text_emb_in = nn.Linear(emb_width, width)
        self.positions = nn.Parameter(torch.randn(max_text_tokens, width) * INIT_STD)
        self.emb_position = nn.Parameter(torch.randn(width) * INIT_STD)
        self.num_null_text = num_null_text
        if num_null_text:
            self.null_text = nn.Parameter(torch.randn(num_null_text, width) * INIT_STD)
            self.null_emb = nn.Parameter(torch.zeros(emb_width))  # whitened
        self.register_buffer("text_mean", torch.zeros(emb_width))
        self.register_buffer("text_std", torch.ones(emb_width))

    def forward(self, condition: TextCondition, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L + 1, D) and which of them may be seen, (B, L + 1).

        Where `keep` (B,) is False nothing of the caption is visible: without tokens that stand in for it its states are
        masked, and its embedding's token is the projection of zero, the mean of all captions.

        Raises:
            ValueError: the captions are longer than the prior takes.
        """
        length = condition.text_tokens.shape[1]
        if length > len(self.positions):
            raise ValueError(f"captions may have {len(self.positions)} tokens (prior max_text_tokens), got {length}")
        states, mask = self.text_in(condition.text_tokens), condition.text_mask & keep[:, None]
        null_emb = torch.zeros_like(self.text_mean)
        if self.num_null_text:
            length = max(length, self.num_null_text)
            states, mask = F.pad(states, (0, 0, 0, length - states.shape[1])), F.pad(mask, (0, length - mask.shape[1]))
            null = F.pad(self.null_text, (0, 0, 0, length - self.num_null_text))
            states, mask = torch.where(keep[:, None, None], states, null), mask | (self._stands_in(length) & ~keep[:, None])
            null_emb = self.null_emb
        whitened = (condition.text_emb - self.text_mean) / self.text_std
        text_emb = self.text_emb_in(torch.where(keep[:, None], whitened, null_emb)) + self.emb_position
        mask = torch.cat([mask, torch.ones_like(keep)[:, None]], dim=1)
        return torch.cat([states + self.positions[:length], text_emb[:, None]], dim=1), mask

    def hidden(self) -> tuple[Tensor, Tensor]:
        """What `forward` says of a hidden caption, without what is masked: tokens (1, N + 1, D) and their mask (1, N + 1)."""
        token = self.text_emb_in(self.null_emb if self.num_null_text else torch.zeros_like(self.text_mean)) + self.emb_position
        tokens = torch.cat([self.null_text + self.positions[: self.num_null_text], token[None]]) if self.num_null_text else token[None]
        return tokens[None], torch.ones(1, len(tokens), dtype=torch.bool, device=token.device)

    def _stands_in(self, length: int) -> Tensor:
        """(L,) which tokens of a hidden caption are those that stand in for it."""
        return torch.arange(length, device=self.positions.device) < self.num_null_text
