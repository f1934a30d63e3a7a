"""Takes links down: their pictures, captions and vectors leave every stage's result, and they are never fetched again.

First the links are marked, then all that is marked is erased, the source table last. So a takedown that was killed is
done by the same command again, and every other command already refuses what is marked. A row that was taken down keeps
its place, without link and caption: the keys of all others stay what they are, and the counts add up.
"""

import dataclasses
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unclip.data.batch import Fetched, picture_places
from unclip.data.contracts import REJECTED, SHARD, SOURCE, iter_rows, read_table
from unclip.data.download import SCRATCH, shard_files, shard_origin, source_shards
from unclip.data.embed import part_origin, write_part
from unclip.data.extras import EXTRAS, known_extras
from unclip.data.folder import served_folder
from unclip.data.growth import Growth, writing
from unclip.data.links import RefusedError, cleaned_url
from unclip.data.manifest import Part, parts_digest, read_manifest, read_part, restate, sum_counts, write_part_record
from unclip.data.marks import Marks
from unclip.data.outcomes import KEPT
from unclip.data.pack import NAME_DIGITS, write_shard
from unclip.data.serve import HOST, file_below
from unclip.data.shards import curated_part, kept_rows, shards_digest
from unclip.data.source import REJECTED_TABLE, SHOWN, TABLE, leads_to
from unclip.data.stats import STATS, write_stats
from unclip.files import UnclipError, read_json, remove, remove_leftovers, replacing, write_json
from unclip.layout import SELECTED

CACHE = "_cache"  # folders of this name hold what is made again from what stands beside them
JOURNAL = ".takedown.json"  # in the shards, while a takedown is at work: the digests that shards had before it
SHEET = "clusters.png"  # of pictures, beside what `select` left
REMOVED = "removed"  # the reason


@dataclass(frozen=True)
class Gone:
    """A row that is taken down."""

    key: str
    url: str
    split: str


@dataclass
class Takedown:
    """What was taken down.

    Attributes:
        rows: those of the source table.
        pictures, vectors: how many were in shards, and in all embedding stores together.
        twins: keys of rows that stay, though their pictures have the same bytes as one of these had.
        discarded: folders that went as a whole, because they showed what was taken down; their stages make them again.
    """

    rows: list[Gone] = field(default_factory=list)
    pictures: int = 0
    vectors: int = 0
    twins: list[str] = field(default_factory=list)
    discarded: list[Path] = field(default_factory=list)


def links_of(source: Path, keys: Sequence[str], urls: Sequence[str]) -> list[str]:
    """The links to take down: those given, as the source table spells them, and those of the rows with these keys.

    Raises:
        UnclipError: a key that no row has, or a link that is none.
    """
    links = [_as_in_table(url) for url in urls]
    wanted = set(keys)
    for key, row in _keyed_rows(source) if wanted else ():
        if key in wanted:
            wanted.remove(key)
            links += [row["url"]] if row["url"] else []  # else it was taken down before
    if wanted:
        raise UnclipError(f"{len(wanted)} of the {len(set(keys))} keys are not those of a row here, such as {min(wanted)!r}; nothing was taken down")
    return links


def _as_in_table(url: str) -> str:
    try:
        return cleaned_url(url, allow_private=True)
    except RefusedError as refused:
        raise UnclipError(f"expected a link to take down, got {url[:SHOWN]!r} ({refused}); nothing was taken down") from None


def _keyed_rows(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, rows in source_shards(source):
        for number, row in enumerate(rows):
            yield f"{name}{number:0{NAME_DIGITS}d}", row


def marked_rows(source: Path, marks: Marks) -> list[Gone]:
    """The rows of the source table that are to go, or that a takedown which was killed left there."""
    return [Gone(key, row["url"], row["split"]) for key, row in _keyed_rows(source) if row["url"] in marks]


def erase(
    gone: list[Gone], source: Path, shards: Path, stores: Sequence[Path], marks: Marks, links: Sequence[str], *, world: Path, curate_again: Callable[[], object]
) -> Takedown:
    """Erases all that is marked from source table, shards and stores, and from a world that the source was made of.

    Args:
        gone: what `marked_rows` found.
        links: those marked just now, which a rejected row may show cut short.
        curate_again: judges what is left of the shards, where they had been judged.
    """
    done = Takedown(gone)
    for folder in (shards, *stores):
        remove(folder / SCRATCH)
        remove(folder / CACHE)
        remove_leftovers(folder)
    journal = read_json(shards / JOURNAL) if (shards / JOURNAL).exists() else {}
    places: dict[str, list[str]] = {}  # of a shard: the keys that are free now
    hashes: set[str] = set()
    for name, rows in source_shards(source):
        cleared = [row | {"url": "", "caption": ""} if row["url"] in marks else row for row in rows]
        if free := [f"{name}{number:0{NAME_DIGITS}d}" for number, row in enumerate(cleared) if not row["url"]]:
            places[name] = free
            _clear_shard(shards, name, cleared, journal, hashes, done)
    _restate_parts(shards, {})
    curate_again()
    for store in stores:
        done.vectors += sum(_clear_part(store, shards, name, free, journal.get(name, "")) for name, free in places.items())
        remove(store / SELECTED / SHEET)
    done.twins = _twins(shards, hashes)
    _clear_source(source, marks, links, world)
    names = {name for name, _ in source_shards(source)}
    # a source that has grown since the download stays ahead of it: its new shards are still to be fetched
    _restate_parts(shards, {"source": _digest(source)} if names == {part.name for part in _records(shards)} else {})
    for store in stores:
        _restate_store(store, shards)
    remove(shards / JOURNAL)
    return done


def _clear_shard(shards: Path, name: str, rows: Sequence[Mapping[str, Any]], journal: dict[str, str], hashes: set[str], done: Takedown) -> None:
    """Writes a shard again without the rows that are cleared. Its record; None where there was no whole one, and now is none.

    The digest that it had before goes to the journal first: a takedown that is killed must know it, to tell which parts of
    the stores were made from the shard.
    """
    part, manifest = read_part(shards, name), read_manifest(shards)
    if part is None or manifest is None:
        _forget(shards, name)
        return
    origin, suffix = shard_origin(rows, manifest.config), str(manifest.config["encode_format"])
    if part.made_from == origin:
        return
    try:
        held = {row["id"]: row for row in read_table(shards / f"{name}.parquet", SHARD).to_pylist()}
        places = picture_places(shards / f"{name}.tar", f".{suffix}")
        fetched = {row["id"]: _as_fetched(row, held[row["id"]], shards / f"{name}.tar", places) for row in rows}
    except (UnclipError, OSError, KeyError, tarfile.TarError):  # it is at fault already: fetched again, without these rows
        _forget(shards, name)
        return
    was = [held[row["id"]] for row in rows if not row["url"]]
    done.pictures += sum(row["status"] == KEPT for row in was)
    hashes |= {row["sha256"] for row in was if row["sha256"]}
    write_json(shards / JOURNAL, journal | {name: journal.setdefault(name, _seen_digest(shards, part))})
    kept, rejected = write_shard(shards, name, rows, fetched, suffix)
    write_part_record(shards, dataclasses.replace(part, made_from=origin, kept=kept, rejected=rejected))


def _seen_digest(shards: Path, part: Part) -> str:
    """The digest of a shard as `embed` sees it; the shard's own where `curate` has not finished with it."""
    try:
        return curated_part(shards, part).digest
    except UnclipError:
        return part.digest


def _forget(shards: Path, name: str) -> None:
    remove(shards / f"{name}.json")
    for file in shard_files(name):
        remove(shards / file)


def _as_fetched(row: Mapping[str, Any], was: Mapping[str, Any], tar: Path, places: Mapping[str, tuple[int, int]]) -> Fetched:
    """What came of a row, as the shard that holds it says."""
    if not row["url"]:
        return Fetched(REMOVED, "")
    place = places[was["key"]] if was["status"] == KEPT else (0, 0)
    return Fetched(was["status"], was["detail"], was["sha256"], was["width"], was["height"], tar, place)


def _clear_part(store: Path, shards: Path, name: str, gone: Sequence[str], before: str) -> int:
    """Takes rows out of a part of a store; how many had vectors.

    It counts as made from the new shard if it was made from the one whose digest was `before`, and holds the rows that it
    would hold today; else `embed` makes it again.
    """
    path, part, manifest, shard = store / f"{name}.parquet", read_part(store, name), read_manifest(store), read_part(shards, name)
    if part is None or manifest is None or shard is None or not path.is_file():
        remove(store / f"{name}.json")
        remove(path)
        return 0
    table = pq.read_table(path, page_checksum_verification=True)
    left = table.filter(pc.invert(pc.is_in(table["key"], pa.array(gone))))
    if len(left) < len(table):
        with replacing(path) as aside:
            write_part(aside, left)
    clip, config, made_from = manifest.inputs["clip"], manifest.config, part.made_from
    if made_from == part_origin(before, clip, config) and left["key"].to_pylist() == _wanted_keys(shards, name):
        made_from = part_origin(_seen_digest(shards, shard), clip, config)
    if len(left) < len(table) or made_from != part.made_from:
        write_part_record(store, dataclasses.replace(part, made_from=made_from, rows_in=len(left), kept=len(left)))
    return len(table) - len(left)


def _wanted_keys(shards: Path, name: str) -> list[str]:
    try:
        keys: list[str] = kept_rows(shards / f"{name}.tar")["key"].to_pylist()
    except UnclipError:  # `curate` has not finished with it
        return []
    return keys


def _twins(shards: Path, hashes: set[str]) -> list[str]:
    """The keys of kept rows whose pictures have one of these hashes."""
    if not hashes:
        return []
    rows = (row for path in sorted(shards.glob("[0-9]*.parquet")) for row in iter_rows(path, SHARD, ["key", "status", "sha256"]))
    return [row["key"] for row in rows if row["status"] == KEPT and row["sha256"] in hashes]


def _clear_source(source: Path, marks: Marks, links: Sequence[str], world: Path) -> None:
    """Clears what is marked in the world that the source was made of, in its rejected rows and, last, in its table."""
    _clear_world(source, marks, world)
    shown = {link[:SHOWN] for link in links}
    if (source / REJECTED_TABLE).exists():
        with writing(source / REJECTED_TABLE, REJECTED) as rejected:
            for row in iter_rows(source / REJECTED_TABLE, REJECTED):
                is_marked = leads_to(marks, row["url"]) or row["url"] in shown
                rejected.add(row | {"url": None, "caption": None, "detail": ""} if is_marked else row)
    if (source / EXTRAS).exists():
        gone = {row["id"] for row in iter_rows(source / TABLE, SOURCE) if not row["url"] or row["url"] in marks}
        with writing(source / EXTRAS, pq.read_schema(source / EXTRAS)) as extras:
            for row in known_extras(source / EXTRAS):
                if row["id"] not in gone:
                    extras.add(row)
    with writing(source / TABLE, SOURCE) as table:
        growth = Growth(table, iter_rows(source / TABLE, SOURCE), 1, marks)
    manifest = read_manifest(source)
    if manifest is not None and manifest.finished:
        restate(source, inputs=dict(manifest.inputs) | marks.inputs(), digest=growth.digest())


def _clear_world(source: Path, marks: Marks, world: Path) -> None:
    """A world lies under the root, and so its pictures are ours to remove; those of a folder of the user's are the user's."""
    served = served_folder(source)
    if served is None or not world.is_dir() or served[0] != world.absolute():
        return
    base, root = f"http://{HOST}:{served[1]}/", world.resolve()
    links = (row["url"] for row in iter_rows(source / TABLE, SOURCE) if row["url"] in marks and row["url"].startswith(base))
    files = [file for link in links if (file := file_below(root, urlsplit(link).path)) is not None]  # never one outside of the world
    captions = pq.read_table(world / "captions.parquet")
    gone = pa.array([file.relative_to(root).as_posix() for file in files], pa.string())
    with replacing(world / "captions.parquet") as aside:
        pq.write_table(captions.filter(pc.invert(pc.is_in(captions["file"], gone))), aside, compression="zstd")
    for file in files:
        remove(file)


def _digest(folder: Path) -> str:
    manifest = read_manifest(folder)
    return "" if manifest is None else manifest.digest


def _records(folder: Path) -> list[Part]:
    names = sorted(path.stem for path in folder.glob("[0-9]*.json") if path.stem.isdigit())
    return [part for name in names if (part := read_part(folder, name)) is not None]


def _restate_parts(folder: Path, inputs: Mapping[str, str]) -> None:
    """Brings the manifest of a finished stage in line with the records of its parts, as if it had just been made of them."""
    manifest = read_manifest(folder)
    if manifest is None or not manifest.finished:
        return
    parts = _records(folder)
    counts = dict(manifest.counts) | sum_counts(parts)
    restate(folder, inputs=dict(manifest.inputs) | dict(inputs), counts=counts, digest=parts_digest(parts))


def _restate_store(store: Path, shards: Path) -> None:
    manifest, shards_manifest = read_manifest(store), read_manifest(shards)
    if manifest is None or shards_manifest is None or not manifest.finished:
        return
    made_from = {part.name: part_origin(_seen_digest(shards, part), manifest.inputs["clip"], manifest.config) for part in _records(shards)}
    is_whole = made_from == {part.name: part.made_from for part in _records(store)}
    try:
        inputs = {"shards": shards_digest(shards)} if is_whole else {}
    except UnclipError:  # `curate` is not up to date, so neither is the store
        inputs = {}
    _restate_parts(store, inputs)
    try:
        write_stats(store)
    except UnclipError:  # too few rows are left to train on; the stage says so when it is run
        remove(store / STATS)
        restate(store, finished=False)


def splits_of(rows: Iterable[Gone]) -> dict[str, int]:
    """How many rows of each split were taken down."""
    return dict(sorted(Counter(row.split for row in rows).items()))
