"""The causal transformer of the priors: pre-norm blocks whose keys and values over a prefix are computed once and shared.

What nobody reads is not computed: of the prefix's last block only keys and values are used, and of the last block of
what follows only the tokens whose output is wanted.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MLP_RATIO = 4
ALL, NONE = slice(None), slice(0)


@dataclass(frozen=True)
class Prefix:
    """Keys and values (B, N, P, K) of each block over a prefix, and which of its tokens are visible, (B, P) bool."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor

    def expand(self, num: int) -> "Prefix":
        """The one row of this prefix seen as `num` rows: (1, ...) -> (num, ...), without copies."""
        return Prefix(tuple(k.expand(num, -1, -1, -1) for k in self.keys), tuple(v.expand(num, -1, -1, -1) for v in self.values), self.mask.expand(num, -1))

    def repeat(self, num: int) -> "Prefix":
        """Each row `num` times in a row, for draws that each grow it in their own way: (B, ...) -> (B * num, ...)."""
        keys, values = (tuple(part.repeat_interleave(num, 0) for part in parts) for parts in (self.keys, self.values))
        return Prefix(keys, values, self.mask.repeat_interleave(num, 0))


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

    def forward(self, x: Tensor, mask: Tensor, before: tuple[Tensor, Tensor] | None, wanted: slice = ALL) -> tuple[Tensor, Tensor, Tensor]:
        """Returns x (B, W, D) at the tokens that are wanted, and this block's own keys and values (B, N, L, K).

        Without `before`, x is a prefix: its last token sees `mask` (B, 1, 1, L), the others all up to themselves. With
        the keys and values of a prefix, `mask` (B, 1, L, P + L) says what each token sees of it and of x.
        """
        q, k, v = self._attended(self.norm1(x), wanted)
        x = x[:, wanted]
        if x.shape[1] == 0:
            return x, k, v
        if before is None:
            h = _attend_in_prefix(q, k, v, mask)
        else:
            h = F.scaled_dot_product_attention(q, torch.cat([before[0], k], dim=2), torch.cat([before[1], v], dim=2), attn_mask=mask[:, :, wanted])
        x = x + self.out(h.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x)), k, v

    def _attended(self, h: Tensor, wanted: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, N, W, K) of the tokens that are wanted, keys and values (B, N, L, K) of all."""
        if wanted == ALL:
            q, k, v = self.qkv(h).chunk(3, dim=-1)
        else:
            width = h.shape[-1]
            q = F.linear(h[:, wanted], self.qkv.weight[:width], self.qkv.bias[:width])
            k, v = F.linear(h, self.qkv.weight[width:], self.qkv.bias[width:]).chunk(2, dim=-1)
        q, k, v = (part.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for part in (q, k, v))  # (B, N, L, K)
        return q, k, v


def _attend_in_prefix(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Causal attention of which only the last token needs a mask, so that the others run in the fused kernels without one."""
    last = F.scaled_dot_product_attention(q[:, :, -1:], k, v, attn_mask=mask)
    if q.shape[2] == 1:
        return last
    others = F.scaled_dot_product_attention(q[:, :, :-1], k[:, :, :-1], v[:, :, :-1], is_causal=True)
    return torch.cat([others, last], dim=2)


class CausalTransformer(nn.Module):
    """Blocks and a final norm. Every token sees the visible tokens up to itself."""

    def __init__(self, *, width: int, depth: int, head_width: int) -> None:
        super().__init__()
        if width % head_width:
            raise ValueError(f"head_width must divide width {width}, got {head_width}")
        self.blocks = nn.ModuleList(Block(width, head_width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def read_prefix(self, x: Tensor, mask: Tensor) -> Prefix:
        """The keys and values of x (B, P, D), to be continued by `forward`.

        `mask` (B, P) is True at what may be seen, which must hold for the last token. Hidden tokens either come after
        all visible ones but the last, or all but the last are hidden: then no visible token but the last has a hidden
        one before it, and causal attention is exact without a mask.
        """
        keys, values = [], []
        for number, block in enumerate(self.blocks, start=1):
            x, k, v = block(x, mask[:, None, None], None, NONE if number == len(self.blocks) else ALL)
            keys.append(k)
            values.append(v)
        return Prefix(tuple(keys), tuple(values), mask)

    def forward(self, x: Tensor, prefix: Prefix, *, num_draws: int = 1, last_only: bool = False) -> Tensor:
        """Tokens after the prefix (B, L, D) -> (B, L, D) after the final norm.

        Args:
            num_draws: x is so many sequences of equal length in a row (L a multiple of it). Each sees the prefix and
                itself, none the others, so that draws share one prefix without a copy of it.
            last_only: only the last token of each draw is wanted: (B, num_draws, D).
        """
        return self._after(x, prefix, num_draws=num_draws, last_only=last_only)[0]

    def extend(self, x: Tensor, prefix: Prefix) -> tuple[Tensor, Prefix]:
        """As `forward`, and with it the prefix that has grown by x, for sampling token by token."""
        out, new = self._after(x, prefix, num_draws=1, last_only=False)
        keys = tuple(torch.cat([before, k], dim=2) for before, (k, _) in zip(prefix.keys, new, strict=True))
        values = tuple(torch.cat([before, v], dim=2) for before, (_, v) in zip(prefix.values, new, strict=True))
        return out, Prefix(keys, values, torch.cat([prefix.mask, prefix.mask.new_ones(x.shape[:2])], dim=1))

    def _after(self, x: Tensor, prefix: Prefix, *, num_draws: int, last_only: bool) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        B, L, _ = x.shape
        length = L // num_draws
        position = torch.arange(L, device=x.device)
        own = (position[:, None] >= position) & (position[:, None] // length == position // length)
        visible = torch.cat([prefix.mask[:, None, :].expand(B, L, -1), own.expand(B, L, L)], dim=2)[:, None]
        new = []
        for number, (block, before_k, before_v) in enumerate(zip(self.blocks, prefix.keys, prefix.values, strict=True), start=1):
            wanted = slice(length - 1, None, length) if last_only and number == len(self.blocks) else ALL
            x, k, v = block(x, visible, (before_k, before_v), wanted)
            new.append((k, v))
        return self.norm(x), new
