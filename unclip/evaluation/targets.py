"""What the project set out to reach on two CPU cores, and what was measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """A number to reach with pictures that are made from captions.

    Attributes:
        label: for the reader.
        split, judge, metric: where it stands in the report.
        value: what is to be reached.
    """

    label: str
    split: str
    judge: str
    metric: str
    value: float


TARGETS: Mapping[str, tuple[Target, ...]] = {
    "shapes": (
        Target("everything right", "heldout-scene", "program", "all_right", 0.60),
        Target("bound rightly, given the right attributes", "heldout-scene", "program", "binding", 0.90),
    ),
    "emoji": (Target("right family among the five nearest glyphs", "heldout-combination", "glyph family by pixels", "family_top_5", 0.50),),
}
ABOUT = {"shapes": "preset small, an hour of decoder training on two CPU cores", "emoji": "preset emoji, on two CPU cores"}


def measure_targets(world: str, judges: Mapping[str, Any], chosen: str) -> list[dict[str, Any]]:
    """Each target of a world with what the row `chosen` reached, where its split was measured.

    `value`, `low` and `high` are None where no picture could be judged by it, such as binding where none has the attributes asked for.

    Args:
        judges: the section `judge` of the report.
    """
    measured = []
    for target in TARGETS.get(world, ()):
        judge = next(one for one in judges["judges"] if one["name"] == target.judge)
        if target.split not in judge["splits"]:
            continue
        found = judge["splits"][target.split]["rows"][chosen].get(target.metric, {"mean": None, "low": None, "high": None, "number": 0})
        about = {"label": target.label, "split": target.split, "judge": target.judge, "metric": target.metric, "target": target.value}
        about |= {"set_for": ABOUT[world], "value": found["mean"], "reached": found["mean"] is not None and found["mean"] >= target.value}
        measured.append(about | {name: found[name] for name in ("low", "high", "number")})
    return measured
