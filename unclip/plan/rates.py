"""The rates that hours are made from: measured ones of `rates.toml`, and what the user knows better."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from unclip.files import UnclipError
from unclip.plan.published import published_clip

SECTION = "rate"
STAGES = ("download", "embed", "select", "index", "prior", "decoder", "upsampler")  # those that `--rate.STAGE` is known for


@dataclass(frozen=True)
class Rates:
    """Of one CPU core, as measured here.

    Attributes:
        links_per_second: of the download.
        embed_flops, training_flops: operations a second of CLIP's towers, and of a training step.
        select_seconds: of a row and number, over the square root of the rows, as the pairs that are compared grow so.
        assign_flops, quantise_flops: operations a second of the index's two searches for the nearest centre.
        given: rows, links or samples a second, by stage, of one device (a GPU where there are any), in place of all that.
        measured: by stage, how.
    """

    links_per_second: float
    embed_flops: float
    training_flops: float
    select_seconds: float
    assign_flops: float
    quantise_flops: float
    given: Mapping[str, float]
    measured: Mapping[str, str]


def read_rates(given: Mapping[str, Any]) -> Rates:
    """The measured rates, and those that are given by the name of a stage.

    Raises:
        UnclipError: an unknown name, or a rate that is no positive number.
    """
    for name, value in given.items():
        if name not in STAGES:
            raise UnclipError(f"unknown rate {SECTION}.{name}; known here: {', '.join(STAGES)}")
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise UnclipError(f"{SECTION}.{name}: expected a positive number, got {value!r}")
    held = tomllib.loads(resources.files("unclip.plan").joinpath("rates.toml").read_text())
    embed, select = held["embed"], held["select"]
    clip = published_clip(embed["model"])
    return Rates(
        links_per_second=held["download"]["links_per_second"],
        embed_flops=embed["pairs_per_second"] * (clip.image_flops + clip.text_flops * embed["caption_tokens"] / clip.context_length),
        training_flops=held["training"]["flops_per_second"],
        select_seconds=1 / (select["rows_per_second"] * select["emb_width"] * select["rows"] ** 0.5),
        assign_flops=held["index"]["flops_per_second"],
        quantise_flops=held["index"]["quantised_flops_per_second"],
        given=dict(given),
        measured={name: section["measured"] for name, section in held.items()},
    )
