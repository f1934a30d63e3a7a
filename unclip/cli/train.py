"""The commands `unclip train …`: bounded calls, several processes, one kind of prior."""

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from unclip.cli.app import train_app
from unclip.cli.options import Column, ConfigFile, DryRun, Preset, Root, Source, resolve
from unclip.cli.stages import work_on
from unclip.training.together import ALONE, Together, without_options

if TYPE_CHECKING:
    from unclip.config import RunConfig

Processes = Annotated[Together, Parameter(name="*")]
MaxSteps = Annotated[int, Parameter(help="End this call in good order after so many steps; the same command goes on. 0 is no bound.")]
MaxMinutes = Annotated[float, Parameter(help="The same after so many minutes, for each model that is trained.")]


def _train(name: str, config: "RunConfig", section: Any, dry_run: bool, processes: Together) -> None:
    """Trains with the section of a config that this command line changed; the root remembers the config itself."""
    if processes.num_processes > 1 and not dry_run:
        from unclip.training.launch import launch

        raise SystemExit(launch(without_options(sys.argv[1:]), processes))
    work_on(name, config, dry_run, section)


@train_app.command(name="prior")
def train_prior(
    *, preset: Preset = "", config: ConfigFile = None, root: Root = "", source: Source = "", url_column: Column = "",
    caption_column: Column = "", kind: Literal["all", "diffusion", "autoregressive", "regression", "linear"] = "all", processes: Processes = ALONE,
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
    _train("prior", resolved, bounded(section, max_steps=max_steps, max_minutes=max_minutes), dry_run, processes)


@train_app.command(name="decoder")
def train_decoder(
    *, preset: Preset = "", config: ConfigFile = None, root: Root = "", source: Source = "", url_column: Column = "",
    caption_column: Column = "", processes: Processes = ALONE, max_steps: MaxSteps = 0, max_minutes: MaxMinutes = 0.0, dry_run: DryRun = False,
) -> None:  # fmt: skip
    """Train the decoder: from a CLIP image embedding and the caption to a picture."""
    from unclip.training.config import bounded

    resolved = resolve(preset, config, root, source, url_column, caption_column)
    _train("decoder", resolved, bounded(resolved.decoder, max_steps=max_steps, max_minutes=max_minutes), dry_run, processes)


@train_app.command(name="upsampler")
def train_upsampler(
    *, preset: Preset = "", config: ConfigFile = None, root: Root = "", source: Source = "", url_column: Column = "",
    caption_column: Column = "", processes: Processes = ALONE, max_steps: MaxSteps = 0, max_minutes: MaxMinutes = 0.0, dry_run: DryRun = False,
) -> None:  # fmt: skip
    """Train the upsamplers: from a small picture to a large one; as many as upsampler.num_upsamplers says."""
    from unclip.training.config import bounded

    resolved = resolve(preset, config, root, source, url_column, caption_column)
    _train("upsampler", resolved, bounded(resolved.upsampler, max_steps=max_steps, max_minutes=max_minutes), dry_run, processes)
