"""Is the true image found by a predicted embedding? Recall through the FAISS index, and the rank of the true image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unclip.data.index import Index
from unclip.data.store import iter_batches, normalised
from unclip.evaluation.clip import numbered
from unclip.evaluation.heldout import scene_of
from unclip.files import UnclipError

RECALLED = (1, 5, 10)
TIE = 1e-6  # cosines nearer than this are a tie; float32 products differ so much with their order


class Gallery:
    """All images of an index, held-out and training, as those that a caption's true image is sought among."""

    def __init__(self, index: Index, *, world: str) -> None:
        self._index = index
        self._row_of = {str(key): row for row, key in enumerate(index.keys["key"].to_pylist())}
        self._scenes = numbered([scene_of(str(caption), world) for caption in index.keys["caption"].to_pylist()])

    def __len__(self) -> int:
        return len(self._scenes)

    def places(self, keys: Sequence[str]) -> np.ndarray:
        """The rows (c,) of the index that hold the images with these keys.

        Raises:
            UnclipError: one is not in the index.
        """
        if missing := [key for key in keys if key not in self._row_of]:
            raise UnclipError(f"{len(missing)} held-out rows are not in the index, the first is {missing[0]}; run `unclip index` again")
        return np.array([self._row_of[key] for key in keys], dtype=np.int64)

    def hits(self, emb: np.ndarray, wanted: np.ndarray) -> dict[str, np.ndarray]:
        """(c,) bool for each k: whether the image at `wanted` (c,) is among the k nearest of emb (c, E), or one of its scene."""
        _, found = self._index.search(emb, max(RECALLED))
        same = np.where(found >= 0, self._scenes[found], -1) == self._scenes[wanted][:, None]
        hits = {f"recall_at_{k}": (found[:, :k] == wanted[:, None]).any(axis=1) for k in RECALLED}
        return hits | {f"scene_recall_at_{k}": same[:, :k].any(axis=1) for k in RECALLED}

    def chance(self) -> dict[str, float]:
        """What recall luck gives."""
        return {f"recall_at_{k}": min(1.0, k / len(self)) for k in RECALLED}


def ranks(emb: np.ndarray, true_emb: np.ndarray, store: Path) -> np.ndarray:
    """(c,) the place of the true image, from 1, among all of the store by cosine to the prediction; ties count for it.

    The index is exact and over the same vectors, so this is its order, without a list of all of them for every caption.
    """
    queries = normalised(emb)
    wanted = (queries * normalised(true_emb)).sum(axis=1)
    nearer = np.zeros(len(queries), np.int64)
    for batch in iter_batches(store, ["image_emb"]):
        nearer += (queries @ normalised(batch["image_emb"]).T > wanted[:, None] + TIE).sum(axis=1)
    return nearer + 1
