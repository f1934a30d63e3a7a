"""The versions of a root's models: which are in use, which were tried and refused, and how to go back.

`versions.json` under the root is the only record. A version is a name and the sections of the config that made its models;
with them laid over the root's own config every command works with that version's folders.
"""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unclip.config import RunConfig, as_dict, check_config, load_config
from unclip.files import UnclipError, read_json, write_json
from unclip.layout import RUN_CONFIG
from unclip.models import paths_of
from unclip.roots import holding_run, local_root

LEDGER = "versions.json"
SECTIONS = ("prior", "decoder", "upsampler")  # of the config, that a version has of its own
TRAINED = ("prior", "decoder")  # the stages that a night goes on with

State = Literal["open", "used", "refused", "abandoned"]


@dataclass(frozen=True, kw_only=True)
class Version:
    """One set of models.

    Attributes:
        name: also that of its runs' and its report's folders.
        parent: the version whose models it went on from, "" for one that was trained from the start.
        sections: of the config, by their names; one without any goes by the root's own.
        data: the digest of the embedding store that it was trained on.
        rows: of that store.
        done: stages whose training has ended, be it by its bound.
        state: "open" until it is judged, then "used" or "refused"; "abandoned" where the data changed before its end.
        why: what decided.
        numbers: of its report, when it was judged.
        removed: whether its folders were removed to save space.
        began, ended: seconds since 1970.
    """

    name: str
    parent: str = ""
    sections: Mapping[str, Any] = field(default_factory=dict)
    last_shard: str = ""
    data: str = ""
    rows: int = 0
    done: Sequence[str] = ()
    state: State = "open"
    why: str = ""
    numbers: Mapping[str, float | None] = field(default_factory=dict)
    removed: bool = False
    began: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True)
class Ledger:
    """All versions of a root, the oldest first, and the names of those that were put to use, the latest last."""

    versions: tuple[Version, ...] = ()
    used: tuple[str, ...] = ()

    @property
    def current(self) -> Version | None:
        """The version in use."""
        return self.version(self.used[-1]) if self.used else None

    @property
    def open(self) -> Version | None:
        """The version that is in work, or was when a run died."""
        return next((version for version in self.versions if version.state == "open"), None)

    def version(self, name: str) -> Version:
        """One by its name.

        Raises:
            UnclipError: there is none.
        """
        found = next((version for version in self.versions if version.name == name), None)
        if found is None:
            known = ", ".join(version.name for version in self.versions) or "none yet"
            raise UnclipError(f"expected a version of the models, got {name!r}; there are {known} (`unclip runs` shows them)")
        return found

    def with_version(self, changed: Version) -> "Ledger":
        """With a version added, or in the place of the one of its name."""
        if all(version.name != changed.name for version in self.versions):
            return dataclasses.replace(self, versions=(*self.versions, changed))
        return dataclasses.replace(self, versions=tuple(changed if version.name == changed.name else version for version in self.versions))

    def using(self, name: str) -> "Ledger":
        """With a version put to use."""
        return dataclasses.replace(self, used=(*self.used, name))


def read_ledger(root: Path) -> Ledger:
    """The versions of a root; empty where no run has come so far.

    Raises:
        UnclipError: the record does not read as one.
    """
    path = root / LEDGER
    if not path.is_file():
        return Ledger()
    content = read_json(path)
    try:
        return Ledger(tuple(Version(**entry) for entry in content["versions"]), tuple(content["used"]))
    except (TypeError, KeyError) as error:
        raise UnclipError(f"{path} is not a record of this version of unclip ({error}); move it away, and the next run begins a new one") from None


def write_ledger(root: Path, ledger: Ledger) -> None:
    """Writes the versions of a root, whole or not at all."""
    write_json(root / LEDGER, {"versions": [dataclasses.asdict(version) for version in ledger.versions], "used": list(ledger.used)})


def sections_of(config: RunConfig) -> dict[str, Any]:
    """What a version keeps of a config."""
    content = as_dict(config)
    return {name: content[name] for name in SECTIONS}


def config_of(config: RunConfig, version: Version) -> RunConfig:
    """A root's config with the models of a version."""
    content = as_dict(config)
    evaluate = content["evaluate"] | {"run": version.name, "last_shard": version.last_shard}
    return check_config(content | dict(version.sections) | {"evaluate": evaluate})


def in_use(config: RunConfig) -> RunConfig:
    """A root's config with the models that are in use there; as it is where no run has come so far."""
    current = read_ledger(paths_of(config).root).current
    return config if current is None else config_of(config, current)


def remember(config: RunConfig) -> None:
    """Writes a config into its root, where later commands find it; of a version's models the root keeps its own sections."""
    path = paths_of(config).root / RUN_CONFIG
    if any(version.parent and version.name == config.evaluate.run for version in read_ledger(paths_of(config).root).versions):
        own = load_config(file=path)
        evaluate = dataclasses.replace(config.evaluate, run=own.evaluate.run, last_shard=own.evaluate.last_shard)
        config = dataclasses.replace(config, **{name: getattr(own, name) for name in SECTIONS}, evaluate=evaluate)
    content = as_dict(config)
    if not path.is_file() or read_json(path) != json.loads(json.dumps(content)):
        write_json(path, content)


def adopt(config: RunConfig, name: str) -> bool:
    """Puts models to use that came from elsewhere, on a root that has versions; False where it has none, and goes by its config.

    Args:
        config: the one that uses them.
    """
    root = paths_of(config).root
    ledger = read_ledger(root)
    if ledger.current is None:
        return False
    latest = ledger.versions[-1]
    new = Version(
        name=name, parent=ledger.current.name, sections=sections_of(config), last_shard=ledger.versions[0].last_shard, data=latest.data, rows=latest.rows,
        done=TRAINED, state="used", why="imported", began=now(), ended=now(),
    )  # fmt: skip
    write_ledger(root, ledger.with_version(new).using(name))
    return True


def put_to_use(root: str, name: str) -> str:
    """Puts a version to use that was judged before, whatever was said of it then; returns the name of the one that was in use.

    Raises:
        UnclipError: there is none of this name, its training has not ended, its folders are gone, it is in use, or a run is at work.
    """
    with holding_run(root):
        folder = local_root(root)
        ledger = read_ledger(folder)
        version = ledger.version(name)
        before = "" if ledger.current is None else ledger.current.name
        if before == name:
            raise UnclipError(f"{name} is in use already")
        if version.removed or version.state not in ("used", "refused"):
            state = "were removed to save space" if version.removed else "have not come to their end" if version.state == "open" else "were abandoned"
            raise UnclipError(f"the models of {name} {state}; `unclip runs --root {root}` shows which can be used")
        write_ledger(folder, ledger.with_version(dataclasses.replace(version, state="used", why="put to use by hand")).using(name))
    return before


def roll_back(root: str) -> tuple[str, str]:
    """Puts to use what was in use before; returns the names of the version that is left, which counts as refused, and of that one.

    Raises:
        UnclipError: there is none that is still there, or a run is at work.
    """
    with holding_run(root):
        folder = local_root(root)
        ledger = read_ledger(folder)
        current = ledger.current
        earlier = [place for place, name in enumerate(ledger.used) if current is not None and name != current.name and not ledger.version(name).removed]
        if current is None or not earlier:
            raise UnclipError(f"expected models that were in use before those of today, but there are none; `unclip runs --root {root}` shows what there is")
        left = dataclasses.replace(current, state="refused", why="rolled back by hand")
        write_ledger(folder, dataclasses.replace(ledger.with_version(left), used=ledger.used[: earlier[-1] + 1]))
        return left.name, ledger.used[earlier[-1]]


def now() -> float:
    """Seconds since 1970, whole ones."""
    return float(int(time.time()))
