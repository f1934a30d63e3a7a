"""Where the results of one data set lie under its root, with names that a person can read."""

from dataclasses import dataclass
from pathlib import Path

RUN_CONFIG = "run.json"  # in a root: the config that it was last worked on with
CURATED, SELECTED = "_curated", "_selected"  # beside the parts that they speak of; Arrow and pandas pass over names that begin so


def require_plain_name(setting: str, name: str) -> None:
    """Refuses a name that would lead elsewhere as that of a folder.

    Raises:
        ValueError: it would.
    """
    if not name or "/" in name or name.startswith("."):
        raise ValueError(f"{setting} must be a plain folder name, got {name!r}")


@dataclass(frozen=True)
class Paths:
    """The folder of each stage's result."""

    root: Path
    world: Path
    source: Path
    shards: Path
    curated: Path
    clip: Path
    embeddings: Path
    selected: Path
    index: Path
    prior: Path
    decoder: Path
    upsampler: Path
    report: Path


def lay_out(root: Path, *, clip: str, prior: str, decoder: str, upsampler: str, report: str) -> Paths:
    """The folders under a root, for a CLIP of this name and these runs of prior, decoder, upsampler and evaluation."""
    return Paths(
        root=root,
        world=root / "world",
        source=root / "source",
        shards=root / "shards",
        curated=root / "shards" / CURATED,
        clip=root / "clip" / clip,
        embeddings=root / "embeddings" / clip,
        selected=root / "embeddings" / clip / SELECTED,
        index=root / "index" / clip,
        prior=root / "prior" / prior,
        decoder=root / "decoder" / decoder,
        upsampler=root / "upsampler" / upsampler,
        report=root / "report" / report,
    )
