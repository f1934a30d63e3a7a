"""The lines that the READMEs show are run, on a real store."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline import environment, folder_of

HERE = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.xdist_group("pipeline")


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (HERE / name).read_text(), re.DOTALL)


def test_there_are_three_ways_to_open_the_store() -> None:
    assert [re.search(r"import (duckdb|polars|pandas)", block).group(1) for block in blocks("data/README.md")] == ["duckdb", "polars", "pandas"]  # type: ignore[union-attr]


@pytest.mark.parametrize("number", range(3))
def test_the_store_opens_from_outside(number: int, root: Path) -> None:
    store = folder_of(root, "embed")
    assert (store / "_cache").is_dir(), "the folder as training leaves it, with all that is not a part"
    done = subprocess.run([sys.executable, "-c", blocks("data/README.md")[number]], cwd=store, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
