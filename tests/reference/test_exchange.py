"""The exchange against diffusers' own classes: the same weights say the same, both ways; and full sizes have the same tensors."""

import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, PriorTransformer, UNet2DConditionModel, UNet2DModel
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from tests.exchange_models import DECODER, LARGER, LENGTH, PRIOR, UPSAMPLER, E, randomize, write_root
from unclip.clip import load_clip
from unclip.config import RunConfig, load_config
from unclip.decoder import Decoder, DecoderCondition, load_decoder
from unclip.diffusion.schedule import make_schedule, respace
from unclip.exchange.decoder import DecoderShape, decoder_components
from unclip.exchange.exported import export_models
from unclip.exchange.imported import import_models
from unclip.exchange.prior import PriorShape, prior_component
from unclip.exchange.upsampler import on_meta, upsampler_component
from unclip.models import paths_of
from unclip.prior.condition import TextCondition
from unclip.prior.diffusion import DiffusionPrior, load_diffusion_prior
from unclip.training.run import last_checkpoint
from unclip.training.upsampler import load_trained_upsamplers
from unclip.upsampler import Upsampler, enlarged

B = 4
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
MASK = torch.arange(LENGTH) < torch.tensor([9, 5, 3, 2])[:, None]
T = torch.tensor([0, 250, 600, 999])
YES, NO = torch.ones(B, dtype=torch.bool), torch.zeros(B, dtype=torch.bool)


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, X_T, IMAGE_EMB, TEXT_EMB, STATES = drawn(B, E), drawn(B, 3, 16, 16), drawn(B, E, seed=2), drawn(B, E, seed=3), drawn(B, LENGTH, E, seed=4)
LARGE, SMALL = drawn(B, 3, 32, 32, seed=5), drawn(B, 3, 16, 16, seed=6).clamp(-1, 1)


@torch.no_grad()
def ask_their_prior(theirs: PriorTransformer, text_emb: Tensor = TEXT_EMB, states: Tensor = STATES, mask: Tensor = MASK) -> Tensor:
    out: Tensor = theirs(X, T, proj_embedding=text_emb, encoder_hidden_states=states, attention_mask=mask).predicted_image_embedding
    return out


@torch.no_grad()
def ask_our_prior(ours: DiffusionPrior, keep: Tensor = YES) -> Tensor:
    return ours(TextCondition(TEXT_EMB, STATES, MASK), keep, X[:, None], T[:, None])[:, 0]


@torch.no_grad()
def ask_their_decoder(
    text: UnCLIPTextProjModel, unet: UNet2DConditionModel, image_emb: Tensor = IMAGE_EMB, text_emb: Tensor = TEXT_EMB, states: Tensor = STATES,
    mask: Tensor = MASK,
) -> Tensor:  # fmt: skip
    context, emb = text(image_embeddings=image_emb, prompt_embeds=text_emb, text_encoder_hidden_states=states, do_classifier_free_guidance=False)
    out: Tensor = unet(X_T, T, encoder_hidden_states=context, class_labels=emb, attention_mask=F.pad(mask, (4, 0), value=True)).sample
    return out


@torch.no_grad()
def ask_our_decoder(ours: Decoder, keep_image: Tensor = YES, keep_text: Tensor = YES) -> Tensor:
    out: Tensor = ours(X_T, T, DecoderCondition(IMAGE_EMB, STATES, MASK, keep_image, keep_text, TEXT_EMB))
    return out


def their_prior() -> PriorTransformer:
    theirs = PriorTransformer(num_attention_heads=2, attention_head_dim=12, num_layers=3, embedding_dim=E, num_embeddings=LENGTH).eval()
    randomize(theirs)
    return theirs


def their_decoder() -> tuple[UnCLIPTextProjModel, UNet2DConditionModel]:
    """Karlo's decoder in small: all that its config names, and what diffusers' own script that converted it left at its default."""
    text = UnCLIPTextProjModel(clip_embeddings_dim=E, time_embed_dim=128, cross_attention_dim=40).eval()
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=3, out_channels=6, layers_per_block=2, block_out_channels=(32, 64), cross_attention_dim=40, attention_head_dim=16,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"), mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), resnet_time_scale_shift="scale_shift", class_embed_type="identity",
    ).eval()  # fmt: skip
    randomize(text)
    randomize(unet)
    return text, unet


def their_upsampler(seed: int = 0) -> UNet2DModel:
    theirs = UNet2DModel(
        sample_size=32, in_channels=6, out_channels=3, layers_per_block=2, block_out_channels=(32, 64), down_block_types=("ResnetDownsampleBlock2D",) * 2,
        up_block_types=("ResnetUpsampleBlock2D",) * 2, add_attention=False,
    ).eval()  # fmt: skip
    randomize(theirs, seed)
    return theirs


@torch.no_grad()
def ask_their_upsampler(theirs: UNet2DModel) -> Tensor:
    """With what their pipeline does before: noised picture first, then the small one, enlarged."""
    small = F.interpolate(SMALL, size=[32, 32], mode="bicubic", align_corners=False, antialias=True)
    out: Tensor = theirs(torch.cat([LARGE, small], dim=1), T).sample
    return out


@torch.no_grad()
def ask_our_upsampler(ours: Upsampler) -> Tensor:
    out: Tensor = ours(LARGE, T, SMALL)
    return out


def save_theirs(folder: Path) -> tuple[PriorTransformer, UnCLIPTextProjModel, UNet2DConditionModel, UNet2DModel]:
    prior, (text, unet), upsampler = their_prior(), their_decoder(), their_upsampler()
    for name, model in {"prior": prior, "text_proj": text, "decoder": unet, "super_res_first": upsampler}.items():
        model.save_pretrained(folder / name)
    DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample_range=5.0).save_pretrained(folder / "prior_scheduler")
    for name in ("decoder_scheduler", "super_res_scheduler"):
        DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(folder / name)
    return prior, text, unet, upsampler


def loaded(config: RunConfig) -> tuple[DiffusionPrior, Decoder, Upsampler]:
    """The models that a config uses."""
    paths = paths_of(config)
    found = load_trained_upsamplers(paths.upsampler, dataclasses.replace(config.upsampler, num_upsamplers=1))
    return (
        load_diffusion_prior(last_checkpoint(paths.prior / "diffusion", "prior-diffusion")),
        load_decoder(last_checkpoint(paths.decoder, "decoder")),
        found[0],
    )


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("text_to_step", [False, True])
@pytest.mark.parametrize("learned_variance", [False, True])
def test_what_we_export_says_the_same_in_diffusers(tmp_path: Path, text_to_step: bool, learned_variance: bool) -> None:
    decoder_config = dataclasses.replace(DECODER, text_to_step=text_to_step, learned_variance=learned_variance, num_null_text=3 * text_to_step)
    config = write_root(tmp_path / "root", decoder=decoder_config)
    export_models(paths_of(config), tmp_path / "out", ("prior", "decoder", "upsampler"))
    (prior, decoder, upsampler), out = loaded(config), tmp_path / "out"
    theirs = PriorTransformer.from_pretrained(out / "prior")
    assert ask_their_prior(theirs).std() > 0.1
    torch.testing.assert_close(ask_our_prior(prior), ask_their_prior(theirs), **CLOSE)
    torch.testing.assert_close(prior.unwhiten(X), theirs.post_process_latents(X))
    # what README.md of an export says of a hidden caption
    hidden = ask_their_prior(theirs, text_emb=prior.caption.text_mean.expand(B, -1), mask=torch.zeros_like(MASK))
    torch.testing.assert_close(ask_our_prior(prior, NO), hidden, **CLOSE)
    text, unet = UnCLIPTextProjModel.from_pretrained(out / "text_proj"), UNet2DConditionModel.from_pretrained(out / "decoder")
    assert ask_their_decoder(text, unet).std() > 0.1
    torch.testing.assert_close(ask_our_decoder(decoder), ask_their_decoder(text, unet), **CLOSE)
    null = text.learned_classifier_free_guidance_embeddings.detach().expand(B, -1)
    torch.testing.assert_close(ask_our_decoder(decoder, NO), ask_their_decoder(text, unet, image_emb=null), **CLOSE)
    larger = UNet2DModel.from_pretrained(out / "super_res_first")
    assert ask_their_upsampler(larger).std() > 0.1
    torch.testing.assert_close(ask_our_upsampler(upsampler), ask_their_upsampler(larger), **CLOSE)


def test_what_we_import_from_diffusers_says_the_same(tmp_path: Path) -> None:
    theirs, text, unet, larger = save_theirs(tmp_path / "theirs")
    config = import_models(write_root(tmp_path / "root", train=False), paths_of, tmp_path / "theirs", "diffusers", "imported").config
    prior, decoder, upsampler = loaded(config)
    torch.testing.assert_close(ask_our_prior(prior), ask_their_prior(theirs), **CLOSE)
    torch.testing.assert_close(ask_our_decoder(decoder), ask_their_decoder(text, unet), **CLOSE)
    torch.testing.assert_close(ask_our_upsampler(upsampler), ask_their_upsampler(larger), **CLOSE)
    # theirs has "" for a hidden caption
    empty = load_clip(paths_of(config).clip).encode_texts([""])
    states, text_emb = F.pad(empty.text_tokens, (0, 0, 0, LENGTH - 2)).expand(B, -1, -1), empty.text_emb.expand(B, -1)
    mask = (torch.arange(LENGTH) < 2).expand(B, -1)
    torch.testing.assert_close(ask_our_prior(prior, NO), ask_their_prior(theirs, text_emb, states, mask), **CLOSE)
    null = text.learned_classifier_free_guidance_embeddings.detach().expand(B, -1)
    torch.testing.assert_close(ask_our_decoder(decoder, NO, NO), ask_their_decoder(text, unet, null, text_emb, states, mask), **CLOSE)


def test_out_and_in_again_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    config = write_root(tmp_path / "root")
    export_models(paths_of(config), tmp_path / "out", ("prior", "decoder", "upsampler"))
    again = import_models(config, paths_of, tmp_path / "out", "diffusers", "again").config
    assert all(same_weights(a, b) for a, b in zip(loaded(config), loaded(again), strict=True))
    assert again.prior.network == PRIOR
    assert again.decoder.network == DECODER
    assert again.upsampler.first.network == UPSAMPLER


def test_in_and_out_again_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    theirs = save_theirs(tmp_path / "theirs")
    config = import_models(write_root(tmp_path / "root", train=False), paths_of, tmp_path / "theirs", "diffusers", "imported").config
    export_models(paths_of(config), tmp_path / "out", ("prior", "decoder", "upsampler"))
    for model, name in zip(theirs, ("prior", "text_proj", "decoder", "super_res_first"), strict=True):
        assert same_weights(model, type(model).from_pretrained(tmp_path / "out" / name))


def test_the_exported_schedule_is_ours(tmp_path: Path) -> None:
    export_models(paths_of(write_root(tmp_path / "root")), tmp_path / "out", ("prior", "decoder", "upsampler"))
    for name, prediction in {"prior_scheduler": "sample", "decoder_scheduler": "v_prediction"}.items():
        scheduler = DDPMScheduler.from_pretrained(tmp_path / "out" / name)
        scheduler.set_timesteps(20)
        schedule = respace(make_schedule("cosine", 1000), 20)
        assert scheduler.config.prediction_type == prediction
        assert scheduler.timesteps.flip(0).tolist() == schedule.timesteps.tolist()
        torch.testing.assert_close(scheduler.alphas_cumprod[schedule.timesteps].double(), schedule.alphas_cumprod, atol=1e-6, rtol=2e-3)


def karlo_layout(theirs: PriorTransformer, text: UnCLIPTextProjModel, unet: UNet2DConditionModel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same weights as Karlo's two checkpoints have them, written from their description and not from our links."""
    prior, held = {}, {name: value.detach() for name, value in theirs.state_dict().items()}
    outer = {
        "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2", "clip_img_proj": "proj_in", "text_emb_proj": "embedding_proj",
        "text_enc_proj": "encoder_hidden_states_proj", "final_ln": "norm_out", "out_proj": "proj_to_clip_embeddings",
    }  # fmt: skip
    for kind in ("weight", "bias"):
        prior |= {f"model.{karlo}.{kind}": held[f"{name}.{kind}"] for karlo, name in outer.items()}
        for number in range(3):
            block, karlo = f"transformer_blocks.{number}", f"model.transformer.resblocks.{number}"
            parts = {"ln_1": "norm1", "ln_2": "norm3", "attn.c_proj": "attn1.to_out.0", "mlp.c_fc": "ff.net.0.proj", "mlp.c_proj": "ff.net.2"}
            prior |= {f"{karlo}.{one}.{kind}": held[f"{block}.{other}.{kind}"] for one, other in parts.items()}
            prior[f"{karlo}.attn.c_qkv.{kind}"] = by_head([held[f"{block}.attn1.to_{part}.{kind}"] for part in "qkv"], 12)
    prior |= {"model.positional_embedding": held["positional_embedding"], "model.prd_emb": held["prd_embedding"]}
    return prior, karlo_decoder(text, unet)


def karlo_decoder(text: UnCLIPTextProjModel, unet: UNet2DConditionModel) -> dict[str, Tensor]:
    held = {name: value.detach() for name, value in text.state_dict().items()}
    names = {
        "text_seq_proj.0": "encoder_hidden_states_proj", "text_seq_proj.1": "text_encoder_hidden_states_norm", "text_feat_proj": "embedding_proj",
        "clip_tok_proj": "clip_extra_context_tokens_proj", "clip_emb": "clip_image_embeddings_project_to_time_embeddings",
    }  # fmt: skip
    attentions = {
        "input_blocks.4.1": "down_blocks.1.attentions.0", "input_blocks.5.1": "down_blocks.1.attentions.1", "middle_block.1": "mid_block.attentions.0",
        "output_blocks.0.1": "up_blocks.0.attentions.0", "output_blocks.1.1": "up_blocks.0.attentions.1", "output_blocks.2.1": "up_blocks.0.attentions.2",
    }  # fmt: skip
    karlo = {"model.cf_param": held["learned_classifier_free_guidance_embeddings"]}
    for kind in ("weight", "bias"):
        karlo |= {f"model.{one}.{kind}": held[f"{other}.{kind}"] for one, other in names.items()}
    return karlo | karlo_unet(unet, "model", attentions, middle="middle_block.2", upsampler="output_blocks.2.2")


def karlo_unet(unet: nn.Module, prefix: str, attentions: dict[str, str], *, middle: str, upsampler: str) -> dict[str, Tensor]:
    """Two levels of two blocks; the blocks in the order that they run in. With attention on the second level its blocks count on."""
    held = {name: value.detach() for name, value in unet.state_dict().items()}
    names = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2", "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out"}
    names |= {"out.2": "conv_out"}
    blocks = {
        "input_blocks.1.0": "down_blocks.0.resnets.0", "input_blocks.2.0": "down_blocks.0.resnets.1", "input_blocks.3.0": "down_blocks.0.downsamplers.0",
        "input_blocks.4.0": "down_blocks.1.resnets.0", "input_blocks.5.0": "down_blocks.1.resnets.1", "middle_block.0": "mid_block.resnets.0",
        middle: "mid_block.resnets.1", "output_blocks.0.0": "up_blocks.0.resnets.0", "output_blocks.1.0": "up_blocks.0.resnets.1",
        "output_blocks.2.0": "up_blocks.0.resnets.2", upsampler: "up_blocks.0.upsamplers.0", "output_blocks.3.0": "up_blocks.1.resnets.0",
        "output_blocks.4.0": "up_blocks.1.resnets.1", "output_blocks.5.0": "up_blocks.1.resnets.2",
    }  # fmt: skip
    parts = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2", "out_layers.3": "conv2"}
    karlo = {}
    for kind in ("weight", "bias"):
        karlo |= {f"{prefix}.{one}.{kind}": held[f"{other}.{kind}"] for one, other in names.items()}
        for one, other in blocks.items():
            karlo |= {f"{prefix}.{one}.{a}.{kind}": held[f"{other}.{b}.{kind}"] for a, b in parts.items()}
            if f"{other}.conv_shortcut.{kind}" in held:
                karlo[f"{prefix}.{one}.skip_connection.{kind}"] = held[f"{other}.conv_shortcut.{kind}"]
        for one, other in attentions.items():
            karlo[f"{prefix}.{one}.norm.{kind}"] = held[f"{other}.group_norm.{kind}"]
            joined = {
                "qkv": by_head([held[f"{other}.to_{part}.{kind}"] for part in "qkv"], 16), "proj_out": held[f"{other}.to_out.0.{kind}"],
                "encoder_kv": by_head([held[f"{other}.add_{part}_proj.{kind}"] for part in "kv"], 16),
            }  # fmt: skip
            karlo |= {f"{prefix}.{one}.{name}.{kind}": value[..., None] if kind == "weight" else value for name, value in joined.items()}
    return karlo


def by_head(parts: list[Tensor], head_width: int) -> Tensor:
    """Head after head, the rows of each part together."""
    return torch.cat([chunk for chunks in zip(*(part.split(head_width) for part in parts), strict=True) for chunk in chunks])


def test_the_layout_of_karlos_checkpoints_says_the_same(tmp_path: Path) -> None:
    theirs, (text, unet) = their_prior(), their_decoder()
    prior_state, decoder_state = karlo_layout(theirs, text, unet)
    folder = tmp_path / "karlo"
    folder.mkdir()
    torch.save({"state_dict": prior_state}, folder / "prior-ckpt-step=01000000-of-01000000.ckpt")
    torch.save({"state_dict": decoder_state}, folder / "decoder-ckpt-step=01000000-of-01000000.ckpt")
    larger = their_upsampler()
    nets = {"model_first_steps": larger, "model_last_step": their_upsampler(seed=1)}
    states = [karlo_unet(net, prefix, {}, middle="middle_block.1", upsampler="output_blocks.2.1") for prefix, net in nets.items()]
    torch.save({"state_dict": states[0] | states[1]}, folder / "improved-sr-ckpt-step=1.2M.ckpt")
    torch.save((theirs.clip_mean.detach()[0], theirs.clip_std.detach()[0]), folder / "ViT-L-14_stats.th")
    small = {"width": 24, "depth": 3, "head_width": 12, "max_text_tokens": LENGTH}
    config = write_root(tmp_path / "root", train=False)
    unet_config = dataclasses.replace(DECODER.unet, depth=2)
    decoder_config = dataclasses.replace(DECODER, unet=unet_config, step_width=128, text_to_step=True, learned_variance=True, prediction="eps")
    config = dataclasses.replace(
        config,
        prior=dataclasses.replace(config.prior, network=dataclasses.replace(PRIOR, **small)),
        decoder=dataclasses.replace(config.decoder, network=decoder_config),
        upsampler=dataclasses.replace(
            config.upsampler,
            first=dataclasses.replace(config.upsampler.first, network=dataclasses.replace(UPSAMPLER, unet=dataclasses.replace(LARGER, depth=2))),
        ),
    )
    imported = import_models(config, paths_of, folder, "karlo", "karlo")
    assert imported.left_out == ("model_last_step",)
    prior, decoder, upsampler = loaded(imported.config)
    torch.testing.assert_close(ask_our_prior(prior), ask_their_prior(theirs), **CLOSE)
    torch.testing.assert_close(prior.unwhiten(X), theirs.post_process_latents(X))
    torch.testing.assert_close(ask_our_decoder(decoder), ask_their_decoder(text, unet), **CLOSE)
    null = text.learned_classifier_free_guidance_embeddings.detach().expand(B, -1)
    torch.testing.assert_close(ask_our_decoder(decoder, NO), ask_their_decoder(text, unet, image_emb=null), **CLOSE)
    torch.testing.assert_close(ask_our_upsampler(upsampler), ask_their_upsampler(larger), **CLOSE)


def test_enlarging_is_karlos() -> None:
    theirs = resize(SMALL, [64, 64], interpolation=InterpolationMode.BICUBIC, antialias=True)
    torch.testing.assert_close(enlarged(SMALL, (64, 64), "bicubic"), theirs)


def test_full_sizes_have_the_same_tensors() -> None:
    config = load_config(preset="karlo")
    prior, decoder = PriorShape(config.prior.network, 768, 768), DecoderShape(config.decoder.network, 768, 768)
    components = [(prior_component(prior), prior.on_meta()), *((component, decoder.on_meta()) for component in decoder_components(decoder))]
    components.append((upsampler_component(config.upsampler.first.network, "first"), on_meta(config.upsampler.first.network)))
    classes = {"prior": PriorTransformer, "text_proj": UnCLIPTextProjModel, "decoder": UNet2DConditionModel, "super_res_first": UNet2DModel}
    counts = {"prior": (338, 1_022_030_080), "text_proj": (11, 7_878_400), "decoder": (716, 885_439_686), "super_res_first": (408, 691_579_523)}
    for component, ours in components:
        with torch.device("meta"):
            theirs = classes[component.name](**component.config)
        expected = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
        assert component.expected(ours) == expected
        assert (len(expected), sum(torch.Size(shape).numel() for shape in expected.values())) == counts[component.name]
