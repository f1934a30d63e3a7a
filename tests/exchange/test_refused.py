"""What an export or an import refuses, with one message that names what is wrong."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.exchange_models import DECODER, PRIOR, UNET, UPSAMPLER, E, write_root
from unclip.decoder import DecoderConfig
from unclip.exchange.decoder import DecoderShape, decoder_components
from unclip.exchange.exported import export_models
from unclip.exchange.imported import import_models
from unclip.exchange.prior import PriorShape, prior_component
from unclip.exchange.upsampler import upsampler_component
from unclip.exchange.weights import read_weights
from unclip.files import UnclipError
from unclip.models import paths_of

UNETS = {
    "decoder.network.unet.positions": {"positions": True},
    "decoder.network.unet.patch_size": {"patch_size": 2, "attention_sizes": (4,)},
    "decoder.network.unet.attend_middle": {"attend_middle": False},
    "decoder.network.unet.channels": {"min_group_width": 4},
}


@pytest.mark.parametrize(
    ("config", "setting"),
    [
        (dataclasses.replace(DECODER, text_states=False), "decoder.network.text_states"),
        (dataclasses.replace(DECODER, condition_noise=500), "decoder.network.condition_noise"),
        (dataclasses.replace(DECODER, embedding="text"), "decoder.network.embedding"),
        (dataclasses.replace(DECODER, sinusoids="half"), "decoder.network.sinusoids"),
        *((dataclasses.replace(DECODER, unet=dataclasses.replace(UNET, **change)), setting) for setting, change in UNETS.items()),
    ],
)
def test_a_decoder_that_diffusers_can_not_be_is_refused_by_its_setting(config: DecoderConfig, setting: str) -> None:
    with pytest.raises(UnclipError, match=setting):
        decoder_components(DecoderShape(config, E, E))


def test_a_prior_or_an_upsampler_that_diffusers_can_not_be_is_refused_by_its_setting() -> None:
    with pytest.raises(UnclipError, match=r"prior\.network\.self_condition"):
        prior_component(PriorShape(dataclasses.replace(PRIOR, self_condition=True), E, E))
    with pytest.raises(UnclipError, match=r"upsampler\.second\.network\.residual_scale"):
        upsampler_component(dataclasses.replace(UPSAMPLER, residual_scale=0.1), "second")
    with pytest.raises(UnclipError, match="one width for CLIP's embeddings and text states, this CLIP has 24 and 16"):
        prior_component(PriorShape(PRIOR, E, 16))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "out"
    export_models(paths_of(write_root(out.parent / "root")), out, ("prior", "decoder", "upsampler"))
    return out


def copied(exported: Path, to: Path) -> Path:
    shutil.copytree(exported, to / "copy")
    return to / "copy"


def change_config(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    held = load_file(path)
    change(held)
    save_file(held, path)


def refused(folder: Path, to: Path, message: str) -> None:
    config = write_root(to / "other", train=False)
    with pytest.raises(UnclipError, match=message):
        import_models(config, paths_of, folder, "diffusers", "imported")
    assert not (to / "other" / "prior" / "imported").exists()
    assert not (to / "other" / "decoder" / "imported").exists()


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("prior/config.json", {"num_layers": 10**9}, r"num_layers in .*prior/config.json is 1,000,000,000; its weights allow"),
        ("prior/config.json", {"num_layers": 60}, r"num_layers in .* is 60, but its weights are \d\d tensors in all"),
        ("prior/config.json", {"num_attention_heads": 10**12}, "num_attention_heads in .* is 1,000,000,000,000; its weights allow"),
        ("prior/config.json", {"num_attention_heads": 100}, "attention_head_dim times num_attention_heads in .* is 1,600; its weights allow 128 at the most"),
        ("prior/config.json", {"num_attention_heads": 3}, r"does not hold the tensors of the PriorTransformer in .*config.json: \d+ of another shape"),
        ("decoder/config.json", {"sample_size": 10**9}, "sample_size in .* is 1,000,000,000; its weights allow 65,536 at the most"),
        ("prior/config.json", {"norm_in_type": "layer"}, "norm_in_type in .* is 'layer'; unclip's network has no counterpart"),
        ("prior/config.json", {"num_layers": "2"}, "num_layers in .* must be a positive number, got '2'"),
        ("prior/config.json", {"_class_name": "UNet2DModel"}, "expected a PriorTransformer of diffusers in .*, got 'UNet2DModel'"),
        ("prior_scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}, r"num_train_timesteps in .* must be in \[2, 100000\]"),
        ("prior_scheduler/scheduler_config.json", {"prediction_type": "flow"}, "expected prediction_type and beta_schedule in .* got 'flow'"),
        ("decoder/config.json", {"block_out_channels": [32] * 10**4}, "block_out_channels in .* must be a list of sizes"),
        ("decoder/config.json", {"layers_per_block": 10**6}, "layers_per_block in .* is 1,000,000; its weights allow"),
        ("decoder/config.json", {"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type in .* no counterpart for that, expected"),
        ("decoder/config.json", {"attention_head_dim": 48}, "what unclip's U-Net can't be: head_width 48 must divide"),
        ("super_res_first/config.json", {"add_attention": True}, "add_attention in .* is True; unclip's network has no counterpart"),
        ("decoder/config.json", {"sample_size": 32}, "low_size must be the 32 pixels that the decoder makes, got 16"),
        ("decoder/config.json", {"cross_attention_dim": 41}, "has time_embed_dim and cross_attention_dim"),
    ],
)
def test_a_config_that_the_weights_can_not_be_is_refused_before_anything_is_built(
    exported: Path, tmp_path: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    folder = copied(exported, tmp_path)
    change_config(folder / file, **changes)
    refused(folder, tmp_path, message)


def test_missing_unknown_and_wrong_tensors_are_one_error(exported: Path, tmp_path: Path) -> None:
    folder = copied(exported, tmp_path)

    def change(held: dict[str, torch.Tensor]) -> None:
        held["stranger"] = held.pop("prd_embedding")
        held["clip_mean"] = torch.zeros(1, 3)

    change_weights(folder / "prior" / "diffusion_pytorch_model.safetensors", change)
    refused(folder, tmp_path, r"1 missing \(prd_embedding\); 1 unknown \(stranger\); 1 of another shape \(clip_mean is \(1, 3\), expected \(1, 24\)\)")


def test_weights_changed_after_the_export_are_told_from_ours(exported: Path, tmp_path: Path) -> None:
    folder = copied(exported, tmp_path)
    change_weights(folder / "prior" / "diffusion_pytorch_model.safetensors", lambda held: held["embedding_proj.weight"].add_(0.01))
    refused(folder, tmp_path, "embedding_proj.weight in .* was changed after unclip.safetensors was written; remove")


def test_our_own_file_can_not_ask_for_more_than_it_holds(exported: Path, tmp_path: Path) -> None:
    folder = copied(exported, tmp_path)
    own = folder / "text_proj" / "unclip.safetensors"
    held = load_file(own)
    save_file(held, own, metadata={"network": json.dumps({"num_null_text": 10**12})})
    refused(folder, tmp_path, r"num_null_text in .* must be in \[0, 1000\], got 1000000000000")
    save_file(held, own, metadata={"network": json.dumps({"num_null_text": 999, "text_to_step": False})})
    refused(folder, tmp_path, r"1 of another shape \(null_text is")
    save_file(held, own, metadata={"network": "[]"})
    refused(folder, tmp_path, "is not what unclip writes beside a component")


def test_models_of_another_clip_are_refused(exported: Path, tmp_path: Path) -> None:
    config = write_root(tmp_path / "other", clip_seed=1, train=False)
    with pytest.raises(UnclipError, match="belong to a CLIP with the weights"):
        import_models(config, paths_of, exported, "diffusers", "imported")


def test_half_a_decoder_and_an_empty_folder_are_refused(exported: Path, tmp_path: Path) -> None:
    folder = copied(exported, tmp_path)
    shutil.rmtree(folder / "text_proj")
    refused(folder, tmp_path, "a decoder is both decoder and text_proj")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path, "expected component folders")


def test_nothing_is_overwritten(exported: Path, tmp_path: Path) -> None:
    config = write_root(tmp_path / "root")
    with pytest.raises(UnclipError, match="exists; give the name of a new folder"):
        export_models(paths_of(config), exported, ("prior",))
    with pytest.raises(UnclipError, match="holds another model; give the imported one another name with --run"):
        import_models(config, paths_of, exported, "diffusers", "main")


def test_importing_twice_changes_nothing(exported: Path, tmp_path: Path) -> None:
    config = write_root(tmp_path / "root", train=False)
    first = import_models(config, paths_of, exported, "diffusers", "imported")
    weights = next((tmp_path / "root" / "decoder").rglob("ema.safetensors")).read_bytes()
    assert import_models(first.config, paths_of, exported, "diffusers", "imported") == first
    assert next((tmp_path / "root" / "decoder").rglob("ema.safetensors")).read_bytes() == weights


def test_a_model_can_be_exported_without_another_that_can_not(tmp_path: Path) -> None:
    config = write_root(tmp_path / "root", decoder=dataclasses.replace(DECODER, unet=dataclasses.replace(UNET, positions=True)))
    with pytest.raises(UnclipError, match="positions is True, .*; --model exports another one alone"):
        export_models(paths_of(config), tmp_path / "out", ("prior", "decoder", "upsampler"))
    assert not (tmp_path / "out").exists()
    assert export_models(paths_of(config), tmp_path / "out", ("prior",)).components == ["prior"]


def test_only_what_is_trained_is_exported(tmp_path: Path) -> None:
    config = write_root(tmp_path / "root", train=False)
    with pytest.raises(UnclipError, match="nothing to export"):
        export_models(paths_of(config), tmp_path / "out", ("prior", "decoder", "upsampler"))
    assert not (tmp_path / "out").exists()


class Unwanted:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must not run",))


def test_a_torch_file_can_not_run_code_nor_claim_more_than_it_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"a": torch.zeros(2)}, "callback": Unwanted()}, tmp_path / "bad.ckpt")
    with pytest.raises(UnclipError, match="holds more than tensors"):
        read_weights(tmp_path / "bad.ckpt")
    assert "must not run" not in capsys.readouterr().out
    torch.save({"a": torch.zeros(1).expand(10**12)}, tmp_path / "large.ckpt")
    with pytest.raises(UnclipError, match="claims"):
        read_weights(tmp_path / "large.ckpt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 7)
    with pytest.raises(UnclipError, match="not a whole safetensors file"):
        read_weights(tmp_path / "cut.safetensors")


def test_karlos_sizes_must_be_those_of_the_config(tmp_path: Path) -> None:
    folder = tmp_path / "karlo"
    folder.mkdir()
    for name in ("prior-ckpt.ckpt", "decoder-ckpt.ckpt", "improved-sr-ckpt.ckpt"):
        torch.save({"state_dict": {"model.prd_emb": torch.zeros(1, 1, 8)}}, folder / name)
    torch.save((torch.zeros(E), torch.ones(E)), folder / "ViT-L-14_stats.th")
    config = write_root(tmp_path / "root", train=False)
    with pytest.raises(UnclipError, match="give --preset karlo"):
        import_models(config, paths_of, folder, "karlo", "karlo")
    network = dataclasses.replace(DECODER, text_to_step=True, learned_variance=True, prediction="eps")
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, network=network))
    with pytest.raises(UnclipError, match=r"does not hold the tensors of the prior that this config describes: \d+ missing"):
        import_models(config, paths_of, folder, "karlo", "karlo")
