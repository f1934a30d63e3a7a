"""Whatever strangers write into tables, captions, pictures, tars and Parquet parts: a row with a reason, or one line for the user."""

import contextlib
import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.faults import image_bytes
from unclip.data.batch import picture_places
from unclip.data.contracts import SHARD, SOURCE, iter_rows, read_table
from unclip.data.embed import write_part
from unclip.data.links import RefusedError, cleaned_url, is_private_name
from unclip.data.outcomes import outcome, seconds_to_wait
from unclip.data.picture_head import refuse_picture
from unclip.data.robots import Rules, opt_out
from unclip.data.shards import read_shard
from unclip.data.source import SourceConfig, build_source
from unclip.data.store import iter_batches
from unclip.data.tables import read_rows
from unclip.data.web import retry_after
from unclip.files import UnclipError

Fuzz = Callable[[Path], None]

texts = st.text(st.characters(codec=None), max_size=40)  # surrogates and all
junk = st.binary(max_size=200)
cells = st.one_of(st.none(), texts, st.integers(), st.floats(), st.booleans(), st.lists(st.integers(), max_size=2))


def only_ours(work: Callable[[], Any]) -> None:
    """Runs it; an error must be one of ours, in one line."""
    said = ""
    try:
        work()
    except UnclipError as error:
        said = str(error)
    assert "\n" not in said


def all_of(rows: Any) -> Callable[[], object]:
    return lambda: list(rows)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with a few bytes changed, taken out or put in, or cut short."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        match draw(st.sampled_from(["change", "cut", "insert", "remove"])):
            case "change" if content:
                content[place] = draw(st.integers(0, 255))
            case "cut":
                del content[place:]
            case "insert":
                content[place:place] = draw(junk)
            case _:
                del content[place : place + draw(st.integers(1, 64))]
    return bytes(content)


def build(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    only_ours(lambda: build_source(folder / "out", SourceConfig(path=str(folder / name))))


def text_table(rows: list[list[Any]], kind: str) -> bytes:
    if kind == ".jsonl":
        return "\n".join(json.dumps(dict(zip(("url", "caption", "more"), row, strict=False)), default=str) for row in rows).encode(errors="surrogatepass")
    buffer = io.StringIO()
    csv.writer(buffer, delimiter="," if kind == ".csv" else "\t", quoting=csv.QUOTE_ALL).writerows([["url", "caption"], *rows])
    return buffer.getvalue().encode(errors="surrogatepass")


def parquet_table(columns: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


LINKED = {"url": [f"http://a.example/{number}.png" for number in range(5)], "caption": [f"caption {number}" for number in range(5)]}


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, bytes]:
    """A table that reads, with any cells; one that was damaged; or no table at all."""
    kind = draw(st.sampled_from([".parquet", ".csv", ".tsv", ".jsonl"]))
    if kind == ".parquet":
        whole = parquet_table(LINKED | {"caption": pa.array(draw(st.lists(junk, min_size=5, max_size=5))).view(pa.string())})
    else:
        links = st.sampled_from(LINKED["url"])
        whole = text_table(draw(st.lists(st.lists(st.one_of(links, cells), max_size=4), max_size=5)), kind)
    return kind, draw(st.one_of(st.just(whole), damaged(whole), junk))


def tar_of(members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


SHARD_TAR = tar_of([(f"000{number}.{end}", content) for number in range(2) for end, content in (("png", image_bytes(8, 8)), ("txt", b"a"), ("json", b"{}"))])
PICTURES = [image_bytes(9, 7, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]
ROW = {"key": "0", "id": "0", "url": "u", "caption": "c", "split": "train", "status": "kept", "detail": "", "sha256": "", "width": 1, "height": 1}
VECTORS = pa.table({"key": ["a", "b"], "image_emb": pa.array([[1.0, 2.0]] * 2, pa.list_(pa.float16(), 2))})


def fuzz_tables(folder: Path, number: int) -> None:
    @_many(number)
    @given(tables())
    def check(table: tuple[str, bytes]) -> None:
        build(folder, f"t{table[0]}", table[1])

    check()


def fuzz_captions(folder: Path, number: int) -> None:
    @_many(number)
    @given(st.lists(st.tuples(st.one_of(texts, st.sampled_from(LINKED["url"])), texts), min_size=1, max_size=4))
    def check(rows: list[tuple[str, str]]) -> None:
        build(folder, "t.jsonl", text_table([list(row) for row in rows], ".jsonl"))
        if (folder / "out/table.parquet").exists():
            only_ours(all_of(iter_rows(folder / "out/table.parquet", SOURCE)))

    check()


def fuzz_pictures(folder: Path, number: int) -> None:
    @_many(number)
    @given(
        st.one_of(st.sampled_from(PICTURES).flatmap(damaged), st.sampled_from(PICTURES).flatmap(lambda whole: junk.map(lambda more: whole[:20] + more)), junk)
    )
    def check(body: bytes) -> None:
        reason = "image broken"
        try:
            refuse_picture(body, 1000)
        except RefusedError as refused:
            reason = refused.reason
        assert reason in ("image broken", "too large")

    check()


def fuzz_tars(folder: Path, number: int) -> None:
    members = st.lists(st.tuples(st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=30), junk), max_size=3).map(tar_of)

    @_many(number)
    @given(st.one_of(damaged(SHARD_TAR), members, junk))
    def check(content: bytes) -> None:
        path = folder / "00000.tar"
        path.write_bytes(content)
        only_ours(all_of(read_shard(path)))
        with contextlib.suppress(tarfile.TarError, OSError):  # what its callers take for a shard that is not whole
            picture_places(path, ".png")

    check()


def fuzz_parts(folder: Path, number: int) -> None:
    write_part(folder / "00000.parquet", VECTORS)
    part, shard = (folder / "00000.parquet").read_bytes(), parquet_table({name: [value] for name, value in ROW.items()})

    @_many(number)
    @given(st.one_of(damaged(part), damaged(shard), junk))
    def check(content: bytes) -> None:
        path = folder / "00000.parquet"
        path.write_bytes(content)
        only_ours(lambda: read_table(path, SHARD))
        only_ours(all_of(iter_rows(path, SHARD)))
        only_ours(all_of(iter_batches(folder, ["key", "image_emb"])))
        only_ours(all_of(read_rows(path, ["key"])))

    check()


def fuzz_what_servers_say(folder: Path, number: int) -> None:
    @_many(number)
    @given(texts, texts, st.sampled_from(["success", "failed_to_download", "failed_to_resize", "x"]), junk)
    def check(text: str, other: str, status: str, body: bytes) -> None:
        assert outcome(status, text)
        assert seconds_to_wait(text) >= 0
        assert retry_after(text) >= 0
        assert isinstance(opt_out([text, other]), str)
        assert Rules(body.decode("utf-8", "replace")).allow("http://a.example/x") in (True, False)
        for link in (text, f"http://{text}/{other}", f"https://a.example/{text}?{other}"):
            try:
                assert cleaned_url(link, allow_private=False).isascii()
            except RefusedError:
                continue
        is_private_name(text)

    check()


def _many(number: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(max_examples=number, deadline=None, database=None, derandomize=True, suppress_health_check=checks)


# what is fuzzed, and its share of the inputs
KINDS: dict[str, tuple[Callable[[Path, int], None], float]] = {
    "tables": (fuzz_tables, 0.08), "captions": (fuzz_captions, 0.07), "pictures": (fuzz_pictures, 0.3), "tars": (fuzz_tars, 0.2),
    "parts": (fuzz_parts, 0.15), "servers": (fuzz_what_servers_say, 0.2),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_nonsense_is_a_reason_or_one_line(kind: str, tmp_path: Path) -> None:
    check, share = KINDS[kind]
    check(tmp_path, round(300 * share))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_pieces_of_nonsense_raise_only_our_errors(kind: str, tmp_path: Path) -> None:
    check, share = KINDS[kind]
    check(tmp_path, round(10_000 * share))
