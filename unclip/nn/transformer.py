"""The causal transformer of the prior: pre-norm blocks whose keys and values over a prefix can be kept and shared."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MLP_RATIO = 4


@dataclass(frozen=True)
class Prefix:
    """Keys and values (B, N, P, K) of each block over a prefix, and which of its tokens are real, (B, P) bool."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor

    def repeat(self, num: int) -> "Prefix":
        """Each row `num` times in a row, for several draws that share one prefix: (B, ...) -> (B * num, ...)."""
        if num == 1:
            return self
        return Prefix(
            tuple(k.repeat_interleave(num, 0) for k in self.keys), tuple(v.repeat_interleave(num, 0) for v in self.values), self.mask.repeat_interleave(num, 0)
        )


class Block(nn.Module):
    """Pre-norm attention and MLP over x (B, L, D)."""

    def __init__(self, width: int, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, MLP_RATIO * width), nn.GELU(), nn.Linear(MLP_RATIO * width, width))

    def forward(self, x: Tensor, mask: Tensor, before: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns x, and this block's own keys and values; `mask` (B, 1, L, P + L) is over the prefix and x."""
        B, L, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(B, L, 3, -1, self.head_width).permute(2, 0, 3, 1, 4)  # (B, N, L, K)
        all_k, all_v = (k, v) if before is None else (torch.cat([before[0], k], dim=2), torch.cat([before[1], v], dim=2))
        h = F.scaled_dot_product_attention(q, all_k, all_v, attn_mask=mask)
        x = x + self.out(h.transpose(1, 2).reshape(B, L, D))
        return x + self.mlp(self.norm2(x)), k, v


class CausalTransformer(nn.Module):
    """Blocks and a final norm. Every token sees the real tokens up to itself."""

    def __init__(self, *, width: int, depth: int, head_width: int) -> None:
        super().__init__()
        if width % head_width:
            raise ValueError(f"head_width must divide width {width}, got {head_width}")
        self.blocks = nn.ModuleList(Block(width, head_width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def read_prefix(self, x: Tensor, mask: Tensor) -> Prefix:
        """The keys and values of x (B, P, D) with its mask (B, P), to be continued by `forward`."""
        length = x.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        # a padded token still sees itself, so that its softmax is not over nothing; nobody looks at it
        visible = (causal & mask[:, None, :]) | torch.eye(length, dtype=torch.bool, device=x.device)
        keys, values = [], []
        for block in self.blocks:
            x, k, v = block(x, visible[:, None], None)
            keys.append(k)
            values.append(v)
        return Prefix(tuple(keys), tuple(values), mask)

    def forward(self, x: Tensor, prefix: Prefix) -> Tensor:
        """x (B, L, D), the tokens after the prefix -> (B, L, D) after the final norm."""
        return self._after(x, prefix)[0]

    def extend(self, x: Tensor, prefix: Prefix) -> tuple[Tensor, Prefix]:
        """As `forward`, and with it the prefix that has grown by x, for sampling token by token."""
        out, new = self._after(x, prefix)
        keys = tuple(torch.cat([before, k], dim=2) for before, (k, _) in zip(prefix.keys, new, strict=True))
        values = tuple(torch.cat([before, v], dim=2) for before, (_, v) in zip(prefix.values, new, strict=True))
        return out, Prefix(keys, values, torch.cat([prefix.mask, prefix.mask.new_ones(x.shape[:2])], dim=1))

    def _after(self, x: Tensor, prefix: Prefix) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        B, L, _ = x.shape
        causal = torch.ones(L, L, dtype=torch.bool, device=x.device).tril().expand(B, L, L)
        visible = torch.cat([prefix.mask[:, None, :].expand(B, L, -1), causal], dim=2)[:, None]
        new = []
        for block, before_k, before_v in zip(self.blocks, prefix.keys, prefix.values, strict=True):
            x, k, v = block(x, visible, (before_k, before_v))
            new.append((k, v))
        return self.norm(x), new
