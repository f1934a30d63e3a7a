"""The commands of the stages: each does what is not yet done, `unclip run` all of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import App
from rich.markup import escape
from rich.table import Table

from unclip.cli.app import STAGES, app, console, evaluate_app
from unclip.cli.options import Column, ConfigFile, DryRun, Preset, Root, Source, resolve
from unclip.files import UnclipError
from unclip.printable import printable

if TYPE_CHECKING:
    from unclip.config import RunConfig
    from unclip.data.manifest import Manifest


def _show_plan(config: "RunConfig") -> None:
    from unclip.config import as_dict
    from unclip.models import paths_of
    from unclip.stages import STAGES, bring_records, is_done

    bring_records(config)
    console.print_json(data=as_dict(config))
    table = Table("stage", "would be", "folder", "what it does", title="Nothing was done; this would be:", title_justify="left")
    for name, stage in STAGES.items():
        would_be = f"skipped: {stage.idle(config)}" if stage.idle(config) else "skipped, it is done" if is_done(name, config) else "run"
        table.add_row(name, would_be, str(stage.folder(paths_of(config))), stage.does)
    console.print(table)


def _show_results(config: "RunConfig") -> None:
    from unclip.models import paths_of

    report = paths_of(config).report
    _show_quality(report)
    console.print(f"pictures: [bold]{escape(str(report / 'grid.png'))}[/]\nreport:   [bold]{escape(str(report / 'index.html'))}[/]", highlight=False)


@app.command(group=STAGES)
def run(
    *, preset: Preset = "", config: ConfigFile = None, root: Root = "", source: Source = "", url_column: Column = "",
    caption_column: Column = "", world: Literal["", "shapes", "emoji"] = "", dry_run: DryRun = False,
) -> None:  # fmt: skip
    """Run the whole pipeline: every stage that is not yet done, as one Prefect flow.

    Parameters
    ----------
    world
        An embedded data set instead of a source of your own.
    """
    resolved = resolve(preset, config, root, source, url_column, caption_column, world, in_use=False)
    if not resolved.source.path and resolved.world is None:
        raise UnclipError("expected a source: give --source TABLE_OR_FOLDER, or --preset demo for the embedded data set")
    if dry_run:
        _show_plan(resolved)
        return
    from unclip.models import paths_of
    from unclip.night import is_idle
    from unclip.roots import holding_run
    from unclip.versions import in_use

    if is_idle(resolved):
        console.print("All stages are done; nothing was to do.")
    else:
        from flows.environment import prepare

        with holding_run(resolved.root):  # a second run is refused before it starts a server; the flow holds the root again
            pass
        prepare(paths_of(resolved).root)
        from flows.everything import everything

        everything(resolved)
    _show_results(in_use(resolved))


def work_on(name: str, config: "RunConfig", dry_run: bool, section: Any = None) -> None:
    """Works on a stage. A `section` stands for the one of the config that is remembered, for this call alone."""
    import dataclasses

    if dry_run:
        _show_plan(config)
        return
    from unclip.models import paths_of
    from unclip.night import check as fits
    from unclip.stages import is_done, run_stage
    from unclip.training.processes import crew, require_one_folder
    from unclip.versions import remember

    with crew() as leads:
        if not leads:
            return
        fits(config)
        is_done(name, config)  # a config that does not fit the root, or this stage's folder, is refused before it is remembered
        remember(config)
        require_one_folder(paths_of(config).root)
        used = config if section is None else dataclasses.replace(config, **{name: section})
        manifest, worked = run_stage(name, used)
    if name == "evaluate":
        from unclip.models import paths_of

        _show_quality(paths_of(config).report)
    _show_stage(name, config, manifest, worked)


def _show_quality(report: Path) -> None:
    """The ladder of pictures, and the targets that the project has set itself."""
    from unclip.evaluation.summary import ladder_table, targets_table
    from unclip.files import read_json

    found = read_json(report / "report.json")
    console.print(ladder_table(found))
    if (targets := targets_table(found)) is not None:
        console.print(targets)


def _show_stage(name: str, config: "RunConfig", manifest: "Manifest", worked: bool) -> None:
    from unclip.models import paths_of
    from unclip.stages import STAGES

    if why := STAGES[name].idle(config):
        console.print(f"{name}: nothing to do, because {why}", highlight=False)
        return
    counts = manifest.counts
    rejected = sum(counts.get("rejected", {}).values())
    numbers = f"{counts['kept']:,} of {counts['rows_in']:,} rows kept, {rejected:,} rejected" if "kept" in counts else ""
    state = f"done in {manifest.seconds:.0f} s" if worked else "was done already"
    if worked and "steps" in counts:
        state += f" with {counts['steps']:,} steps"  # fewer than num_steps where the call was bounded
    folder = STAGES[name].folder(paths_of(config))
    console.print(f"{name}: {state}. {numbers}\n  {folder}", highlight=False, markup=False)
    if name in ("curate", "select"):
        from unclip.evaluation.inspect import describe_curation

        console.print(describe_curation(folder, manifest))


def _add_stage(name: str, help_text: str, to: App) -> None:
    def command(
        *,
        preset: Preset = "",
        config: ConfigFile = None,
        root: Root = "",
        source: Source = "",
        url_column: Column = "",
        caption_column: Column = "",
        dry_run: DryRun = False,
    ) -> None:
        work_on(name, resolve(preset, config, root, source, url_column, caption_column), dry_run)

    command.__doc__ = help_text
    if to is evaluate_app:  # the stage has the name of the group of commands
        to.default(command)
    else:
        to.command(command, name=name, group=STAGES if to is app else None)


_add_stage("source", "Read a table of links and captions, or a folder of captioned images; reject what can't be used, with a reason.", app)
_add_stage("download", "Fetch the pictures with img2dataset into WebDataset shards.", app)
_add_stage("curate", "Drop rows by rules that need no model: duplicates, small pictures, captions that say nothing (--curate.…).", app)
_add_stage("clip", "Train a small CLIP on the shards, or take one from open_clip (--clip.model, --clip.pretrained).", app)
_add_stage("embed", "Embed pictures and captions with CLIP into the Parquet store.", app)
_add_stage("select", "Drop rows by their embeddings: unlike pairs, near duplicates, leaks from training to evaluation (--select.…).", app)
_add_stage("index", "Build the FAISS index over the image embeddings and measure its recall.", app)
_add_stage("evaluate", "Generate from held-out captions, measure, and write the report.", evaluate_app)


@evaluate_app.command(name="prior")
def evaluate_prior(*, root: Root) -> None:
    """Measure the priors alone: no decoder is needed, and no picture is made.

    Writes prior.html (one page), prior.png and prior.json into the root's report folder.
    """
    from unclip.evaluation.prior_report import PAGE, ladder_table
    from unclip.models import paths_of
    from unclip.operations import measure_priors

    config = resolve(root=root)
    measured = measure_priors(config)
    for split, found in measured["prior"].items():
        console.print(ladder_table(split, found))
        console.print(printable(found["verdict"]["sentence"]), highlight=False, markup=False)
        console.print(printable(found["reranking"]["sentence"]), highlight=False, markup=False)
    console.print(f"page: [bold]{escape(str(paths_of(config).report / PAGE))}[/]", highlight=False)


@evaluate_app.command(name="upsampler")
def evaluate_upsampler(*, root: Root, num: int = 32, generated: bool = True) -> None:
    """Measure the upsamplers alone, on real pictures made small and on generated ones, beside enlarging by formula.

    Writes upsampler.json and upsampler.png (small, enlarged, upsampled, real) into the root's report folder.

    Parameters
    ----------
    num
        How many held-out pictures of each split.
    generated
        Measure on generated pictures too; without, neither prior nor decoder need be trained.
    """
    from unclip.evaluation.upsampler import SHEET, upsampler_table
    from unclip.models import paths_of
    from unclip.operations import measure_upsamplers

    if num < 1:
        raise UnclipError(f"--num must be at least 1, got {num}")
    config = resolve(root=root)
    for split, found in measure_upsamplers(config, num=num, generated=generated).items():
        console.print(upsampler_table(split, found))
    console.print(f"pictures: [bold]{escape(str(paths_of(config).report / SHEET))}[/]", highlight=False)
