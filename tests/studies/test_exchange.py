"""Finished studies as one file: exact round trips, and refusals that write nothing."""

import json
import shutil
import sqlite3
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autopeft.errors import StorageError
from autopeft.search.trial import Failure, FailureKind, TrialState
from autopeft.spaces.space import SearchSpace
from autopeft.studies import exchange
from autopeft.studies.confirmation import SERVED
from autopeft.studies.definition import StudyDefinition
from autopeft.studies.exchange import export_studies, import_studies
from autopeft.studies.load import spec_from_mapping
from autopeft.studies.lock import StudyLock
from autopeft.studies.portable import VERSION, PortableStudy, read_studies, write_studies
from autopeft.studies.records import RunRecord, TrialRecord
from autopeft.studies.storage import StudyStorage
from autopeft.studies.study import Study
from tests.studies.projects import study_data
from tests.studies.runs import refused, succeed
from tests.studies.support import OBJECTIVES, measurement, small_space

SPACE = small_space()


def fill(url: str, *names: str) -> None:
    """Studies of five trials: three completed, one failed, one running."""
    with StudyStorage.open(url, create=True) as storage:
        for seed, name in enumerate(names):
            spec = spec_from_mapping(study_data(study=name, tracking__mlflow="http://me:secret@host"))
            identity = json.loads(SPACE.fingerprint())
            definition = StudyDefinition(objectives=OBJECTIVES, spec=spec.to_mapping(), space=identity)
            stored = storage.create(name, definition)
            write_trials(stored.start, stored.finish, SPACE, seed=seed)
            stored.set_attr("noted", {"trial": 1, "accuracy": 0.1 + 0.2})
            written = {**definition.spec, "study": f"{name}/confirm", SERVED: name}
            serving = storage.create(f"{name}/confirm", replace(definition, spec=written))
            write_trials(serving.start, serving.finish, SPACE, seed=seed + 10)


def write_trials(
    start: Callable[[SearchSpace, list[TrialRecord]], list[int]],
    finish: Callable[[int, TrialState, RunRecord], None],
    space: SearchSpace,
    *,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    records = [TrialRecord(configuration=row, predicted={"parameters": 96.0}, epochs=2) for row in space.sample(rng, 5)]
    for number in start(space, records)[:3]:
        row = measurement(records[number].configuration, 2, rng.random())
        finish(number, TrialState.COMPLETED, RunRecord(started=100.25, ended=101.0 + rng.random(), measurements=(row,)))
    failure = Failure(kind=FailureKind.OOM, message="no room\nat all ü")
    finish(3, TrialState.FAILED, RunRecord(started=1.0, ended=2.0, failure=failure))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "old.db"
    fill(f"sqlite:///{path}", "rte", "cola")
    return path


@pytest.fixture
def url(made: Path, tmp_path: Path) -> str:
    shutil.copy(made, tmp_path / "old.db")
    return f"sqlite:///{tmp_path}/old.db"


def dump(database: Path) -> list[str]:
    with sqlite3.connect(database) as connection:
        return sorted(connection.iterdump())


def test_a_round_trip_gives_the_same_front_trials_and_history(url: str, tmp_path: Path) -> None:
    file = export_studies(["rte", "cola"], tmp_path / "team.autopeft", storage=url)
    there = f"sqlite:///{tmp_path}/new.db"
    assert import_studies(file, storage=there) == ("rte", "cola")
    for name in ("rte", "cola"):
        old, new = Study.open(name, storage=url), Study.open(name, storage=there)
        assert len(new.history()) == 5
        assert new.history() == old.history()
        assert new.front() == old.front()
        assert new.shape() == old.shape()
        with StudyStorage.open(url) as one, StudyStorage.open(there) as other:
            assert other.study(name).runs() == one.study(name).runs()
            assert other.study(f"{name}/confirm").runs() == one.study(f"{name}/confirm").runs()
            assert other.names() == one.names()
            assert other.study(name).get_attr("noted") == {"trial": 1, "accuracy": 0.1 + 0.2}
            (left,) = other.study(name).definition.differences(one.study(name).definition)[:1] or ("",)
            assert left == ""
    again = export_studies(["rte", "cola"], tmp_path / "again.autopeft", storage=there)
    assert again.read_bytes() == file.read_bytes()


def test_optuna_sees_the_same_parameters_and_values(url: str, tmp_path: Path) -> None:
    import_studies(export_studies(["rte"], tmp_path / "f", storage=url), storage=f"sqlite:///{tmp_path}/new.db")
    with StudyStorage.open(url) as one, StudyStorage.open(f"sqlite:///{tmp_path}/new.db") as other:
        old, new = (s.database.get_all_trials(s.study("rte").study_id) for s in (one, other))
        assert [(t.params, t.distributions, t.values, t.state) for t in new] == [
            (t.params, t.distributions, t.values, t.state) for t in old
        ]
        assert [(t.datetime_start, t.datetime_complete) for t in new] == [
            (t.datetime_start, t.datetime_complete) for t in old
        ]
        ids = [s.study("rte").study_id for s in (one, other)]
        assert one.database.get_study_system_attrs(ids[0]) == other.database.get_study_system_attrs(ids[1])


def test_no_password_and_no_driver_leaves_the_storage(url: str, tmp_path: Path) -> None:
    with StudyStorage.open(url) as storage, StudyLock(storage.study("rte")):
        file = export_studies(["rte"], tmp_path / "f", storage=url)
    study, _ = read_studies(file)
    text = json.dumps(study.attrs)
    assert "secret" not in text
    assert "driver" not in study.attrs
    assert study.attrs["spec"]["tracking"] == {"mlflow": None}


def damaged(file: Path, change: Callable[[bytes], bytes]) -> Path:
    file.write_bytes(change(file.read_bytes()))
    return file


def rewritten(file: Path, **changes: object) -> Path:
    """The same file with other entries in its index."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["studies.json"] = json.dumps(json.loads(members["studies.json"]) | changes).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return file


CASES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "text": (lambda file: damaged(file, lambda _: b"study: rte\n"), "is not a file of exported studies"),
    "empty": (lambda file: damaged(file, lambda _: b""), "is not a file of exported studies"),
    "another zip": (lambda file: rewritten(file, kind="docx"), "is not a file of exported studies"),
    "half": (lambda file: damaged(file, lambda text: text[: len(text) // 2]), "is truncated or damaged"),
    "one byte short": (lambda file: damaged(file, lambda text: text[:-1]), "is truncated or damaged"),
    "a bit": (lambda file: damaged(file, lambda text: text[:900] + bytes([text[900] ^ 1]) + text[901:]), "damaged"),
    "newer": (lambda file: rewritten(file, version=VERSION + 1), "was written by a newer AutoPEFT 0.1.0 (version 2"),
    "no studies": (lambda file: rewritten(file, studies=[{}]), "is truncated or damaged"),
    "gone": (lambda file: file.rename(file.with_suffix(".away")).with_name("gone"), "there is no such file"),
    "folder": (lambda file: file.parent, "Is a directory"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_whole_study_file_is_refused_and_nothing_is_written(
    case: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = CASES[case]
    file = change(export_studies(["rte"], tmp_path / "f", storage=url))
    before = {path.name for path in tmp_path.iterdir()}
    said = refused(monkeypatch, capsys, "studies", "--import", str(file), "--storage", f"sqlite:///{tmp_path}/new.db")
    assert message in said
    assert "hint:" in said
    assert {path.name for path in tmp_path.iterdir()} == before


def resealed(file: Path, change: Callable[[PortableStudy], PortableStudy]) -> Path:
    studies = [change(study) for study in read_studies(file)]
    file.unlink()
    write_studies(file, studies)
    return file


def with_trial(study: PortableStudy, **changes: object) -> PortableStudy:
    return PortableStudy(name=study.name, attrs=study.attrs, trials=({**study.trials[0], **changes}, *study.trials[1:]))


def with_attrs(study: PortableStudy, **changes: object) -> PortableStudy:
    return PortableStudy(name=study.name, attrs={**study.attrs, **changes}, trials=study.trials)


UNREADABLE: dict[str, tuple[Callable[[PortableStudy], PortableStudy], str]] = {
    "state": (lambda study: with_trial(study, state="DREAMING"), "is damaged"),
    "values": (lambda study: with_trial(study, values=None), "is damaged"),
    "record": (lambda study: with_trial(study, attrs={"autopeft:trial": {}}), "is damaged"),
    "newer study": (lambda study: with_attrs(study, format=99), "was written by a newer AutoPEFT"),
    "spec of a later version": (
        lambda study: with_attrs(study, spec={**study.attrs["spec"], "quantum": 1}),
        "unknown key 'quantum'",
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_whole_file_with_a_study_that_cannot_be_read_is_refused(case: str, url: str, tmp_path: Path) -> None:
    change, message = UNREADABLE[case]
    file = resealed(export_studies(["rte"], tmp_path / "f", storage=url), change)
    with pytest.raises(StorageError, match=message):
        import_studies(file, storage=f"sqlite:///{tmp_path}/new.db")
    assert not (tmp_path / "new.db").exists()


def test_a_name_that_is_taken_refuses_the_whole_file(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = export_studies(["rte", "cola"], tmp_path / "f", storage=url)
    fill(f"sqlite:///{tmp_path}/new.db", "cola")
    before = dump(tmp_path / "new.db")
    said = refused(monkeypatch, capsys, "studies", "--import", str(file), "--storage", f"sqlite:///{tmp_path}/new.db")
    assert "has a study 'cola' already; nothing was imported" in said
    assert dump(tmp_path / "new.db") == before


def test_an_import_that_breaks_off_leaves_the_storage_as_it_was(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = export_studies(["rte", "cola"], tmp_path / "f", storage=url)
    there = f"sqlite:///{tmp_path}/new.db"
    fill(there, "mine")
    before = dump(tmp_path / "new.db")

    def broken(*_: object, **__: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(exchange, "publish_studies", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        import_studies(file, storage=there)
    assert [line for line in dump(tmp_path / "new.db") if "sqlite_sequence" not in line] == before


def test_a_name_taken_while_the_file_was_read_refuses_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = export_studies(["rte"], tmp_path / "f", storage=url)
    there = f"sqlite:///{tmp_path}/new.db"
    fill(there, "rte")
    before = dump(tmp_path / "new.db")
    monkeypatch.setattr(exchange, "_check_names", lambda *_: None)
    with pytest.raises(StorageError, match="one of the studies 'rte', 'rte/confirm' was made meanwhile"):
        import_studies(file, storage=there)
    assert dump(tmp_path / "new.db") == before


def test_the_command_line_moves_studies(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, there = str(tmp_path / "team.autopeft"), f"sqlite:///{tmp_path}/new.db"
    said = succeed(monkeypatch, capsys, "studies", "--export", "rte", "cola", "--out", file, "--storage", url)
    assert said == f"rte, cola: written to {file}\n"
    said = succeed(monkeypatch, capsys, "studies", "--import", file, "--storage", there, "--json")
    assert json.loads(said) == {"file": file, "studies": ["rte", "cola"]}
    shown = [succeed(monkeypatch, capsys, "trials", "rte", "--json", "--storage", place) for place in (url, there)]
    assert shown[0] == shown[1]


OPTIONS: list[tuple[tuple[str, ...], str]] = [
    (("--export", "rte"), "--out FILE is missing"),
    (("--export", "--out", "f"), "no study is named"),
    (("rte",), "rte: goes with --export only"),
    (("--out", "f"), "--out: goes with --export only"),
    (("--import", "f", "--export", "rte", "--out", "g"), "--import: takes every study of its file"),
    (("--export", "rte", "rte", "--out", "f"), "rte is named twice"),
    (("--export", "rta", "--out", "f"), "no study 'rta'; it has rte, cola"),
    (("--export", "rte", "--out", "old.db"), "old.db exists"),
    (("--export", "rte", "--out", "no/where/f"), "there is no folder no/where"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_options_that_do_not_belong_together_are_refused(
    options: tuple[str, ...],
    message: str,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(monkeypatch, capsys, "studies", *options, "--storage", url)
    assert [path.name for path in tmp_path.iterdir()] == ["old.db"]


def test_a_file_that_cannot_be_written_leaves_nothing(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        export_studies(["rte"], tmp_path / "f", storage=url)
    assert [path.name for path in tmp_path.iterdir()] == ["old.db"]
