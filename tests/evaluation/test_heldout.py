"""Which rows are measured on, while a store grows."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.evaluation.stores import write_store
from unclip.evaluation.config import EvaluateConfig
from unclip.evaluation.heldout import read_held_out


def grown(folder: Path, shards: int) -> Path:
    """A store of so many shards of 20 rows, half of them held out; each row's vector is its own."""
    rows = 20 * shards
    emb = np.random.default_rng(0).normal(size=(200, 4))[:rows]
    write_store(folder, emb, emb, [f"caption {row}" for row in range(rows)], ["train", "scene"] * (rows // 2), parts=shards)
    for part in sorted(folder.glob("*.parquet")):
        table = pq.read_table(part)
        keys = pa.array([f"{part.stem}{row:05d}" for row in range(len(table))])
        pq.write_table(table.set_column(0, "key", keys).replace_schema_metadata(table.schema.metadata), part)
    return folder


def test_up_to_a_shard_the_same_rows_are_measured_on_however_the_store_grows(tmp_path: Path) -> None:
    config = EvaluateConfig(num_captions=8, num_pictures=4, num_shown=1, num_validation=2)
    (before,) = read_held_out(grown(tmp_path / "before", 2), config, seed=0)
    store = grown(tmp_path / "after", 5)
    (anyhow,) = read_held_out(store, config, seed=0)
    (after,) = read_held_out(store, dataclasses.replace(config, last_shard="00001"), seed=0)
    assert len(before.pairs) == len(after.pairs) == 20
    assert len(anyhow.pairs) == 50
    for one, other in ((before.test, after.test), (before.validation, after.validation)):
        assert one.keys == other.keys
        assert (one.true_emb == other.true_emb).all()
    assert anyhow.test.keys != after.test.keys


def test_a_split_that_came_later_is_left_out(tmp_path: Path) -> None:
    store = grown(tmp_path / "store", 2)
    part = store / "00001.parquet"
    table = pq.read_table(part)
    later = pa.array(["train", "new"] * 10)
    pq.write_table(table.set_column(table.column_names.index("split"), "split", later).replace_schema_metadata(table.schema.metadata), part)
    config = EvaluateConfig(num_captions=8, num_pictures=4, num_shown=1, num_validation=0)
    assert [held.split for held in read_held_out(store, config, seed=0)] == ["new", "scene"]
    assert [held.split for held in read_held_out(store, dataclasses.replace(config, last_shard="00000"), seed=0)] == ["scene"]
