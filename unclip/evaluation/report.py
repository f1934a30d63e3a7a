"""The evaluate stage: runs every measurement and writes the report."""

import io
import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from unclip.clip import Clip
from unclip.data.index import Index, open_index
from unclip.data.manifest import Manifest, Stage, identity, versions
from unclip.decoder import Decoder, load_decoder
from unclip.evaluation import clip, counts, curves, ladder_plot, page, prior, sweeps
from unclip.evaluation.config import EvaluateSection, evaluate_inputs, text_decoder_folder
from unclip.evaluation.headline import headline
from unclip.evaluation.heldout import HeldOut, Predictions, first_rows, predict, read_held_out, read_seen
from unclip.evaluation.long_table import TABLE, long_rows
from unclip.evaluation.manipulations import manipulate
from unclip.evaluation.picture_files import write_pictures
from unclip.evaluation.picture_ladder_plot import draw_picture_ladder
from unclip.evaluation.picture_measures import Made, measure_pictures
from unclip.evaluation.real_pictures import decode_all, read_encoded
from unclip.evaluation.ways import check_decoders, make_pictures, plan_ways
from unclip.files import fingerprint, read_json, remove_leftovers, replacing
from unclip.generate import Models
from unclip.layout import Paths
from unclip.prior.condition import Prior, PriorKind
from unclip.training.run import last_checkpoint

STAGE = "evaluate"
REPORT, PAGE, METRICS, CURVES = "report.json", "index.html", "metrics.parquet", "curves.png"
LADDER, PICTURE_LADDER = "prior.png", "ladder.png"


def evaluate(paths: Paths, models: Models, priors: Mapping[PriorKind, Prior], section: EvaluateSection) -> Manifest:
    """Measures all and leaves `report.json`, `index.html`, `metrics.parquet`, plots, sheets and `pictures/`.

    Raises:
        UnclipError: an earlier stage has not finished, there is no held-out row, or a decoder is not what the config says.
    """
    started = time.monotonic()
    stage = Stage(paths.report, STAGE, section, evaluate_inputs(paths, section.evaluate))
    remove_leftovers(paths.report)
    seed, config = section.generate.seed, section.evaluate
    manifests, index = counts.read_manifests(paths), open_index(paths.index)
    splits = read_held_out(paths.embeddings, config, seed=seed)
    text_decoder = text_decoder_of(paths, models, section)
    predictions, measured = measure_priors(paths, splits, models.clip, priors, index, section)
    made = make_all(paths, splits, predictions, models, text_decoder, priors, section)
    of_pictures, copies = measure_pictures(paths, made, splits, models.clip, index, section)
    manipulated = None
    if made.originals:
        manipulated = manipulate(
            made.asked[0], made.originals, models, paths.embeddings, section.generate, num_steps=config.manipulation_steps, world=section.world,
            judged=made.real[0][: config.num_edited],
        )  # fmt: skip
    curve = curves.read_curves(paths, priors)
    report: dict[str, Any] = {
        "title": paths.root.name,
        "world": section.world,
        "targets": of_pictures.pop("targets"),  # first, since what shows a report in short takes its beginning
        "counts": counts.measure_counts(manifests, paths.embeddings),
        "leakage": manifests["select"].counts["leakage"],
        "clip": clip.measure_clip(splits, world=section.world, seed=seed),
        **measured,
        **of_pictures,
        "manipulations": None if manipulated is None else manipulated.section,
        "index": {name: value for name, value in manifests["index"].counts.items() if name in ("kept", "recall_at_10")},
        "curves": curves.summarise_curves(curve),
        "pictures": write_pictures(paths.report, made, copies, manipulated, num_shown=config.num_shown, world=section.world)
        | {"curves": CURVES, "prior": LADDER, "ladder": PICTURE_LADDER},
        "environment": environment(models, section.generate.seed),
        "config": {name: manifest.config for name, manifest in manifests.items()} | {STAGE: identity(section)},
    }
    curves.draw_curves(paths.report / CURVES, curve)
    ladder_plot.draw_ladder(paths.report / LADDER, report["prior"], report["sweeps"])
    draw_picture_ladder(paths.report / PICTURE_LADDER, report["ladder"], chosen=report["chosen"])
    own = counts.stage_cost(STAGE, time.monotonic() - started, counts.own_peak_memory(), parts=None, steps=None)
    report["stages"] = [*counts.measure_stages(manifests), own]
    report, report["not_a_number"] = without_nan(report)
    report["headline"] = headline(report)
    with replacing(paths.report / REPORT) as aside:  # not sorted: the order of the rows is that of the page
        aside.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    with replacing(paths.report / METRICS) as aside:
        pq.write_table(pa.Table.from_pylist(list(long_rows(report)), schema=TABLE), aside, compression="zstd")
    with replacing(paths.report / PAGE) as aside:
        aside.write_text(page.render(read_json(paths.report / REPORT), paths.report), encoding="utf-8")
    captions = sum(len(held.test) for held in splits)
    digested = {name: report[name] for name in ("clip", "prior", "sweeps", "judge", "ladder")}
    made_pictures = sum(len(one.rows) for one in made.asked)
    return stage.finish(counts={"rows_in": captions, "kept": captions, "rejected": {}, "pictures": made_pictures}, digest=fingerprint(digested))


def text_decoder_of(paths: Paths, models: Models, section: EvaluateSection) -> Decoder | None:
    """The decoder that was trained on text embeddings, None where the config names none.

    Raises:
        UnclipError: it has not finished, or a decoder is not of the embedding that it should be.
    """
    config, text_decoder = section.evaluate, None
    if config.text_decoder:
        text_decoder = load_decoder(last_checkpoint(text_decoder_folder(paths, config), "decoder"), device=str(models.clip.device))
    check_decoders(models.decoder, text_decoder)
    return text_decoder


def make_all(
    paths: Paths, splits: Sequence[HeldOut], predictions: Sequence[Predictions], models: Models, text_decoder: Decoder | None,
    priors: Mapping[PriorKind, Prior], section: EvaluateSection,
) -> Made:  # fmt: skip
    """Every picture that is measured: the first captions of each held-out split, and some of training, in all ways.

    Raises:
        UnclipError: a row has no picture.
    """
    config, generate = section.evaluate, section.generate
    asked, predicted = [first_rows(held, config.num_pictures) for held in splits], list(predictions)
    keys = [held.test.keys for held in splits]
    if config.num_seen:
        seen = read_seen(paths.embeddings, config.num_seen, seed=generate.seed)
        asked, keys = [*asked, seen], [*keys, seen.rows.keys]
        predicted.append(
            predict(seen.rows, models.clip, priors, paths.embeddings, generate, prior=section.prior, batch_size=config.batch_size, label=seen.split)
        )
    encoded = read_encoded(paths.shards, [key for some in keys for key in some])
    real = [decode_all(encoded, some, image_size=models.decoder.config.unet.image_size) for some in keys]
    originals = [Image.open(io.BytesIO(encoded[key])) for key in keys[0][: config.num_manipulated]]
    upsampled_size = models.upsamplers[-1].config.unet.image_size if models.upsamplers else 0
    has_text_decoder, sees_text = text_decoder is not None, models.decoder.config.sees_text
    ways = plan_ways(predicted[0], config.rungs, sees_text=sees_text, has_text_decoder=has_text_decoder, upsampled_size=upsampled_size)
    pictures = [
        make_pictures(one, of_split[: len(one.rows)], answers, ways, models, text_decoder, generate, batch_size=config.batch_size)
        for one, of_split, answers in zip(asked, real, predicted, strict=True)
    ]
    return Made(asked, predicted, pictures, ways, real, originals)


def measure_priors(
    paths: Paths, splits: Sequence[HeldOut], clip: Clip, priors: Mapping[PriorKind, Prior], index: Index, section: EvaluateSection
) -> tuple[list[Predictions], dict[str, Any]]:
    """What needs no decoder: the predictions of each split, and the sections `prior` and `sweeps` of the report."""
    config, generate = section.evaluate, section.generate
    predictions = [
        predict(held.test, clip, priors, paths.embeddings, generate, prior=section.prior, batch_size=config.batch_size, label=held.split) for held in splits
    ]
    return predictions, {
        "prior": prior.measure_prior(splits, predictions, index, paths.embeddings, world=section.world, seed=generate.seed),
        "sweeps": sweeps.measure_sweeps(splits, clip, priors, index, paths.embeddings, generate, config, world=section.world),
    }


def environment(models: Models, seed: int) -> dict[str, Any]:
    """What the evaluation ran on."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "memory": counts.human_bytes(psutil.virtual_memory().total),
        "device": str(models.clip.device),
        "torch_threads": torch.get_num_threads(),
        "seed": seed,
        "clip": {"name": models.clip.name, "origin": models.clip.origin, "weights": models.clip.weights_hash},
    }


def without_nan(report: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The same with None for every number that JSON can't hold, and the paths of those."""
    found: list[str] = []

    def cleaned(value: Any, path: str) -> Any:
        if isinstance(value, Mapping):
            return {str(name): cleaned(inner, f"{path}.{name}" if path else str(name)) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [cleaned(inner, f"{path}.{number}") for number, inner in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            found.append(path)
            return None
        return value

    return cleaned(report, ""), found
