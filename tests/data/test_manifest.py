"""The record of a stage: which configs it takes for the one that a folder was made with."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from unclip.data.manifest import Stage, is_current, runtime
from unclip.files import UnclipError


@dataclass(frozen=True, kw_only=True)
class InnerBefore:
    width: int = 8


@dataclass(frozen=True, kw_only=True)
class Before:
    """A stage's config as it was."""

    inner: InnerBefore = field(default_factory=InnerBefore)
    rate: float = 0.1


@dataclass(frozen=True, kw_only=True)
class InnerNow:
    width: int = 8
    sizes: tuple[int, ...] = (4, 2)


@dataclass(frozen=True, kw_only=True)
class Now:
    """The same with settings that came later."""

    inner: InnerNow = field(default_factory=InnerNow)
    rate: float = 0.1
    scale: float = 1.0
    threads: int = runtime(2)


def made(folder: Path) -> Path:
    Stage(folder, "toy", Before(), {}).finish(counts={}, digest="x")
    return folder


def test_a_younger_setting_is_no_difference_while_it_has_its_default(tmp_path: Path) -> None:
    folder = made(tmp_path)
    assert is_current(folder, "toy", Now(), {})
    assert is_current(folder, "toy", Now(threads=5), {})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Now(scale=2.0), "scale was 1.0, is now 2.0"),
        (Now(inner=InnerNow(sizes=(4,))), r"inner.sizes was \[4, 2\], is now \[4\]"),
        (Now(rate=0.2), "rate was 0.1, is now 0.2"),
    ],
)
def test_another_config_is_refused_with_both_values(tmp_path: Path, config: Now, message: str) -> None:
    with pytest.raises(UnclipError, match=message):
        is_current(made(tmp_path), "toy", config, {})


def test_a_setting_that_is_gone_is_a_difference(tmp_path: Path) -> None:
    Stage(tmp_path, "toy", Now(), {}).finish(counts={}, digest="x")
    with pytest.raises(UnclipError, match="scale was 1.0, is now None"):
        is_current(tmp_path, "toy", Before(), {})
