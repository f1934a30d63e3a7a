"""Which class stands behind each kind of prior."""

from collections.abc import Callable, Mapping
from pathlib import Path

from unclip.prior.autoregressive import load_autoregressive_prior
from unclip.prior.condition import Prior, PriorKind
from unclip.prior.diffusion import load_diffusion_prior
from unclip.prior.linear import load_linear_prior
from unclip.prior.regression import load_regression_prior

_LOADERS: Mapping[PriorKind, Callable[..., Prior]] = {
    "diffusion": load_diffusion_prior,
    "autoregressive": load_autoregressive_prior,
    "regression": load_regression_prior,
    "linear": load_linear_prior,
}


def load_prior(folder: Path, kind: PriorKind, *, device: str = "cpu") -> Prior:
    """The weights for sampling of a checkpoint of this kind, frozen.

    Raises:
        UnclipError: the folder holds something else, or its weights do not fit its config.
    """
    return _LOADERS[kind](folder, device=device)
