"""The loss of the decoder: what is drawn for a batch, what the network is told, and how its errors are weighed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unclip.decoder import PIXEL_CLAMP, Decoder, DecoderCondition
from unclip.diffusion.loss import bound_term, bound_weight, min_snr_weight, steps_at
from unclip.diffusion.process import add_noise, join_output, split_output, target
from unclip.diffusion.sampling import read_output
from unclip.diffusion.schedule import make_schedule
from unclip.training.draws import Draws
from unclip.training.metrics import loss_by_step

if TYPE_CHECKING:
    from unclip.training.decoder import DecoderStageConfig


@dataclass(frozen=True)
class DecoderBatch:
    """Pictures (B, 3, H, H) in [-1, 1], and what goes with them, on the device of the model.

    Attributes:
        image_emb: (B, E) raw embedding that the decoder is given: CLIP's of the picture, or of the caption in its place.
        text_tokens, text_mask: (B, L, S) and (B, L); None where the network takes no text states.
        text_emb: (B, E) raw, CLIP's of the caption.
    """

    pictures: Tensor
    image_emb: Tensor
    text_tokens: Tensor | None
    text_mask: Tensor | None
    text_emb: Tensor


def decoder_loss(prepared: nn.Module, model: Decoder, batch: DecoderBatch, draws: Draws, config: "DecoderStageConfig") -> tuple[Tensor, Mapping[str, Tensor]]:
    """The loss of a batch, and that of early and late steps apart.

    The simple loss (Ho et al. 2020, eq. 14), weighed by Min-SNR where the config asks; with a learned variance the hybrid
    one (Nichol & Dhariwal 2021, eq. 16), whose variational bound is recorded beside it, in bits a dimension.

    Args:
        prepared: the model as it is wrapped for training; called once.
    """
    network, x0 = config.network, batch.pictures
    schedule, device = make_schedule(network.schedule, network.num_train_steps), x0.device
    eps = draws.normal(*x0.shape).to(device, memory_format=torch.channels_last)
    i = steps_at(schedule, draws.uniform(len(x0)), config.step_sampling)
    condition = _drawn_condition(model, batch, draws, config)
    x_t = add_noise(schedule, x0, i, eps)
    mean, variance = split_output(prepared(x_t, schedule.timesteps[i].to(device), condition), x0)
    errors = (mean - target(schedule, network.prediction, x0, i, eps)).square().mean(dim=(1, 2, 3))
    if config.min_snr_gamma:
        errors = errors * min_snr_weight(schedule, network.prediction, i, config.min_snr_gamma).to(device)
    numbers = loss_by_step(errors, i, len(schedule))
    if variance is None:
        return errors.mean(), numbers
    # the bound must not steer the mean, which the simple loss trains better, so the mean is detached
    said = read_output(schedule, network.prediction, join_output(mean.detach(), variance).float(), x_t, i, clamp=PIXEL_CLAMP)
    bound = bound_term(schedule, x0, x_t, i, said).mean()
    return errors.mean() + bound_weight(schedule) * bound, numbers | {"bound": bound.detach()}


def _drawn_condition(model: Decoder, batch: DecoderBatch, draws: Draws, config: "DecoderStageConfig") -> DecoderCondition:
    """What the network is told: each condition kept or dropped, the embedding noised where the network is told of noise."""
    device, num = batch.image_emb.device, len(batch.image_emb)
    kept = [draws.keep(num, prob).to(device) for prob in (config.drop_image_prob, config.drop_text_prob, config.drop_both_prob)]
    image_emb, level = batch.image_emb, None
    if config.network.condition_noise:
        level = (draws.uniform(num) * (config.network.condition_noise + 1)).long().to(device)
        image_emb = model.noised(image_emb, level, draws.normal(*image_emb.shape).to(device))
    return DecoderCondition(image_emb, batch.text_tokens, batch.text_mask, kept[0] & kept[2], kept[1] & kept[2], batch.text_emb, level)
