"""The decoder: a U-Net from a CLIP image embedding and the caption's text states to a picture (paper, section 2.1).

The embedding enters twice: projected and added to the step embedding, and projected into extra context tokens that
stand before the text states. Each condition has a learned stand-in for when it is dropped. What a condition comes to is
the same at all steps, so that sampling reads it once (`read`) and then runs the U-Net alone (`predict`).
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unclip import checkpoint
from unclip.diffusion.process import Prediction, at
from unclip.diffusion.schedule import ScheduleName, make_schedule
from unclip.nn.embeddings import StepEmbedding, sinusoidal
from unclip.nn.unet import Context, UNet, UNetConfig, zeroed

PIXEL_CLAMP = 1.0  # of x0, in sampling and where the bound is computed
MAX_CONDITION_NOISE = 1000  # levels of noise on the embedding, as Stable unCLIP has them; 0 is none


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The decoder network and what it predicts.

    Attributes:
        embedding: which of CLIP's embeddings it is given: the image's, or the caption's in its place (the paper's ablation).
        step_width: width of the step embedding, to which the image embedding is added (ADM: four times the channels).
        sinusoids: how many the step embedding starts from: half its width, or as many as the U-Net has channels (ADM).
        num_image_tokens: context tokens made of the image embedding (the paper's four).
        context_width: width of the context tokens.
        text_states: whether the caption's CLIP text states are context too.
        num_null_text: tokens that stand in for a dropped caption, each learned; with 0 one learned token takes the place
            of each of the caption's own.
        text_to_step: whether the caption's text embedding is added to the step embedding too (Karlo).
        condition_noise: the highest level of noise on the image embedding in training, up to 1000; the network is told each
            level (Stable unCLIP), so that a prior's imperfect embeddings lie inside of what it has seen. 0 is none.
        learned_variance: whether the output's second half says the variance of a step (Nichol & Dhariwal 2021).
        prediction, schedule, num_train_steps: what the network says, and the noise it was trained with.
    """

    __pydantic_config__ = {"extra": "forbid"}

    unet: UNetConfig = field(default_factory=UNetConfig)
    embedding: Literal["image", "text"] = "image"
    step_width: int = 512
    sinusoids: Literal["half", "channels"] = "half"
    num_image_tokens: int = 4
    context_width: int = 512
    text_states: bool = True
    num_null_text: int = 0
    text_to_step: bool = False
    condition_noise: int = 0
    learned_variance: bool = False
    prediction: Prediction = "v"
    schedule: ScheduleName = "cosine"
    num_train_steps: int = 1000

    def __post_init__(self) -> None:
        if self.num_null_text < 0:
            raise ValueError(f"num_null_text must be at least 0, got {self.num_null_text}")
        if self.num_null_text and not self.text_states:
            raise ValueError(f"num_null_text has no effect without text_states; expected 0, got {self.num_null_text}")
        if not 0 <= self.condition_noise <= MAX_CONDITION_NOISE:
            raise ValueError(f"condition_noise must be in [0, {MAX_CONDITION_NOISE}], got {self.condition_noise}")
        if self.embedding == "text" and self.text_to_step:
            raise ValueError("text_to_step would tell the text embedding twice where embedding is 'text'; expected False, got True")

    @property
    def sees_text(self) -> bool:
        """Whether anything of the caption reaches the network beside the embedding."""
        return self.text_states or self.text_to_step


@dataclass(frozen=True)
class DecoderCondition:
    """What a picture is made from.

    Attributes:
        image_emb: (B, E) raw CLIP image embedding (or text embedding, see `DecoderConfig.embedding`); the network whitens it.
        text_tokens, text_mask: (B, L, S) CLIP text states and (B, L) True = real token; None without text states.
        keep_image, keep_text: (B,) bool, whether each condition is visible.
        text_emb: (B, E) raw CLIP text embedding; None without text_to_step.
        noise_level: (B,) int, how much noise `image_emb` holds (`Decoder.noised`), up to MAX_CONDITION_NOISE; None is 0.
    """

    image_emb: Tensor
    text_tokens: Tensor | None
    text_mask: Tensor | None
    keep_image: Tensor
    keep_text: Tensor
    text_emb: Tensor | None = None
    noise_level: Tensor | None = None

    def dropped(self, *, image: bool = True, text: bool = True) -> "DecoderCondition":
        """The same with these conditions hidden."""
        hidden = torch.zeros_like(self.keep_image)
        return replace(self, keep_image=hidden if image else self.keep_image, keep_text=hidden if text else self.keep_text)


@dataclass(frozen=True)
class ReadCondition:
    """What a condition comes to, at any step: (B, M) added to the step embedding, and what the attention sees."""

    emb: Tensor
    context: Context


class Decoder(nn.Module):
    """(x_t (B, 3, H, H), t (B,), condition) -> prediction (B, 3, H, H); pictures in [-1, 1].

    With a learned variance the output is (B, 6, H, H), its second half saying the variance. `emb_mean` and `emb_std` (E,)
    whiten the image embedding and are part of the checkpoint.
    """

    emb_mean: Tensor
    emb_std: Tensor

    def __init__(self, config: DecoderConfig, *, emb_width: int, text_width: int) -> None:
        super().__init__()
        self.config = config
        self.step = StepEmbedding(config.step_width // 2 if config.sinusoids == "half" else config.unet.channels, config.step_width)
        self.emb_to_step = nn.Linear(emb_width, config.step_width)
        self.emb_to_tokens = nn.Linear(emb_width, config.num_image_tokens * config.context_width)
        self.null_emb = nn.Parameter(torch.zeros(emb_width))
        self.text = nn.Sequential(nn.Linear(text_width, config.context_width), nn.LayerNorm(config.context_width)) if config.text_states else None
        null_text = torch.zeros(config.num_null_text, config.context_width) if config.num_null_text else torch.zeros(config.context_width)
        self.null_text = nn.Parameter(null_text, requires_grad=config.text_states)
        self.text_emb_to_step = nn.Linear(emb_width, config.step_width) if config.text_to_step else None
        if config.text_to_step:
            self.null_text_emb = nn.Parameter(torch.zeros(emb_width))
        # at zero, so that the level begins by telling nothing
        self.level_to_step = zeroed(nn.Linear(config.step_width, config.step_width)) if config.condition_noise else None
        out_channels = 6 if config.learned_variance else 3
        self.unet = UNet(config.unet, in_channels=3, out_channels=out_channels, emb_width=config.step_width, context_width=config.context_width)
        self.register_buffer("emb_mean", torch.zeros(emb_width))
        self.register_buffer("emb_std", torch.ones(emb_width))

    def forward(self, x_t: Tensor, t: Tensor, condition: DecoderCondition) -> Tensor:
        return self.predict(x_t, t, self.read(condition))

    def predict(self, x_t: Tensor, t: Tensor, condition: ReadCondition) -> Tensor:
        """The output at x_t (B, 3, H, H) and steps t (B,) under a condition that has been read."""
        out: Tensor = self.unet(x_t, self.step(t) + condition.emb, condition.context)
        return out

    def read(self, condition: DecoderCondition) -> ReadCondition:
        """All that depends on the condition and on nothing else."""
        keep_image = condition.keep_image[:, None]
        whitened = torch.where(keep_image, (condition.image_emb - self.emb_mean) / self.emb_std, self.null_emb)
        emb = self.emb_to_step(whitened)
        tokens = self.emb_to_tokens(whitened).reshape(len(emb), self.config.num_image_tokens, -1)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        if self.text is not None:
            states, text_mask = self._text_states(condition)
            tokens, mask = torch.cat([tokens, states], dim=1), torch.cat([mask, text_mask], dim=1)
        if self.text_emb_to_step is not None:
            if condition.text_emb is None:
                raise ValueError("this decoder was trained with text_to_step; expected text_emb, got None")
            emb = emb + self.text_emb_to_step(torch.where(condition.keep_text[:, None], condition.text_emb, self.null_text_emb))
        if self.level_to_step is not None:
            level = torch.zeros_like(condition.keep_image, dtype=torch.long) if condition.noise_level is None else condition.noise_level
            emb = emb + self.level_to_step(sinusoidal(level * condition.keep_image, self.config.step_width))
        elif condition.noise_level is not None:
            raise ValueError("this decoder was trained without condition_noise; expected noise_level None, got levels")
        return ReadCondition(emb, self.unet.read_context(tokens, mask))

    def _text_states(self, condition: DecoderCondition) -> tuple[Tensor, Tensor]:
        """The caption's context tokens (B, L, D) or what stands in for them, and which are visible (B, L)."""
        if self.text is None or condition.text_tokens is None or condition.text_mask is None:
            raise ValueError("this decoder was trained with text states; expected text_tokens and text_mask, got None")
        keep, states, mask, num_null = condition.keep_text[:, None], self.text(condition.text_tokens), condition.text_mask, self.config.num_null_text
        if not num_null:
            return torch.where(keep[..., None], states, self.null_text), mask
        length = max(states.shape[1], num_null)
        states, mask = F.pad(states, (0, 0, 0, length - states.shape[1])), F.pad(mask, (0, length - mask.shape[1]))
        null = F.pad(self.null_text, (0, 0, 0, length - num_null))
        return torch.where(keep[..., None], states, null), torch.where(keep, mask, torch.arange(length, device=mask.device) < num_null)

    def noised(self, image_emb: Tensor, level: Tensor, eps: Tensor) -> Tensor:
        """Raw image embeddings (B, E), noised in whitened space by eps (B, E) to a level (B,); at level 0 they stay as they are.

        The levels from 1 on are the steps of a cosine schedule (Stable unCLIP's).
        """
        schedule = make_schedule("cosine", MAX_CONDITION_NOISE)
        step = (level - 1).clamp(min=0)
        whitened = (image_emb - self.emb_mean) / self.emb_std
        noised = at(schedule.alpha, step, whitened) * whitened + at(schedule.sigma, step, whitened) * eps
        return torch.where(level[:, None] > 0, noised * self.emb_std + self.emb_mean, image_emb)


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
