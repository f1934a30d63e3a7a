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
    """Each target of a world with what the row `chosen` reached; what no picture can be judged by is left out.

    Args:
        judges: the section `judge` of the report.
    """
    measured = []
    for target in TARGETS.get(world, ()):
        judge = next(one for one in judges["judges"] if one["name"] == target.judge)
        found = judge["splits"].get(target.split, {"rows": {}})["rows"].get(chosen, {}).get(target.metric)
        if found is not None:
            about = {"label": target.label, "split": target.split, "judge": target.judge, "metric": target.metric, "target": target.value}
            measured.append(about | {"set_for": ABOUT[world], "value": found["mean"], "low": found["low"], "high": found["high"], "number": found["number"]})
    return measured
