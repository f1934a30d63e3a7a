"""The decoder: a U-Net from a CLIP image embedding and the caption's text states to a picture (paper, section 2.1).

The embedding enters twice: projected and added to the step embedding, and projected into extra context tokens that
stand before the text states. Each condition has a learned stand-in for when it is dropped.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unclip import checkpoint
from unclip.diffusion.process import Prediction
from unclip.diffusion.schedule import ScheduleName
from unclip.nn.embeddings import StepEmbedding
from unclip.nn.unet import UNet, UNetConfig


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The decoder network and what it predicts.

    Attributes:
        step_width: width of the step embedding, to which the image embedding is added (ADM: four times the channels).
        num_image_tokens: context tokens made of the image embedding (the paper's four).
        context_width: width of the context tokens.
        text_states: whether the caption's CLIP text states are context too.
        prediction, schedule, num_train_steps: what the network says, and the noise it was trained with.
    """

    __pydantic_config__ = {"extra": "forbid"}

    unet: UNetConfig = field(default_factory=UNetConfig)
    step_width: int = 512
    num_image_tokens: int = 4
    context_width: int = 512
    text_states: bool = True
    prediction: Prediction = "v"
    schedule: ScheduleName = "cosine"
    num_train_steps: int = 1000


@dataclass(frozen=True)
class DecoderCondition:
    """What a picture is made from.

    Attributes:
        image_emb: (B, E) raw CLIP image embedding; the network whitens it.
        text_tokens, text_mask: (B, L, S) CLIP text states and (B, L) True = real token; None without text states.
        keep_image, keep_text: (B,) bool, whether each condition is visible.
    """

    image_emb: Tensor
    text_tokens: Tensor | None
    text_mask: Tensor | None
    keep_image: Tensor
    keep_text: Tensor

    def dropped(self) -> "DecoderCondition":
        """The same with nothing visible: the unconditional half of guidance."""
        hidden = torch.zeros_like(self.keep_image)
        return DecoderCondition(self.image_emb, self.text_tokens, self.text_mask, hidden, hidden)


class Decoder(nn.Module):
    """(x_t (B, 3, H, H), t (B,), condition) -> prediction (B, 3, H, H); pictures in [-1, 1].

    `emb_mean` and `emb_std` (E,) whiten the image embedding and are part of the checkpoint.
    """

    emb_mean: Tensor
    emb_std: Tensor

    def __init__(self, config: DecoderConfig, *, emb_width: int, text_width: int) -> None:
        super().__init__()
        self.config = config
        self.step = StepEmbedding(config.step_width // 2, config.step_width)
        self.emb_to_step = nn.Linear(emb_width, config.step_width)
        self.emb_to_tokens = nn.Linear(emb_width, config.num_image_tokens * config.context_width)
        self.null_emb = nn.Parameter(torch.zeros(emb_width))
        self.text = nn.Sequential(nn.Linear(text_width, config.context_width), nn.LayerNorm(config.context_width)) if config.text_states else None
        self.null_text = nn.Parameter(torch.zeros(config.context_width))
        self.unet = UNet(config.unet, in_channels=3, out_channels=3, emb_width=config.step_width, context_width=config.context_width)
        self.register_buffer("emb_mean", torch.zeros(emb_width))
        self.register_buffer("emb_std", torch.ones(emb_width))

    def forward(self, x_t: Tensor, t: Tensor, condition: DecoderCondition) -> Tensor:
        whitened = (condition.image_emb - self.emb_mean) / self.emb_std
        emb = torch.where(condition.keep_image[:, None], whitened, self.null_emb)
        context = self.emb_to_tokens(emb).reshape(len(emb), self.config.num_image_tokens, -1)
        mask = torch.ones(context.shape[:2], dtype=torch.bool, device=context.device)
        if self.text is not None:
            if condition.text_tokens is None or condition.text_mask is None:
                raise ValueError("this decoder was trained with text states; expected text_tokens and text_mask, got None")
            states = torch.where(condition.keep_text[:, None, None], self.text(condition.text_tokens), self.null_text)
            context, mask = torch.cat([context, states], dim=1), torch.cat([mask, condition.text_mask], dim=1)
        out: Tensor = self.unet(x_t, self.step(t) + self.emb_to_step(emb), context, mask)
        return out


def load_decoder(folder: Path, *, device: str = "cpu") -> Decoder:
    """The EMA weights of a checkpoint, frozen.

    Raises:
        UnclipError: the folder is no checkpoint of a decoder, or its weights do not fit its config.
    """
    network = checkpoint.read_config(folder, "decoder")["network"]
    widths = {name: network.pop(name) for name in ("emb_width", "text_width")}
    unet: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in network.pop("unet").items()}
    config = DecoderConfig(unet=UNetConfig(**unet), **network)
    model = Decoder(config, **widths)
    checkpoint.load_weights(model, folder / checkpoint.EMA)
    return model.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
