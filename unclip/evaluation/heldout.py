"""The held-out rows that everything is measured on, and what each way to predict an image embedding says of them."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unclip.clip import Clip
from unclip.data.store import Pairs, emb_width, iter_batches, normalised, read_pairs, splits_of
from unclip.evaluation.config import EvaluateConfig
from unclip.files import UnclipError
from unclip.generate import GenerateConfig, draw_candidates, text_condition
from unclip.prior.condition import PRIOR_KINDS, Prior, PriorKind, best_of
from unclip.progress import progress
from unclip.worlds.shapes import parse_caption

TRAIN = "train"
SHAPES, EMOJI = "shapes", "emoji"  # the data sets made here
TRUE, TEXT, NEAREST = "true embedding", "text embedding as image embedding", "image of the nearest training caption"
CHOICE_STREAM, SEEN_STREAM = 3, 4  # of the seed; others have other uses
VALIDATION_SHARE = 4  # a quarter of a split at most is kept for the curves


@dataclass(frozen=True)
class Rows:
    """Some rows of a split, c of them.

    Attributes:
        keys, captions: c each.
        true_emb, text_emb: (c, E) float32, as stored.
    """

    keys: list[str]
    captions: list[str]
    true_emb: np.ndarray
    text_emb: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Asked:
    """The captions of one split, held out or seen in training, that pictures are asked for."""

    split: str
    rows: Rows


@dataclass(frozen=True)
class HeldOut:
    """One held-out split.

    Attributes:
        split: its name.
        pairs: all its rows.
        test: those that the ladder and the judges are measured on, in an order drawn from the seed.
        validation: others, for the curves, so that whoever chooses by a curve has not chosen on the test rows.
    """

    split: str
    pairs: Pairs
    test: Rows
    validation: Rows


@dataclass(frozen=True)
class Predictions:
    """What is said of the test rows of a split.

    Attributes:
        rows: a name -> raw image embeddings (c, E) float32; the first is the truth.
        draws: a name -> (c, n, E) float32, all candidates of the prior whose single draw has that name.
        chosen: the name of the row that pictures are made from.
        baseline: the name of the row that they are compared with.
    """

    rows: Mapping[str, np.ndarray]
    draws: Mapping[str, np.ndarray]
    chosen: str
    baseline: str

    @property
    def answers(self) -> dict[str, str]:
        """A kind of prior -> the row that pictures of it are made from: of a prior that is sampled the best of its draws."""
        # the best of several draws stands after the first one
        return {name.split(" ", 1)[0]: name for name in self.rows if name not in (TRUE, TEXT, NEAREST)}

    @property
    def first_draw(self) -> str:
        """The row with one draw of the prior that pictures are made with, or its only answer."""
        kind = self.chosen.split(" ", 1)[0]
        return next(name for name in self.rows if name.split(" ", 1)[0] == kind)


def draw_name(kind: PriorKind) -> str:
    """The name of the row with one draw of a prior that is sampled."""
    return f"{kind} x1"


def best_name(kind: PriorKind, num: int) -> str:
    """The name of the row where the best of `num` draws is taken."""
    return f"{kind} best of {num}" if num > 1 else draw_name(kind)


def is_sampled(prior: Prior) -> bool:
    """Whether a prior draws its answer; linear and regression priors have one to each caption."""
    return prior.noise_width > 0


def scene_of(caption: str, world: str) -> Hashable:
    """What two captions must share to ask for the same picture: the scene in the shapes world, the sentence elsewhere."""
    return parse_caption(caption) if world == SHAPES else caption


def read_held_out(store: Path, config: EvaluateConfig, *, seed: int) -> list[HeldOut]:
    """Every held-out split of a store, in the order of their names.

    Raises:
        UnclipError: there is no held-out row.
    """
    names = sorted(name for name in splits_of(store) if name != TRAIN)
    if not names:
        raise UnclipError(
            f"{store} holds no held-out row, so there is nothing to evaluate on; make the root again with source.heldout_fraction above 0, "
            f"a source.split_column that names a split besides {TRAIN!r}, or world.num_heldout above 0"
        )
    splits = []
    for name in names:
        pairs = _up_to(config.last_shard, read_pairs(store, split=name, text_tokens=False))
        if not len(pairs):
            continue
        order = np.random.default_rng([seed, CHOICE_STREAM]).permutation(len(pairs))
        kept = min(config.num_validation, len(pairs) // VALIDATION_SHARE)
        test, validation = order[: len(pairs) - kept][: config.num_captions], order[len(pairs) - kept :]
        splits.append(HeldOut(name, pairs, _rows(pairs, test), _rows(pairs, validation)))
    return splits


def _up_to(last_shard: str, pairs: Pairs) -> Pairs:
    """The rows of the shards up to this one, all where none is named; a key begins with its shard's name."""
    if not last_shard:
        return pairs
    kept = np.flatnonzero(np.array([key[: len(last_shard)] <= last_shard for key in pairs.keys], bool))
    return Pairs(pairs.keys[kept], pairs.captions[kept], pairs.image_emb[kept], pairs.text_emb[kept], text_tokens=None)


def first_rows(held: HeldOut, num: int) -> Asked:
    """The first `num` test rows of a split."""
    test = held.test
    return Asked(held.split, Rows(test.keys[:num], test.captions[:num], test.true_emb[:num], test.text_emb[:num]))


def _rows(pairs: Pairs, numbers: np.ndarray) -> Rows:
    keys, captions = ([str(text) for text in column[numbers]] for column in (pairs.keys, pairs.captions))
    return Rows(keys, captions, np.asarray(pairs.image_emb[numbers], np.float32), np.asarray(pairs.text_emb[numbers], np.float32))


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of several splits as one."""
    return Rows(
        [key for part in parts for key in part.keys],
        [caption for part in parts for caption in part.captions],
        np.concatenate([part.true_emb for part in parts]),
        np.concatenate([part.text_emb for part in parts]),
    )


def read_seen(store: Path, num: int, *, seed: int) -> Asked:
    """`num` training rows drawn from the seed, or all where there are fewer, in an order that is drawn too."""
    total = splits_of(store).get(TRAIN, 0)
    places = np.random.default_rng([seed, SEEN_STREAM]).permutation(total)[:num]
    columns = ("key", "caption", "image_emb", "text_emb")
    found: dict[str, list[np.ndarray]] = {name: [] for name in columns}
    passed = 0
    for batch in iter_batches(store, ["split", *columns]):
        rows = np.flatnonzero(batch["split"] == TRAIN)
        wanted = rows[np.sort(places[(places >= passed) & (places < passed + len(rows))]) - passed]
        passed += len(rows)
        for name in columns:
            found[name].append(batch[name][wanted])
    keys, captions, image_emb, text_emb = (np.concatenate(parts) for parts in found.values())
    order_drawn = np.argsort(np.argsort(places))  # not that of the store
    return Asked(TRAIN, _rows(Pairs(keys, captions, image_emb, text_emb, text_tokens=None), order_drawn))


@torch.no_grad()
def predict(
    rows: Rows, clip: Clip, priors: Mapping[PriorKind, Prior], store: Path, generate: GenerateConfig, *, prior: PriorKind, batch_size: int, label: str
) -> Predictions:
    """The ladder without pixels: the truth, all priors there are, and what costs nothing.

    Of a prior that is sampled the first draw and the best one; the first is among those that the best is chosen from.

    Args:
        prior: the kind that pictures are made with.

    Raises:
        UnclipError: that kind is not among the priors.
    """
    if prior not in priors:
        raise UnclipError(f"expected a trained prior of the kind {prior}, there are {', '.join(priors)}; run `unclip train prior` with it in --prior.kinds")
    kinds = [kind for kind in PRIOR_KINDS if kind in priors]
    candidates: dict[PriorKind, list[np.ndarray]] = {kind: [] for kind in kinds}
    best: dict[PriorKind, list[np.ndarray]] = {kind: [] for kind in kinds}
    with progress(f"prior {label}", len(rows), unit="caption") as bar:
        for numbers, captions in batches(rows.captions, batch_size):
            condition = text_condition(clip, captions)
            for kind in kinds:
                drawn = draw_candidates(priors[kind], condition, generate, rows=numbers)
                candidates[kind].append(_numpy(drawn))
                best[kind].append(_numpy(best_of(drawn, condition.text_emb)))
            bar.advance(len(captions))
    ladder, draws = {TRUE: rows.true_emb}, {}
    for kind in kinds:
        drawn_by = np.concatenate(candidates[kind])
        if is_sampled(priors[kind]):
            draws[draw_name(kind)] = drawn_by
            ladder |= {draw_name(kind): drawn_by[:, 0], best_name(kind, generate.num_candidates): np.concatenate(best[kind])}
        else:
            ladder[kind] = drawn_by[:, 0]
    ladder |= {TEXT: rows.text_emb, NEAREST: nearest_training(store, rows.text_emb)}
    chosen = best_name(prior, generate.num_candidates) if is_sampled(priors[prior]) else prior
    baseline = next(name for name in ("linear", "regression", NEAREST) if name in ladder and name != chosen)
    return Predictions(ladder, draws, chosen, baseline)


def nearest_training(store: Path, text_emb: np.ndarray) -> np.ndarray:
    """(c, E) the image embedding of the training pair whose text embedding is nearest by cosine to each of (c, E)."""
    queries = normalised(text_emb)
    best, found = np.full(len(queries), -np.inf), np.zeros((len(queries), emb_width(store)), np.float32)
    for batch in iter_batches(store, ["split", "text_emb", "image_emb"]):
        rows = np.flatnonzero(batch["split"] == TRAIN)
        if not len(rows):
            continue
        cosines = queries @ normalised(batch["text_emb"][rows]).T  # (c, n)
        nearest = cosines.argmax(axis=1)
        nearer = cosines.max(axis=1) > best
        best[nearer] = cosines.max(axis=1)[nearer]
        found[nearer] = batch["image_emb"][rows[nearest[nearer]]]
    return found


def batches(captions: Sequence[str], batch_size: int) -> list[tuple[range, list[str]]]:
    """Captions in batches, each with the numbers of its rows."""
    starts = range(0, len(captions), batch_size)
    return [(range(start, min(start + batch_size, len(captions))), list(captions[start : start + batch_size])) for start in starts]


def _numpy(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
