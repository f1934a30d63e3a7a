"""The plan's operations against closed forms and published numbers, its hours against its own rates, and its command."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unclip.cli import app
from unclip.cli.options import set_settings, split_settings
from unclip.config import RunConfig, load_config
from unclip.data.index_kinds import Choice
from unclip.files import UnclipError
from unclip.plan.assumed import Assumed
from unclip.plan.plan import Plan, make_plan
from unclip.plan.published import PublishedClip, published_clip
from unclip.plan.rates import read_rates
from unclip.plan.work import embed_flops, index_flops, trainings
from unclip.prior.condition import TextCondition
from unclip.prior.diffusion import DiffusionPrior

DECODER = load_config(preset="tiny").decoder.training
README = Path(__file__).parents[2] / "data" / "README.md"


def run(*arguments: str) -> None:
    others, settings = split_settings(["plan", *arguments])
    set_settings(settings)
    try:
        app(others, exit_on_error=False, print_error=False, result_action="return_value")
    finally:
        set_settings({})


@cache
def karlo() -> tuple[RunConfig, PublishedClip]:
    return load_config(preset="karlo"), published_clip("ViT-L-14")


def planned(*rows: float, assumed: Assumed, **rates: float) -> Plan:
    return make_plan(rows, load_config(preset="tiny"), karlo()[1], assumed, read_rates(rates))


def value(plan: Plan, section: str, what: str, number: int = 0) -> float:
    return next(line.values[number] for line in plan.sections[section] if line.what.startswith(what))


def transformer(tokens: int, width: int, layers: int) -> float:
    """Operations of a pre-norm transformer: four projections and an MLP of four widths, and the two products of attention."""
    return layers * (24 * tokens * width**2 + 4 * tokens**2 * width)


def test_operations_of_a_published_clip_are_those_of_its_transformers() -> None:
    _, clip = karlo()
    patches = (224 // 14) ** 2
    image = transformer(patches + 1, 1024, 24) + 2 * patches * 3 * 14**2 * 1024 + 2 * 1024 * 768
    assert clip.image_flops == pytest.approx(image, rel=1e-6)
    assert clip.text_flops == pytest.approx(transformer(77, 768, 12) + 2 * 768 * 768, rel=1e-6)
    # open_clip's own table (docs/model_profile.csv): 427.62 million parameters, 162.03 and 13.3 GFLOP
    assert clip.parameters / 1e6 == pytest.approx(427.62, abs=0.01)
    assert clip.image_flops / 1e9 == pytest.approx(162.03, abs=0.01)
    assert clip.text_flops / 1e9 == pytest.approx(13.3, abs=0.01)
    assert (clip.emb_width, clip.text_width, clip.context_length) == (768, 768, 77)


@pytest.mark.parametrize("name", ["ViT-L-15", "coca_ViT-B-32", "ViT-B-16-SigLIP"])
def test_a_clip_that_the_stages_would_not_take_is_refused(name: str) -> None:
    with pytest.raises(UnclipError, match=f"expected .*{name}"):
        published_clip(name)


def test_a_training_step_is_counted_as_one_that_is_taken() -> None:
    config, clip = karlo()
    small = load_config(preset="tiny", settings={"prior.network.width": 64, "prior.network.depth": 8})
    found = {training.name: training for training in trainings(small, clip, Assumed(caption_tokens=12))}
    network = DiffusionPrior(small.prior.network, emb_width=768, text_width=768)
    condition = TextCondition(torch.zeros(1, 768), torch.zeros(1, 12, 768), torch.ones(1, 12, dtype=torch.bool))
    draws = small.prior.draws
    with FlopCounterMode(display=False) as counted:
        network(condition, torch.ones(1, dtype=torch.bool), torch.zeros(1, draws, 768), torch.zeros(1, draws, dtype=torch.long)).sum().backward()
    assert found["prior"].sample_flops == pytest.approx(counted.get_total_flops(), rel=0.15)  # what enters needs no gradient of its own
    # Karlo's prior has 1,022,030,080 parameters, a buffer of 1,536 numbers among them
    large = {training.name: training for training in trainings(config, clip, Assumed())}
    assert large["prior"].parameters == 1_022_030_080 - 2 * 768
    assert large["decoder"].sample_flops == pytest.approx(4 / 3 * 1795.7e9, rel=1e-3)  # four passes, for activations are computed again


def test_cells_cost_what_comparing_with_each_of_them_does() -> None:
    assert index_flops(1000, Choice("int8", 0, 32), 32) == (0.0, 0.0)
    assign, quantise = index_flops(100_000, Choice("ivf-pq", 64, 16), 32)
    assert assign == 2 * 32 * 64 * (100_000 + 10 * 16384)
    assert quantise == 2 * 32 * 256 * (100_000 + 25 * 16384)


def test_hours_are_operations_over_speed_and_cost_is_hours_times_price() -> None:
    assumed = Assumed(gpus=4, gpu_tflops=100, utilisation=0.5, price_gpu_hour=2)
    plan, (_, clip) = planned(1e6, 2e6, assumed=assumed), karlo()
    hours = value(plan, "GPU hours", "embed", 1)
    assert hours == pytest.approx(2e6 * embed_flops(clip, assumed) / 50e12 / 3600)
    total = sum(line.values[1] for line in plan.sections["GPU hours"])
    assert value(plan, "in all", "days on 4 GPUs", 1) == pytest.approx(total / 4 / 24)
    assert value(plan, "in all", "cost of GPUs", 1) == pytest.approx(2 * total)
    assert any("No rate of a GPU was measured" in note for note in plan.notes)


def test_what_the_user_measured_takes_the_place_of_what_we_did() -> None:
    plan = planned(7.2e6, assumed=Assumed(found=0.5), embed=2000, download=100, decoder=50)
    assert value(plan, "GPU hours", "embed") == pytest.approx(1.0)
    assert value(plan, "hours of a CPU core", "download") == pytest.approx(40.0)
    assert value(plan, "GPU hours", "decoder") == pytest.approx(DECODER.num_steps * DECODER.batch_size / 50 / 3600)
    assert not any(note.startswith("Measured for download") for note in plan.notes)


def test_without_a_gpu_all_is_planned_by_what_a_core_was_measured_to_do() -> None:
    plan = planned(1e5, assumed=Assumed(gpus=0))
    assert "GPU hours" not in plan.sections
    assert value(plan, "hours of a CPU core", "embed") > 10
    assert any(note.startswith("Measured for training: make bench") for note in plan.notes)


def test_an_index_that_does_not_fit_says_what_it_needs() -> None:
    note = next(note for note in planned(400e6, assumed=Assumed()).notes if note.startswith("Index: "))
    assert note == "Index: ivf-pq for 400,000,000 rows, for which index.max_memory_gib must be 12, not 4."


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rows", "many"], "--rows must be numbers such as 400e6"),
        (["--rows", "0"], "rows must be at least 1"),
        (["--rows", "1e6", "--rate.embedd", "3"], "unknown rate rate.embedd; known here: download, embed"),
        (["--rows", "1e6", "--rate.embed", "fast"], "rate.embed: expected a positive number, got 'fast'"),
        (["--rows", "1e6", "--utilisation", "40"], r"utilisation must be in \(0, 1\], got 40"),
        (["--rows", "1e6", "--image-size", "128"], "a picture of 256 pixels|256"),
    ],
)
def test_wrong_questions_are_one_line(arguments: list[str], says: str) -> None:
    with pytest.raises(UnclipError, match=says):
        run("--clip", "ViT-L-14", *arguments)


def test_the_table_of_the_readme_is_what_its_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    text = README.read_text()
    command = re.search(r"^    unclip (plan .* --markdown)$", text, re.MULTILINE)
    assert command is not None
    run(*command[1].split()[1:])
    assert capsys.readouterr().out.strip() in text
