"""The commands that make pictures, and the facade for Python, on a finished root."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import unclip
from unclip.cli.app import app
from unclip.files import UnclipError
from unclip.gallery import read_png_text

FEW = ("--steps", "4", "--no-upsample")


def run(*arguments: object) -> None:
    app([str(argument) for argument in arguments], exit_on_error=False, print_error=False, result_action="return_value")


@pytest.fixture
def picture(root: Path) -> Path:
    return root / "world" / "images" / "train-000000.png"


@pytest.fixture
def second(root: Path) -> Path:
    return root / "world" / "images" / "train-000001.png"


@pytest.fixture(scope="module")
def models(root: Path) -> unclip.Unclip:
    return unclip.open(root, upsample=False)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def record(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "record.json").read_text())
    return content


def test_generate_makes_the_same_files_whatever_else_is_asked_for(root: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("../a cat\n\na large red star\n")
    run("generate", "a large red star", "--root", root, "--num", 2, "--seed", 1, "--out", tmp_path / "one", *FEW)
    run("generate", "a dog", "--captions", tmp_path / "captions.txt", "--root", root, "--num", 3, "--seed", 1, "--out", tmp_path / "many", *FEW)
    assert names(tmp_path / "one") == {"0000-a-large-red-star.png", "0001-a-large-red-star.png", "sheet.png", "record.json", "candidates.parquet"}
    for number in range(2):
        alone, among = tmp_path / "one" / f"{number:04d}-a-large-red-star.png", tmp_path / "many" / f"{6 + number:04d}-a-large-red-star.png"
        assert alone.read_bytes() == among.read_bytes()
    said = read_png_text(tmp_path / "many" / "0004-a-cat.png")
    assert said["picture"]["caption"] == "../a cat"
    assert (said["picture"]["number"], said["settings"]["generate"]["seed"], said["settings"]["generate"]["decoder_steps"]) == (1, 1, 4)
    assert set(said["settings"]["models"]) == {"clip", "prior", "decoder", "upsampler"}
    candidates = pq.read_table(tmp_path / "many" / "candidates.parquet")
    assert (candidates.num_rows, sum(candidates["chosen"].to_pylist())) == (18, 9)


def test_a_picture_says_how_it_was_made(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("generate", 'a "star" [bold]', "--root", root, "--num", 1, "--out", tmp_path / "out", *FEW)
    capsys.readouterr()
    run("inspect", tmp_path / "out" / "0000-a-star-bold.png")
    assert json.loads(capsys.readouterr().out)["picture"]["caption"] == 'a "star" [bold]'
    run("inspect", tmp_path / "out")
    assert json.loads(capsys.readouterr().out)["pictures"][0]["file"] == "0000-a-star-bold.png"


def test_generate_takes_every_setting(root: Path, tmp_path: Path) -> None:
    asked = ("--candidates", 3, "--guidance", 2.0, "--text-guidance", 1.5, "--sampler", "ddim", "--eta", 0.5)
    run("generate", "a star", "--root", root, "--num", 1, "--prior", "linear", *asked, "--out", tmp_path / "out", *FEW)
    settings = read_png_text(tmp_path / "out" / "0000-a-star.png")["settings"]
    assert settings["models"]["prior"].startswith("linear ")
    assert {name: settings["generate"][name] for name in ("num_candidates", "guidance_scale", "eta")} == {
        "num_candidates": 3, "guidance_scale": [2.0, 1.5], "eta": 0.5,
    }  # fmt: skip
    with pytest.raises(UnclipError, match="eta is a setting of the ddim sampler"):
        run("generate", "a star", "--root", root, "--sampler", "ddpm", "--eta", 0.5, "--out", tmp_path / "other")
    with pytest.raises(UnclipError, match="expected a caption"):
        run("generate", "--root", root, "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_pictures_are_enlarged_where_the_root_can(root: Path, tmp_path: Path, picture: Path) -> None:
    run("generate", "a star", "--root", root, "--num", 1, "--steps", 2, "--out", tmp_path / "large")
    run("generate", "a star", "--root", root, "--num", 1, "--steps", 2, "--no-upsample", "--out", tmp_path / "small")
    large, small = (Image.open(tmp_path / name / "0000-a-star.png").size[0] for name in ("large", "small"))
    assert large > small == 16


def test_variations_say_how_well_the_picture_comes_back(root: Path, tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("variations", picture, "--root", root, "--num", 2, "--eta", 0.7, "--steps", 8, "--no-upsample", "--out", tmp_path / "out")
    assert names(tmp_path / "out") == {
        "0000-train-000000-variation-0-eta-0-7.png", "0001-train-000000-variation-1-eta-0-7.png", "original.png", "sheet.png", "record.json",
    }  # fmt: skip
    settings = record(tmp_path / "out")["settings"]
    assert isinstance(settings, dict)
    assert [one["steps"] for one in settings["round_trip"]] == [2, 4, 8]
    assert settings["picture"]["name"] == picture.name
    assert "PSNR" in capsys.readouterr().out


def test_interpolate_writes_an_animation(root: Path, tmp_path: Path, picture: Path, second: Path) -> None:
    run("interpolate", picture, second, "--root", root, "--num", 3, "--noise", "fixed", "--animation", "webp", "--out", tmp_path / "out", *FEW)
    with Image.open(tmp_path / "out" / "animation.webp") as animation:
        assert animation.n_frames == 4
    assert {"first.png", "second.png", "sheet.png", "record.json"} < names(tmp_path / "out")


def test_edit_has_a_picture_for_each_theta(root: Path, tmp_path: Path, picture: Path) -> None:
    run("edit", picture, "--from", "a red circle", "--to", "a blue square", "--theta", "0.25,0.5", "--root", root, "--out", tmp_path / "out", *FEW)
    pictures = record(tmp_path / "out")["pictures"]
    assert isinstance(pictures, list)
    assert [one["theta"] for one in pictures] == [0.25, 0.5]
    with pytest.raises(UnclipError, match="expected numbers with commas"):
        run("edit", picture, "--from", "a", "--to", "b", "--theta", "much", "--root", root, "--out", tmp_path / "other")


def test_inpaint_keeps_what_is_black_bit_for_bit_in_the_file(root: Path, tmp_path: Path, picture: Path) -> None:
    Image.open(picture).resize((45, 40)).save(tmp_path / "picture.png")
    mask = Image.new("L", (45, 40))
    mask.paste(255, (10, 8, 30, 20))
    mask.save(tmp_path / "mask.png")
    asked = ("--mask", tmp_path / "mask.png", "--num", 2, "--prior", "linear", "--resamples", 2)
    run("inpaint", tmp_path / "picture.png", "a blue star", *asked, "--root", root, "--out", tmp_path / "out", *FEW)
    before, outside = np.asarray(Image.open(tmp_path / "picture.png")), np.asarray(mask) == 0
    for number in range(2):
        after = np.asarray(Image.open(tmp_path / "out" / f"{number:04d}-a-blue-star.png"))
        assert np.array_equal(after[outside], before[outside])
        assert not np.array_equal(after[~outside], before[~outside])


def test_reconstruct_says_the_width_where_too_many_are_asked_for(root: Path, tmp_path: Path, picture: Path) -> None:
    run("reconstruct", picture, "--pca", "1,8,32", "--root", root, "--out", tmp_path / "out", *FEW)
    assert len([name for name in names(tmp_path / "out") if name.startswith("000")]) == 3
    with pytest.raises(UnclipError, match=r"\[1, 32\], the width of the image embedding, got 20, 320"):
        run("reconstruct", picture, "--pca", "20,320", "--root", root, "--out", tmp_path / "other")


@pytest.mark.parametrize("command", ["generate", "variations", "interpolate", "edit", "inpaint", "reconstruct"])
def test_no_command_overwrites(command: str, root: Path, tmp_path: Path, picture: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    more = {
        "generate": ["a star"], "variations": [picture], "interpolate": [picture, picture], "edit": [picture, "--from", "a", "--to", "b"],
        "inpaint": [picture, "a star", "--mask", picture], "reconstruct": [picture, "--pca", "1"],
    }[command]  # fmt: skip
    with pytest.raises(UnclipError, match="nothing there is touched"):
        run(command, *more, "--root", root, "--out", tmp_path, "--overwrite")
    assert names(tmp_path) == {"mine.txt"}


def test_a_picture_that_is_none_ends_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(UnclipError, match="not a picture"):
        run("variations", tmp_path / "a.png", "--root", tmp_path / "nowhere", "--out", tmp_path / "out")


def test_the_facade_takes_pictures_in_every_form(models: unclip.Unclip, picture: Path) -> None:
    image = Image.open(picture)
    array = np.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1
    found = models.embed([picture, str(picture), image, array, tensor])
    assert found.shape == (5, 32)
    assert torch.equal(found, found[:1].expand(5, -1))
    for wrong in (array[..., :2], array.astype(float), torch.zeros(3, 4, 4, dtype=torch.uint8)):
        with pytest.raises(UnclipError, match="expected"):
            models.embed([wrong])


def test_the_facade_does_what_the_commands_do(models: unclip.Unclip, root: Path, tmp_path: Path, picture: Path) -> None:
    made = models.with_settings(decoder_steps=4).generate("a large red star", num=2, seed=1)
    run("generate", "a large red star", "--root", root, "--num", 2, "--seed", 1, "--out", tmp_path / "out", *FEW)
    for number, image in enumerate(made.images):
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(tmp_path / "out" / f"{number:04d}-a-large-red-star.png")))
    assert models.variations(picture, num=2, steps=3).pictures.shape == (2, 16, 16, 3)
    assert models.invert([picture], steps=3).x_T.shape == (1, 3, 16, 16)
    assert [one.num_steps for one in models.round_trip([picture], num_steps=[2, 3])] == [2, 3]


def test_the_facade_refuses_what_it_cant_do(models: unclip.Unclip, tmp_path: Path, picture: Path) -> None:
    with pytest.raises(UnclipError, match="expected a root"):
        unclip.open(tmp_path)
    with pytest.raises(UnclipError, match="no setting 'guidance'; there are .*guidance_scale"):
        models.with_settings(guidance=2.0)
    with pytest.raises(UnclipError, match="decoder_steps must be at least 1, got 0"):
        models.with_settings(decoder_steps=0)
    with pytest.raises(UnclipError, match=r"steps must be in \[1, 1000\].*got 1001"):
        models.variations(picture, steps=1001)
    with pytest.raises(UnclipError, match="seed must not be negative, got -1"):
        models.generate("a star", seed=-1)
    with pytest.raises(UnclipError, match="number of pictures must be at least 1"):
        models.generate("a star", num=0)
