"""The second half of the curation on stores by hand: what stays, in which split, what leaked, and that decisions stand."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.data.byhand import Vector, write_store
from unclip.data.cache import open_pairs
from unclip.data.clusters import CLUSTERS
from unclip.data.contracts import REASONS, SELECTED, read_table
from unclip.data.manifest import finished_manifest
from unclip.data.select import LEAKAGE_TABLE, SelectConfig, select
from unclip.data.selection import ROWS
from unclip.data.stats import read_stats, write_stats
from unclip.data.store import iter_batches, normalised, num_rows, read_pairs, rows_digest, splits_of
from unclip.files import UnclipError

DROP = SelectConfig(near_duplicates="drop", near_similarity=0.95)


def at(angle: float, split: str = "train", **more: Any) -> Vector:
    """A vector in the plane. Two are near at 0.95 where their angles differ by less than 0.3176."""
    return Vector([3 * np.cos(angle), 3 * np.sin(angle)], split, **more)


def rows_of(store: Path) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in read_table(store / "_selected" / ROWS, SELECTED).to_pylist()}


def statuses(store: Path) -> list[str]:
    return [row["status"] for row in rows_of(store).values()]


def keys(*places: tuple[int, int]) -> list[str]:
    return [f"{part:05d}{row:05d}" for part, row in places]


def test_without_rules_everything_stays_and_nothing_on_it_is_made_again(tmp_path: Path) -> None:
    store = write_store(tmp_path, [[at(0), at(0)], [at(0, "heldout"), at(2)]])
    write_stats(store)
    before = read_stats(store)
    manifest = select(store, SelectConfig())
    assert manifest.digest == rows_digest(store) == finished_manifest(store, "embed").digest
    assert statuses(store) == ["kept"] * 4
    assert read_stats(store) == before
    assert splits_of(store) == {"train": 3, "heldout": 1}


def test_the_best_of_a_cluster_stays_and_the_others_name_it(tmp_path: Path) -> None:
    parts = [[at(0, side=64), at(0.1, side=128, similarity=0.2), at(3)], [at(0.2, side=128, similarity=0.4), at(2.9), at(1.6)]]
    store = write_store(tmp_path, parts)
    manifest = select(store, DROP)
    rows = rows_of(store)
    assert [key for key, row in rows.items() if row["status"] == "kept"] == keys((0, 2), (1, 0), (1, 2))
    first = rows[keys((0, 0))[0]]
    assert (first["other"], first["limit"], first["cluster"]) == (keys((1, 0))[0], 0.95, keys((0, 0))[0])
    assert first["value"] == pytest.approx(np.cos(0.2), abs=2e-3)
    assert rows[keys((1, 2))[0]]["cluster"] is None
    counts = manifest.counts
    assert counts["rejected"] == {"near duplicate": 3}
    assert set(counts["rejected"]) <= set(REASONS)
    assert counts["rows_in"] == 6 == counts["kept"] + 3
    assert (counts["clusters"], counts["largest_cluster"]) == (2, 3)
    shown = pq.read_table(store / "_selected" / CLUSTERS).to_pylist()
    assert [(cluster["rows"], cluster["kept"], cluster["keys"][0]) for cluster in shown] == [(3, 1, keys((1, 0))[0]), (2, 1, keys((0, 2))[0])]


def test_a_threshold_too_low_does_not_leave_one_picture_of_a_chain(tmp_path: Path) -> None:
    store = write_store(tmp_path, [[at(0.2 * step) for step in range(12)]])
    manifest = select(store, DROP)
    assert manifest.counts["largest_cluster"] == 12
    kept = read_pairs(store, split="train", text_tokens=False)
    unit = normalised(kept.image_emb)
    assert len(kept) == 6  # every other one
    assert (np.triu(unit @ unit.T, 1) < 0.95).all()


def test_reports_only_where_asked_to(tmp_path: Path) -> None:
    store = write_store(tmp_path, [[at(0), at(0.1), at(2)]])
    manifest = select(store, SelectConfig(near_duplicates="report"))
    assert (manifest.counts["kept"], manifest.counts["clusters"]) == (3, 1)
    assert manifest.digest == finished_manifest(store, "embed").digest


LEAKY = [
    [at(0), at(0.1), at(1), at(2, "heldout"), at(3)],
    [at(0.05, "heldout"), at(4, "heldout"), at(4.2), at(5.2, "other"), at(5.3, "other")],
]


def leakage(store: Path) -> dict[str, tuple[float | None, float | None]]:
    return {row["key"]: (row["similarity_before"], row["similarity_after"]) for row in pq.read_table(store / "_selected" / LEAKAGE_TABLE).to_pylist()}


@pytest.mark.parametrize(
    ("crossing", "dropped", "splits", "after"),
    [
        ("allow", [], {"train": 5, "heldout": 3, "other": 2}, 2),
        ("drop", [(0, 0), (0, 1), (1, 2)], {"train": 2, "heldout": 3, "other": 2}, 0),
        ("move", [], {"train": 7, "heldout": 1, "other": 2}, 0),
    ],
)
def test_a_planted_near_duplicate_across_splits_is_found(
    tmp_path: Path, crossing: Any, dropped: Sequence[tuple[int, int]], splits: dict[str, int], after: int
) -> None:
    store = write_store(tmp_path, LEAKY)
    manifest = select(store, SelectConfig(crossing=crossing))
    assert [key for key, row in rows_of(store).items() if row["status"] == "near a row of another split"] == keys(*dropped)
    assert splits_of(store) == splits
    assert manifest.counts["moved"] == (2 if crossing == "move" else 0)
    found = manifest.counts["leakage"]["splits"]
    assert found["heldout"]["before"]["near"] == 2
    assert found["heldout"]["before"]["share_near"] == pytest.approx(2 / 3)
    assert found["heldout"]["after"]["near"] == after
    assert found["other"]["before"]["near"] == found["other"]["after"]["near"] == 0
    one = leakage(store)[keys((1, 0))[0]]
    assert one[0] == pytest.approx(np.cos(0.05), abs=1e-3)
    assert (one[1] is None) == (crossing == "move")
    if crossing == "drop":
        row = rows_of(store)[keys((0, 1))[0]]
        assert (row["other"], row["limit"]) == (keys((1, 0))[0], 0.95)
        assert row["value"] == pytest.approx(np.cos(0.05), abs=1e-3)


@pytest.mark.parametrize("config", [SelectConfig(crossing="drop", near_duplicates="drop"), SelectConfig(crossing="move")])
def test_no_cluster_crosses_among_random_rows_and_none_above_the_threshold_leaks(tmp_path: Path, config: SelectConfig) -> None:
    generator = np.random.default_rng(0)
    parts = [[at(angle, "heldout" if angle % 0.01 < 0.002 else "train", similarity=angle / 9) for angle in generator.uniform(0, 2, 20)] for _ in range(3)]
    parts[0] += [Vector([1, 0.4]), Vector([-1, 0.2]), Vector([-1, -4])]  # so that not all is one chain
    store = write_store(tmp_path, parts)
    manifest = select(store, config)
    held = {name: normalised(read_pairs(store, split=name, text_tokens=False).image_emb) for name in ("train", "heldout")}
    if len(held["heldout"]):
        assert (held["train"] @ held["heldout"].T).max() < 0.95
    assert all(times["before"]["near"] and not times["after"]["near"] for times in manifest.counts["leakage"]["splits"].values())
    if config.near_duplicates == "drop":
        for unit in held.values():
            assert (np.triu(unit @ unit.T, 1) < 0.95).all()


def test_leakage_is_exact_and_a_sample_of_it_is_drawn_evenly(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    parts = [[Vector(generator.normal(size=5).tolist(), "heldout" if row % 3 else "train") for row in range(30)] for _ in range(2)]
    store = write_store(tmp_path / "all", parts)
    select(store, SelectConfig())
    train, held = (read_pairs(store, split=split, text_tokens=False) for split in ("train", "heldout"))
    truth = (normalised(held.image_emb) @ normalised(train.image_emb).T).max(axis=1)
    found = leakage(store)
    assert list(found) == held.keys.tolist()
    np.testing.assert_allclose([before for before, _ in found.values()], truth, atol=1e-6)
    assert all(before == after for before, after in found.values())
    store = write_store(tmp_path / "some", parts)
    select(store, SelectConfig(leakage_rows=7))
    some = leakage(store)
    assert len(some) == 7
    assert some.items() <= found.items()


def test_low_rows_go_before_clusters_are_sought(tmp_path: Path) -> None:
    rows = [at(0, similarity=0.9), at(0.3, similarity=0.1), at(0.6, similarity=0.8), at(0.1, similarity=0.5)]
    store = write_store(tmp_path, [rows])
    select(store, SelectConfig(near_duplicates="drop", keep_fraction=0.75))
    assert statuses(store) == ["kept", "similarity too low", "kept", "near duplicate"]
    low = rows_of(store)[keys((0, 1))[0]]
    assert (low["value"], low["limit"]) == (pytest.approx(0.1), pytest.approx(0.5))
    assert low["cluster"] is None


def test_readers_get_the_rows_and_splits_that_were_selected(tmp_path: Path) -> None:
    store = write_store(tmp_path, LEAKY)
    write_stats(store)
    select(store, SelectConfig(crossing="drop"))
    pairs = read_pairs(store, split="train", text_tokens=False)
    assert pairs.keys.tolist() == keys((0, 2), (0, 4))
    assert open_pairs(store, split="train", text_tokens=False).keys.tolist() == pairs.keys.tolist()
    assert read_stats(store)["count"] == 2
    assert num_rows(store) == 7
    assert sum(len(batch["key"]) for batch in iter_batches(store, ["key"], selected=False)) == 10
    assert [len(batch["image_emb"]) for batch in iter_batches(store, ["image_emb"], batch_size=2)] == [2, 1, 2, 1, 1]
    digest = rows_digest(store)
    assert digest != finished_manifest(store, "embed").digest
    write_store(store, [*LEAKY, [at(1.5)]])
    with pytest.raises(UnclipError, match="changed since `unclip select`"):
        rows_digest(store)
    with pytest.raises(UnclipError, match="00002 of .* came after the last `unclip select`"):
        list(iter_batches(store, ["key"]))


def test_the_join_that_the_readme_shows_gives_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    duckdb = pytest.importorskip("duckdb")
    store = write_store(tmp_path, LEAKY)
    select(store, SelectConfig(crossing="move", near_duplicates="drop"))
    (query,) = re.findall(r"^    (SELECT key, rows\.split.*)$", (Path(__file__).parents[2] / "data/README.md").read_text(), re.MULTILINE)
    monkeypatch.chdir(store)
    found = duckdb.sql(f"SELECT key, split FROM ({query}) ORDER BY key").fetchall()
    assert found == [(key, split) for batch in iter_batches(store, ["key", "split"]) for key, split in zip(batch["key"], batch["split"], strict=True)]


def test_a_training_cache_of_other_rows_is_made_again(tmp_path: Path) -> None:
    store = write_store(tmp_path, LEAKY)
    assert len(open_pairs(store, split="train", text_tokens=False)) == 5
    select(store, SelectConfig(crossing="drop"))
    assert len(open_pairs(store, split="train", text_tokens=False)) == 2


OLD = [[at(0, side=64), at(0.2, side=32), at(2)]]
NEW = [at(0.1, side=512), at(2.9), at(2.1, side=512)]  # better copies of rows that were kept, and a new one


def test_a_better_copy_that_comes_later_yields_unless_the_config_says_so(tmp_path: Path) -> None:
    store = write_store(tmp_path / "earlier", OLD)
    select(store, DROP)
    before = rows_of(store)
    write_store(store, [*OLD, NEW])
    select(store, DROP)
    after = rows_of(store)
    assert {key: after[key] | {"cluster": None} for key in before} == {key: row | {"cluster": None} for key, row in before.items()}
    assert [after[key]["status"] for key in keys((1, 0), (1, 1), (1, 2))] == ["near duplicate", "kept", "near duplicate"]
    assert [after[key]["other"] for key in keys((1, 0), (1, 2))] == keys((0, 0), (0, 2))
    best = SelectConfig(near_duplicates="drop", prefer="best")
    anew = write_store(tmp_path / "best", OLD)
    select(anew, best)
    write_store(anew, [*OLD, NEW])
    select(anew, best)
    assert statuses(anew) == ["near duplicate", "near duplicate", "near duplicate", "kept", "kept", "kept"]


def test_new_evaluation_rows_yield_to_training_rows_that_were_decided(tmp_path: Path) -> None:
    store = write_store(tmp_path, [[at(0), at(2), at(4, "heldout")]])
    config = SelectConfig(crossing="drop")
    select(store, config)
    write_store(store, [[at(0), at(2), at(4, "heldout")], [at(0.1, "heldout"), at(4.1), at(3, "heldout")]])
    manifest = select(store, config)
    assert statuses(store) == ["kept"] * 3 + ["near a row of another split"] * 2 + ["kept"]
    assert manifest.counts["leakage"]["splits"]["heldout"]["after"]["near"] == 0


def test_clusters_joined_by_a_dropped_row_stay_apart(tmp_path: Path) -> None:
    config, first = SelectConfig(crossing="drop", near_similarity=0.9), [at(0), at(0.1), at(0.8, "heldout")]  # near within 0.451
    store = write_store(tmp_path, [first])
    select(store, config)
    write_store(store, [first, [at(0.45)]])
    select(store, config)
    write_store(store, [first, [at(0.45)], [at(-0.2)]])
    select(store, config)
    rows = rows_of(store)
    assert rows[keys((1, 0))[0]]["status"] == "near a row of another split"
    assert rows[keys((2, 0))[0]]["status"] == "kept", "it hangs together with the training rows alone"
    assert rows[keys((0, 2))[0]]["cluster"] is None


def test_later_rows_are_held_against_the_limit_of_the_first(tmp_path: Path) -> None:
    first = [at(number, similarity=number / 10) for number in range(10)]
    store = write_store(tmp_path, [first])
    config = SelectConfig(keep_fraction=0.5)
    select(store, config)
    write_store(store, [first, [at(0.5, similarity=0.45), at(1.5, similarity=0.55)]])
    select(store, config)
    assert statuses(store) == ["similarity too low"] * 5 + ["kept"] * 5 + ["similarity too low", "kept"]


def test_a_row_that_left_the_store_leaves_and_one_whose_picture_changed_is_decided_anew(tmp_path: Path) -> None:
    rows = [at(0, side=128), at(0.1), at(2), at(3)]
    store = write_store(tmp_path, [rows])
    select(store, DROP)
    assert statuses(store) == ["kept", "near duplicate", "kept", "kept"]
    write_store(store, [[*rows[:3], at(2.1, similarity=0.6, side=999)]])  # another picture came under the last link
    select(store, DROP)
    assert statuses(store) == ["kept", "near duplicate", "kept", "near duplicate"]
    write_store(store, [rows[:2]])
    with pytest.raises(UnclipError, match="leave 1 rows for training"):
        select(store, DROP)


def test_rules_that_leave_too_little_can_be_put_right(tmp_path: Path) -> None:
    store = write_store(tmp_path, [[at(0), at(0.1)]])
    with pytest.raises(UnclipError, match="loosen them"):
        select(store, DROP)
    select(store, SelectConfig(near_similarity=0.999, near_duplicates="drop"))
    with pytest.raises(UnclipError, match=r"near_similarity was 0\.999, is now 0\.95"):
        select(store, DROP)


@pytest.mark.parametrize("wrong", [{"keep_fraction": 0}, {"near_similarity": 1.1}, {"probes": 0}, {"exact_rows": -1}, {"min_similarity": -2}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SelectConfig(**wrong)


def test_cells_and_all_pairs_decide_the_same_on_rows_that_lie_apart(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    centres = generator.normal(size=(150, 12))
    rows = [Vector((centres[row % 150] + 0.02 * generator.normal(size=12)).tolist(), similarity=float(generator.uniform())) for row in range(450)]
    kept = []
    for exact_rows in (10**6, 10):
        store = write_store(tmp_path / str(exact_rows), [rows[:200], rows[200:]])
        select(store, SelectConfig(near_duplicates="drop", exact_rows=exact_rows, probes=6))
        kept.append(statuses(store))
    assert kept[0] == kept[1]
    assert kept[0].count("kept") == 150


def random_parts() -> list[list[Vector]]:
    generator = np.random.default_rng(4)
    return [
        [at(angle, "heldout" if row % 7 == 0 else "train", similarity=angle / 7) for row, angle in enumerate(generator.uniform(0, 6, 60))] for _ in range(4)
    ]


SLOW = SelectConfig(near_duplicates="drop", crossing="move", near_similarity=0.9999, exact_rows=10, keep_fraction=0.9)


def killed_after(store: Path, num_files: int) -> bool:
    """Selects in a child that dies without any clean-up once it has put so many files in their place; whether it died."""
    child = os.fork()
    if not child:
        real, put = os.replace, 0

        def replace(*names: Any) -> None:
            nonlocal put
            real(*names)
            put += 1
            if put == num_files:
                os._exit(9)

        os.replace = replace  # type: ignore[assignment]
        select(store, SLOW)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_killed_after_any_file_it_goes_on_to_the_same(tmp_path: Path) -> None:
    whole = write_store(tmp_path / "whole", random_parts())
    select(whole, SLOW)
    store = write_store(tmp_path / "killed", random_parts())
    deaths = sum(killed_after(store, num_files) for num_files in range(1, 12))
    assert deaths > 7
    select(store, SLOW)
    assert rows_of(store) == rows_of(whole)
    assert finished_manifest(store / "_selected", "select").digest == finished_manifest(whole / "_selected", "select").digest
    assert {path.name for path in (store / "_selected").iterdir()} == {path.name for path in (whole / "_selected").iterdir()}
