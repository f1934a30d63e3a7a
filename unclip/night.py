"""What a run does beyond its stages: begins a version of the models, goes on with one that a run left open, and judges it.

The first version is trained from the start. Later ones begin with the weights of the version in use and go on for a
bounded time on the data as it is then; both are measured on the same held-out rows, and the rules of the config decide.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unclip import checkpoint
from unclip.config import RunConfig
from unclip.data.cache import FOLDER as CACHE
from unclip.data.manifest import finished_manifest, read_manifest
from unclip.data.store import part_paths, rows_digest
from unclip.evaluation.gate import NightConfig, Verdict, judge, numbers_of
from unclip.files import UnclipError, read_json, remove
from unclip.layout import Paths
from unclip.models import paths_of
from unclip.prior.condition import PriorKind
from unclip.roots import bring_down
from unclip.stages import STAGES, bring_records, is_done
from unclip.training.config import TrainingConfig
from unclip.versions import SECTIONS, TRAINED, Ledger, State, Version, config_of, now, read_ledger, sections_of, write_ledger

DATA = ("source", "download", "curate", "clip", "embed", "select", "index")
REPORT = "report.json"


@dataclass(frozen=True)
class Night:
    """A version that is in work.

    Attributes:
        config: the root's config with the models of this version.
        rival: the same with the models in use, that it is measured against; None for the first version.
    """

    version: Version
    config: RunConfig
    rival: RunConfig | None

    @property
    def to_train(self) -> tuple[str, ...]:
        """The stages that have anything left to train. The upsamplers know no caption and no embedding, and stay as they were."""
        return tuple(name for name in TRAINED if name not in self.version.done) if self.version.parent else SECTIONS


def check(config: RunConfig) -> None:
    """Looks whether a config fits the root before anything is done; models only where the first version goes by it still.

    Raises:
        UnclipError: a folder was made with another config.
    """
    bring_records(config)
    for name in DATA if read_ledger(paths_of(config).root).current else STAGES:
        is_done(name, config)


def is_idle(config: RunConfig) -> bool:
    """Whether a run would change nothing: the data is as the source has it, and the latest version has seen it to its end.

    Raises:
        UnclipError: a folder was made with another config.
    """
    bring_records(config)
    if any(not is_done(name, config) for name in DATA):
        return False
    ledger = read_ledger(paths_of(config).root)
    current = ledger.current
    if current is None or ledger.open is not None or ledger.versions[-1].data != _digest(paths_of(config)):
        return False
    return not _wants_more(config, ledger, current)


def unfinished(config: RunConfig) -> Night | None:
    """The version that an earlier run left open on the data that the root still has: it is finished before new rows are read."""
    ledger = read_ledger(paths_of(config).root)
    version = ledger.open
    if version is None or not version.data or version.data != _digest(paths_of(config)) or not _is_wanted(config, ledger, version):
        return None
    return _night(config, ledger, version)


def begin(config: RunConfig) -> Night | None:
    """The version to work on now that the data stages are done; None where the models have seen this data already.

    Raises:
        UnclipError: a data stage has not finished.
    """
    paths = paths_of(config)
    bring_down(config.root, ("embeddings",))
    root, ledger = paths.root, read_ledger(paths.root)
    finished_manifest(paths.selected, "select")
    data = _digest(paths)
    if (left := ledger.open) is not None:
        if left.data == data and _is_wanted(config, ledger, left):
            return _night(config, ledger, left)
        if not left.parent and left.name not in ledger.used:  # the first ones, which learn from what there is by now
            return _night(config, *_put(root, ledger, dataclasses.replace(left, data=data, rows=_rows(paths), last_shard=_last_shard(paths))))
        ledger = _given_up(config, ledger, left)
    current = ledger.current
    if current is not None and ledger.versions[-1].data == data and ledger.versions[-1].state != "abandoned":
        return _night(config, *_put(root, ledger, dataclasses.replace(current, state="open"))) if _wants_more(config, ledger, current) else None
    if current is None:
        version = Version(name=config.evaluate.run, last_shard=_last_shard(paths), began=now())
    else:
        taken = {version.name for version in ledger.versions}
        name = next(name for number in itertools.count(len(taken) + 1) if (name := f"{ledger.versions[0].name}-{number}") not in taken)
        version = Version(name=name, parent=current.name, sections=_continued(config, current, name), last_shard=ledger.versions[0].last_shard, began=now())
    return _night(config, *_put(root, ledger, dataclasses.replace(version, data=data, rows=_rows(paths))))


def _given_up(config: RunConfig, ledger: Ledger, left: Version) -> Ledger:
    """The versions without one that is open: it is abandoned and its folders go, or, where it was finished before more was asked of it, it stays as it was."""
    root = paths_of(config).root
    if left.name in ledger.used:
        return _put(root, ledger, dataclasses.replace(left, state="used"))[0]
    kept = [paths_of(config_of(config, version)) for version in ledger.versions if version.name != left.name]
    remove_folders(paths_of(config_of(config, left)), kept)
    return _put(root, ledger, dataclasses.replace(left, state="abandoned", why="the data or the settings changed before its end", ended=now()))[0]


def trained(night: Night, stage: str) -> Night:
    """Notes that a stage of a version has been trained, so that a run that goes on does not train it for another night."""
    ledger = read_ledger(paths_of(night.config).root)
    version = ledger.version(night.version.name)
    _, changed = _put(paths_of(night.config).root, ledger, dataclasses.replace(version, done=[*version.done, stage]))
    return dataclasses.replace(night, version=changed)


def decide(night: Night) -> list[Verdict]:
    """Puts a version to use, or refuses it; the reports of both must be there. Returns what each rule said."""
    root, ledger = paths_of(night.config).root, read_ledger(paths_of(night.config).root)
    after = read_json(paths_of(night.config).report / REPORT)
    before = None if night.rival is None else read_json(paths_of(night.rival).report / REPORT)
    verdicts = [] if before is None else judge(before, after, night.config.night.rules)
    passed = all(verdict.passed for verdict in verdicts)
    why = "; ".join(map(str, verdicts)) if verdicts else "the first models"
    state: State = "used" if passed else "refused"
    judged = dataclasses.replace(night.version, state=state, why=why, numbers=numbers_of(after), ended=now())
    ledger = ledger.with_version(judged)
    if before is not None:  # measured again on tonight's data
        ledger = ledger.with_version(dataclasses.replace(ledger.version(judged.parent), numbers=numbers_of(before)))
    write_ledger(root, ledger.using(judged.name) if passed and ledger.current != judged else ledger)
    return verdicts


def tidy(config: RunConfig) -> list[str]:
    """Removes what is kept for nothing: versions beyond those that the config keeps, older checkpoints of those it keeps, training caches.

    Returns:
        the versions whose folders went.
    """
    root, ledger = paths_of(config).root, read_ledger(paths_of(config).root)
    if ledger.current is None:
        return []
    ended = [version for version in ledger.versions if version.state in ("used", "refused") and version != ledger.current and not version.removed]
    spare = {state: [version for version in ended if version.state == state] for state in ("used", "refused")}
    surplus = [version for versions in spare.values() for version in versions[: max(0, len(versions) - config.night.keep)]]
    kept = [paths_of(config_of(config, version)) for version in ledger.versions if version not in surplus and not version.removed]
    for version in surplus:
        remove_folders(paths_of(config_of(config, version)), kept)
        ledger, _ = _put(root, ledger, dataclasses.replace(version, removed=True))
    for version in ledger.versions:
        if version.state in ("used", "refused") and not version.removed:
            _keep_last_checkpoints(paths_of(config_of(config, version)))
    remove(paths_of(config).embeddings / CACHE)
    return [version.name for version in surplus]


def remove_folders(of: Paths, kept: Sequence[Paths]) -> None:
    """Removes the folders of a version's models and report, but none that another one of those that are kept has too."""
    for name in ("prior", "decoder", "upsampler", "report"):
        folder: Path = getattr(of, name)
        if all(folder != getattr(other, name) for other in kept):
            remove(folder)


def _keep_last_checkpoints(paths: Paths) -> None:
    for run in [*sorted(paths.prior.glob("*")), paths.decoder, *sorted(paths.upsampler.glob("*"))]:
        manifest = read_manifest(run) if run.is_dir() else None
        if manifest is not None and manifest.finished:
            checkpoint.keep_checkpoints(run, 1)


def _night(config: RunConfig, ledger: Ledger, version: Version) -> Night:
    current = ledger.version(version.parent) if version.parent else None
    return Night(version, config_of(config, version), None if current is None else _measured_like(config, current, version))


def _measured_like(config: RunConfig, current: Version, version: Version) -> RunConfig:
    return config_of(config, dataclasses.replace(current, last_shard=version.last_shard))


def _wants_more(config: RunConfig, ledger: Ledger, current: Version) -> bool:
    """Whether the config asks for more of models that go by it: another kind of prior, more steps, another measurement."""
    if current.parent or current != ledger.versions[-1]:
        return False
    theirs = config_of(config, current)
    bring_records(theirs)
    return any(not is_done(name, theirs) for name in (*SECTIONS, "evaluate"))


def _is_wanted(config: RunConfig, ledger: Ledger, left: Version) -> bool:
    """Whether a version that was left open is still what would be begun: with these settings, from the weights in use.

    So one whose rate was too high is not tried again every night.
    """
    if not left.parent:
        return True
    if ledger.current is None or left.parent != ledger.current.name:
        return False
    today = dataclasses.replace(left, sections=_continued(config, ledger.version(left.parent), left.name))
    return config_of(config, left) == config_of(config, today)


def _put(root: Path, ledger: Ledger, version: Version) -> tuple[Ledger, Version]:
    changed = ledger.with_version(version)
    write_ledger(root, changed)
    return changed, version


def _digest(paths: Paths) -> str:
    try:
        return rows_digest(paths.embeddings)
    except UnclipError:
        return ""  # no store yet


def _rows(paths: Paths) -> int:
    return int(finished_manifest(paths.selected, "select").counts["kept"])


def _last_shard(paths: Paths) -> str:
    return part_paths(paths.embeddings)[-1].stem


def _continued(config: RunConfig, current: Version, name: str) -> dict[str, Any]:
    """The sections of a version that goes on from another: fewer steps, a lower rate, and its weights to begin with.

    A kind of prior that the other one does not have is trained from the start.
    """
    theirs, night = config_of(config, current), config.night

    def going_on(training: TrainingConfig, kind: PriorKind) -> TrainingConfig:
        there = (paths_of(theirs).prior / kind).is_dir()
        return _cut_down(training, f"../../{theirs.prior.run}/{kind}", night) if there else training

    prior = dataclasses.replace(
        config.prior,
        run=name,
        training=going_on(config.prior.training, "diffusion"),
        autoregressive=dataclasses.replace(config.prior.autoregressive, training=going_on(config.prior.autoregressive.training, "autoregressive")),
        regression=dataclasses.replace(config.prior.regression, training=going_on(config.prior.regression.training, "regression")),
    )
    decoder = dataclasses.replace(config.decoder, run=name, training=_cut_down(config.decoder.training, f"../{theirs.decoder.run}", night))
    return sections_of(dataclasses.replace(config, prior=prior, decoder=decoder, upsampler=theirs.upsampler))


def _cut_down(training: TrainingConfig, begin_with: str, night: NightConfig) -> TrainingConfig:
    """A training that lasts no longer than a night, and begins with the weights of another run."""
    minutes = [bound for bound in (training.max_minutes, night.max_minutes) if bound]
    return dataclasses.replace(
        training,
        num_steps=max(1, round(training.num_steps * night.steps)),
        learning_rate=training.learning_rate * night.learning_rate,
        warm_start=begin_with,
        max_minutes=min(minutes, default=0.0),
    )
