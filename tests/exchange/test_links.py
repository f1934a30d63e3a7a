"""How rows go from our order into theirs: by hand on small numbers, and back."""

import pytest
import torch

from unclip.exchange.links import both, folded, give_all, interleaved, joined, renamed, require_same, strided, take_all
from unclip.files import UnclipError


def test_interleaved_has_the_parts_of_each_head_together() -> None:
    rows = torch.arange(12.0)  # q0 q1 q2 q3 | k0 k1 k2 k3 | v0 v1 v2 v3, heads of two
    link = interleaved("ours", "theirs", parts=3, head_width=2)
    assert link.give([rows])[0].tolist() == [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]
    assert torch.equal(link.take(link.give([rows]))[0], rows)


def test_strided_gives_token_k_the_rows_k_and_so_on() -> None:
    rows = torch.tensor([[0.0], [1.0], [10.0], [11.0], [20.0], [21.0]])  # three tokens, two wide
    link = strided("ours", "theirs", num=3)
    assert link.give([rows])[0].flatten().tolist() == [0, 10, 20, 1, 11, 21]
    assert torch.equal(link.take(link.give([rows]))[0], rows)


def test_joined_takes_matrices_for_a_kernel() -> None:
    kernel = torch.arange(12.0).reshape(6, 2, 1, 1)
    link = joined("ours", ["q", "k", "v"], kernel_dims=2)
    assert [tuple(part.shape) for part in link.give([kernel])] == [(2, 2)] * 3
    assert torch.equal(link.take(link.give([kernel]))[0], kernel)


def test_folded_reads_raw_what_ours_reads_whitened() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias, mean, x = (torch.randn(*shape, generator=generator) for shape in ((4, 3), (4,), (3,), (5, 3)))
    std = torch.tensor([0.5, 2.0, 3.0])
    link = folded("layer", "mean", "std", both(renamed("layer.weight", "w"), renamed("layer.bias", "b")))
    raw_weight, raw_bias = link.give([weight, bias, mean, std])
    torch.testing.assert_close(x @ raw_weight.T + raw_bias, ((x - mean) / std) @ weight.T + bias)
    again = take_all([link], {"w": raw_weight, "b": raw_bias})
    assert torch.equal(again["mean"], torch.zeros(3))
    assert torch.equal(again["std"], torch.ones(3))
    assert torch.equal(give_all([link], again)["w"], raw_weight)


def test_all_that_does_not_fit_stands_in_one_message() -> None:
    with pytest.raises(UnclipError, match=r"1 missing \(c\); 2 unknown \(d, e\); 1 of another shape \(b is \(2,\), expected \(3,\)\)"):
        require_same({"a": (1,), "b": (2,), "d": (), "e": ()}, {"a": (1,), "b": (3,), "c": ()}, where="FILE", means="a prior")
