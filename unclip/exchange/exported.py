"""Export: the trained models of a root as component folders of diffusers, and a page that says how to use them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from unclip import checkpoint
from unclip.clip import CONFIG as CLIP_CONFIG
from unclip.clip import ORIGIN, WEIGHTS
from unclip.data.manifest import finished_manifest, read_manifest, versions
from unclip.decoder import DecoderConfig
from unclip.exchange import decoder as decoders
from unclip.exchange import prior as priors
from unclip.exchange import upsampler as upsamplers
from unclip.exchange.component import write_component
from unclip.exchange.decoder import DecoderShape, decoder_components
from unclip.exchange.prior import PriorShape, prior_component
from unclip.exchange.scheduler import write_scheduler
from unclip.files import UnclipError, read_json, replacing, sha256_file, write_json
from unclip.layout import Paths
from unclip.nn.unet import UNetConfig
from unclip.prior.diffusion import DiffusionPriorConfig
from unclip.training.run import last_checkpoint
from unclip.training.upsampler import PLACES, Place
from unclip.upsampler import UpsamplerConfig

FACTS, PAGE = "unclip.json", "README.md"
ModelName = Literal["prior", "decoder", "upsampler"]
MODEL_NAMES: tuple[ModelName, ...] = get_args(ModelName)

PAGE_TEXT = """# Models of unclip as components of diffusers

Each folder loads by itself: `{classes}`
(`UnCLIPTextProjModel` is in `diffusers.pipelines.deprecated.unclip.text_proj`). There is no `model_index.json`: the pipeline's
loader is broken in diffusers 0.38 and later. `unclip.json` says the same as this page for programs.

- **CLIP**: {clip}. All embeddings are this CLIP's, raw: not normalised. Those of another CLIP give noise.
- **Text**: states after the final norm, cut or padded; the mask is true up to and with the end-of-text token, never `ids != 0`.
- **Schedule**: in `*_scheduler/`, for `DDPMScheduler`; its timesteps are evenly spaced and hold the first and the last.
{notes}
`unclip import --format diffusers` reads the folder back; the `unclip.safetensors` files hold what diffusers has no place for, so
that the weights come back bit for bit.
"""
PRIOR_NOTES = """- **Prior**: predicts {prediction} of the whitened image embedding; `prior.post_process_latents` unwhitens by `clip_mean` and `clip_std`.
  Always pass `attention_mask`: without one diffusers' transformer is silently not causal.
  Guidance: {hidden}
"""
HIDDEN_MASKED = """a hidden caption is `proj_embedding` = `caption.text_mean` of `prior/unclip.safetensors` and an `attention_mask` all false, not "".
"""
HIDDEN_EMPTY = 'a hidden caption is "" with its own mask where the model came from elsewhere (Karlo), else `caption.null_text`, which has no place here.'
DECODER_NOTES = """- **Decoder**: predicts {prediction}{variance}; pictures in [-1, 1].
  `text_proj(image_embeddings=..., prompt_embeds=..., text_encoder_hidden_states=..., do_classifier_free_guidance=False)` gives
  `encoder_hidden_states` and `class_labels`; pad the text mask with {num_tokens} true on the left.
  Guidance: a hidden embedding is `learned_classifier_free_guidance_embeddings`; a hidden caption {hidden}
"""
UPSAMPLER_NOTES = """- **Upsampler** `{name}`: predicts {prediction}; pictures in [-1, 1]. Channels: the noised large picture, then the small one of {low_size}
  pixels, enlarged by `torch.nn.functional.interpolate` ({enlarge}). One network for all steps; `super_res_last` of diffusers' pipeline would be the same.
"""


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        components: folder names.
        left_out: what the root has not (yet) trained, with the reason.
    """

    components: Sequence[str]
    left_out: Mapping[str, str]


def clip_facts(folder: Path) -> dict[str, Any]:
    """Which CLIP models belong to.

    Raises:
        UnclipError: there is none.
    """
    finished_manifest(folder, "clip")
    config = read_json(folder / CLIP_CONFIG)
    return {
        "origin": read_json(folder / ORIGIN)["origin"], "weights_sha256": sha256_file(folder / WEIGHTS), "emb_width": config["model_cfg"]["embed_dim"],
        "text_width": config["model_cfg"]["text_cfg"]["width"], "preprocess": config["preprocess_cfg"],
    }  # fmt: skip


def read_facts(folder: Path) -> dict[str, dict[str, Any]]:
    """What `export_models` says beside components, by its parts; empty where a folder was made by others.

    Raises:
        UnclipError: it is not what an export writes.
    """
    if not (folder / FACTS).is_file():
        return {}
    facts = read_json(folder / FACTS)
    parts = ("clip", "components")
    if not isinstance(facts, dict) or not all(isinstance(facts.get(part), dict) for part in parts):
        raise UnclipError(f"{folder / FACTS} is not what unclip export writes; remove it")
    return {part: facts[part] for part in parts}


def export_models(paths: Paths, out: Path, wanted: Sequence[ModelName]) -> Exported:
    """Writes the averaged weights of the models that a root has trained into a new folder.

    Raises:
        UnclipError: `out` exists; nothing is trained; a model has what diffusers has not, and the setting is named.
    """
    if out.exists():
        raise UnclipError(f"{out} exists; give the name of a new folder, nothing is overwritten")
    missing: dict[str, str] = {name: f"{_run_of(paths, name)} holds no finished training" for name in wanted if not is_trained(_run_of(paths, name))}
    found = [name for name in wanted if name not in missing]
    if not found:
        raise UnclipError(f"nothing to export: {'; '.join(missing.values())}")
    facts: dict[str, Any] = {"format": "diffusers", "clip": clip_facts(paths.clip), "components": {}, "made_by": versions()}
    notes, classes = "", []
    with replacing(out) as aside:
        aside.mkdir()
        for name in found:
            try:
                written, note = _WRITERS[name](paths, aside)
            except UnclipError as error:
                alone = "; --model exports another one alone" if len(found) > 1 else ""
                raise UnclipError(f"{error}{alone}") from None
            facts["components"] |= written
            notes += note
            classes += [f"{entry['class']}.from_pretrained('{component}')" for component, entry in written.items()]
        clip = f"{facts['clip']['origin']}, weights {facts['clip']['weights_sha256'][:16]}, {facts['clip']['emb_width']} wide"
        write_json(aside / FACTS, facts)
        (aside / PAGE).write_text(PAGE_TEXT.format(classes="`, `".join(classes), clip=clip, notes=notes))
    return Exported(list(facts["components"]), missing)


def _run_of(paths: Paths, name: ModelName) -> Path:
    return {"prior": paths.prior / "diffusion", "decoder": paths.decoder, "upsampler": paths.upsampler}[name]


def is_trained(run: Path) -> bool:
    """Whether a run has finished."""
    manifest = read_manifest(run)
    return manifest is not None and manifest.finished


def trained_prior(run: Path) -> tuple[PriorShape, dict[str, Tensor]]:
    """The diffusion prior of a run: its shape and its averaged weights.

    Raises:
        UnclipError: it has not finished.
    """
    folder = last_checkpoint(run, "prior-diffusion")
    network = checkpoint.read_config(folder, "prior-diffusion")["network"]
    widths = [network.pop(name) for name in ("emb_width", "text_width")]
    return PriorShape(DiffusionPriorConfig(**network), *widths), checkpoint.read_tensors(folder / checkpoint.EMA)


def trained_decoder(run: Path) -> tuple[DecoderShape, dict[str, Tensor]]:
    """The decoder of a run: its shape and its averaged weights.

    Raises:
        UnclipError: it has not finished.
    """
    folder = last_checkpoint(run, "decoder")
    network = checkpoint.read_config(folder, "decoder")["network"]
    widths = [network.pop(name) for name in ("emb_width", "text_width")]
    unet: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in network.pop("unet").items()}
    return DecoderShape(DecoderConfig(unet=UNetConfig(**unet), **network), *widths), checkpoint.read_tensors(folder / checkpoint.EMA)


def _write_prior(paths: Paths, out: Path) -> tuple[dict[str, Any], str]:
    shape, weights = trained_prior(_run_of(paths, "prior"))
    component = prior_component(shape)
    write_component(out / component.name, component, weights, network=shape.network())
    write_scheduler(out / "prior_scheduler", priors.noising_of(shape.config))
    hidden = HIDDEN_EMPTY if shape.config.num_null_text else HIDDEN_MASKED
    facts = {component.name: {"class": component.class_name, "predicts": shape.config.prediction, "whitening": "clip_mean, clip_std"}}
    return facts, PRIOR_NOTES.format(prediction=shape.config.prediction, hidden=hidden.strip())


def _write_decoder(paths: Paths, out: Path) -> tuple[dict[str, Any], str]:
    shape, weights = trained_decoder(_run_of(paths, "decoder"))
    config = shape.config
    facts = {}
    for component in decoder_components(shape):
        write_component(out / component.name, component, weights, network=shape.network())
        facts[component.name] = {"class": component.class_name, "predicts": config.prediction, "whitening": "folded into the weights"}
    write_scheduler(out / "decoder_scheduler", decoders.noising_of(config), learned_variance=config.learned_variance)
    what = 'is "" where the model came from elsewhere (Karlo), else' if config.num_null_text else "is, in place of each of its tokens,"
    hidden = f"{what} `null_text` of `text_proj/unclip.safetensors`, after `text_proj`."
    variance = " and in its second half the variance" if config.learned_variance else ""
    return facts, DECODER_NOTES.format(prediction=config.prediction, variance=variance, num_tokens=config.num_image_tokens, hidden=hidden)


def trained_upsampler(run: Path, place: Place) -> tuple[UpsamplerConfig, dict[str, Tensor]]:
    """An upsampler of a run: its config and its averaged weights.

    Raises:
        UnclipError: it has not finished.
    """
    folder = last_checkpoint(run / place, f"upsampler-{place}")
    network = checkpoint.read_config(folder, "upsampler")["network"]
    unet: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in network.pop("unet").items()}
    return UpsamplerConfig(unet=UNetConfig(**unet), **network), checkpoint.read_tensors(folder / checkpoint.EMA)


def _write_upsamplers(paths: Paths, out: Path) -> tuple[dict[str, Any], str]:
    facts, notes = {}, ""
    for place in PLACES:
        if not is_trained(paths.upsampler / place):
            continue
        config, weights = trained_upsampler(paths.upsampler, place)
        component = upsamplers.upsampler_component(config, place)
        write_component(out / component.name, component, weights, network=upsamplers.network_of(config))
        write_scheduler(out / upsamplers.SCHEDULERS[place], upsamplers.noising_of(config))
        facts[component.name] = {"class": component.class_name, "predicts": config.prediction, **upsamplers.upsampler_facts(config)}
        enlarge = f'mode="{config.enlarge}", antialias={config.enlarge == "bicubic"}'
        notes += UPSAMPLER_NOTES.format(name=component.name, prediction=config.prediction, low_size=config.low_size, enlarge=enlarge)
    return facts, notes


_WRITERS: Mapping[ModelName, Callable[[Paths, Path], tuple[dict[str, Any], str]]] = {
    "prior": _write_prior,
    "decoder": _write_decoder,
    "upsampler": _write_upsamplers,
}
