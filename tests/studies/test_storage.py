"""The study storage: round trips, refusals, and what others see of it."""

import json
import sqlite3
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import event

from autopeft.errors import MissingExtraError, NotFoundError, StorageError
from autopeft.search.trial import Failure, FailureKind, TrialState
from autopeft.spaces.canonical import read_configuration
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.space import SearchSpace
from autopeft.studies.database import translated
from autopeft.studies.definition import StudyDefinition
from autopeft.studies.records import RunRecord, TrialRecord
from autopeft.studies.storage import StoredStudy, StudyStorage
from tests.spaces.builders import shape
from tests.studies.support import OBJECTIVES, definition, measurement, open_study, small_space

SPACE = small_space()


def records(n: int, *, seed: int = 0) -> list[TrialRecord]:
    drawn = SPACE.sample(np.random.default_rng(seed), n)
    return [TrialRecord(configuration=row, predicted=SPACE.predicted(row), epochs=2) for row in drawn]


def complete(study: StoredStudy, number: int, record: TrialRecord, *, accuracy: float = 0.5) -> RunRecord:
    rows = tuple(measurement(record.configuration, epoch, accuracy) for epoch in (1, 2))
    run = RunRecord(started=100.0, ended=103.5, measurements=rows)
    study.finish(number, TrialState.COMPLETED, run)
    return run


def test_a_trial_comes_back_as_it_was_written(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    first, second, third = records(3)
    assert study.start(SPACE, [first, second, third]) == [0, 1, 2]
    run = complete(study, 0, first)
    failure = Failure(kind=FailureKind.OOM, message="no room")
    study.finish(1, TrialState.FAILED, RunRecord(started=1.0, ended=2.0, failure=failure))
    study.save(2, RunRecord(started=5.0, measurements=run.measurements[:1]))

    done, failed, running = open_study(tmp_path).history()

    assert (done.configuration, done.state, done.measurements) == (
        first.configuration,
        TrialState.COMPLETED,
        run.measurements,
    )
    assert (done.predicted, done.seconds, done.failure) == (first.predicted, 3.5, None)
    assert (failed.state, failed.failure, failed.final) == (TrialState.FAILED, failure, None)
    assert (running.state, running.measurements, running.seconds) == (TrialState.RUNNING, run.measurements[:1], 0.0)


def test_every_configuration_survives_its_json() -> None:
    for record in records(200, seed=1):
        row = record.configuration
        assert read_configuration(json.loads(json.dumps(row.to_json()))) == row


def test_rates_of_methods_are_stored_as_parameters_and_come_back(tmp_path: Path) -> None:
    mapping = {"lora": {"rank": "choice(0, 2)", "learning_rate": "log(1e-4, 1e-3)"}, "ssf": {"enabled": 1}}
    space = SearchSpace.bind(SpaceDefinition.from_mapping(mapping), shape(2, hidden=48, heads=4))
    rows = {len(row.methods): row for row in space.sample(np.random.default_rng(0), 20)}
    study = open_study(tmp_path)
    study.start(space, [TrialRecord(configuration=rows[n], predicted={}, epochs=1) for n in (1, 2)])
    assert [trial.configuration for trial in open_study(tmp_path).history()] == [rows[1], rows[2]]
    alone, both = study.storage.database.get_all_trials(study.study_id)
    assert "lora.learning_rate" not in alone.params
    assert both.params["lora.learning_rate"] == rows[2].methods[0].learning_rate
    assert both.distributions["lora.learning_rate"].log


def test_a_method_of_a_later_version_is_named() -> None:
    (record,) = records(1)
    row = record.to_json() | {"configuration": {"dora2": {"layers": [0], "rank": 4}}}
    with pytest.raises(StorageError, match="a trial's configuration: unknown method 'dora2'; this version has"):
        TrialRecord.from_json(row)


def test_numbers_of_numpy_are_stored_as_plain_ones(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    (record,) = records(1)
    study.start(SPACE, [record])
    row = measurement(record.configuration, 1, np.float32(0.25))  # type: ignore[arg-type]  # what careless trainers give
    study.finish(0, TrialState.COMPLETED, RunRecord(started=0.0, ended=1.0, measurements=(row,)))
    assert study.history().completed[0].measurements[0].metrics == {"accuracy": 0.25}


def test_optuna_reads_the_study_as_its_own(tmp_path: Path) -> None:
    import optuna

    study = open_study(tmp_path)
    rows = records(3)
    for number, record in zip(study.start(SPACE, rows), rows, strict=True):
        complete(study, number, record, accuracy=0.1 * number)

    theirs = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/studies.db")

    assert [direction.name for direction in theirs.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert theirs.metric_names == ["accuracy", "parameters"]
    assert theirs.trials[2].params == SPACE.spell(rows[2].configuration)
    assert theirs.trials[2].values[0] == pytest.approx(0.2)
    assert len(theirs.best_trials) >= 1
    assert optuna.visualization.plot_pareto_front(theirs).data


def test_finished_trials_never_change(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    (record,) = records(1)
    study.start(SPACE, [record])
    run = complete(study, 0, record)
    before = study.history()
    for change in (lambda: study.save(0, run), lambda: study.finish(0, TrialState.FAILED, run)):
        with pytest.raises(StorageError, match="trial 0 is finished, and finished trials never change"):
            change()
    assert study.history() == before
    with pytest.raises(NotFoundError, match="no trial 7"):
        study.save(7, run)


def test_resuming_with_another_definition_lists_what_differs(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    with StudyStorage.open(url, create=True) as storage:
        storage.create("s", definition(training={"epochs": 5}, search={"seed": 0, "trials": 3}))
        with pytest.raises(StorageError) as caught:
            storage.create("s", definition(training={"epochs": 3}, search={"seed": 1, "trials": 9}, model="other"))
    text = str(caught.value)
    assert "training.epochs: 5 there, 3 here" in text
    assert "search.seed: 0 there, 1 here" in text
    assert "model: absent there, 'other' here" in text
    assert "trials" not in text
    assert "give this study another name" in text


def test_another_space_or_objective_is_another_study(tmp_path: Path) -> None:
    with StudyStorage.open(f"sqlite:///{tmp_path}/studies.db", create=True) as storage:
        storage.create("s", definition())
        other = StudyDefinition(objectives=OBJECTIVES, spec={"study": "s"}, space={"definition": {"lora": 2}})
        with pytest.raises(StorageError, match=r"space\.definition\.lora: 1 there, 2 here"):
            storage.create("s", other)
        fewer = StudyDefinition(objectives=OBJECTIVES[:1], spec={"study": "s"}, space={"definition": {"lora": 1}})
        with pytest.raises(StorageError, match="objectives"):
            storage.create("s", fewer)


def test_budget_resources_and_tracking_may_change(tmp_path: Path) -> None:
    with StudyStorage.open(f"sqlite:///{tmp_path}/studies.db", create=True) as storage:
        storage.create("s", definition(search={"trials": 3}, resources={"max_jobs": 1}, tracking=None))
        storage.create("s", definition(search={"trials": 9}, resources={}, tracking={"mlflow": "x"}))
        assert storage.study("s").definition.spec["search"] == {"trials": 9}


def test_a_study_killed_while_it_was_made_is_made_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    with StudyStorage.open(url, create=True) as storage:
        from optuna.study import StudyDirection

        storage.database.create_new_study([StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE], "s")
        with pytest.raises(NotFoundError, match="no study 's'"):
            storage.study("s")
        storage.create("s", definition())
        assert [summary.name for summary in storage.studies()] == ["s"]


def test_a_study_of_plain_optuna_is_not_touched(tmp_path: Path) -> None:
    import optuna

    url = f"sqlite:///{tmp_path}/studies.db"
    theirs = optuna.create_study(storage=url, study_name="s")
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with StudyStorage.open(url, create=True) as storage:
        for attempt in (lambda: storage.create("s", definition()), lambda: storage.study("s")):
            with pytest.raises(StorageError, match="was made by another program with Optuna"):
                attempt()
        assert storage.studies() == ()
        storage.create("ours", definition())
    assert len(theirs.trials) == 1


def test_studies_are_summed_up(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    rows = records(2)
    study.start(SPACE, rows)
    complete(study, 0, rows[0])
    (summary,) = study.storage.studies()
    assert (summary.name, summary.objectives) == ("s", OBJECTIVES)
    assert summary.trials == {
        TrialState.RUNNING: 1,
        TrialState.COMPLETED: 1,
        TrialState.PRUNED: 0,
        TrialState.FAILED: 0,
    }


def test_an_unknown_study_is_answered_with_those_there_are(tmp_path: Path) -> None:
    storage = open_study(tmp_path, "rte").storage
    storage.create("sst2", definition())
    with pytest.raises(NotFoundError, match="no study 'mrpc'; it has rte, sst2"):
        storage.study("mrpc")


def test_a_study_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    study.set_attr("format", 99)
    with pytest.raises(StorageError, match=r"newer AutoPEFT \(format 99, this one reads 1\)"):
        study.storage.study("s")


def test_attributes_are_kept_and_swapped_only_when_unchanged(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    assert study.get_attr("outbox") is None
    study.set_attr("outbox", {"runs": [1, 2]})
    assert study.get_attr("outbox") == {"runs": [1, 2]}
    assert not study.swap_attr("outbox", None, 1)
    assert not study.swap_attr("outbox", {"runs": []}, 1)
    assert study.swap_attr("outbox", {"runs": [1, 2]}, 1)
    assert study.swap_attr("fresh", None, "a")
    assert study.get_attr("fresh") == "a"


def test_of_many_swaps_at_once_one_wins(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    won: list[int] = []

    def swap(index: int) -> None:
        if study.swap_attr("driver", None, index):
            won.append(index)

    threads = [threading.Thread(target=swap, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert study.get_attr("driver") == won[0]


def test_a_reader_is_served_while_trials_are_written(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    rows = records(15)
    seen: list[int] = []

    def read() -> None:
        with StudyStorage.open(f"sqlite:///{tmp_path}/studies.db") as storage:
            while len(seen) < 200 and (not seen or seen[-1] < len(rows)):
                seen.append(len(storage.study("s").history()))

    reader = threading.Thread(target=read)
    reader.start()
    for record in rows:
        study.start(SPACE, [record])
    reader.join()
    assert seen == sorted(seen)
    assert seen[-1] == len(rows)


def test_a_deleted_study_leaves_nothing(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    study.start(SPACE, records(1))
    study.delete()
    assert study.storage.studies() == ()


class TestBadStorages:
    def test_no_url(self) -> None:
        with pytest.raises(StorageError, match=r"got 'studies\.db'; a database URL .* write sqlite:///studies\.db"):
            StudyStorage.open("studies.db", create=True)

    def test_a_database_in_memory(self) -> None:
        with pytest.raises(StorageError, match="in memory"):
            StudyStorage.open("sqlite://", create=True)

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="is a folder"):
            StudyStorage.open(f"sqlite:///{tmp_path}", create=True)

    def test_no_such_folder(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match=r"there is no folder .*mkdir -p"):
            StudyStorage.open(f"sqlite:///{tmp_path}/none/a.db", create=True)

    def test_a_place_that_cannot_be_written(self) -> None:
        with pytest.raises(StorageError, match=r"choose another --storage|folder exists and is writable"):
            StudyStorage.open("sqlite:////proc/a.db", create=True)

    @pytest.mark.parametrize("content", [None, b""])
    def test_reading_makes_no_file(self, tmp_path: Path, content: bytes | None) -> None:
        path = tmp_path / "a.db"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(NotFoundError, match="run `autopeft search` first"):
            StudyStorage.open(f"sqlite:///{path}")
        assert (path.read_bytes() if path.exists() else None) == content

    def test_a_text_file(self, tmp_path: Path) -> None:
        path = tmp_path / "notes.txt"
        path.write_text("my notes, more than sixteen bytes")
        with pytest.raises(StorageError, match="is not an SQLite database"):
            StudyStorage.open(f"sqlite:///{path}", create=True)
        assert path.read_text() == "my notes, more than sixteen bytes"

    @pytest.mark.parametrize("create", [True, False])
    def test_another_programs_database_stays_as_it_is(self, tmp_path: Path, *, create: bool) -> None:
        path = tmp_path / "shop.db"
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE orders (id INTEGER)")
            connection.execute("CREATE TABLE alembic_version (version_num VARCHAR)")
        before = path.read_bytes()
        with pytest.raises(StorageError, match=r"another program's database \(its tables: alembic_version, orders\)"):
            StudyStorage.open(f"sqlite:///{path}", create=create)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_an_empty_database_holds_no_studies(self, tmp_path: Path) -> None:
        path = tmp_path / "empty.db"
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE x (id INTEGER)")
            connection.execute("DROP TABLE x")
        with pytest.raises(NotFoundError, match="holds no studies"):
            StudyStorage.open(f"sqlite:///{path}")

    def test_a_corrupted_file(self, tmp_path: Path) -> None:
        open_study(tmp_path).storage.close()
        path = tmp_path / "studies.db"
        path.write_bytes(path.read_bytes()[:100] + b"\x5a" * 30000)
        with pytest.raises(StorageError, match=r"malformed|not a database") as caught:
            StudyStorage.open(f"sqlite:///{path}")
        assert "restore a backup" in caught.value.hint

    @pytest.mark.parametrize(
        ("version", "words"),
        [("v3.0.0.d", "older version.*optuna storage upgrade"), ("v99", "newer version.*pip install -U")],
    )
    def test_another_schema_version(self, tmp_path: Path, version: str, words: str) -> None:
        open_study(tmp_path).storage.close()
        with sqlite3.connect(tmp_path / "studies.db") as connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
        with pytest.raises(StorageError, match=words):
            StudyStorage.open(f"sqlite:///{tmp_path}/studies.db", create=True)

    def test_a_half_made_schema_is_completed(self, tmp_path: Path) -> None:
        with sqlite3.connect(tmp_path / "studies.db") as connection:
            connection.execute(
                "CREATE TABLE studies (study_id INTEGER NOT NULL PRIMARY KEY, study_name VARCHAR(512) NOT NULL)"
            )
        study = open_study(tmp_path)
        assert study.start(SPACE, records(1)) == [0]

    def test_a_missing_driver(self) -> None:
        with pytest.raises(MissingExtraError, match=r"driver .* is not installed"):
            StudyStorage.open("postgresql+pg8000://user:secret@127.0.0.1:1/x", create=True)

    def test_passwords_are_not_shown(self) -> None:
        with pytest.raises((StorageError, MissingExtraError)) as caught:
            StudyStorage.open("mysql+pymysql://user:secret@127.0.0.1:1/x", create=True)
        assert "secret" not in str(caught.value)

    def test_a_path_with_odd_characters(self, tmp_path: Path) -> None:
        folder = tmp_path / "100% {done} ü"
        folder.mkdir()
        assert open_study(folder).start(SPACE, records(1)) == [0]
        assert (folder / "studies.db").exists()

    @pytest.mark.parametrize(
        ("text", "hint"),
        [
            ("database or disk is full", "free some space"),
            ("disk I/O error", "check the disk"),
            ("database is locked", "keeps the database busy"),
            ("attempt to write a readonly database", "writable"),
            ("something new", "run the same command again"),
        ],
    )
    def test_a_failing_write_says_what_to_do(self, text: str, hint: str) -> None:
        with pytest.raises(StorageError, match=f"storage a.db: {text}") as caught, translated("a.db"):
            raise sqlite3.OperationalError(text)
        assert hint in caught.value.hint


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = open_study(tmp_path)
    rows = records(40)
    study.start(SPACE, rows[:2])
    complete(study, 0, rows[0])
    monkeypatch.setattr(time, "sleep", lambda _: None)  # Optuna waits between its retries.
    with study.storage.database.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()

    @event.listens_for(study.storage.database.engine, "connect")
    def limit(connection: sqlite3.Connection, _: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages}")

    study.storage.database.engine.dispose()
    with pytest.raises(StorageError, match=r"disk is full.*free some space"):
        study.start(SPACE, rows[2:])
    assert open_study(tmp_path).history().completed[0].configuration == rows[0].configuration
