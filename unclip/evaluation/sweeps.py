"""What would other settings of the prior give? Curves on validation rows: best of n, guidance, steps of each sampler.

They are drawn on rows that the ladder never sees, so that a setting that is chosen by them is not tuned on the test.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from unclip.clip import Clip
from unclip.data.index import Index
from unclip.diffusion.sampling import SamplerName
from unclip.evaluation.config import EvaluateConfig
from unclip.evaluation.cosine import quintet, real_spreads, spreads
from unclip.evaluation.heldout import HeldOut, Rows, batches, is_sampled, joined
from unclip.evaluation.intervals import interval
from unclip.evaluation.recall import Gallery
from unclip.files import UnclipError
from unclip.generate import GenerateConfig, draw_candidates, text_condition
from unclip.prior.condition import Prior, PriorKind, PriorSampling, best_of
from unclip.prior.diffusion import DiffusionPrior
from unclip.progress import progress

BEST_OF, GUIDANCE, STEPS = "best of n", "guidance", "steps"
CANDIDATES = (1, 2, 4, 8)
DRAWS = 2  # a caption, for guidance and steps: two are what a spread needs

Draw = Callable[[PriorSampling, int], np.ndarray]  # (sampling, n) -> (v, n, E)


def measure_sweeps(
    splits: Sequence[HeldOut], clip: Clip, priors: Mapping[PriorKind, Prior], index: Index, store: Path,
    generate: GenerateConfig, config: EvaluateConfig, *, world: str,
) -> dict[str, Any]:  # fmt: skip
    """The curves of every prior that is sampled, over the validation rows of all splits together.

    Returns:
        `captions`, how many there were, and `asked`, how many were wanted; `points`; and `left_out`, a line for each
        point that a prior can't give, with the reason.
    """
    rows = joined([held.validation for held in splits])
    sampled = {kind: prior for kind, prior in priors.items() if is_sampled(prior)}
    found: dict[str, Any] = {"captions": len(rows), "asked": config.num_validation * len(splits), "draws": DRAWS, "points": [], "left_out": []}
    if not len(rows):
        return found
    gallery = Gallery(index, world=world)
    wanted, (real, _) = gallery.places(rows.keys), real_spreads(store, rows.captions, world=world)
    settings = {kind: plan(prior, generate.prior, config) for kind, prior in sampled.items()}
    with progress("curves", sum(len(planned) for planned in settings.values()), unit="setting") as bar:
        for kind, prior in sampled.items():
            drawn: dict[PriorSampling, np.ndarray] = {}
            for curve, value, sampling in settings[kind]:
                where = {"curve": curve, "prior": kind, "sampler": sampling.sampler if kind == "diffusion" else None, "value": value}
                try:
                    if sampling not in drawn:
                        drawn[sampling] = draw(
                            rows, clip, prior, generate, sampling, max(CANDIDATES) if sampling == generate.prior else DRAWS, config.batch_size
                        )
                except UnclipError as error:  # a checkpoint that a sampler can't work with
                    found["left_out"].append(where | {"reason": str(error)})
                    continue
                finally:
                    bar.advance()
                picks = pick_best(drawn[sampling], rows.text_emb, int(value)) if curve == BEST_OF else drawn[sampling]
                found["points"].append(where | measure_point(picks, rows, gallery, wanted, real, seed=generate.seed))
    return found


def plan(prior: Prior, base: PriorSampling, config: EvaluateConfig) -> list[tuple[str, float, PriorSampling]]:
    """The points to try: curve, value, and the settings of the prior; first those that all need 8 draws at the settings of `generate`."""
    planned: list[tuple[str, float, PriorSampling]] = [(BEST_OF, num, base) for num in CANDIDATES]
    planned += [(GUIDANCE, scale, dataclasses.replace(base, guidance_scale=scale)) for scale in config.sweep_guidance]
    if isinstance(prior, DiffusionPrior):
        for name in get_args(SamplerName):
            of_sampler = dataclasses.replace(base, sampler=name, eta=base.eta if name == base.sampler else 0.0)
            steps = [num for num in config.sweep_steps if num <= prior.config.num_train_steps]
            planned += [(STEPS, num, dataclasses.replace(of_sampler, num_steps=num)) for num in steps]
    return planned


@torch.no_grad()
def draw(rows: Rows, clip: Clip, prior: Prior, generate: GenerateConfig, sampling: PriorSampling, num: int, batch_size: int) -> np.ndarray:
    """(v, num, E) draws of a prior for each caption."""
    asked = dataclasses.replace(generate, prior=sampling, num_candidates=num)
    drawn = []
    for numbers, captions in batches(rows.captions, max(1, batch_size // num)):
        drawn.append(draw_candidates(prior, text_condition(clip, captions), asked, rows=numbers).float().cpu().numpy())
    return np.concatenate(drawn)


def pick_best(draws: np.ndarray, text_emb: np.ndarray, num: int) -> np.ndarray:
    """The best of each `num` draws by similarity to the caption: (v, n, E), (v, E) -> (v, n // num, E)."""
    captions, total, width = draws.shape
    groups = torch.from_numpy(draws.reshape(captions * (total // num), num, width))
    return best_of(groups, torch.from_numpy(text_emb).repeat_interleave(total // num, dim=0)).numpy().reshape(captions, -1, width)


def measure_point(picks: np.ndarray, rows: Rows, gallery: Gallery, wanted: np.ndarray, real: np.ndarray, *, seed: int) -> dict[str, Any]:
    """Recall@10, the cosine to the true image, and the spread of several answers (v, g, E) to each caption.

    Each answer counts for itself and a caption's are averaged, so that many draws make the curve smoother, not better.
    `spread_ratio` is to the `real` images (v,) that share a caption, over the captions that have them.
    """
    captions, num, width = picks.shape
    flat, times = picks.reshape(-1, width), np.repeat(np.arange(captions), num)
    hits = gallery.hits(flat, wanted[times])["recall_at_10"].reshape(captions, num).mean(axis=1)
    cosine = quintet(flat, rows.true_emb[times], rows.text_emb[times])["image"].reshape(captions, num).mean(axis=1)
    drawn, shared = spreads(picks) if num > 1 else None, ~np.isnan(real)
    ratio = float(drawn[shared].mean() / real[shared].mean()) if drawn is not None and shared.any() and real[shared].mean() > 0 else None
    low, high = interval(hits, seed=seed)
    return {
        "recall_at_10": float(hits.mean()), "low": low, "high": high, "image_cosine": float(cosine.mean()),
        "draw_spread": None if drawn is None else float(drawn.mean()), "draw_spread_ratio": ratio,
    }  # fmt: skip
