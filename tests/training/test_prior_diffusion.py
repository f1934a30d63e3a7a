"""Training of the diffusion prior on a store made by hand: what one step computes, and what is measured at the end."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from unclip import checkpoint
from unclip.data.stats import write_stats
from unclip.files import sha256_file
from unclip.prior.condition import PriorSampling, TextCondition
from unclip.prior.diffusion import DiffusionPrior, DiffusionPriorConfig, load_diffusion_prior
from unclip.training.config import TrainingConfig
from unclip.training.draws import Draws
from unclip.training.prior_diffusion import DiffusionPriorTraining, diffusion_loss, measure_eps_square, train_diffusion_prior

E, S, ROWS = 6, 4, 60


def make_store(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    image_emb, text_emb = (rng.normal(1.0, 2.0, (ROWS, E)).astype(np.float16) for _ in range(2))
    lengths = rng.integers(2, 6, ROWS)
    columns = {
        "key": [f"{row:03}" for row in range(ROWS)],
        "caption": ["a caption"] * ROWS,
        "split": ["train"] * ROWS,
        "similarity": np.zeros(ROWS, np.float32),
        "image_emb": pa.FixedSizeListArray.from_arrays(image_emb.ravel(), E),
        "text_emb": pa.FixedSizeListArray.from_arrays(text_emb.ravel(), E),
        "text_tokens": [rng.normal(size=length * S).astype(np.float16) for length in lengths],
    }
    folder.mkdir()
    pq.write_table(pa.table(columns).replace_schema_metadata({"text_width": str(S)}), folder / "00000.parquet", write_page_checksum=True)
    write_stats(folder)
    return folder


def make_config(*, self_condition: bool = False, num_steps: int = 3) -> DiffusionPriorTraining:
    network = DiffusionPriorConfig(width=16, depth=1, head_width=8, max_text_tokens=8, self_condition=self_condition)
    training = TrainingConfig(num_steps=num_steps, batch_size=8, warmup_steps=1, log_every=1, device="cpu", num_threads=1)
    return DiffusionPriorTraining(network=network, draws=3, reading="store", training=training)


def condition_of(rows: np.ndarray, device: torch.device) -> TextCondition:
    generator = torch.Generator().manual_seed(int(rows.sum()))
    mask = torch.ones(len(rows), 4, dtype=torch.bool)
    return TextCondition(torch.randn(len(rows), E, generator=generator), torch.randn(len(rows), 4, S, generator=generator), mask)


@pytest.mark.parametrize("self_condition", [False, True])
def test_a_run_ends_measured_and_the_analytic_sampler_takes_it(tmp_path: Path, self_condition: bool) -> None:
    folder = train_diffusion_prior(make_store(tmp_path / "store"), tmp_path / "run", make_config(self_condition=self_condition))
    prior = load_diffusion_prior(folder)
    assert prior.eps_square.shape == (1000,)
    assert 0.98 < prior.eps_square[-1] < 1.02  # at the end all is noise, and the network knows it
    assert prior.eps_square.min() > 0
    drawn = prior.draw(condition_of(np.arange(5), torch.device("cpu")), num_samples=2, sampling=PriorSampling(num_steps=3, sampler="analytic"),
                       noise=lambda: torch.ones(10, E))  # fmt: skip
    assert drawn.isfinite().all()


def test_a_kill_before_the_measurement_is_made_up_for_by_the_same_command(tmp_path: Path) -> None:
    store, config = make_store(tmp_path / "store"), make_config()
    folder = train_diffusion_prior(store, tmp_path / "run", config)
    whole = sha256_file(folder / checkpoint.EMA)
    weights = checkpoint.read_tensors(folder / checkpoint.EMA)
    weights["eps_square"].zero_()
    save_file(weights, folder / checkpoint.EMA)
    assert sha256_file(folder / checkpoint.EMA) != whole
    for _ in range(2):  # once more changes nothing
        assert train_diffusion_prior(store, tmp_path / "run", config) == folder
        assert sha256_file(folder / checkpoint.EMA) == whole


def test_the_measurement_of_a_perfect_denoiser_is_its_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whitened data N(0, 0.5): E||eps_hat||^2 / E is sigma^2 / (alpha^2 / 2 + sigma^2)."""
    prior = DiffusionPrior(DiffusionPriorConfig(width=16, depth=1, head_width=8), emb_width=E, text_width=S).eval()
    prior.emb_mean.fill_(3.0)
    schedule = prior.schedule()

    def forward(self: DiffusionPrior, condition: TextCondition, keep: Tensor, x_t: Tensor, t: Tensor, estimated: Tensor | None) -> Tensor:
        assert keep.all()
        alpha, sigma = schedule.alpha[t][..., None], schedule.sigma[t][..., None]
        return (0.5 * alpha / (0.5 * alpha**2 + sigma**2) * x_t).float()

    monkeypatch.setattr(DiffusionPrior, "forward", forward)
    image_emb = 3.0 + 0.5**0.5 * torch.randn(4000, E, generator=torch.Generator().manual_seed(0))

    class Rows:
        condition = staticmethod(condition_of)

        @staticmethod
        def image_emb(rows: np.ndarray, device: torch.device) -> Tensor:
            return image_emb[rows]

    measured = measure_eps_square(prior, Rows(), np.arange(4000), seed=1)  # type: ignore[arg-type]
    exact = (schedule.sigma**2 / (0.5 * schedule.alpha**2 + schedule.sigma**2)).float()
    torch.testing.assert_close(measured, exact, atol=0.01, rtol=0)
    # where the variance is made of a small difference, plain averages of so many numbers would not know it to half of itself
    torch.testing.assert_close(1 - measured[850:950], 1 - exact[850:950], atol=0, rtol=0.25)


def test_a_step_runs_the_model_once_and_reads_each_caption_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    honest = DiffusionPrior.read_text
    monkeypatch.setattr(DiffusionPrior, "read_text", lambda self, condition, keep: (read.append(len(condition)), honest(self, condition, keep))[1])
    prior, config = DiffusionPrior(make_config().network, emb_width=E, text_width=S), make_config()
    calls: list[int] = []
    prior.register_forward_hook(lambda *_: calls.append(1))
    loss, more = diffusion_loss(prior, prior, condition_of(np.arange(8), torch.device("cpu")), torch.randn(8, E), Draws(0, 0), config)
    loss.backward()
    assert (len(calls), read) == (1, [8])
    assert all(weight.grad is not None for weight in prior.parameters())
    assert sum(int(count) for _, count in more.values()) == 8 * 3


def test_half_the_draws_are_given_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    config, given = make_config(self_condition=True), []
    prior = DiffusionPrior(config.network, emb_width=E, text_width=S)
    prior.register_forward_pre_hook(lambda _, arguments: given.append(arguments[4]))
    for step in range(30):
        diffusion_loss(prior, prior, condition_of(np.arange(8), torch.device("cpu")), torch.randn(8, E), Draws(0, step), config)
    shares = torch.stack(given).float()
    assert shares.shape == (30, 8, 3)
    assert shares.mean() == pytest.approx(0.5, abs=0.06)


def test_a_batch_in_two_chunks_has_the_loss_of_the_whole() -> None:
    config = make_config(self_condition=True)
    torch.manual_seed(0)
    prior = DiffusionPrior(config.network, emb_width=E, text_width=S)
    condition, image_emb = condition_of(np.arange(8), torch.device("cpu")), torch.randn(8, E)
    whole, _ = diffusion_loss(prior, prior, condition, image_emb, Draws(0, 5), config)
    parts = []
    for chunk in range(2):
        rows = slice(4 * chunk, 4 * chunk + 4)
        part = TextCondition(condition.text_emb[rows], condition.text_tokens[rows], condition.text_mask[rows])
        parts.append(diffusion_loss(prior, prior, part, image_emb[rows], Draws(0, 5, chunk=chunk, num_chunks=2), config)[0])
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
