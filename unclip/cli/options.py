"""How a command line becomes a config: the options that commands share, and the `--section.name value` settings."""

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from unclip.files import UnclipError
from unclip.layout import RUN_CONFIG
from unclip.roots import bring_config, local_root

if TYPE_CHECKING:
    from unclip.config import RunConfig

DEFAULT_PRESET = "small"  # sizes that two CPU cores can train in an hour

Preset = Annotated[
    str,
    Parameter(
        help="A preset to start from: demo, emoji, small, shapes (for a GPU), karlo and paper (published sizes), tiny (for tests). "
        "Without one, and without --config, the sizes of small."
    ),
]
ConfigFile = Annotated[Path | None, Parameter(name="--config", help="A TOML (or JSON) file of settings, over the preset.")]
Root = Annotated[str, Parameter(help="The folder of the data set, or its URL (s3://bucket/folder); it remembers its config for later commands.")]
Source = Annotated[
    str,
    Parameter(
        help="A table of links and captions (.parquet, .csv, .tsv, .jsonl), several by a quoted pattern ('lists/*.csv'), "
        "either also by URL (s3://bucket/links/*.parquet); or a folder of captioned images."
    ),
]
Column = Annotated[str, Parameter(help="The column's name in the source table.")]
DryRun = Annotated[bool, Parameter(negative=(), help="Show the resolved config and what would be done, and do nothing.")]

_settings: dict[str, Any] = {}  # the --section.name options of this command line


def set_settings(settings: dict[str, Any]) -> None:
    """Keeps the settings of this command line for `resolve`."""
    _settings.clear()
    _settings.update(settings)


def add_setting(path: str, value: Any) -> None:
    """Adds a setting that an option of the command stands for."""
    _settings[path] = value


def take_settings(section: str) -> dict[str, Any]:
    """Takes the settings of a section that is none of the config's, by their names."""
    found = {path: _settings.pop(path) for path in list(_settings) if path.startswith(f"{section}.")}
    return {path.removeprefix(f"{section}."): value for path, value in found.items()}


def resolve(
    preset: str = "", file: Path | None = None, root: str = "", source: str = "", url_column: str = "", caption_column: str = "", world: str = "",
    *, in_use: bool = True,
) -> "RunConfig":  # fmt: skip
    """The config of a command: preset and file, or else what the root remembers, with single settings over it.

    Args:
        in_use: whether what the root remembers goes with the version of its models that is in use.
    """
    from unclip.config import changed, load_config
    from unclip.versions import in_use as with_version_in_use

    bring_config(root)
    remembered = local_root(root) / RUN_CONFIG
    remembers = bool(root) and not preset and file is None and remembered.is_file()
    if remembers:
        file = remembered
    unnamed = not preset and file is None
    named = {"root": root, "source.path": source, "source.url_column": url_column, "source.caption_column": caption_column, "world.name": world}
    # a source given here, or none at all, takes the place of the preset's world
    settings: dict[str, Any] = {"world": None} if source or world or unnamed else {}
    settings |= {name: value for name, value in named.items() if value} | _settings
    config = load_config(preset=DEFAULT_PRESET if unnamed else preset, file=file, settings=settings)
    return changed(with_version_in_use(config), settings) if remembers and in_use else config


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
