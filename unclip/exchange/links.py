"""How the tensors of two layouts of the same network belong together: names, shapes, the order of rows."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unclip.files import UnclipError

Tensors = list[Tensor]
State = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]

SHOWN = 3  # names that a message gives of each kind of mismatch


@dataclass(frozen=True)
class Link:
    """Some tensors of ours and the tensors of theirs that say the same.

    Attributes:
        give, take: ours to theirs and back, in the order of the names.
        is_exact: whether what is given and taken back is the same bit for bit. Where it is not, what we hold does not fit
            into theirs by itself.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    give: Callable[[Tensors], Tensors]
    take: Callable[[Tensors], Tensors]
    is_exact: bool = True


def renamed(ours: str, theirs: str) -> Link:
    """The same tensor by another name."""
    return Link((ours,), (theirs,), list, list)


def modules(names: Mapping[str, str]) -> list[Link]:
    """Weight and bias of modules: our name to theirs."""
    return [renamed(f"{ours}.{kind}", f"{theirs}.{kind}") for ours, theirs in names.items() for kind in ("weight", "bias")]


def reshaped(ours: str, theirs: str, our_shape: tuple[int, ...], their_shape: tuple[int, ...]) -> Link:
    """The same numbers in the same order in another shape; -1 stands for the one length that is left open."""
    return Link((ours,), (theirs,), lambda held: [held[0].reshape(their_shape)], lambda held: [held[0].reshape(our_shape)])


def joined(ours: str, theirs: Sequence[str], *, kernel_dims: int = 0) -> Link:
    """One tensor of ours that holds theirs one after the other in its rows; ours is a kernel of so many spatial sides of 1."""

    def give(held: Tensors) -> Tensors:
        flat = held[0].flatten(2).squeeze(2) if kernel_dims else held[0]
        return [part.contiguous() for part in flat.chunk(len(theirs))]

    def take(held: Tensors) -> Tensors:
        rows = torch.cat(held)
        return [rows.reshape(*rows.shape, *[1] * kernel_dims)]

    return Link((ours,), tuple(theirs), give, take)


def interleaved(ours: str, theirs: str, *, parts: int, head_width: int, our_tail: int = 0, their_tail: int = 0) -> Link:
    """Queries, keys and values in one tensor: ours a part after the other, theirs head after head, the parts of each together.

    The tails are the numbers of sides of length 1 behind a matrix, as kernels have them.
    """

    def swapped(rows: Tensor, first: int, second: int, tail: int) -> Tensor:
        columns = rows.shape[1:2]
        moved = rows.reshape(first, second, head_width, *columns).transpose(0, 1).reshape(-1, *columns)
        return moved.reshape(*moved.shape, *[1] * tail) if columns else moved

    def give(held: Tensors) -> Tensors:
        return [swapped(held[0], parts, len(held[0]) // parts // head_width, their_tail)]

    def take(held: Tensors) -> Tensors:
        return [swapped(held[0], len(held[0]) // parts // head_width, parts, our_tail)]

    return Link((ours,), (theirs,), give, take)


def strided(ours: str, theirs: str, *, num: int) -> Link:
    """Rows of `num` tokens: ours token after token, theirs so that token k has the rows k, k + num, k + 2 num and so on."""

    def give(held: Tensors) -> Tensors:
        return [held[0].reshape(num, -1, *held[0].shape[1:]).transpose(0, 1).reshape(held[0].shape).contiguous()]

    def take(held: Tensors) -> Tensors:
        return [held[0].reshape(-1, num, *held[0].shape[1:]).transpose(0, 1).reshape(held[0].shape).contiguous()]

    return Link((ours,), (theirs,), give, take)


def folded(linear: str, mean: str, std: str, theirs: Link) -> Link:
    """A linear layer of ours over whitened input, which theirs has over the raw one: W (x - mean) / std + b.

    Args:
        theirs: links weight and bias of a layer over raw input to theirs.
    """

    def give(held: Tensors) -> Tensors:
        weight, bias, shift, scale = (value.double() for value in held)
        raw = weight / scale
        return theirs.give([raw.float(), (bias - raw @ shift).float()])

    def take(held: Tensors) -> Tensors:
        weight, bias = theirs.take(held)
        return [weight, bias, weight.new_zeros(weight.shape[1]), weight.new_ones(weight.shape[1])]

    return Link((f"{linear}.weight", f"{linear}.bias", mean, std), theirs.theirs, give, take, is_exact=False)


def both(first: Link, second: Link) -> Link:
    """Two links as one: the tensors of the first, then those of the second."""

    def apply(one: Callable[[Tensors], Tensors], other: Callable[[Tensors], Tensors], cut: int) -> Callable[[Tensors], Tensors]:
        return lambda held: [*one(held[:cut]), *other(held[cut:])]

    give, take = apply(first.give, second.give, len(first.ours)), apply(first.take, second.take, len(first.theirs))
    return Link(first.ours + second.ours, first.theirs + second.theirs, give, take, is_exact=first.is_exact and second.is_exact)


def missing_there(ours: str, shape: tuple[int, ...], *, fill: float = 0.0) -> Link:
    """A tensor that theirs has no place for; without one of ours it is filled with a number."""
    return Link((ours,), (), lambda held: [], lambda held: [torch.full(shape, fill)], is_exact=False)


def nothing_here(theirs: Mapping[str, tuple[int, ...]]) -> Link:
    """Tensors of theirs that ours has no counterpart for and that do nothing at zero."""
    return Link((), tuple(theirs), lambda held: [torch.zeros(shape) for shape in theirs.values()], lambda held: [])


def give_all(links: Iterable[Link], ours: Mapping[str, Tensor]) -> State:
    """Our tensors in their layout."""
    given: State = {}
    for link in links:
        given |= dict(zip(link.theirs, link.give([ours[name] for name in link.ours]), strict=True))
    return given


def take_all(links: Iterable[Link], theirs: Mapping[str, Tensor]) -> State:
    """Their tensors in our layout."""
    taken: State = {}
    for link in links:
        for name, value in zip(link.ours, link.take([theirs[name] for name in link.theirs]), strict=True):
            taken.setdefault(name, value)  # whitening belongs to several layers
    return taken


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor."""
    return {name: tuple(value.shape) for name, value in state.items()}


def require_same(found: Shapes, expected: Shapes, *, where: str, means: str) -> None:
    """Compares the tensors that a file holds with those that its config describes, before anything of that size is made.

    Raises:
        UnclipError: some are missing, unknown, or of another shape; all are counted, the first ones named.
    """
    wrong = [f"{name} is {found[name]}, expected {expected[name]}" for name in sorted(found.keys() & expected.keys()) if found[name] != expected[name]]
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unknown": sorted(found.keys() - expected.keys()),
        "of another shape": wrong,
    }
    shown = [f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})" for kind, names in problems.items() if names]
    if shown:
        raise UnclipError(f"{where} does not hold the tensors of {means}: {'; '.join(shown)}")
