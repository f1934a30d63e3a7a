"""The stage `curate`: rules that need no model drop rows of the shards, each with its reason, before CLIP sees them.

A shard is judged by itself and by the shards before it: of equal pictures the first one stays. So rows that come later
never change what was decided, and a root that grew holds the same as one that was made at once.
"""

import hashlib
import io
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from unclip.data.caption_rules import CaptionRules, broken_rules, folded
from unclip.data.contracts import CURATED, read_table
from unclip.data.extras import extra_values, require_extras
from unclip.data.manifest import MANIFEST, Manifest, Part, Stage, finished_manifest, identity, read_manifest, read_part
from unclip.data.numbers import Numbers, fingerprint64
from unclip.data.rules import write_rules
from unclip.data.shards import kept_rows, read_shard
from unclip.files import UnclipError, fingerprint, remove, remove_leftovers, replacing
from unclip.layout import CURATED as CURATED_FOLDER
from unclip.progress import progress

STAGE = "curate"
KEPT = "kept"
MADE_FROM = b"shard"  # in a part's schema metadata: the digest of the shard that its hashes of pixels belong to
KEY_DIGITS = 10  # a key is the number of its shard and that of its row


@dataclass(frozen=True, kw_only=True)
class ColumnRule:
    """What a column of the source, kept by `source.keep_columns`, must hold: numbers within bounds, or one of some words.

    Attributes:
        column: its name.
        least, most: the bounds of a number, both allowed; None is no bound.
        allowed: the words; empty where the column holds numbers.
        drop_missing: whether a row without a value, or with one that is no number, is dropped.
    """

    __pydantic_config__ = {"extra": "forbid"}

    column: str
    least: float | None = None
    most: float | None = None
    allowed: tuple[str, ...] = ()
    drop_missing: bool = False

    def __post_init__(self) -> None:
        if not self.column:
            raise ValueError("column must name a column of source.keep_columns, got an empty name")
        bounded = self.least is not None or self.most is not None
        if bounded == bool(self.allowed):
            raise ValueError(f"the rule for {self.column!r} must have bounds (least, most) or allowed words, one of the two")
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError(f"least must not be more than most, got {self.least} and {self.most}")


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """Which rows are worth a look by CLIP. What is 0 is no rule.

    Attributes:
        min_side: of the picture in the shard, its shorter side in pixels.
        max_aspect_ratio: longer side over shorter side.
        duplicates: what may not come twice: a picture with the same caption ("pairs"), a picture ("pictures"), or "keep".
        compare: what makes pictures equal: the bytes that were downloaded, or the pixels in the shard, which must be decoded.
        caption: what a caption must be.
        columns: what columns of the source must hold, such as chances of a watermark.
    """

    __pydantic_config__ = {"extra": "forbid"}

    min_side: int = 0
    max_aspect_ratio: float = 0.0
    duplicates: Literal["keep", "pairs", "pictures"] = "pairs"
    compare: Literal["bytes", "pixels"] = "bytes"
    caption: CaptionRules = field(default_factory=CaptionRules)
    columns: tuple[ColumnRule, ...] = ()

    def __post_init__(self) -> None:
        if self.min_side < 0:
            raise ValueError(f"min_side must not be negative, got {self.min_side}")
        if self.max_aspect_ratio and self.max_aspect_ratio < 1:
            raise ValueError(f"max_aspect_ratio must be 0 or at least 1, got {self.max_aspect_ratio}")
        if self.compare == "pixels" and self.duplicates == "keep":
            raise ValueError("compare 'pixels' has no effect while duplicates is 'keep'")


@dataclass(frozen=True)
class Verdict:
    """What became of a row: "kept" or a Reason; what the rule measured, and what it allows; and what it names besides."""

    status: str
    value: float | None = None
    limit: float | None = None
    other: str | None = None


def curate_inputs(shards: Path) -> dict[str, str]:
    """What the stage would read today."""
    return {"shards": finished_manifest(shards, "download").digest}


def curate(source: Path, shards: Path, config: CurateConfig) -> Manifest:
    """Leaves one part a shard in `shards/_curated/` (see contracts.CURATED), and `rules.parquet`: what each rule took.

    Raises:
        UnclipError: nothing is left, or a rule names a column that the source does not keep.
    """
    out = shards / CURATED_FOLDER
    begun = read_manifest(out) is not None
    stage = Stage(out, STAGE, config, curate_inputs(shards))
    remove_leftovers(out)
    names = [path.stem for path in sorted(shards.glob("*.tar"))]
    sources = [_downloaded(shards, name) for name in names]
    seen, parts, chain = Seen(config), [], ""
    require_extras(source, columns_of(config))
    with progress(STAGE, sum(part.kept for part in sources), unit="row") as bar:
        for part in sources:
            chain = fingerprint([part.digest, identity(config), chain])
            done = stage.done_part(part.name, chain)
            if done is None:
                done = _curate_shard(stage, part, source, shards, config, seen, chain)
            else:
                seen.add(kept_rows(shards / f"{part.name}.tar", curated=False), read_table(out / f"{part.name}.parquet", CURATED))
            parts.append(done)
            bar.advance(part.kept)
    kept = sum(part.kept for part in parts)
    write_rules(out, [out / f"{name}.parquet" for name in names])
    if not kept:
        if not begun:
            remove(out / MANIFEST)  # so that the rule which was too strict can be put right
        raise UnclipError(f"the rules of curate leave none of {sum(part.rows_in for part in parts)} rows; {out / 'rules.parquet'} says what each took")
    dropped = any(part.rejected for part in parts)
    digest = fingerprint([part.digest for part in parts]) if dropped else stage.inputs["shards"]  # what stands on the shards need not be made again
    return stage.finish(counts=_counts(parts), digest=digest)


def columns_of(config: CurateConfig) -> list[str]:
    """The columns of the source that rules look at."""
    return [rule.column for rule in config.columns]


def _counts(parts: list[Part]) -> dict[str, Any]:
    rejected: Counter[str] = Counter()
    for part in parts:
        rejected.update(part.rejected)
    kept, rows_in = sum(part.kept for part in parts), sum(part.rows_in for part in parts)
    return {"parts": len(parts), "rows_in": rows_in, "kept": kept, "rejected": dict(sorted(rejected.items()))}


def _downloaded(shards: Path, name: str) -> Part:
    part = read_part(shards, name)
    if part is None:
        raise UnclipError(f"{shards / name}.tar has no record {name}.json, so it is not known to be whole; run `unclip download` again")
    return part


def _curate_shard(stage: Stage, part: Part, source: Path, shards: Path, config: CurateConfig, seen: "Seen", made_from: str) -> Part:
    started = time.monotonic()
    path = shards / f"{part.name}.tar"
    rows = kept_rows(path, curated=False)
    pixels = _pixels(path, rows, stage.folder / f"{part.name}.parquet", part.digest) if config.compare == "pixels" else [None] * len(rows)
    values = extra_values(source, int(part.name), rows["id"].to_pylist(), columns_of(config))
    verdicts = [
        seen.judge(row, hashed, next(broken_by_itself(row, extra, config), None)) for row, hashed, extra in zip(rows.to_pylist(), pixels, values, strict=True)
    ]
    columns = [rows["key"].to_pylist(), *([getattr(verdict, name) for verdict in verdicts] for name in ("status", "value", "limit", "other")), pixels]
    table = pa.table([pa.array(column, kind.type) for column, kind in zip(columns, CURATED, strict=True)], schema=CURATED)
    with replacing(stage.folder / f"{part.name}.parquet") as aside:
        pq.write_table(table.replace_schema_metadata({MADE_FROM: part.digest}), aside, compression="zstd", write_page_checksum=True)
    counts = Counter(verdict.status for verdict in verdicts)
    kept = counts.pop(KEPT, 0)
    files = [f"{part.name}.parquet"]
    seconds = time.monotonic() - started
    return stage.record_part(part.name, made_from=made_from, rows_in=len(rows), kept=kept, rejected=dict(sorted(counts.items())), files=files, seconds=seconds)


def broken_by_itself(row: Mapping[str, Any], extra: Mapping[str, str | None], config: CurateConfig) -> Iterator[Verdict]:
    """The rules that a row of a shard breaks without regard to any other row, in a fixed order."""
    shorter, longer = sorted((row["width"], row["height"]))
    if shorter < config.min_side:
        yield Verdict("image too small", shorter, config.min_side)
    if config.max_aspect_ratio and longer > config.max_aspect_ratio * shorter:
        yield Verdict("aspect ratio", longer / shorter, config.max_aspect_ratio)
    for broken in broken_rules(row["caption"], config.caption):
        yield Verdict(broken.reason, broken.value, broken.limit)
    for rule in config.columns:
        yield from _broken_column(rule, extra[rule.column])


def _broken_column(rule: ColumnRule, held: str | None) -> Iterator[Verdict]:
    number = None if rule.allowed else _number(held)
    if (held if rule.allowed else number) is None:
        if rule.drop_missing:
            yield Verdict("column out of bounds", other=rule.column)
    elif rule.allowed:
        if held not in rule.allowed:
            yield Verdict("column out of bounds", other=rule.column)
    elif number is not None:
        for limit, is_over in ((rule.least, -1), (rule.most, 1)):
            if limit is not None and number * is_over > limit * is_over:
                yield Verdict("column out of bounds", number, limit, rule.column)


def _number(held: str | None) -> float | None:
    try:
        number = float(held or "nan")
    except ValueError:
        return None
    return None if math.isnan(number) else number


class Seen:
    """What was kept so far: pictures, and how often each caption came."""

    def __init__(self, config: CurateConfig) -> None:
        self._config = config
        self._pictures = Numbers(missing=-1)  # -> the key of the first, as a number
        self._captions = Numbers(missing=0)  # -> how many pictures have it

    def judge(self, row: Mapping[str, Any], pixels: str | None, broken: Verdict | None) -> Verdict:
        """The verdict on a row, given the first rule that it breaks by itself, if any; remembers it where it is kept."""
        verdict = broken or self._repeated(row, pixels) or Verdict(KEPT)
        if verdict.status == KEPT:
            self._remember(row, pixels)
        return verdict

    def add(self, rows: pa.Table, verdicts: pa.Table) -> None:
        """Takes in a shard that was judged before."""
        if self._config.duplicates == "keep" and not self._config.caption.max_pictures:
            return
        for row, verdict in zip(rows.select(["key", "caption", "sha256"]).to_pylist(), verdicts.to_pylist(), strict=True):
            if verdict["status"] == KEPT:
                self._remember(row, verdict["pixels"])

    def _repeated(self, row: Mapping[str, Any], pixels: str | None) -> Verdict | None:
        if self._config.duplicates != "keep" and (first := self._pictures[self._picture(row, pixels)]) >= 0:
            reason = "duplicate picture" if self._config.duplicates == "pictures" else "duplicate picture and caption"
            return Verdict(reason, other=f"{first:0{KEY_DIGITS}d}")
        most = self._config.caption.max_pictures
        if most and (num := self._captions[fingerprint64(folded(row["caption"]))]) >= most:
            return Verdict("caption on too many pictures", num + 1, most)
        return None

    def _remember(self, row: Mapping[str, Any], pixels: str | None) -> None:
        if self._config.duplicates != "keep":
            self._pictures[self._picture(row, pixels)] = int(row["key"])
        if self._config.caption.max_pictures:
            caption = fingerprint64(folded(row["caption"]))
            self._captions[caption] = self._captions[caption] + 1

    def _picture(self, row: Mapping[str, Any], pixels: str | None) -> int:
        picture = pixels or row["sha256"]
        return fingerprint64(picture if self._config.duplicates == "pictures" else f"{picture} {folded(row['caption'])}")


def _pixels(path: Path, rows: pa.Table, earlier: Path, digest: str) -> list[str | None]:
    """The hash of each row's decoded picture; a part that was made from the same shard has them already."""
    if earlier.is_file() and (pq.read_schema(earlier).metadata or {}).get(MADE_FROM) == digest.encode():
        held = read_table(earlier, CURATED)
        if not pc.any(pc.is_null(held["pixels"])).as_py():
            known = dict(zip(held["key"].to_pylist(), held["pixels"].to_pylist(), strict=True))
            return [known[key] for key in rows["key"].to_pylist()]
    hashes = {sample.key: hash_pixels(sample.image) for sample in read_shard(path, curated=False)}
    try:
        return [hashes[key] for key in rows["key"].to_pylist()]
    except KeyError as missing:
        raise UnclipError(f"{path} has no picture for {missing}; remove it and {path.stem}.json, and run `unclip download` again") from None


def hash_pixels(image: bytes) -> str:
    """The SHA-256 of a picture's size and RGB values, the same whatever it is encoded as without loss."""
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    return hashlib.sha256(f"{picture.width} {picture.height} ".encode() + picture.tobytes()).hexdigest()
