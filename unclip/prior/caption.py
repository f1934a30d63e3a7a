"""How a prior reads a caption: the tokens that stand before all others."""

import torch
from torch import Tensor, nn

from unclip.prior.condition import TextCondition

INIT_STD = 0.02


class CaptionTokens(nn.Module):
    """Text states | text embedding, as tokens of the prior's width.

    The buffers whiten the text embedding: raw = whitened * text_std + text_mean.
    """

    text_mean: Tensor
    text_std: Tensor

    def __init__(self, *, width: int, max_text_tokens: int, emb_width: int, text_width: int) -> None:
        super().__init__()
        self.text_in = nn.Linear(text_width, width)
        self.text_emb_in = nn.Linear(emb_width, width)
        self.positions = nn.Parameter(torch.randn(max_text_tokens, width) * INIT_STD)
        self.emb_position = nn.Parameter(torch.randn(width) * INIT_STD)
        self.register_buffer("text_mean", torch.zeros(emb_width))
        self.register_buffer("text_std", torch.ones(emb_width))

    def forward(self, condition: TextCondition, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L + 1, D) and which of them may be seen, (B, L + 1).

        Where `keep` (B,) is False nothing of the caption is visible: its states are masked, and its embedding's token
        is the projection of zero, the mean of all captions.

        Raises:
            ValueError: the captions are longer than the prior takes.
        """
        length = condition.text_tokens.shape[1]
        if length > len(self.positions):
            raise ValueError(f"captions may have {len(self.positions)} tokens (prior max_text_tokens), got {length}")
        states = self.text_in(condition.text_tokens) + self.positions[:length]
        whitened = (condition.text_emb - self.text_mean) / self.text_std
        text_emb = self.text_emb_in(torch.where(keep[:, None], whitened, 0.0)) + self.emb_position
        mask = torch.cat([condition.text_mask & keep[:, None], torch.ones_like(keep)[:, None]], dim=1)
        return torch.cat([states, text_emb[:, None]], dim=1), mask

    def hidden(self) -> tuple[Tensor, Tensor]:
        """What `forward` says of a hidden caption, without what is masked: tokens (1, 1, D) and their mask (1, 1)."""
        token = self.text_emb_in(torch.zeros_like(self.text_mean)) + self.emb_position
        return token[None, None], torch.ones(1, 1, dtype=torch.bool, device=token.device)
