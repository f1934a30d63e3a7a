"""The stage as a whole: what it leaves, what it refuses, and that the page is safe to open."""

import base64
import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.evaluation.conftest import BRIEF, NUM_HELDOUT, NUM_TRAIN, SECTION, UNET, Root, training
from unclip.data.manifest import finished_manifest
from unclip.data.store import normalised
from unclip.decoder import DecoderConfig
from unclip.evaluation import page
from unclip.evaluation.heldout import predict, read_held_out
from unclip.evaluation.real_pictures import decode_all, read_encoded
from unclip.evaluation.report import evaluate, evaluate_inputs
from unclip.files import UnclipError
from unclip.layout import Paths
from unclip.training.decoder import DecoderStageConfig, train_decoder

LADDER = [
    "true embedding", "diffusion x1", "diffusion best of 2", "linear", "text embedding as image embedding", "image of the nearest training caption",
]  # fmt: skip


@pytest.fixture(scope="session")
def evaluated(root: Root) -> tuple[Root, dict[str, Any]]:
    evaluate(root.paths, root.models, root.priors, SECTION)
    return root, read(root.paths)


def read(paths: Paths) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in report.json")

    content: dict[str, Any] = json.loads((paths.report / "report.json").read_text(), parse_constant=refuse)
    return content


def test_the_stage_leaves_every_file_and_every_section(evaluated: tuple[Root, dict[str, Any]]) -> None:
    root, report = evaluated
    assert {"counts", "clip", "prior", "judge", "ladder", "embedding", "copies", "manipulations", "stages", "environment"} <= report.keys()
    assert {path.name for path in root.paths.report.iterdir()} == {
        "manifest.json", "report.json", "index.html", "grid.png", "metrics.parquet", "curves.png", "prior.png", "ladder.png", "pictures",
    }  # fmt: skip
    manifest = finished_manifest(root.paths.report, "evaluate")
    assert manifest.inputs == evaluate_inputs(root.paths, SECTION.evaluate)
    assert manifest.counts["pictures"] == 8
    assert set(report["prior"]) == set(report["clip"]) == {"heldout-pair", "heldout-scene"}
    assert [stage["stage"] for stage in report["stages"]] == [
        "source", "download", "curate", "clip", "embed", "select", "index", "prior", "decoder", "evaluate",
    ]  # fmt: skip


def test_rows_of_a_real_run_add_up(evaluated: tuple[Root, dict[str, Any]]) -> None:
    counts = evaluated[1]["counts"]
    assert counts["problems"] == []
    assert counts["adds_up"]
    assert counts["splits"] == {"train": NUM_TRAIN, "heldout-pair": NUM_HELDOUT, "heldout-scene": NUM_HELDOUT}


def test_the_true_embedding_finds_itself_and_lies_on_itself(evaluated: tuple[Root, dict[str, Any]]) -> None:
    for found in evaluated[1]["prior"].values():
        truth = found["rows"]["true embedding"]
        assert truth["recall_at_1"] == truth["median_rank"] == 1.0
        assert truth["image_cosine"] == pytest.approx(1.0)
        assert truth["centred_image_cosine"] == pytest.approx(1.0)
        assert list(found["rows"]) == LADDER
        assert found["rows"]["text embedding as image embedding"]["text_cosine"] == pytest.approx(1.0)


def test_the_first_draw_is_one_of_those_that_the_best_is_chosen_from(root: Root) -> None:
    generate = dataclasses.replace(SECTION.generate, num_candidates=3)
    test = read_held_out(root.paths.embeddings, SECTION.evaluate, seed=0)[0].test
    found = predict(test, root.models.clip, root.priors, root.paths.embeddings, generate, prior="diffusion", batch_size=3, label="")
    draws = found.draws["diffusion x1"]
    assert draws.shape == (4, 3, 16)
    assert (found.rows["diffusion x1"] == draws[:, 0]).all()
    cosines = (normalised(draws.reshape(12, 16)).reshape(4, 3, 16) * normalised(test.text_emb)[:, None]).sum(-1)
    assert (found.rows["diffusion best of 3"] == draws[np.arange(4), cosines.argmax(1)]).all()
    assert (found.chosen, found.baseline) == ("diffusion best of 3", "linear")


def test_held_out_rows_are_drawn_by_the_seed_with_their_own_pictures(root: Root) -> None:
    first, again, other = (read_held_out(root.paths.embeddings, SECTION.evaluate, seed=seed) for seed in (0, 0, 1))
    assert [held.test.keys for held in first] == [held.test.keys for held in again]
    assert [held.test.keys for held in first] != [held.test.keys for held in other]
    encoded = read_encoded(root.paths.shards, [key for held in first for key in held.test.keys])
    for held in first:
        pictures = decode_all(encoded, held.test.keys, image_size=16)
        assert len(held.pairs) == NUM_HELDOUT
        assert pictures.shape == (4, 16, 16, 3)
        files = {row["caption"]: row["file"] for row in pq.read_table(root.paths.world / "captions.parquet").to_pylist()}
        for caption, picture in zip(held.test.captions, pictures, strict=True):
            assert (np.asarray(Image.open(root.paths.world / files[caption])) == picture).all()


def test_the_best_of_two_is_nearer_to_the_caption_than_the_first(evaluated: tuple[Root, dict[str, Any]]) -> None:
    for found in evaluated[1]["prior"].values():
        assert found["rows"]["diffusion best of 2"]["text_cosine"] >= found["rows"]["diffusion x1"]["text_cosine"]


def test_the_table_holds_the_numbers_of_the_json(evaluated: tuple[Root, dict[str, Any]]) -> None:
    root, report = evaluated
    rows = {(row["section"], row["row"], row["metric"]): row["value"] for row in pq.read_table(root.paths.report / "metrics.parquet").to_pylist()}
    assert rows["prior", "heldout-pair / linear", "recall_at_10"] == report["prior"]["heldout-pair"]["rows"]["linear"]["recall_at_10"]
    assert (
        rows["judge", "heldout-pair / program / diffusion best of 2", "all_right low"]
        == report["judge"]["judges"][0]["splits"]["heldout-pair"]["rows"]["diffusion best of 2"]["all_right"]["low"]
    )
    assert rows["ladder", "train / true embedding", "number"] == 2
    assert (
        rows["embedding", "heldout-scene / linear probe / linear", "colour mean"]
        == (report["embedding"]["probe"]["splits"]["heldout-scene"]["rows"]["linear"]["colour"]["mean"])
    )
    assert rows["manipulations", "round trip / 2", "psnr"] == report["manipulations"]["round_trip"][1]["psnr"]
    assert rows["copies", "true embedding of training pictures", "median"] == report["copies"]["rows"]["true embedding of training pictures"]["median"]
    assert rows["counts", "embed", "kept"] == NUM_TRAIN + 2 * NUM_HELDOUT


def test_the_page_is_the_json_and_asks_the_network_for_nothing(evaluated: tuple[Root, dict[str, Any]]) -> None:
    root, report = evaluated
    html = (root.paths.report / "index.html").read_text()
    assert html == page.render(report, root.paths.report)
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert "url(" not in html
    assert "@import" not in html
    assert page.share(report["clip"]["heldout-pair"]["recall_at_5"]) in html
    assert report["prior"]["heldout-scene"]["verdict"]["sentence"] in html
    pictures = [base64.b64decode(source.split(",", 1)[1]) for source in sources if source.startswith("data:")]
    assert len(pictures) == 4 + 3 + 3 + 1 + 4  # samples, comparisons, plots, copies, manipulations
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)


def test_every_table_says_how_to_read_it_and_what_would_be_alarming(evaluated: tuple[Root, dict[str, Any]]) -> None:
    html = (evaluated[0].paths.report / "index.html").read_text()
    for section in re.split(r"<section id=", html)[1:]:
        assert "<b>Alarming:</b>" in section, section[:60]


def test_captions_and_names_from_strangers_are_escaped(evaluated: tuple[Root, dict[str, Any]]) -> None:
    root, report = evaluated
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    changed = copy.deepcopy(report)
    changed["pictures"]["samples"][0]["caption"] = evil
    changed["title"] = evil
    changed["counts"]["problems"], changed["counts"]["adds_up"] = [evil], False
    for section in (changed["prior"], changed["clip"], changed["judge"]["judges"][0]["splits"], changed["pictures"]["comparisons"]):
        section[evil] = section.pop("heldout-pair")
    html = page.render(changed, root.paths.report)
    assert "<script" not in html
    assert "<img src=x" not in html
    assert html.count("&lt;script&gt;") >= 7


def test_counts_that_do_not_add_up_are_shown_at_the_top(evaluated: tuple[Root, dict[str, Any]]) -> None:
    root, report = evaluated
    assert "do not add up" not in page.render(report, root.paths.report)
    changed = copy.deepcopy(report)
    changed["counts"] |= {"adds_up": False, "problems": ["embed: 7 rows came in"]}
    assert "embed: 7 rows came in" in page.render(changed, root.paths.report)


def test_a_second_run_gives_the_same_numbers(evaluated: tuple[Root, dict[str, Any]], tmp_path: Path) -> None:
    root, report = evaluated
    section = dataclasses.replace(SECTION, evaluate=dataclasses.replace(SECTION.evaluate, batch_size=4))
    paths = dataclasses.replace(root.paths, report=tmp_path / "report")
    manifest = evaluate(paths, root.models, root.priors, section)
    again = read(paths)
    assert again["judge"] == report["judge"]
    for name, row in report["prior"]["heldout-pair"]["rows"].items():
        same = again["prior"]["heldout-pair"]["rows"][name]
        assert same["intervals"] == {metric: pytest.approx(ends, abs=1e-5) for metric, ends in row["intervals"].items()}
        numbers = {metric: value for metric, value in row.items() if isinstance(value, float)}
        assert {metric: same[metric] for metric in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-4)
    assert manifest.config == finished_manifest(root.paths.report, "evaluate").config


def test_other_data_is_identified_by_clip_and_by_pixels(root: Root, tmp_path: Path) -> None:
    paths = dataclasses.replace(root.paths, report=tmp_path / "report")
    evaluate(paths, root.models, root.priors, dataclasses.replace(BRIEF, world=""))
    report = read(paths)
    by_clip, by_pixels = report["judge"]["judges"]
    assert "also used to make the pictures" in by_clip["name"]
    for found in by_pixels["splits"].values():
        assert found["rows"]["real pictures"]["top_1"]["mean"] == 1.0
        assert found["chance"] == {"top_1": 1 / 4, "top_5": 1.0}
    for found in by_clip["splits"].values():
        assert found["gallery"] == NUM_TRAIN + 2 * NUM_HELDOUT
        assert found["rows"]["real pictures"]["top_1"]["mean"] == 1.0
    assert (report["copies"], report["manipulations"], report["targets"]) == (None, None, [])
    html = (paths.report / "index.html").read_text()
    assert 'id="copies"' not in html
    assert 'id="embedding"' not in html


def test_a_decoder_of_text_embeddings_is_judged_beside_the_other(root: Root, tmp_path: Path) -> None:
    paths = dataclasses.replace(root.paths, report=tmp_path / "report")
    section = dataclasses.replace(BRIEF, evaluate=dataclasses.replace(BRIEF.evaluate, text_decoder="text"))
    with pytest.raises(UnclipError, match=r"expected the finished result of .*decoder/text"):
        evaluate(paths, root.models, root.priors, section)
    network = DecoderConfig(unet=UNET, context_width=16, embedding="text")
    train_decoder(paths.shards, paths.embeddings, paths.decoder.with_name("text"), DecoderStageConfig(network=network, training=training(), run="text"))
    manifest = evaluate(paths, root.models, root.priors, section)
    assert "text decoder" in manifest.inputs
    rows = {row["name"]: row for row in read(paths)["ladder"]["rows"]}
    assert rows["decoder trained on text embeddings"]["splits"]["all held out"]["closed"] is None
    assert "decoder trained on text embeddings" in (paths.report / "index.html").read_text()


def test_one_held_out_row_and_one_candidate_are_enough(root: Root, tmp_path: Path) -> None:
    paths = dataclasses.replace(root.paths, report=tmp_path / "report")
    config = dataclasses.replace(BRIEF.evaluate, num_manipulated=1, num_seen=1, num_captions=1, num_pictures=1, num_shown=1)
    for world in ("shapes", ""):
        section = dataclasses.replace(BRIEF, world=world, evaluate=config, generate=dataclasses.replace(SECTION.generate, num_candidates=1))
        paths = dataclasses.replace(root.paths, report=tmp_path / f"report-{world}")
        evaluate(paths, root.models, root.priors, section)
        report = read(paths)
        rows = report["prior"]["heldout-scene"]["rows"]
        assert list(rows) == [name for name in LADDER if "best of" not in name]
        assert rows["linear"]["spread"] is None
        assert "shuffled captions" not in report["judge"]["judges"][0]["splits"]["heldout-scene"]["rows"]


def test_without_held_out_rows_the_setting_is_named(root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unclip.evaluation.heldout.splits_of", lambda store: {"train": 40})
    paths = dataclasses.replace(root.paths, report=tmp_path / "report")
    with pytest.raises(UnclipError, match=r"no held-out row.*heldout_fraction"):
        evaluate(paths, root.models, root.priors, SECTION)
    assert not (paths.report / "index.html").exists()


def test_the_grid_opens_as_a_picture(evaluated: tuple[Root, dict[str, Any]]) -> None:
    with Image.open(evaluated[0].paths.report / "grid.png") as grid:
        assert grid.width > 128
        assert grid.height > 128
