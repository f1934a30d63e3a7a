"""Writes a data set made here as a folder of captioned images, which the source stage reads like anyone's."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from unclip.files import UnclipError, read_json, replacing, write_json
from unclip.progress import progress
from unclip.worlds import emoji, shapes

WORLD = "world.json"
CAPTIONS = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("file", "caption", "split")])
_ONLY = {"shapes": ("num_train", "num_heldout", "seed"), "emoji": ("font",)}  # settings that just one world has


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """A data set made here. `num_train`, `num_heldout` and `seed` are for shapes, `font` is for emoji."""

    name: Literal["shapes", "emoji"] = "shapes"
    image_size: int = 64  # pixels
    num_train: int = 8000
    num_heldout: int = 600  # scenes in each of the two held-out splits
    seed: int = 0
    font: str = ""  # path of NotoColorEmoji.ttf; "" finds the installed one

    __pydantic_config__ = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.name not in _ONLY:
            raise ValueError(f"name must be one of {', '.join(_ONLY)}, got {self.name!r}")
        for name, least in (("image_size", 8), ("num_train", 1), ("num_heldout", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for world, names in _ONLY.items():
            changed = [name for name in names if world != self.name and getattr(self, name) != defaults[name]]
            if changed:
                raise ValueError(f"{changed[0]} has an effect only with world.name={world!r}, got {self.name!r}; leave it out")


@dataclass(frozen=True)
class _Entry:
    name: str
    caption: str
    split: str
    picture: np.ndarray  # (H, W, 3) uint8


def write_world(out: Path, config: WorldConfig) -> dict[str, int]:
    """Writes `out/images/*.png` and `out/captions.parquet` (file, caption, split); the same config makes the same bytes.

    A folder already made from this config is left as it is.

    Returns:
        the number of pictures in each split.

    Raises:
        UnclipError: the folder holds something else.
    """
    wanted = dataclasses.asdict(config)
    if out.exists():
        return _standing(out, wanted)
    total, entries, more = _entries(config)
    rows: list[dict[str, str]] = []
    with replacing(out) as aside, progress(config.name, total, unit="images") as bar:
        (aside / "images").mkdir(parents=True)
        for entry in entries:
            Image.fromarray(entry.picture).save(aside / "images" / f"{entry.name}.png")
            rows.append({"file": f"images/{entry.name}.png", "caption": entry.caption, "split": entry.split})
            bar.advance()
        pq.write_table(pa.Table.from_pylist(rows, schema=CAPTIONS), aside / "captions.parquet", compression="zstd")
        counts = dict(Counter(row["split"] for row in rows))
        write_json(aside / WORLD, {"config": wanted, "counts": counts} | more)
    return counts


def _standing(out: Path, wanted: dict[str, Any]) -> dict[str, int]:
    if not (out / WORLD).exists():
        raise UnclipError(f"{out} is there but was not made by this command (no {WORLD}); choose another folder, or remove it")
    content = read_json(out / WORLD)
    before = content["config"]
    differing = sorted(name for name in before.keys() | wanted.keys() if before.get(name) != wanted.get(name))
    if differing:
        shown = "; ".join(f"{name} was {before.get(name)!r}, is now {wanted.get(name)!r}" for name in differing)
        raise UnclipError(f"{out} holds a world made with another config: {shown}. Use the old setting, another root, or remove the folder")
    return {str(split): int(count) for split, count in content["counts"].items()}


def _entries(config: WorldConfig) -> tuple[int, Iterator[_Entry], dict[str, Any]]:
    """How many pictures there will be, the pictures, and what else the record should say."""
    if config.name == "emoji":
        made, dropped = emoji.glyphs(size=config.image_size, font=config.font)
        return len(made), (_Entry(glyph.name, glyph.caption, glyph.split, glyph.picture) for glyph in made), {"without_glyph": dropped}
    splits = get_args(shapes.Split)
    return config.num_train + (len(splits) - 1) * config.num_heldout, _scenes(config), {}


def _scenes(config: WorldConfig) -> Iterator[_Entry]:
    for number, split in enumerate(get_args(shapes.Split)):
        # a generator for each split, so that the size of one leaves the others as they are
        rng = np.random.default_rng([config.seed, number])
        count = config.num_train if split == "train" else config.num_heldout
        for index, scene in zip(range(count), shapes.scenes(split, rng), strict=False):
            caption = shapes.caption(scene, rng)
            yield _Entry(f"{split}-{index:06d}", caption, split, shapes.render(scene, size=config.image_size, rng=rng))
