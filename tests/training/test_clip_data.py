"""What a CLIP is trained on: the pairs of the shards, decoded once where they fit into memory."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.data.byhand import Shown, png, write_shards
from unclip.clip import TowerConfig
from unclip.data.curate import CurateConfig, curate
from unclip.training import clip_data
from unclip.training.clip_data import ClipPairs, open_clip_pairs


@pytest.fixture
def pairs(tmp_path: Path) -> ClipPairs:
    shards = write_shards(tmp_path / "shards", [[Shown(f"caption {at}", png(at)) for at in range(6)]])
    curate(tmp_path, shards, CurateConfig())
    return open_clip_pairs(shards, TowerConfig(image_size=8))


def read(pairs: ClipPairs, monkeypatch: pytest.MonkeyPatch, kept_bytes: int) -> tuple[list[torch.Tensor], int]:
    """Three epochs of pixels and ids, and how many pictures were decoded for them."""
    decoded: list[int] = []
    real = clip_data._Reading._pixels
    monkeypatch.setattr(clip_data._Reading, "_pixels", lambda self, row: (decoded.append(row), real(self, row))[1])
    monkeypatch.setattr(clip_data, "KEPT_BYTES", kept_bytes)
    batches = list(islice(pairs.batches(2, seed=0, start=0), 9))
    monkeypatch.setattr(clip_data._Reading, "_pixels", real)
    return [tensor for batch in batches for tensor in (batch.pixels, batch.token_ids)], len(decoded)


def test_what_is_kept_changes_nothing_but_how_often_a_picture_is_decoded(pairs: ClipPairs, monkeypatch: pytest.MonkeyPatch) -> None:
    again, every_time = read(pairs, monkeypatch, 0)
    once, six = read(pairs, monkeypatch, 2**20)
    size = 3 * 8 * 8 * 2 + TowerConfig().context_length * 8
    partly, some = read(pairs, monkeypatch, 2 * size)
    assert (every_time, six, some) == (18, 6, 2 + 3 * 4)
    for others in (once, partly):
        assert all(torch.equal(one, other) for one, other in zip(again, others, strict=True))
