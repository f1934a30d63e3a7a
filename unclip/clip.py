"""CLIP through open_clip: make, load, save, encode, and the training loss.

A CLIP folder is what open_clip calls a local-dir: `open_clip_config.json` and `open_clip_model.safetensors`, so that
anything else that speaks open_clip opens it too (`open_clip.create_model("local-dir:PATH")`).

open_clip takes seconds to import, and most commands need no CLIP: so the functions that need it import it.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from unclip.files import UnclipError, read_json, sha256_file, write_json

if TYPE_CHECKING:
    from open_clip.model import CLIP

LOADING_ERRORS = (OSError, RuntimeError, ValueError, KeyError, UnpicklingError, SafetensorError)
Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
CONFIG, WEIGHTS, ORIGIN = "open_clip_config.json", "open_clip_model.safetensors", "origin.json"


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """A small CLIP of open_clip's own classes, trained here: a ViT and a causal text transformer."""

    __pydantic_config__ = {"extra": "forbid"}

    emb_width: int = 128
    image_size: int = 32
    patch_size: int = 4
    vision_width: int = 128
    vision_layers: int = 4
    text_width: int = 128
    text_layers: int = 4
    head_width: int = 32
    context_length: int = 32


@dataclass(frozen=True)
class TextFeatures:
    """What the text tower says of a batch of captions, padded to its longest one.

    Attributes:
        text_emb: (B, E) float32, not normalised.
        text_tokens: (B, L, S) float32, states after the final norm.
        text_mask: (B, L) bool, True up to and with the end-of-text token.
        token_ids: (B, L) int64.
    """

    text_emb: Tensor
    text_tokens: Tensor
    text_mask: Tensor
    token_ids: Tensor


@dataclass(frozen=True)
class Clip:
    """A frozen CLIP.

    Attributes:
        name, origin: the folder's name, and where the weights come from (model and tag, a file, or trained here).
        weights_hash: sha256 of the weights, 16 hexadecimal digits.
        emb_width, text_width: E, and the width of the text states.
        preprocess: open_clip's own preprocessing, PIL picture -> (3, H, H).
        precision: what both towers compute in; what they say is float32 whatever it is.
    """

    name: str
    origin: str
    weights_hash: str
    emb_width: int
    text_width: int
    model: "CLIP"
    preprocess: Callable[[Image.Image], Tensor]
    preprocess_config: dict[str, Any]
    tokenize: Callable[[Sequence[str]], Tensor]
    device: torch.device
    precision: Precision = "fp32"

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Preprocessed pictures (B, 3, H, H) -> raw image embeddings (B, E) float32."""
        with self._autocast():
            return self.model.encode_image(_moved(pixels, self.device)).float()

    @torch.no_grad()
    def encode_pictures(self, pictures: Sequence[Image.Image], *, batch_size: int = 256) -> Tensor:
        """Any number of PIL pictures -> raw image embeddings (B, E) float32 on the CPU."""
        chunks = (pictures[i : i + batch_size] for i in range(0, len(pictures), batch_size))
        encoded = [self.encode_images(torch.stack([self.preprocess(picture) for picture in chunk])).cpu() for chunk in chunks]
        return torch.cat(encoded) if encoded else torch.zeros(0, self.emb_width)

    @torch.no_grad()
    def encode_texts(self, captions: Sequence[str]) -> TextFeatures:
        """Captions -> their embeddings and token states. The tower is causal, so trimming to the longest is exact."""
        return self.encode_token_ids(self.tokenize(captions))

    @torch.no_grad()
    def encode_token_ids(self, token_ids: Tensor) -> TextFeatures:
        """(B, context_length) ids of `tokenize` -> the same."""
        with self._autocast():
            return encode_token_ids(self.model, token_ids.to(self.device))

    def _autocast(self) -> AbstractContextManager[None]:
        return nullcontext() if self.precision == "fp32" else torch.autocast(self.device.type, AUTOCAST[self.precision])


def _moved(values: Tensor, device: torch.device) -> Tensor:
    """On the device; to a GPU by way of pinned memory, so that the copy runs beside the model."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def encode_token_ids(model: "CLIP", token_ids: Tensor) -> TextFeatures:
    """Runs the text tower of an open_clip CLIP on (B, context_length) ids, cut after the last end-of-text token.

    The mask comes from the position of the end-of-text token, the highest id; 0 is a real token too.
    """
    ends = token_ids.argmax(dim=-1)
    length = int(ends.max()) + 1
    ids = token_ids[:, :length]
    dtype = model.transformer.get_cast_dtype()
    x = model.token_embedding(ids).to(dtype) + model.positional_embedding[:length].to(dtype)
    mask = None if model.attn_mask is None else model.attn_mask[:length, :length]
    states = model.ln_final(model.transformer(x, attn_mask=mask))  # (B, L, S)
    pooled = states[torch.arange(len(ids), device=ids.device), ends]
    projection = model.text_projection
    text_emb = projection(pooled) if isinstance(projection, nn.Linear) else pooled if projection is None else pooled @ projection
    visible = torch.arange(length, device=ids.device) <= ends[:, None]
    return TextFeatures(text_emb.float(), states.float(), visible, ids)


def make_clip(config: TowerConfig) -> "CLIP":
    """A new CLIP with random weights."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    cfg = _model_config(config)
    return CLIP(cfg["embed_dim"], CLIPVisionCfg(**cfg["vision_cfg"]), CLIPTextCfg(**cfg["text_cfg"]))


def make_tokenizer(config: TowerConfig) -> Callable[[Sequence[str]], Tensor]:
    """The tokenizer of a CLIP trained here: captions -> (B, context_length) ids."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer(context_length=config.context_length)
    return lambda captions: tokenizer(list(captions))


def contrastive_loss(model: nn.Module, pixels: Tensor, token_ids: Tensor) -> Tensor:
    """open_clip's symmetric contrastive loss of preprocessed pictures (B, 3, H, H) and ids (B, context_length)."""
    from open_clip.loss import ClipLoss

    image_emb, text_emb, logit_scale = model(pixels, token_ids)
    loss: Tensor = ClipLoss()(image_emb, text_emb, logit_scale)
    return loss


def training_preprocess(config: TowerConfig) -> Callable[[Image.Image], Tensor]:
    """open_clip's evaluation preprocessing for a CLIP trained here (no crops: a caption speaks of the whole picture)."""
    return _transform(_preprocess_config(config.image_size))


def preprocess_of(folder: Path) -> Callable[[Image.Image], Tensor]:
    """The preprocessing of a CLIP folder, without its weights: for workers that decode ahead of the model."""
    return _transform(read_json(folder / CONFIG)["preprocess_cfg"])


def _transform(config: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform: Callable[[Image.Image], Tensor] = image_transform_v2(PreprocessCfg(**config), is_train=False)
    return transform


def _preprocess_config(image_size: int) -> dict[str, Any]:
    from open_clip.transform import PreprocessCfg

    cfg = PreprocessCfg(size=image_size)
    return {"size": image_size, "mean": list(cfg.mean), "std": list(cfg.std), "interpolation": cfg.interpolation, "resize_mode": cfg.resize_mode}


def _model_config(config: TowerConfig) -> dict[str, Any]:
    if config.image_size % config.patch_size:
        raise UnclipError(f"clip.tower.patch_size must divide image_size {config.image_size}, got {config.patch_size}")
    for width in (config.vision_width, config.text_width):
        if width % config.head_width:
            raise UnclipError(f"clip.tower.head_width must divide the tower widths, got {config.head_width} for {width}")
    vision = {
        "layers": config.vision_layers,
        "width": config.vision_width,
        "head_width": config.head_width,
        "patch_size": config.patch_size,
        "image_size": config.image_size,
    }
    text = {"context_length": config.context_length, "width": config.text_width, "heads": config.text_width // config.head_width, "layers": config.text_layers}
    return {"embed_dim": config.emb_width, "vision_cfg": vision, "text_cfg": text}


def save_clip(folder: Path, config: TowerConfig, weights: dict[str, Tensor], *, origin: str) -> None:
    """Writes a CLIP trained here as an open_clip local-dir, into a folder that exists."""
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, folder / WEIGHTS)
    write_json(folder / CONFIG, {"model_cfg": _model_config(config), "preprocess_cfg": _preprocess_config(config.image_size)})
    write_json(folder / ORIGIN, {"origin": origin})


def import_clip(folder: Path, model_name: str, pretrained: str) -> None:
    """Writes a published or local CLIP as an open_clip local-dir, into a folder that exists.

    Args:
        model_name: of open_clip's registry, such as "ViT-B-32" (OpenAI's weights want "ViT-B-32-quickgelu").
        pretrained: a tag such as "laion2b_s34b_b79k", or the path of a checkpoint (safetensors, or a .pt of tensors only).

    Raises:
        UnclipError: unknown model or tag, weights that can't be had, or a kind of CLIP without a plain text tower.
    """
    import open_clip
    from open_clip.model import get_model_preprocess_cfg

    known = open_clip.get_model_config(model_name)
    if known is None:
        raise UnclipError(
            f"clip.model must be a model of open_clip, got {model_name!r}; `python -c 'import open_clip; print(open_clip.list_models())'` lists them"
        )
    is_file = Path(pretrained).suffix in (".safetensors", ".pt", ".pth", ".bin")
    if is_file and not Path(pretrained).is_file():
        raise UnclipError(f"clip.pretrained names the file {pretrained}, but there is none")
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    if not is_file and pretrained not in tags:
        raise UnclipError(f"clip.pretrained must be a checkpoint file or one of {', '.join(tags) or 'no tags'} for {model_name}, got {pretrained!r}")
    try:
        model, _, _ = open_clip.create_model_and_transforms(model_name, pretrained=pretrained, weights_only=True)
    except LOADING_ERRORS as error:
        raise UnclipError(f"open_clip could not load {model_name} with {pretrained!r}: {' '.join(str(error).split())[:300]}") from None
    require_plain(model, model_name)
    save_file({name: value.detach().contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS)
    write_json(folder / CONFIG, {"model_cfg": known, "preprocess_cfg": get_model_preprocess_cfg(model)})
    write_json(folder / ORIGIN, {"origin": f"{model_name} {pretrained}"})


def require_plain(model: nn.Module, name: str) -> None:
    """Refuses a kind of CLIP whose caption embedding is not the state at its end-of-text token.

    Raises:
        UnclipError: it is one.
    """
    from open_clip.model import CLIP

    if not isinstance(model, CLIP) or model.text_pool_type != "argmax":
        raise UnclipError(f"expected a CLIP with a causal text tower that ends in the end-of-text token, got {name} ({type(model).__name__})")


def load_clip(folder: Path, *, device: str = "cpu", precision: Precision = "fp32", compiled: bool = False) -> Clip:
    """Loads the CLIP of a folder, frozen.

    Args:
        compiled: whether the image tower goes through torch.compile.

    Raises:
        UnclipError: a file is missing or broken.
    """
    import open_clip

    config, weights = read_json(folder / CONFIG), folder / WEIGHTS
    if not weights.is_file():
        raise UnclipError(f"expected CLIP weights in {weights}, but there are none; run `unclip clip`")
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder.resolve()}", device=device)
    except LOADING_ERRORS as error:
        raise UnclipError(f"the CLIP in {folder} does not load: {' '.join(str(error).split())[:300]}") from None
    require_plain(model, str(folder))
    model.eval().requires_grad_(False)
    if compiled:
        model.visual.compile(dynamic=True)
    text = config["model_cfg"]["text_cfg"]
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder.resolve()}", context_length=text.get("context_length"))
    return Clip(
        name=folder.name, origin=read_json(folder / ORIGIN)["origin"], weights_hash=sha256_file(weights)[:16],
        emb_width=config["model_cfg"]["embed_dim"], text_width=text["width"], model=model, preprocess=preprocess,
        preprocess_config=config["preprocess_cfg"], tokenize=lambda captions: tokenizer(list(captions)), device=torch.device(device),
        precision=precision,
    )  # fmt: skip
