"""The `unclip` command. Every command is a few lines over the package; heavy imports wait until a command needs them."""

import errno
import sys
import tomllib
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter
from rich.console import Console
from rich.table import Table

from unclip.files import UnclipError, exclusive, read_json, write_json

if TYPE_CHECKING:
    from unclip.config import RunConfig
    from unclip.data.manifest import Manifest
    from unclip.data.verify import Fault
    from unclip.prior.condition import PriorKind

FAULTY, USER_ERROR, INTERRUPTED = 1, 2, 130
RUN_LOCK = ".run.lock"
DEFAULT_PRESET = "small"  # sizes that two CPU cores can train in an hour
RUN_CONFIG = "run.json"  # the config that a root was last worked on with

HELP = """Train and use your own unCLIP (DALL-E 2): from captioned images to a text-to-image model.

A run goes through stages, each of which leaves a result under one root: source, download, clip, embed, index, prior,
decoder, evaluate. `unclip run` does all that is not yet done; each stage is also a command of its own. Stop any of them
at any moment: the same command goes on.

    unclip run --preset demo
    unclip run --source my.parquet --root data/mine
    unclip generate "a large red star" --root data/demo
    unclip inspect data/demo

Any setting can be given by its section and name, such as --prior.depth 8 or --decoder.training.num_steps 5000;
--dry-run shows them all.
"""

app = App(name="unclip", help=HELP, help_format="markdown", version_flags=["--version"])
train_app = App(name="train", help="Train a model of the pipeline on what is there.")
app.command(train_app)

STAGES = Group("Stages", sort_key=1)
evaluate_app = App(name="evaluate", group=STAGES)
app.command(evaluate_app)
USE = Group("Using the models", sort_key=2)

Preset = Annotated[
    str,
    Parameter(
        help="A preset to start from: demo, emoji, small, shapes (for a GPU), karlo and paper (published sizes), tiny (for tests). "
        "Without one, and without --config, the sizes of small."
    ),
]
ConfigFile = Annotated[Path | None, Parameter(name="--config", help="A TOML (or JSON) file of settings, over the preset.")]
Root = Annotated[str, Parameter(help="The folder of the data set; it remembers its config, so that later commands need no other option.")]
Source = Annotated[str, Parameter(help="A table of links and captions (.parquet, .csv, .tsv, .jsonl) or a folder of captioned images.")]
Column = Annotated[str, Parameter(help="The column's name in the source table.")]
DryRun = Annotated[bool, Parameter(negative=(), help="Show the resolved config and what would be done, and do nothing.")]

_console = Console()
_settings: dict[str, Any] = {}  # the --section.name options of this command line


def _resolve(
    preset: str = "", file: Path | None = None, root: str = "", source: str = "", url_column: str = "", caption_column: str = "", world: str = ""
) -> "RunConfig":
    """The config of a command: preset and file, or else what the root remembers, with single settings over it."""
    from unclip.config import load_config

    remembered = Path(root or "") / RUN_CONFIG
    if root and not preset and file is None and remembered.is_file():
        file = remembered
    unnamed = not preset and file is None
    named = {"root": root, "source.path": source, "source.url_column": url_column, "source.caption_column": caption_column, "world.name": world}
    # a source given here, or none at all, takes the place of the preset's world
    settings: dict[str, Any] = {"world": None} if source or world or unnamed else {}
    settings |= {name: value for name, value in named.items() if value} | _settings
    return load_config(preset=DEFAULT_PRESET if unnamed else preset, file=file, settings=settings)


def _remember(config: "RunConfig") -> None:
    from unclip.config import as_dict

    path, content = Path(config.root) / RUN_CONFIG, as_dict(config)
    if not path.is_file() or read_json(path) != content:
        write_json(path, content)


def _show_plan(config: "RunConfig") -> None:
    from unclip.config import as_dict
    from unclip.stages import STAGES, is_done, paths_of

    _console.print_json(data=as_dict(config))
    table = Table("stage", "would be", "folder", "what it does", title="Nothing was done; this would be:", title_justify="left")
    for name, stage in STAGES.items():
        table.add_row(name, "skipped, it is done" if is_done(name, config) else "run", str(stage.folder(paths_of(config))), stage.does)
    _console.print(table)


def _show_results(config: "RunConfig") -> None:
    from unclip.stages import paths_of

    report = paths_of(config).report
    _console.print(f"pictures: [bold]{report / 'grid.png'}[/]\nreport:   [bold]{report / 'index.html'}[/]", highlight=False)


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
    resolved = _resolve(preset, config, root, source, url_column, caption_column, world)
    if not resolved.source.path and resolved.world is None:
        raise UnclipError("expected a source: give --source TABLE_OR_FOLDER, or --preset demo for the embedded data set")
    if dry_run:
        _show_plan(resolved)
        return
    from unclip.stages import pending

    if not pending(resolved):
        _console.print("All stages are done; nothing was to do.")
    else:
        from flows.environment import prepare

        with exclusive(Path(resolved.root), RUN_LOCK):
            _remember(resolved)
            prepare(Path(resolved.root))
            from flows.everything import everything

            everything(resolved)
    _show_results(resolved)


def _stage(name: str, config: "RunConfig", dry_run: bool, section: Any = None) -> None:
    """Works on a stage. A `section` stands for the one of the config that is remembered, for this call alone."""
    import dataclasses

    if dry_run:
        _show_plan(config)
        return
    from unclip.stages import pending, run_stage
    from unclip.training.processes import crew

    with crew() as leads:
        if not leads:
            return
        pending(config)  # a config that does not fit the root is refused before it is remembered
        _remember(config)
        used = config if section is None else dataclasses.replace(config, **{name: section})
        manifest, worked = run_stage(name, used)
    _show_stage(name, config, manifest, worked)


def _show_stage(name: str, config: "RunConfig", manifest: "Manifest", worked: bool) -> None:
    from unclip.stages import STAGES, paths_of

    counts = manifest.counts
    rejected = sum(counts.get("rejected", {}).values())
    numbers = f"{counts['kept']:,} of {counts['rows_in']:,} rows kept, {rejected:,} rejected" if "kept" in counts else ""
    state = f"done in {manifest.seconds:.0f} s" if worked else "was done already"
    if worked and "steps" in counts:
        state += f" with {counts['steps']:,} steps"  # fewer than num_steps where the call was bounded
    _console.print(f"{name}: {state}. {numbers}\n  {STAGES[name].folder(paths_of(config))}", highlight=False)


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
        _stage(name, _resolve(preset, config, root, source, url_column, caption_column), dry_run)

    command.__doc__ = help_text
    if to is evaluate_app:  # the stage has the name of the group of commands
        to.default(command)
    else:
        to.command(command, name=name, group=STAGES if to is app else None)


_add_stage("source", "Read a table of links and captions, or a folder of captioned images; reject what can't be used, with a reason.", app)
_add_stage("download", "Fetch the pictures with img2dataset into WebDataset shards.", app)
_add_stage("clip", "Train a small CLIP on the shards, or take one from open_clip (--clip.model, --clip.pretrained).", app)
_add_stage("embed", "Embed pictures and captions with CLIP into the Parquet store.", app)
_add_stage("index", "Build the FAISS index over the image embeddings and measure its recall.", app)
_add_stage("evaluate", "Generate from held-out captions, measure, and write the report.", evaluate_app)


@evaluate_app.command(name="prior")
def evaluate_prior(*, root: Root) -> None:
    """Measure the priors alone: no decoder is needed, and no picture is made.

    Writes prior.html (one page), prior.png and prior.json into the root's report folder.
    """
    from unclip.evaluation.prior_report import PAGE, ladder_table
    from unclip.stages import measure_priors, paths_of

    config = _resolve(root=root)
    measured = measure_priors(config)
    for split, found in measured["prior"].items():
        _console.print(ladder_table(split, found))
        _console.print(found["verdict"]["sentence"], highlight=False, markup=False)
    _console.print(f"page: [bold]{paths_of(config).report / PAGE}[/]", highlight=False)


Processes = Annotated[int, Parameter(help="Processes of this machine that train together, such as one a GPU; they share each batch.")]
MaxSteps = Annotated[int, Parameter(help="End this call in good order after so many steps; the same command goes on. 0 is no bound.")]
MaxMinutes = Annotated[float, Parameter(help="The same after so many minutes, for each model that is trained.")]


def _train(name: str, config: "RunConfig", section: Any, dry_run: bool, nproc: int) -> None:
    """Trains with the section of a config that this command line changed; the root remembers the config itself."""
    if nproc < 1:
        raise UnclipError(f"--nproc must be at least 1, got {nproc}")
    if nproc > 1 and not dry_run:
        from unclip.training.launch import launch

        raise SystemExit(launch(_without_nproc(sys.argv[1:]), nproc))
    _stage(name, config, dry_run, section)


def _without_nproc(arguments: list[str]) -> list[str]:
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

    resolved = _resolve(preset, config, root, source, url_column, caption_column)
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

    resolved = _resolve(preset, config, root, source, url_column, caption_column)
    _train("decoder", resolved, bounded(resolved.decoder, max_steps=max_steps, max_minutes=max_minutes), dry_run, nproc)


@app.command(group=USE)
def generate(
    caption: str, /, *, root: Root, num: int = 4, seed: int = 0, out: Path = Path("generated.png"),
    prior: Literal["first", "none", "diffusion", "autoregressive", "regression", "linear"] = "first",
) -> None:  # fmt: skip
    """Make pictures of a caption.

    Writes a contact sheet to OUT, and beside it the settings with the similarity of every candidate (OUT with .json) and
    the candidates themselves (OUT with .parquet).

    Parameters
    ----------
    caption
        What the pictures shall show.
    num
        How many pictures.
    seed
        The same seed gives the same pictures.
    out
        The contact sheet to write.
    prior
        Which of the trained priors: the first of prior.kinds, or one by its kind; or none: the text embedding as if it
        were an image embedding, for comparison.
    """
    import dataclasses

    from unclip import generate as generation
    from unclip.evaluation.pictures import contact_sheet
    from unclip.evaluation.records import write_generation
    from unclip.stages import load_models

    if num < 1:
        raise UnclipError(f"--num must be at least 1, got {num}")
    config = _resolve(root=root)
    sampling = dataclasses.replace(config.generate, seed=seed)
    kind: PriorKind | None = config.prior.kinds[0] if prior == "first" else None if prior == "none" else prior
    made = generation.generate(load_models(config, kind), [caption] * num, sampling)
    labels = [f"similarity {values.max():.3f}" for values in made.similarities]
    write_generation(out, contact_sheet(made.pictures, labels, columns=min(num, 8)), made, sampling, kind)
    _console.print(f"{num} pictures: [bold]{out}[/]\nsettings and candidates: {out.with_suffix('.json')}, {out.with_suffix('.parquet')}", highlight=False)


@app.command(group=USE)
def search(
    text: str = "", /, *, root: Root, image: Path | None = None, k: Annotated[int, Parameter(name=["-k", "--k"])] = 5, out: Path = Path("search.png")
) -> None:
    """Find the nearest pictures to a caption or to a picture.

    Parameters
    ----------
    text
        The caption to search by.
    image
        A picture to search by, instead of a caption.
    k
        How many.
    out
        The contact sheet to write.
    """
    from unclip.clip import load_clip
    from unclip.data.index import open_index
    from unclip.evaluation.pictures import contact_sheet
    from unclip.files import replacing
    from unclip.search import embed_query, pictures_of
    from unclip.search import search as find
    from unclip.stages import paths_of

    config = _resolve(root=root)
    paths = paths_of(config)
    index = open_index(paths.index)
    hits = find(index, embed_query(load_clip(paths.clip), text=text, image=image), k)
    table = Table("score", "key", "split", "caption", "link")
    for hit in hits:
        table.add_row(f"{hit.score:.4f}", hit.key, hit.split, hit.caption, hit.url)
    _console.print(table)
    pictures = pictures_of(paths.shards, [hit.key for hit in hits], config.decoder.network.unet.image_size)
    sheet = contact_sheet(pictures, [f"{hit.score:.3f} {hit.caption}" for hit in hits], columns=min(len(hits), 5))
    with replacing(out) as aside:
        sheet.save(aside, format="PNG")
    _console.print(f"contact sheet: [bold]{out}[/]", highlight=False)


@app.command(group=USE)
def verify(*, root: Root) -> None:
    """Read every byte of the shards and the embedding store, and say which parts are not what they were made as.

    Ends with exit code 1 where one is at fault.
    """
    from unclip.stages import verify_data

    faults = verify_data(_resolve(root=root))
    if faults:
        _console.print(_fault_table(faults, "Parts at fault; `unclip repair` makes them again:"))
        raise SystemExit(FAULTY)
    _console.print("All shards and parts are what they were made as.")


@app.command(group=USE)
def repair(*, root: Root) -> None:
    """Make again the shards and parts of the embedding store that `unclip verify` finds at fault, and no others."""
    from unclip.stages import repair_data

    faults = repair_data(_resolve(root=root))
    if faults:
        _console.print(_fault_table(faults, "These parts were made again:"))
    else:
        _console.print("All shards and parts are what they were made as; nothing was to do.")


def _fault_table(faults: "list[Fault]", title: str) -> Table:
    table = Table("stage", "part", "what was wrong", title=title, title_justify="left")
    for fault in faults:
        table.add_row(fault.stage, fault.part, fault.what)
    return table


@app.command(group=USE)
def inspect(path: Path, /) -> None:
    """Show what a result folder holds: a root, a stage, the embedding store, a checkpoint.

    Parameters
    ----------
    path
        The folder.
    """
    from unclip.evaluation.inspect import inspect as describe

    _console.print(describe(path))


def split_settings(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Takes the `--section.name value` options out of a command line: the other arguments, and the settings.

    Raises:
        UnclipError: a setting has no value.
    """
    others: list[str] = []
    settings: dict[str, Any] = {}
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if not (name.startswith("--") and "." in name):
            others.append(argument)
            continue
        if not equals:
            try:
                value = next(waiting)
            except StopIteration:
                raise UnclipError(f"expected a value after {name}, such as {name} 8") from None
        settings[name.removeprefix("--").replace("-", "_")] = _value(value)
    return others, settings


def _value(text: str) -> Any:
    """A value as TOML reads it (8, 1e-3, true, [1, 2], "text"), and anything else as text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def main() -> None:
    """The entry point: one line for what the user can put right, a traceback only with --debug."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        others, settings = split_settings(arguments)
        _settings.update(settings)
        app(others, exit_on_error=False, print_error=False)
    except KeyboardInterrupt:
        _leave("stopped; what was done is kept, and the same command goes on", INTERRUPTED, debug)
    except CycloptsError as error:
        _leave(f"{error}\n(unclip --help shows the commands)", USER_ERROR, debug)
    except UnclipError as error:
        _leave(str(error), INTERRUPTED if type(error).__name__ == "Interrupted" else USER_ERROR, debug)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _leave("the disk is full; free some space, and the same command goes on", USER_ERROR, debug)


def _leave(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"unclip: {message}", file=sys.stderr, flush=True)
    raise SystemExit(code)
