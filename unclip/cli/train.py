"""The commands `unclip train …`: bounded calls, several processes, one kind of prior."""

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from unclip.cli.app import train_app
from unclip.cli.options import Column, ConfigFile, DryRun, Preset, Root, Source, resolve
from unclip.cli.stages import work_on
from unclip.files import UnclipError

if TYPE_CHECKING:
    from unclip.config import RunConfig

Processes = Annotated[int, Parameter(help="Processes of this machine that train together, such as one a GPU; they share each batch.")]
MaxSteps = Annotated[int, Parameter(help="End this call in good order after so many steps; the same command goes on. 0 is no bound.")]
MaxMinutes = Annotated[float, Parameter(help="The same after so many minutes, for each model that is trained.")]


def _train(name: str, config: "RunConfig", section: Any, dry_run: bool, nproc: int) -> None:
    """Trains with the section of a config that this command line changed; the root remembers the config itself."""
    if nproc < 1:
        raise UnclipError(f"--nproc must be at least 1, got {nproc}")
    if nproc > 1 and not dry_run:
        from unclip.training.launch import launch

        raise SystemExit(launch(without_nproc(sys.argv[1:]), nproc))
    work_on(name, config, dry_run, section)


def without_nproc(arguments: list[str]) -> list[str]:
    """The command line of one of the processes."""
    waiting = iter(arguments)
    return [argument for argument in waiting if not argument.startswith("--nproc=") and not (argument == "--nproc" and next(waiting))]


@train_app.command(name="prior")
def train_prior(
    *, preset: Preset = "", config: ConfigFile = None, root: Root = "", source: Source = "", url_column: Column = "",
    caption_column: Column = "", kind: Literal["all", "diffusion", "autoregressive", "regression", "linear"] = "all", nproc: Processes = 1,
    max_steps: MaxSteps = 0, max_minutes: MaxMinutes = 0.0, dry_run: DryRun = False,
) -> None:  # fmt: skip
    """Train the priors: from a caption to a CLIP image embedding.

    Parameters
    ----------
    kind
        Train this kind alone; the root remembers it beside those it has. All are those of prior.kinds.
    """
    import dataclasses

    from unclip.training.config import bounded

    resolved = resolve(preset, config, root, source, url_column, caption_column)
    section = resolved.prior
    if kind != "all":
        kinds = section.kinds if kind in section.kinds else (*section.kinds, kind)
        resolved = dataclasses.replace(resolved, prior=dataclasses.replace(section, kinds=kinds))
        section = dataclasses.replace(section, kinds=(kind,))
    _train("prior", resolved, bounded(section, max_steps=max_steps, max_minutes=max_minutes), dry_run, nproc)


@train_app.command(name="decoder")
def train_decoder(
    *, preset: Preset = "", config: ConfigFile = None, root: Root = "", source: Source = "", url_column: Column = "",
    caption_column: Column = "", nproc: Processes = 1, max_steps: MaxSteps = 0, max_minutes: MaxMinutes = 0.0, dry_run: DryRun = False,
) -> None:  # fmt: skip
    """Train the decoder: from a CLIP image embedding and the caption to a picture."""
    from unclip.training.config import bounded

    resolved = resolve(preset, config, root, source, url_column, caption_column)
    _train("decoder", resolved, bounded(resolved.decoder, max_steps=max_steps, max_minutes=max_minutes), dry_run, nproc)


@train_app.command(name="upsampler")
def train_upsampler(
    *, preset: Preset = "", config: ConfigFile = None, root: Root = "", source: Source = "", url_column: Column = "",
    caption_column: Column = "", nproc: Processes = 1, max_steps: MaxSteps = 0, max_minutes: MaxMinutes = 0.0, dry_run: DryRun = False,
) -> None:  # fmt: skip
    """Train the upsamplers: from a small picture to a large one; as many as upsampler.num_upsamplers says."""
    from unclip.training.config import bounded

    resolved = resolve(preset, config, root, source, url_column, caption_column)
    _train("upsampler", resolved, bounded(resolved.upsampler, max_steps=max_steps, max_minutes=max_minutes), dry_run, nproc)
