"""The stage `source`: any table of links and captions, or a folder of captioned images, as one table of known shape.

Each row gets a shard, once and for ever: rows that come later go to new shards, so that nothing done is done again.
"""

import contextlib
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unclip.data.again import NONE
from unclip.data.contracts import REJECTED, SOURCE, Reason, iter_rows
from unclip.data.extras import EXTRAS, as_text, extras_row, extras_schema, known_extras
from unclip.data.folder import BY_HASH, ServedLink, folder_rows, visible_files
from unclip.data.growth import Growth, writing
from unclip.data.links import RefusedError, cleaned_url
from unclip.data.lists import Tables, find_source
from unclip.data.manifest import MANIFEST, Manifest, Stage, finished_manifest, is_current, read_manifest, runtime
from unclip.data.marks import NO_MARKS, Marks
from unclip.data.tables import Row
from unclip.files import UnclipError, fingerprint, remove, remove_leftovers, replacing
from unclip.progress import progress
from unclip.storage import check_url, is_url

STAGE = "source"
TABLE, REJECTED_TABLE = "table.parquet", "rejected.parquet"
SCRATCH = ".brought.tmp"  # where tables behind a URL are read
GONE_TABLE = "gone.parquet"  # links that are to be taken down, until they are
TRAIN, HELDOUT = "train", "heldout"
MAX_SHARD_SIZE = 100_000  # a row's number in its shard is five digits of its key
SPLIT = re.compile(r"[^\W_][\w .-]{0,63}")  # it names folders, and stands in tables and on pages
SHOWN = 200  # characters of a rejected value that are kept


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """What the data is made from: a table (.parquet, .csv, .tsv, .jsonl) or a folder of captioned images.

    Several tables are named by a pattern (lists/*.csv), and either may be behind a URL (s3://bucket/links/*.parquet); they are
    read as one table in the order of their names, and a new file's rows are new rows.

    A folder holds `captions.parquet` (or .csv, .tsv, .jsonl) with the columns file, caption and, if it likes, split; or
    a text file beside each image.
    """

    path: str = runtime("")  # a root may be moved; another table adds its rows
    url_column: str = "url"  # tables only
    caption_column: str = "caption"
    split_column: str = ""  # "" takes a folder's own `split`, or holds out by a hash of the caption
    keep_columns: tuple[str, ...] = ()  # of a table, kept in `columns.parquet` for the rules of `curate.columns`
    heldout_fraction: float = 0.05  # of the captions, where no column says it
    shard_size: int = 1000  # rows
    follow_removals: bool = runtime(False)  # `unclip run` takes down the pictures of links that have gone from the source
    max_gone: float = runtime(0.1)  # of the table's rows, that may be taken down so at once
    allow_private: bool = False  # follow links to private, loopback and link-local addresses

    __pydantic_config__ = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not 0 <= self.heldout_fraction < 1:
            raise ValueError(f"heldout_fraction must be in [0, 1), got {self.heldout_fraction}")
        if not 0 <= self.max_gone <= 1:
            raise ValueError(f"max_gone must be in [0, 1], got {self.max_gone}")
        if not 1 <= self.shard_size <= MAX_SHARD_SIZE:
            raise ValueError(f"shard_size must be in [1, {MAX_SHARD_SIZE}], got {self.shard_size}")
        if is_url(self.path):
            check_url(self.path)  # before a root remembers what should not be in it
        if not self.url_column or not self.caption_column:
            raise ValueError("url_column and source.caption_column must name a column, got an empty name")
        if len({*self.keep_columns}) < len(self.keep_columns) or "" in self.keep_columns:
            raise ValueError(f"keep_columns must name columns, each once, got {list(self.keep_columns)}")


def source_inputs(config: SourceConfig, removed: Marks = NO_MARKS, again: frozenset[str] = NONE) -> dict[str, str]:
    """A digest of what the stage would read: the bytes of tables, behind a URL their names, sizes and tags; the names, sizes
    and times of a folder's files; what was removed.

    Rows that are to be tried again (their ids) are an input until they have their place, and so is the wish to follow
    removals: a source that was read without it is read again for the links that have gone.

    Raises:
        UnclipError: the path is not there, or nothing of the kind that this stage reads.
    """
    path = _named(config)
    more = removed.inputs() | ({"again": fingerprint(sorted(again))} if again else {}) | ({"removals": "followed"} if config.follow_removals else {})
    if isinstance(path, Tables):
        path.count()
        return path.inputs() | more
    entries = []
    for file in visible_files(path):
        state = file.stat()
        entries.append([file.relative_to(path).as_posix(), state.st_size, state.st_mtime_ns])
    return {"folder": fingerprint(entries)} | more


def build_source(out: Path, config: SourceConfig, removed: Marks = NO_MARKS, again: frozenset[str] = NONE) -> Manifest:
    """Writes `out/table.parquet`, `out/rejected.parquet` and the manifest; for a folder also `out/serve.json`.

    Rows that the table already holds keep their place, rows that are new go to new shards at its end, rows that have gone
    from the source stay, rows whose links were removed are refused, and rows to be tried `again` (see `rows_to_try_again`)
    get a further place among the new ones, if the source still has them. In the manifest, rows_in = kept + rejected are the
    rows that were given this time; `rows` are those of the table.

    Raises:
        UnclipError: the source can't be read, or not one of its rows can be used.
    """
    inputs = source_inputs(config, removed, again)
    if is_current(out, STAGE, config, inputs) and (out / TABLE).exists():
        return finished_manifest(out, STAGE)
    begun = read_manifest(out) is not None
    stage = Stage(out, STAGE, config, inputs)
    remove_leftovers(out)
    try:
        counts, digest, left = _build(out, config, removed, again)
    except UnclipError:
        if not begun:
            remove(out / MANIFEST)  # so that the setting which was wrong can be put right
        raise
    stage.inputs = source_inputs(config, removed, left)  # what it finds if nothing changes
    return stage.finish(counts=counts, digest=digest)


def _named(config: SourceConfig) -> Path | Tables:
    if not config.path:
        raise UnclipError("source.path is empty; set it to a table of links and captions or to a folder of captioned images")
    return find_source(config.path)


def _build(out: Path, config: SourceConfig, removed: Marks, again: frozenset[str]) -> tuple[dict[str, object], str, frozenset[str]]:
    path = _named(config)
    given, total = _table_rows(out, path, config) if isinstance(path, Tables) else _folder_rows(out, path, config)
    reasons: Counter[str] = Counter()
    rows_in = 0
    with (
        writing(out / REJECTED_TABLE, REJECTED) as rejected,
        contextlib.suppress(_NothingUsableError),
        writing(out / TABLE, SOURCE) as table,
        writing(out / EXTRAS, extras_schema(config.keep_columns)) if config.keep_columns else contextlib.nullcontext() as extras,
        progress(STAGE, total, unit="rows") as bar,
    ):
        growth = Growth(table, iter_rows(out / TABLE, SOURCE) if (out / TABLE).exists() else (), config.shard_size, removed, again)
        if extras is not None:
            for known in known_extras(out / EXTRAS):
                if growth.knew(known["id"], known["shard"]):  # a killed run may have left more
                    extras.add(known)
        for number, row in enumerate(given):
            rows_in += 1
            try:
                new = growth.add(*_usable(row, config))
                if new is not None and extras is not None:
                    extras.add(extras_row(*new, {name: as_text(value) for name, value in zip(config.keep_columns, row.values[3:], strict=True)}))
            except RefusedError as refused:
                reasons[refused.reason] += 1
                url, caption = (None, None) if leads_to(removed, row.values[0]) else (_shown(value) for value in row.values[:2])
                rejected.add({"row": number, "url": url, "caption": caption, "reason": refused.reason, "detail": refused.detail[:SHOWN]})
            bar.advance()
        if rows_in == reasons.total():
            raise _NothingUsableError  # the table is left as it was, the rejected rows are there to be looked at
    if not rows_in:
        raise UnclipError(f"{config.path} is empty: it has no rows")
    kept = rows_in - reasons.total()
    if not kept:
        reason, count = reasons.most_common(1)[0]
        raise UnclipError(
            f"none of the {rows_in} rows of {config.path} can be used; the commonest reason is {reason!r} ({count} rows). See {out / REJECTED_TABLE}"
        )
    remove(out / GONE_TABLE)  # of an earlier source
    if config.follow_removals and (gone := growth.gone_links(iter_rows(out / TABLE, SOURCE))):
        _refuse_too_many(len(gone), growth.counts(), config)
        with replacing(out / GONE_TABLE) as aside:
            pq.write_table(pa.table({"url": gone}), aside)
    return {"rows_in": rows_in, "kept": kept, "rejected": dict(sorted(reasons.items()))} | growth.counts(), growth.digest(), growth.not_tried


def _refuse_too_many(gone: int, counts: Mapping[str, Any], config: SourceConfig) -> None:
    """A list that came short for a day must not cost its pictures: what is taken down stays away for good."""
    known = counts["rows"] - counts["new"] - counts["again"]
    if gone > config.max_gone * known:
        raise UnclipError(
            f"{gone:,} links of the {known:,} rows known before have gone from {config.path}, more than source.max_gone {config.max_gone:g} lets be "
            "taken down at once; see that the list is whole, or allow more"
        )


class _NothingUsableError(Exception):
    """Ends the writing of a table that would get no row."""


def _usable(row: Row, config: SourceConfig) -> tuple[str, str, str]:
    """The link, the caption and the split of a row. Raises RefusedError."""
    if row.problem:
        raise RefusedError("row malformed", row.problem)
    url, caption, split = row.values[:3]
    if isinstance(url, RefusedError):
        raise url
    if url is None or url == "":
        raise RefusedError("url missing")
    if not isinstance(url, str):
        raise RefusedError("url malformed", f"expected text, got {type(url).__name__}")
    if caption is None or (isinstance(caption, str) and not caption.strip()):
        raise RefusedError("caption missing")
    if not isinstance(caption, str):
        raise RefusedError("caption not text", f"expected text, got {type(caption).__name__}")
    _check_unicode(url, "url malformed")
    _check_unicode(caption, "caption not text")
    link = url if isinstance(url, ServedLink) else cleaned_url(url, allow_private=config.allow_private)
    return link, caption.strip(), _split(split, caption.strip(), config)


def _check_unicode(text: str, reason: Reason) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RefusedError(reason, "not valid UTF-8") from None


def _split(given: object, caption: str, config: SourceConfig) -> str:
    if given is BY_HASH:
        draw = int.from_bytes(hashlib.sha256(caption.encode()).digest()[:8], "big") / 2**64
        return HELDOUT if draw < config.heldout_fraction else TRAIN
    if not isinstance(given, str) or not given.strip():
        raise UnclipError(f"expected a split for every row, got {given!r} for the caption {caption[:60]!r}; write {TRAIN!r} or the name of a held-out split")
    if not SPLIT.fullmatch(given.strip()):
        raise UnclipError(f"a split is named by up to 64 letters, digits, spaces and any of _.-, the first of them a letter or digit, got {given[:80]!r}")
    return given.strip()


def _folder_rows(out: Path, folder: Path, config: SourceConfig) -> tuple[Iterator[Row], int]:
    if config.url_column != SourceConfig.url_column:
        raise UnclipError(f"source.url_column has no effect on a folder, got {config.url_column!r}; leave it out")
    if config.keep_columns:
        raise UnclipError(f"source.keep_columns needs a table of links, but {folder} is a folder; leave it out")
    return folder_rows(out, folder, caption_column=config.caption_column, split_column=config.split_column)


def _table_rows(out: Path, tables: Tables, config: SourceConfig) -> tuple[Iterator[Row], int]:
    columns, scratch = [config.url_column, config.caption_column], out / SCRATCH
    if config.split_column:
        return tables.rows([*columns, config.split_column, *config.keep_columns], scratch), tables.count()
    rows = tables.rows([*columns, *config.keep_columns], scratch)
    return (Row((*row.values[:2], BY_HASH, *row.values[2:]), row.problem) for row in rows), tables.count()


def leads_to(removed: Marks, url: object) -> bool:
    """Whether a link, in any spelling that is cleaned, is one that was removed."""
    if not removed.hashes or not isinstance(url, str):
        return False
    try:
        return cleaned_url(url, allow_private=True) in removed
    except RefusedError:
        return False


def _shown(value: object) -> str | None:
    return None if value is None or isinstance(value, RefusedError) else str(value)[:SHOWN].encode(errors="replace").decode()
