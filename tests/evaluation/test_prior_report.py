"""The priors measured alone: whatever kinds there are, without a decoder, on one page."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from tests.evaluation.conftest import BRIEF, SECTION, Root
from unclip.evaluation import page
from unclip.evaluation.ladder_plot import SHORT
from unclip.evaluation.prior_report import evaluate_priors, ladder_table
from unclip.evaluation.report import evaluate
from unclip.files import UnclipError
from unclip.layout import Paths
from unclip.prior.condition import Prior, PriorKind


@pytest.fixture
def paths(root: Root, tmp_path: Path) -> Paths:
    """The root without a decoder."""
    return dataclasses.replace(root.paths, report=tmp_path / "report", decoder=tmp_path / "none")


def test_it_leaves_a_page_a_picture_and_numbers_without_a_decoder(root: Root, paths: Paths) -> None:
    measured = evaluate_priors(paths, root.models.clip, root.priors, SECTION)
    assert {path.name for path in paths.report.iterdir()} == {"prior.json", "prior.png", "prior.html"}
    assert json.loads((paths.report / "prior.json").read_text()) == measured
    html = (paths.report / "prior.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,")
    assert "url(" not in html
    assert measured["prior"]["heldout-pair"]["verdict"]["sentence"] in html
    with Image.open(paths.report / "prior.png") as picture:
        assert picture.width > 1000


def test_what_comes_from_strangers_is_text_on_the_page(root: Root, paths: Paths) -> None:
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}'
    measured = evaluate_priors(paths, root.models.clip, root.priors, SECTION)
    found = measured["prior"].pop("heldout-pair")
    found["rows"] = {f"{name} {evil}": row for name, row in found["rows"].items()}
    found["verdict"]["sentence"] = found["reranking"]["sentence"] = found["chosen"] = evil
    changed = measured | {"title": evil, "prior": {evil: found} | measured["prior"]}
    html = page.render(changed, paths.report, template=page.PRIOR)
    assert "<script" not in html
    assert "<img src=x" not in html
    assert "{{7*7}}" in html
    assert html.count("&lt;script&gt;") >= 8


def test_its_numbers_are_those_of_the_whole_report(root: Root, paths: Paths, tmp_path: Path) -> None:
    alone = evaluate_priors(paths, root.models.clip, root.priors, BRIEF)
    whole = dataclasses.replace(root.paths, report=tmp_path / "whole")
    evaluate(whole, root.models, root.priors, BRIEF)
    report = json.loads((whole.report / "report.json").read_text())
    assert (report["prior"], report["sweeps"]) == (alone["prior"], alone["sweeps"])


@pytest.mark.parametrize(
    ("kinds", "prior", "added", "rival"),
    [
        (("diffusion",), "diffusion", ["diffusion x1", "diffusion best of 2"], "image of the nearest training caption"),
        (("linear",), "linear", ["linear"], "image of the nearest training caption"),
        (("diffusion", "linear"), "linear", ["diffusion x1", "diffusion best of 2", "linear"], "image of the nearest training caption"),
    ],
)
def test_any_kinds_make_a_ladder(root: Root, paths: Paths, kinds: tuple[PriorKind, ...], prior: PriorKind, added: list[str], rival: str) -> None:
    section = dataclasses.replace(BRIEF, prior=prior)
    priors: dict[PriorKind, Prior] = {kind: root.priors[kind] for kind in kinds}
    measured = evaluate_priors(paths, root.models.clip, priors, section)
    for found in measured["prior"].values():
        assert list(found["rows"]) == ["true embedding", *added, "text embedding as image embedding", rival]
        assert found["chosen"] == added[-1]
        assert found["verdict"]["recall"]["rival"] != found["chosen"]
    assert bool(measured["sweeps"]["points"]) == ("diffusion" in kinds)
    whole = dataclasses.replace(paths, report=paths.report / "whole", decoder=root.paths.decoder)
    evaluate(whole, root.models, priors, section)
    report = json.loads((whole.report / "report.json").read_text())
    assert report["ladder"]["baseline"] == ("linear" if prior == "diffusion" and "linear" in kinds else rival)
    assert set(report["curves"]) == {"clip", "decoder"} | {f"{kind} prior" for kind in kinds if kind != "linear"}


def test_a_prior_that_was_not_trained_is_refused(root: Root, paths: Paths) -> None:
    with pytest.raises(UnclipError, match=r"expected a trained prior of the kind regression, there are diffusion, linear.*--prior.kinds"):
        evaluate_priors(paths, root.models.clip, root.priors, dataclasses.replace(SECTION, prior="regression"))
    shutil.rmtree(paths.report, ignore_errors=True)


def test_a_terminal_shows_the_ladder(root: Root, paths: Paths) -> None:
    measured = evaluate_priors(paths, root.models.clip, root.priors, SECTION)
    console = Console(width=80, record=True)
    console.print(ladder_table("heldout-pair", measured["prior"]["heldout-pair"]))
    shown = console.export_text()
    for name in measured["prior"]["heldout-pair"]["rows"]:
        assert SHORT.get(name, name) in shown
    assert "…" not in shown
