"""Folders of pictures: names that are safe, settings that come back from the file, and nothing of anybody's overwritten."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unclip.files import UnclipError
from unclip.gallery import RECORD, Gallery, candidates_table, check_place, file_names, read_png_text, save_animation, write_gallery

NASTY = [
    "../../etc/passwd", "/absolute", "C:\\con.txt", "a\x00b", "line\nbreak\r\x1b[31m", "x" * 5000, "", "…", "猫と犬", "café Ünïcode", "-rf *", ".hidden",
    '"quoted" & <tagged> \u2028', "a/b" * 200,
]  # fmt: skip


def gallery(captions: list[str], **more: object) -> Gallery:
    pictures = np.random.default_rng(0).integers(0, 256, (len(captions), 6, 6, 3), dtype=np.uint8)
    about = [{"caption": caption, "number": 0} for caption in captions]
    return Gallery(pictures, captions, about, {"command": "generate", "seed": 1}, Image.new("RGB", (4, 4)), **more)  # type: ignore[arg-type]


def test_names_are_plain_whatever_the_caption() -> None:
    names = file_names(NASTY)
    assert len(set(names)) == len(NASTY)
    for number, name in enumerate(names):
        assert name.startswith(f"{number:04d}")
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")
        assert len(name) < 60
    assert names[0] == "0000-etc-passwd.png"
    assert names[6] == "0006.png"
    assert names[9] == "0009-cafe-unicode.png"


def test_names_sort_as_their_numbers_do() -> None:
    names = file_names(["a"] * 10_001)
    assert names == sorted(names)


def test_captions_come_back_from_the_files_as_they_went_in(tmp_path: Path) -> None:
    files = write_gallery(tmp_path / "out", gallery(NASTY), overwrite=False)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*(file.name for file in files), "sheet.png", RECORD}
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    for caption, file, listed in zip(NASTY, files, record["pictures"], strict=True):
        said = read_png_text(file)
        assert said["picture"]["caption"] == caption
        assert said["settings"] == {"command": "generate", "seed": 1}
        assert (listed["file"], listed["caption"]) == (file.name, caption)
    assert np.array_equal(np.asarray(Image.open(files[2])), gallery(NASTY).pictures[2])


def test_a_picture_that_says_nothing_is_an_error(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    for name in ("a.png", "b.png", "c.png"):
        with pytest.raises(UnclipError, match="expected a picture that unclip made"):
            read_png_text(tmp_path / name)


def test_nothing_is_overwritten_by_surprise(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_gallery(out, gallery(["a", "b"]), overwrite=False)
    before = (out / RECORD).read_bytes()
    with pytest.raises(UnclipError, match="holds pictures already"):
        write_gallery(out, gallery(["c"]), overwrite=False)
    assert (out / RECORD).read_bytes() == before
    write_gallery(out, gallery(["c"]), overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["0000-c.png", RECORD, "sheet.png"]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UnclipError, match=r"'notes.txt', which was not made"):
        check_place(out, overwrite=True)


def test_a_folder_of_somebody_else_is_left_alone_even_with_overwrite(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(UnclipError, match="nothing there is touched"):
        write_gallery(tmp_path, gallery(["a"]), overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / RECORD).write_text('{"made_by": "another", "files": []}')
    with pytest.raises(UnclipError, match="nothing there is touched"):
        check_place(tmp_path / "other", overwrite=True)
    (tmp_path / "link").symlink_to(tmp_path / "other")
    with pytest.raises(UnclipError, match="no folder"):
        check_place(tmp_path / "link", overwrite=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UnclipError, match="is no folder"):
        check_place(tmp_path / "file", overwrite=True)
    with pytest.raises(UnclipError, match="can't be made: .*file is a file"):
        check_place(tmp_path / "file" / "out", overwrite=False)
    with pytest.raises(UnclipError, match="names a folder"):
        check_place(tmp_path / "out.png", overwrite=False)


def test_it_is_whole_or_not_there(tmp_path: Path) -> None:
    class Broken(dict):  # type: ignore[type-arg]
        def items(self) -> object:  # type: ignore[override]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gallery(tmp_path / "out", gallery(["a"], tables=Broken()), overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_does_not_take_it_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Image.Image, "save", refuse)
    with pytest.raises(UnclipError, match=r"out can't be written \(Input/output error\)"):
        write_gallery(tmp_path / "out", gallery(["a"]), overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_an_animation_goes_to_and_fro(tmp_path: Path, suffix: str) -> None:
    frames = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (0, 80, 160, 240)])
    save_animation(tmp_path / f"a.{suffix}", frames)
    with Image.open(tmp_path / f"a.{suffix}") as picture:
        assert (picture.n_frames, picture.size) == (6, (256, 256))
        seen = []
        for frame in range(6):
            picture.seek(frame)
            seen.append(picture.convert("RGB").getpixel((3, 3))[0])  # type: ignore[index]
    assert seen == [0, 80, 160, 240, 160, 80]


def test_candidates_have_a_row_each(tmp_path: Path) -> None:
    similarities = np.array([[0.1, 0.3], [0.5, 0.2]])
    table = candidates_table(["a", "b"], np.arange(12.0).reshape(2, 2, 3), similarities)
    pq.write_table(table, tmp_path / "c.parquet")
    rows = pq.read_table(tmp_path / "c.parquet").to_pylist()
    assert [(row["caption"], row["candidate"], row["chosen"]) for row in rows] == [("a", 0, False), ("a", 1, True), ("b", 0, True), ("b", 1, False)]
    assert rows[3]["image_emb"] == [9.0, 10.0, 11.0]


def test_importing_the_package_imports_nothing() -> None:
    code = (
        "import sys, unclip; heavy = {'torch', 'numpy', 'PIL', 'pyarrow', 'open_clip'} & set(sys.modules); assert not heavy, heavy; print(unclip.UnclipError)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
