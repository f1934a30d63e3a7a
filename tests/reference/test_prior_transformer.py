"""The diffusion prior against diffusers' PriorTransformer, which is Karlo's: the same weights must say the same."""

import pytest
import torch
from diffusers import PriorTransformer

from unclip.exchange.links import take_all
from unclip.exchange.prior import PriorShape, prior_links
from unclip.prior.condition import TextCondition
from unclip.prior.diffusion import DiffusionPrior, DiffusionPriorConfig

HEADS, HEAD_WIDTH, DEPTH, E, LENGTH = 2, 12, 3, 32, 9
WIDTH = HEADS * HEAD_WIDTH


def random_reference() -> PriorTransformer:
    torch.manual_seed(0)
    reference = PriorTransformer(num_attention_heads=HEADS, attention_head_dim=HEAD_WIDTH, num_layers=DEPTH, embedding_dim=E, num_embeddings=LENGTH).eval()
    with torch.no_grad():  # positions, query and statistics are zeros there, gains of the norms ones
        for name, weight in reference.named_parameters():
            if "norm" in name or weight.ndim != 2:
                weight.add_(0.3 * torch.randn(weight.shape))
        reference.clip_std.copy_(0.5 + torch.rand(1, E))
    return reference


@pytest.fixture(scope="module")
def both() -> tuple[PriorTransformer, DiffusionPrior]:
    reference = random_reference()
    config = DiffusionPriorConfig(width=WIDTH, depth=DEPTH, head_width=HEAD_WIDTH, max_text_tokens=LENGTH)
    prior = DiffusionPrior(config, emb_width=E, text_width=E).eval()
    prior.load_state_dict(take_all(prior_links(PriorShape(config, E, E)), reference.state_dict()), strict=True)
    return reference, prior


def test_the_same_weights_say_the_same(both: tuple[PriorTransformer, DiffusionPrior]) -> None:
    reference, prior = both
    generator = torch.Generator().manual_seed(1)
    x_t, text_emb, states = (torch.randn(*shape, generator=generator) for shape in ((4, E), (4, E), (4, LENGTH, E)))
    t, mask = torch.tensor([0, 250, 600, 999]), torch.arange(LENGTH) < torch.tensor([9, 5, 2, 1])[:, None]
    with torch.no_grad():
        # without a mask theirs is silently not causal
        theirs = reference(x_t, t, proj_embedding=text_emb, encoder_hidden_states=states, attention_mask=mask).predicted_image_embedding
        ours = prior(TextCondition(text_emb, states, mask), torch.ones(4, dtype=torch.bool), x_t[:, None], t[:, None])[:, 0]
        # what is padding there need not be there at all
        trimmed = prior(TextCondition(text_emb[2:], states[2:, :2], mask[2:, :2]), torch.ones(2, dtype=torch.bool), x_t[2:, None], t[2:, None])[:, 0]
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(trimmed, theirs[2:], atol=1e-5, rtol=1e-5)


def test_raw_embeddings_come_out_of_whitened_ones_as_theirs_do(both: tuple[PriorTransformer, DiffusionPrior]) -> None:
    reference, prior = both
    whitened = torch.randn(3, E, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(prior.unwhiten(whitened), reference.post_process_latents(whitened))
