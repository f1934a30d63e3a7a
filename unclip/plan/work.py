"""Operations, by formula and by counting: what CLIP, the index and the trainings have to compute."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unclip.config import RunConfig
from unclip.data.index_kinds import Choice
from unclip.decoder import Decoder, DecoderCondition
from unclip.plan.assumed import Assumed
from unclip.plan.published import PublishedClip
from unclip.prior.condition import TextCondition
from unclip.prior.diffusion import DiffusionPrior
from unclip.training.config import TrainingConfig
from unclip.upsampler import Upsampler

BACKWARD = 2  # operations of a backward pass, in forward passes
KMEANS_ITERATIONS, QUANTISER_ITERATIONS = 10, 25  # FAISS's own, for cells and for a product quantiser
CENTROIDS = 256  # of each part of a product quantiser


@dataclass(frozen=True)
class Training:
    """One network and its training: parameters, operations of a sample, and how many samples it sees."""

    name: str
    parameters: int
    sample_flops: float
    config: TrainingConfig

    @property
    def samples(self) -> float:
        """Over all steps."""
        return float(self.config.num_steps * self.config.batch_size)

    @property
    def num_moments(self) -> int:
        """Of the optimizer, for each parameter: AdamW keeps two, Muon one of nearly all."""
        return 1 if self.config.optimizer == "muon" else 2


def embed_flops(clip: PublishedClip, assumed: Assumed) -> float:
    """Of a pair: the picture, and the caption trimmed to its tokens."""
    return clip.image_flops + clip.text_flops * min(1.0, assumed.caption_tokens / clip.context_length)


def index_flops(rows: float, choice: Choice, emb_width: int) -> tuple[float, float]:
    """Of learning and adding: of the nearest cells, and of the nearest centroids of a product quantiser."""
    if not choice.has_cells:
        return 0.0, 0.0
    assign = 2.0 * emb_width * choice.num_lists * (rows + KMEANS_ITERATIONS * min(rows, choice.training_rows))
    learnt = QUANTISER_ITERATIONS * min(rows, choice.training_rows)
    return assign, 2.0 * emb_width * CENTROIDS * (rows + learnt) if choice.kind == "ivf-pq" else 0.0


def trainings(config: RunConfig, clip: PublishedClip, assumed: Assumed) -> list[Training]:
    """The diffusion prior, the decoder and the upsamplers of a config, counted on networks without memory."""
    tokens = round(assumed.caption_tokens)
    with torch.device("meta"):
        found = [_prior(config, clip, tokens), _decoder(config, clip, tokens)]
        for place, section in config.upsampler.wanted.items():
            network, side = Upsampler(section.network), round(section.crop_fraction * section.network.unet.image_size)
            low = side // section.network.scale
            inputs = torch.empty(1, 3, side, side), torch.empty(1, dtype=torch.long), torch.empty(1, 3, low, low)
            found.append(_training(f"upsampler {place}", network, partial(network, *inputs), section.training))
    return found


def _prior(config: RunConfig, clip: PublishedClip, tokens: int) -> Training:
    section = config.prior
    network = DiffusionPrior(section.network, emb_width=clip.emb_width, text_width=clip.text_width)
    tokens = min(tokens, section.network.max_text_tokens)
    condition = TextCondition(torch.empty(1, clip.emb_width), torch.empty(1, tokens, clip.text_width), _shown(1, tokens))
    x_t, t = torch.empty(1, section.draws, clip.emb_width), torch.empty(1, section.draws, dtype=torch.long)
    return _training("prior", network, lambda: network(condition, _shown(1), x_t, t), section.training)


def _decoder(config: RunConfig, clip: PublishedClip, tokens: int) -> Training:
    section = config.decoder
    network = Decoder(section.network, emb_width=clip.emb_width, text_width=clip.text_width)
    side = section.network.unet.image_size
    condition = DecoderCondition(
        torch.empty(1, clip.emb_width), torch.empty(1, tokens, clip.text_width), _shown(1, tokens), _shown(1), _shown(1), torch.empty(1, clip.emb_width)
    )
    x_t, t = torch.empty(1, 3, side, side), torch.empty(1, dtype=torch.long)
    return _training("decoder", network, lambda: network(x_t, t, condition), section.training, again=section.checkpoint_activations)


def _shown(*shape: int) -> Tensor:
    return torch.empty(*shape, dtype=torch.bool)


def _training(name: str, network: nn.Module, forward: Callable[[], object], config: TrainingConfig, *, again: bool = False) -> Training:
    """`again`: whether the forward pass is computed a second time in the backward pass."""
    with FlopCounterMode(display=False) as counted:
        forward()
    passes = 1 + BACKWARD + int(again)
    return Training(name, sum(value.numel() for value in network.parameters()), float(passes * counted.get_total_flops()), config)
