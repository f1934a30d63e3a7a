"""The held-out rows that everything is measured on, and what each way to predict an image embedding says of them."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unclip.data.shards import decode, read_shard
from unclip.data.store import Pairs, read_pairs, splits_of
from unclip.evaluation.config import EvaluateConfig
from unclip.files import UnclipError
from unclip.generate import GenerateConfig, Models, draw_candidates, text_condition
from unclip.prior.condition import Prior, PriorKind, best_of
from unclip.progress import progress
from unclip.worlds.shapes import parse_caption

TRAIN, SHAPES = "train", "shapes"
TRUE, LINEAR, TEXT = "true embedding", "linear", "text embedding as image embedding"
CHOICE_STREAM = 3  # of the seed; 1 and 2 are the noise of prior and decoder


@dataclass(frozen=True)
class HeldOut:
    """One held-out split.

    Attributes:
        split: its name.
        pairs: all its rows, n of them.
        chosen: (c,) row numbers that embeddings are predicted for, in an order drawn from the seed.
        pictures: (c, H, H, 3) uint8, the true pictures of the chosen rows at the decoder's size.
    """

    split: str
    pairs: Pairs
    chosen: np.ndarray
    pictures: np.ndarray

    @property
    def captions(self) -> list[str]:
        """Those of the chosen rows."""
        return [str(caption) for caption in self.pairs.captions[self.chosen]]

    @property
    def keys(self) -> list[str]:
        """Those of the chosen rows."""
        return [str(key) for key in self.pairs.keys[self.chosen]]

    @property
    def true_emb(self) -> np.ndarray:
        """(c, E) float32, the stored image embeddings of the chosen rows."""
        return np.asarray(self.pairs.image_emb[self.chosen], np.float32)

    @property
    def text_emb(self) -> np.ndarray:
        """(c, E) float32, the stored text embeddings of the chosen rows."""
        return np.asarray(self.pairs.text_emb[self.chosen], np.float32)


@dataclass(frozen=True)
class Predictions:
    """What is said of the chosen rows of a split.

    Attributes:
        rows: a name -> raw image embeddings (c, E) float32; the first is the truth.
        draws: (c, n, E) float32, all candidates of the diffusion prior.
    """

    rows: Mapping[str, np.ndarray]
    draws: np.ndarray

    @property
    def diffusion(self) -> str:
        """The name of the row that pictures are made from."""
        return best_of_name(self.draws.shape[1])


def best_of_name(num: int) -> str:
    """The name of the row where the best of `num` draws of the diffusion prior is taken."""
    return f"diffusion best of {num}"


def scene_of(caption: str, world: str) -> Hashable:
    """What two captions must share to ask for the same picture: the scene in the shapes world, the sentence elsewhere."""
    return parse_caption(caption) if world == SHAPES else caption


def read_held_out(shards: Path, store: Path, config: EvaluateConfig, *, image_size: int, seed: int) -> list[HeldOut]:
    """Every held-out split of a store, in the order of their names.

    Raises:
        UnclipError: there is no held-out row, or one has no picture.
    """
    names = sorted(name for name in splits_of(store) if name != TRAIN)
    if not names:
        raise UnclipError(
            f"{store} holds no held-out row, so there is nothing to evaluate on; make the root again with source.heldout_fraction above 0, "
            f"a source.split_column that names a split besides {TRAIN!r}, or world.num_heldout above 0"
        )
    pairs = {name: read_pairs(store, split=name, text_tokens=False) for name in names}
    chosen = {name: np.random.default_rng([seed, CHOICE_STREAM]).permutation(len(held))[: config.num_captions] for name, held in pairs.items()}
    wanted = {str(key) for name in names for key in pairs[name].keys[chosen[name]]}
    pictures = _read_pictures(shards, wanted, image_size)
    return [HeldOut(name, pairs[name], chosen[name], np.stack([pictures[str(key)] for key in pairs[name].keys[chosen[name]]])) for name in names]


def _read_pictures(shards: Path, keys: set[str], size: int) -> dict[str, np.ndarray]:
    """The pictures with these keys, (size, size, 3) uint8; shards after the last of them are not read."""
    found: dict[str, np.ndarray] = {}
    with progress("real", len(keys), unit="picture") as bar:
        for path in sorted(shards.glob("*.tar")):
            if len(found) == len(keys):
                break
            for sample in read_shard(path):
                if sample.key in keys:
                    found[sample.key] = decode(sample.image, size)
                    bar.advance()
    if missing := sorted(keys - found.keys()):
        raise UnclipError(
            f"{len(missing)} held-out rows of the store have no picture in {shards}, the first is {missing[0]}; run `unclip download` and `unclip embed`"
        )
    return found


@torch.no_grad()
def predict(held: HeldOut, models: Models, priors: Mapping[PriorKind, Prior], generate: GenerateConfig, *, batch_size: int) -> Predictions:
    """The ladder of paper.md 4.3 without pixels: truth, first draw and best draw of the diffusion prior, linear, text.

    The first draw is the first of the same draws that the best is chosen from.
    """
    draws, best, straight = [], [], []
    with progress(f"prior {held.split}", len(held.chosen), unit="caption") as bar:
        for rows, captions in batches(held.captions, batch_size):
            condition = text_condition(models.clip, captions)
            candidates = draw_candidates(priors["diffusion"], condition, generate, rows=rows)
            draws.append(_numpy(candidates))
            best.append(_numpy(best_of(candidates, condition.text_emb)))
            straight.append(_numpy(draw_candidates(priors["linear"], condition, generate, rows=rows)[:, 0]))
            bar.advance(len(captions))
    drawn = np.concatenate(draws)
    ladder = {TRUE: held.true_emb, best_of_name(1): drawn[:, 0], best_of_name(drawn.shape[1]): np.concatenate(best)}
    return Predictions(ladder | {LINEAR: np.concatenate(straight), TEXT: held.text_emb}, drawn)


def batches(captions: Sequence[str], batch_size: int) -> list[tuple[range, list[str]]]:
    """Captions in batches, each with the numbers of its rows."""
    starts = range(0, len(captions), batch_size)
    return [(range(start, min(start + batch_size, len(captions))), list(captions[start : start + batch_size])) for start in starts]


def _numpy(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
