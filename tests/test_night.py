"""Versions of a root's models: begun, gone on with, judged, chosen by hand, and removed. Nothing is trained here."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from tests.evaluation.test_gate import report
from tests.pipeline import copied, unclip
from unclip import night, versions
from unclip.checkpoint import read_tensors
from unclip.config import RunConfig, load_config
from unclip.data.manifest import read_manifest
from unclip.files import UnclipError, write_json
from unclip.gallery import RECORD
from unclip.models import paths_of
from unclip.roots import holding_run
from unclip.stages import run_stage
from unclip.training.run import last_checkpoint
from unclip.training.snapshot import whence
from unclip.versions import Version, in_use, read_ledger, write_ledger


@pytest.fixture
def config(root: Path, tmp_path: Path) -> RunConfig:
    """A finished root of one's own."""
    return load_config(file=copied(root, tmp_path / "root") / "run.json")


def grow(config: RunConfig) -> None:
    """As if the models had seen other data than there is now."""
    ledger = read_ledger(Path(config.root))
    write_ledger(Path(config.root), ledger.with_version(dataclasses.replace(ledger.versions[-1], data="of yesterday")))


def begun(config: RunConfig) -> night.Night:
    """A version that goes on from the one in use."""
    grow(config)
    found = night.begin(config)
    assert found is not None
    return found


def measured(config: RunConfig, pictures: float) -> None:
    """A report that says so."""
    write_json(paths_of(config).report / "report.json", report(pictures, {"scene": 0.5}))


def judged(config: RunConfig, pictures: float, before: float = 0.8) -> night.Night:
    """A version that was trained in no time, and measured."""
    of = begun(config)
    assert of.rival is not None
    for stage, folder in (("prior", "prior"), ("decoder", "decoder")):
        shutil.copytree(getattr(paths_of(of.rival), folder), getattr(paths_of(of.config), folder))
        of = night.trained(of, stage)
    measured(of.config, pictures)
    measured(of.rival, before)
    night.decide(of)
    return of


def test_the_first_run_made_a_version_and_nothing_is_left_to_do(config: RunConfig) -> None:
    ledger = read_ledger(Path(config.root))
    assert [(version.name, version.state, version.parent) for version in ledger.versions] == [("main", "used", "")]
    assert ledger.used == ("main",)
    assert night.is_idle(config)
    assert night.begin(config) is None


def test_new_data_makes_a_version_that_begins_with_the_weights_in_use(config: RunConfig) -> None:
    grow(config)
    assert not night.is_idle(config)
    of = night.begin(config)
    assert of is not None
    assert of.rival is not None
    assert (of.version.name, of.version.parent, of.version.state) == ("main-2", "main", "open")
    assert of.to_train == ("prior", "decoder")
    assert of.config.upsampler == config.upsampler
    assert of.config.decoder.training.num_steps == max(1, round(config.decoder.training.num_steps * config.night.steps))
    assert of.config.decoder.training.learning_rate == pytest.approx(config.decoder.training.learning_rate * config.night.learning_rate)
    ours, theirs = paths_of(of.config), paths_of(config)
    assert whence(ours.decoder, of.config.decoder.training.warm_start) == last_checkpoint(theirs.decoder, "decoder")
    for kind, section in (("diffusion", of.config.prior), ("regression", of.config.prior.regression), ("autoregressive", of.config.prior.autoregressive)):
        assert whence(ours.prior / kind, section.training.warm_start) == last_checkpoint(theirs.prior / kind, f"prior-{kind}")  # type: ignore[attr-defined]
    assert ours.report != theirs.report
    assert of.config.evaluate.last_shard == of.rival.evaluate.last_shard == "00002"  # the same held-out rows for both


def test_the_priors_of_a_night_begin_with_the_weights_in_use(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    of = begun(config)
    # what its codes mean is not learnt anew under a network that knows them
    monkeypatch.setattr("unclip.training.prior_autoregressive.fit_codes", lambda *_, **__: pytest.fail("the codes were fitted anew"))
    assert run_stage("prior", of.config)[1]
    ours, theirs = paths_of(of.config).prior, paths_of(config).prior
    for kind in ("diffusion", "autoregressive", "regression"):
        new, old = (read_tensors(last_checkpoint(run / kind, f"prior-{kind}") / "ema.safetensors") for run in (ours, theirs))
        assert new.keys() == old.keys()
        moved = {name: float((new[name].float() - old[name].float()).abs().max()) for name in new if name != "eps_square"}
        assert 0 < max(moved.values()) < 0.01, kind  # one step at a fifth of the rate: from the start they would be elsewhere
        assert all(distance == 0 for name, distance in moved.items() if name.startswith("codes."))


def test_a_run_that_died_is_gone_on_with_and_trains_no_stage_twice(config: RunConfig) -> None:
    of = night.trained(begun(config), "prior")
    again = night.unfinished(config)
    assert again is not None
    assert again == of
    assert again.to_train == ("decoder",)
    assert night.begin(config) == again


def test_data_that_changed_under_an_open_version_ends_it(config: RunConfig) -> None:
    of = begun(config)
    folder = paths_of(of.config).prior
    folder.mkdir(parents=True)
    grow(config)
    assert night.unfinished(config) is None
    new = night.begin(config)
    assert new is not None
    assert (new.version.name, new.version.parent) == ("main-3", "main")
    assert read_ledger(Path(config.root)).version("main-2").state == "abandoned"
    assert not folder.exists()


def test_settings_that_changed_under_an_open_version_end_it(config: RunConfig) -> None:
    of = begun(config)
    slower = dataclasses.replace(config, night=dataclasses.replace(config.night, learning_rate=0.01))
    left = night.unfinished(config)
    assert left is not None
    assert left.config == of.config
    assert night.unfinished(slower) is None
    new = night.begin(slower)
    assert new is not None
    assert (new.version.name, new.version.parent) == ("main-3", "main")
    assert new.config.decoder.training.learning_rate < of.config.decoder.training.learning_rate
    assert read_ledger(Path(config.root)).version("main-2").state == "abandoned"


def test_a_version_of_other_parents_is_not_gone_on_with(config: RunConfig) -> None:
    judged(config, 0.9)
    of = begun(config)
    assert of.version.parent == "main-2"
    assert versions.roll_back(config.root) == ("main-2", "main")
    assert night.unfinished(config) is None
    new = night.begin(config)
    assert new is not None
    assert (new.version.name, new.version.parent) == ("main-4", "main")


def test_finished_models_that_more_was_asked_of_are_not_trained_from_the_start_when_the_data_grows(config: RunConfig) -> None:
    shutil.rmtree(paths_of(config).report)
    reopened = night.begin(config)
    assert reopened is not None
    assert (reopened.version.name, reopened.version.state, reopened.rival) == ("main", "open", None)
    grow(config)
    new = night.begin(config)
    assert new is not None
    assert (new.version.name, new.version.parent) == ("main-2", "main")
    assert read_ledger(Path(config.root)).version("main").state == "used"


def test_good_models_are_put_to_use_and_every_command_uses_them(config: RunConfig) -> None:
    of = judged(config, 0.9)
    assert read_ledger(Path(config.root)).used == ("main", "main-2")
    assert in_use(config) == of.config
    assert night.begin(config) is None
    shown = unclip("runs", Path(config.root))
    assert shown.returncode == 0, shown.stderr
    assert "in use" in shown.stdout
    assert "pictures held: 0.800 before, 0.900 now" in shown.stdout
    made = unclip("generate", Path(config.root), "a red circle", "--out", str(Path(config.root) / "made"), "--num", "1")
    assert made.returncode == 0, made.stderr
    origins = json.loads((Path(config.root) / "made" / RECORD).read_text())["settings"]["models"]
    assert origins["decoder"].startswith("main-2 ")
    assert load_config(file=Path(config.root) / "run.json") == config  # what the user asked for stands as it was


def test_worse_models_are_refused_and_the_old_ones_stay(config: RunConfig) -> None:
    of = judged(config, 0.7)
    version = read_ledger(Path(config.root)).version(of.version.name)
    assert version.state == "refused"
    assert "pictures FELL: 0.800 before, 0.700 now" in version.why
    assert in_use(config).decoder.run == "main"
    assert night.begin(config) is None  # the same data is not tried again every night


def test_by_hand_models_are_put_to_use_and_left_again(config: RunConfig) -> None:
    root = config.root
    judged(config, 0.1)
    assert versions.put_to_use(root, "main-2") == "main"
    assert in_use(config).decoder.run == "main-2"
    assert versions.roll_back(root) == ("main-2", "main")
    assert in_use(config).decoder.run == "main"
    for call, said in ((lambda: versions.roll_back(root), "there are none"), (lambda: versions.put_to_use(root, "main"), "in use already")):
        with pytest.raises(UnclipError, match=said):
            call()
    with pytest.raises(UnclipError, match="there are main, main-2"):
        versions.put_to_use(root, "main-7")
    with holding_run(config.root), pytest.raises(UnclipError, match="another run"):
        versions.put_to_use(root, "main-2")


def test_an_open_version_cannot_be_put_to_use(config: RunConfig) -> None:
    begun(config)
    with pytest.raises(UnclipError, match="have not come to their end"):
        versions.put_to_use(config.root, "main-2")


def test_versions_beyond_those_that_are_kept_are_removed(config: RunConfig) -> None:
    for pictures in (0.8, 0.2, 0.3, 0.81):
        judged(config, pictures)
    older = Path(config.root) / "decoder/main-4/step-00000001"  # of a version that stays
    shutil.copytree(last_checkpoint(older.parent, "decoder"), older)
    kept = dataclasses.replace(config, night=dataclasses.replace(config.night, keep=1))
    assert night.tidy(kept) == ["main", "main-3"]  # of ("main", "main-2") and ("main-3", "main-4") the newer ones stay, main-5 is in use
    root = Path(config.root)
    assert sorted(path.name for path in (root / "decoder").iterdir()) == ["main-2", "main-4", "main-5"]
    assert not older.exists()
    assert last_checkpoint(older.parent, "decoder").is_dir()
    assert (root / "upsampler" / "main").is_dir()  # theirs too
    assert read_ledger(root).version("main").removed
    with pytest.raises(UnclipError, match="removed to save space"):
        versions.put_to_use(config.root, "main")
    assert versions.roll_back(config.root) == ("main-5", "main-2")
    assert night.tidy(kept) == ["main-4"]


def test_a_record_that_is_none_is_one_line(config: RunConfig) -> None:
    (Path(config.root) / "versions.json").write_text('{"versions": [{"nmae": "x"}], "used": []}')
    with pytest.raises(UnclipError, match="not a record of this version"):
        read_ledger(Path(config.root))


def test_imported_models_are_a_version(config: RunConfig) -> None:
    imported = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, run="elsewhere"))
    assert versions.adopt(imported, "elsewhere")
    assert in_use(config).decoder.run == "elsewhere"
    assert night.begin(config) is None
    manifest = read_manifest(paths_of(config).decoder)
    assert manifest is not None
    assert versions.roll_back(config.root) == ("elsewhere", "main")


def test_without_versions_nothing_changes(tmp_path: Path) -> None:
    fresh = load_config(preset="tiny", settings={"root": str(tmp_path)})
    assert in_use(fresh) == fresh
    assert not versions.adopt(fresh, "elsewhere")
    assert night.tidy(fresh) == []
    assert Version(name="a").state == "open"
