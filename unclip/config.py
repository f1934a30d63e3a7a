"""The one config of a whole run: its sections, presets, TOML files and settings from the command line, strictly checked."""

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from unclip.data.curate import CurateConfig
from unclip.data.download import DownloadConfig
from unclip.data.embed import EmbedConfig
from unclip.data.index import IndexConfig
from unclip.data.select import SelectConfig
from unclip.data.source import SourceConfig
from unclip.evaluation.config import EvaluateConfig
from unclip.evaluation.gate import NightConfig
from unclip.files import UnclipError
from unclip.generate import GenerateConfig
from unclip.storage import check_root, is_url
from unclip.training.clip import ClipConfig
from unclip.training.decoder import DecoderStageConfig
from unclip.training.prior import PriorConfig
from unclip.training.upsampler import UpsamplerStageConfig
from unclip.worlds.write import WorldConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that a run is made of, one section a stage.

    Attributes:
        root: the folder that holds all results of one data set, or its URL.
        world: the embedded data set to make and use as the source; none where `source.path` is given.
    """

    __pydantic_config__ = {"extra": "forbid"}

    root: str = "data/run"
    world: WorldConfig | None = None
    source: SourceConfig = field(default_factory=SourceConfig)
    download: DownloadConfig = field(default_factory=DownloadConfig)
    curate: CurateConfig = field(default_factory=CurateConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    decoder: DecoderStageConfig = field(default_factory=DecoderStageConfig)
    upsampler: UpsamplerStageConfig = field(default_factory=UpsamplerStageConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    night: NightConfig = field(default_factory=NightConfig)

    def __post_init__(self) -> None:
        if self.world is not None and self.source.path:
            raise ValueError(f"a run has one source: expected world or source.path, got world.name={self.world.name!r} and source.path={self.source.path!r}")
        if is_url(self.root):
            check_root(self.root)
        self.upsampler.check_sizes(decoder_size=self.decoder.network.unet.image_size, stored_size=self.download.image_size)


def presets() -> list[str]:
    """The names of the presets that come with the package."""
    return sorted(entry.name.removesuffix(".toml") for entry in resources.files("unclip.presets").iterdir() if entry.name.endswith(".toml"))


def load_config(*, preset: str = "", file: Path | None = None, settings: Mapping[str, Any] | None = None) -> RunConfig:
    """Preset, then file, then single settings ("prior.network.depth": 8), each over what came before.

    Raises:
        UnclipError: an unknown preset or key, or a value that is wrong; the message gives the setting's path.
    """
    content: dict[str, Any] = {}
    if preset:
        if preset not in presets():
            raise UnclipError(f"preset must be one of {', '.join(presets())}, got {preset!r}")
        content = tomllib.loads(resources.files("unclip.presets").joinpath(f"{preset}.toml").read_text())
    if file is not None:
        content = _merged(content, _read_file(file))
    return check_config(_with_settings(content, settings or {}))


def changed(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """A config with single settings over it, as `load_config` takes them.

    Raises:
        UnclipError: an unknown setting, or a value that is wrong.
    """
    return check_config(_with_settings(as_dict(config), settings))


def _with_settings(content: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    for path, value in settings.items():
        nested: Any = value
        for name in reversed(full_path(path).split(".")):
            nested = {name: nested}
        content = _merged(content, nested)
    return content


def check_config(content: Mapping[str, Any]) -> RunConfig:
    """The config that a nested mapping describes.

    Raises:
        UnclipError: one line for each wrong setting, with its path.
    """
    try:
        return TypeAdapter(RunConfig).validate_python(dict(content))
    except ValidationError as error:
        raise UnclipError("; ".join(_explain(dict(problem)) for problem in error.errors())) from None


def full_path(path: str) -> str:
    """The full path of a setting that may leave out what lies between its section and its name.

    "prior.depth" is "prior.network.depth", because no other depth of the section lies less deep;
    "prior.autoregressive.depth" is "prior.autoregressive.network.depth".

    Raises:
        UnclipError: the short form could mean several settings.
    """
    parts = path.split(".")
    known = list(_leaves(RunConfig, ""))
    if len(parts) < 2 or path in known:
        return path
    meant = [leaf for leaf in known if _shortens(parts, leaf.split("."))]
    meant = [leaf for leaf in meant if leaf.count(".") == min(other.count(".") for other in meant)]
    if len(meant) > 1:
        raise UnclipError(f"{path} could mean {', '.join(meant)}; give one of them in full")
    return meant[0] if meant else path


def _shortens(short: list[str], full: list[str]) -> bool:
    """Whether leaving out something between the first and the last name of `full` gives `short`."""
    between = iter(full[1:-1])
    return short[0] == full[0] and short[-1] == full[-1] and all(name in between for name in short[1:-1])


def _leaves(kind: Any, prefix: str) -> Iterator[str]:
    for name, hinted in get_type_hints(kind).items():
        inner = _dataclass_in(hinted)
        if inner is None:
            yield prefix + name
        else:
            yield from _leaves(inner, f"{prefix}{name}.")


def _dataclass_in(hinted: Any) -> Any:
    """The dataclass that a type hint is, or allows beside None."""
    return next((kind for kind in (hinted, *get_args(hinted)) if is_dataclass(kind)), None)


def _read_file(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text()) if file.suffix == ".json" else tomllib.loads(file.read_text())
        return content
    except FileNotFoundError:
        raise UnclipError(f"expected a config file {file}, but there is none") from None
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UnclipError(f"{file} is not {'JSON' if file.suffix == '.json' else 'TOML'}: {error}") from None


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        held = merged.get(name)
        merged[name] = _merged(held, value) if isinstance(value, Mapping) and isinstance(held, Mapping) else value
    return merged


def _explain(problem: Mapping[str, Any]) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "unexpected_keyword_argument":
        known = _names_at(list(problem["loc"][:-1]))
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(known)}"
        return f"unknown setting {path}{hint}"
    came = f", got {problem['input']!r}" if not isinstance(problem["input"], Mapping) else ""
    return f"{path or 'config'}: {str(problem['msg']).removeprefix('Value error, ')}{came}"


def _names_at(path: list[Any]) -> list[str]:
    section: Any = RunConfig
    for name in (name for name in path if not isinstance(name, int)):  # a number stands for an entry of a list
        section = _dataclass_in(get_type_hints(section)[str(name)])
    return sorted(get_type_hints(section))


def as_dict(config: RunConfig) -> dict[str, Any]:
    """The config as nested plain values, as `check_config` takes them."""
    return asdict(config)
