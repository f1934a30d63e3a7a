"""The lines that the READMEs show are run, on a real root; the commands are at least understood."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline import environment, folder_of
from unclip.cli.app import app
from unclip.cli.options import split_settings
from unclip.data.cache import open_vectors

HERE = Path(__file__).resolve().parents[1]


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (HERE / name).read_text(), re.DOTALL)


def test_there_are_three_ways_to_open_the_store() -> None:
    assert [re.search(r"import (duckdb|polars|pandas)", block).group(1) for block in blocks("data/README.md")] == ["duckdb", "polars", "pandas"]  # type: ignore[union-attr]


@pytest.mark.parametrize("number", range(3))
def test_the_store_opens_from_outside(number: int, root: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(folder_of(root, "embed"), store)
    open_vectors(store, split="train", text_tokens=True)
    assert (store / "_cache").is_dir(), "the folder as a training has it, with all that is not a part"
    done = subprocess.run([sys.executable, "-c", blocks("data/README.md")[number]], cwd=store, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def commands() -> list[str]:
    """The `unclip ...` lines of the README."""
    lines = re.findall(r"^    (unclip .*)$", (HERE / "README.md").read_text(), re.MULTILINE)
    assert len(lines) > 30
    return lines


@pytest.mark.parametrize("line", commands())
def test_the_command_line_understands_every_line(line: str) -> None:
    arguments, _ = split_settings(shlex.split(line, comments=True)[1:])
    app.parse_args(arguments, exit_on_error=False, print_error=False)


def test_the_facade_does_what_the_readme_says(root: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "demo").symlink_to(root)
    (block,) = blocks("README.md")
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "star.png").is_file()
