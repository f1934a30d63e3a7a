"""The few numbers that one wants to see first, as tiles."""

from collections.abc import Mapping
from typing import Any

from unclip.evaluation.heldout import TRAIN, TRUE


def headline(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tiles: label, value, kind ("count", "share" or "seconds"), a note, and `state`, "good" or "bad" where there is a target, else ""."""
    splits = report["counts"]["splits"]
    held_out = sum(number for name, number in splits.items() if name != TRAIN)
    tiles = [_tile("training pairs", splits.get(TRAIN, 0), "count", f"{held_out:,} held out")]
    for target in report["targets"]:
        ends = f"{target['low']:.0%} to {target['high']:.0%}" if target["number"] else "no picture to judge it by"
        note = f"{target['split']}; {ends}; the aim is {target['target']:.0%} ({target['set_for']})"
        tiles.append(_tile(target["label"], target["value"], "share", note, state="good" if target["reached"] else "bad"))
    ladder = report["ladder"]
    rows = {row["name"]: row["splits"] for row in ladder["rows"]}
    shown = {(target["split"], target["metric"]) for target in report["targets"]}
    for split in report["prior"]:
        if (split, ladder["metric"]) not in shown:
            found, ceiling = rows[report["chosen"]][split], rows[TRUE][split]["mean"]
            note = f"{split}; {found['low']:.0%} to {found['high']:.0%}; with the true embedding {ceiling:.0%}"
            tiles.append(_tile(LABELS[ladder["metric"]], found["mean"], "share", note))
    for split, found in report["prior"].items():
        of_split, rival = found["rows"], found["verdict"]["recall"]["rival"]
        note = f"{split}; the best baseline ({rival}) {of_split[rival]['recall_at_10']:.0%}, of {found['gallery']:,} pictures"
        tiles.append(_tile("prior recall@10", of_split[found["chosen"]]["recall_at_10"], "share", note))
    for split, found in report["clip"].items():
        tiles.append(_tile("CLIP recall@1", found["recall_at_1"], "share", f"{split}; of {found['gallery']:,} pictures"))
    tiles.append(_tile("all stages", sum(stage["seconds"] for stage in report["stages"]), "seconds", "their last runs, added up"))
    return tiles


LABELS = {
    "all_right": "everything right",
    "family_top_5": "right family among the five nearest glyphs",
    "top_5": "pictures among the five nearest by pixels",
}


def _tile(label: str, value: float | None, kind: str, note: str, *, state: str = "") -> dict[str, Any]:
    return {"label": label, "value": value, "kind": kind, "note": note, "state": state}
