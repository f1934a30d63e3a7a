"""The linear prior of the prior stage: fitted in one pass over the store."""

from dataclasses import dataclass
from pathlib import Path

from unclip import checkpoint
from unclip.data.store import emb_width, training_rows
from unclip.prior.linear import fit_linear, save_linear


@dataclass(frozen=True, kw_only=True)
class LinearPriorTraining:
    """How the linear prior is fitted.

    Attributes:
        ridge: added to the variance of the text embedding, as a share of its mean; keeps directions that never change from blowing up.
    """

    __pydantic_config__ = {"extra": "forbid"}

    ridge: float = 1e-3

    def __post_init__(self) -> None:
        if self.ridge < 0.0:
            raise ValueError(f"ridge must not be negative, got {self.ridge}")


def train_linear_prior(store: Path, run: Path, config: LinearPriorTraining) -> Path:
    """Leaves the least-squares map of the training rows as a checkpoint of one step, and returns its folder."""
    pairs = ((batch["text_emb"], batch["image_emb"]) for batch in training_rows(store, ["text_emb", "image_emb"]))
    folder = checkpoint.step_folder(run, 1)
    save_linear(folder, fit_linear(pairs, emb_width(store), ridge=config.ridge))
    return folder
