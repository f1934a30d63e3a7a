"""`unclip evaluate prior`: the measurement of the priors alone, of a root whose decoder need not be trained."""

import json
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from unclip.clip import Clip
from unclip.data.index import open_index
from unclip.data.manifest import finished_manifest
from unclip.evaluation import ladder_plot, page
from unclip.evaluation.config import EvaluateSection
from unclip.evaluation.heldout import read_held_out
from unclip.evaluation.report import LADDER, measure_priors, without_nan
from unclip.files import read_json, replacing
from unclip.layout import Paths
from unclip.printable import printable
from unclip.prior.condition import Prior, PriorKind

NUMBERS, PAGE = "prior.json", "prior.html"


def evaluate_priors(paths: Paths, clip: Clip, priors: Mapping[PriorKind, Prior], section: EvaluateSection) -> dict[str, Any]:
    """Measures the priors and leaves `prior.json`, `prior.png` and `prior.html` in the report's folder.

    Raises:
        UnclipError: an earlier stage has not finished, or there is no held-out row.
    """
    for stage, folder in (("embed", paths.embeddings), ("prior", paths.prior)):
        finished_manifest(folder, stage)
    index = open_index(paths.index)
    splits = read_held_out(paths.embeddings, section.evaluate, seed=section.generate.seed)
    _, measured = measure_priors(paths, splits, clip, priors, index, section)
    about = {"title": paths.root.name, "world": section.world, "index": finished_manifest(paths.index, "index").counts, "pictures": {"prior": LADDER}}
    report, not_a_number = without_nan(about | measured)
    report["not_a_number"] = not_a_number
    ladder_plot.draw_ladder(paths.report / LADDER, report["prior"], report["sweeps"])
    with replacing(paths.report / NUMBERS) as aside:
        aside.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    with replacing(paths.report / PAGE) as aside:
        aside.write_text(page.render(read_json(paths.report / NUMBERS), paths.report, template=page.PRIOR), encoding="utf-8")
    return report


def ladder_table(split: str, found: Mapping[str, Any]) -> Table:
    """The ladder of one split for a terminal; the cosine is the centred one, the spread that of draws as a ratio to real images."""
    title = f"{split}: {found['captions']:,} captions among {found['gallery']:,} images"
    table = Table(title=Text(printable(title)), title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("")  # where a terminal is narrow, names wrap and numbers keep their line
    for name in ("recall@10", "95 %", "rank", "cosine", "spread", "Fréchet"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in found["rows"].items():
        low, high = row["intervals"]["recall_at_10"]
        numbers = [page.share(row["recall_at_10"]), f"{100 * low:.0f}–{100 * high:.0f}", page.count(row["median_rank"])]
        numbers += [page.decimal(row[metric]) for metric in ("centred_image_cosine", "draw_spread_ratio")] + [page.tenths(row["frechet"])]
        table.add_row(ladder_plot.SHORT.get(name, name), *numbers, style="bold" if name == found["chosen"] else "")
    return table
