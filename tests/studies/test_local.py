"""The executor of this process."""

from pathlib import Path

import pytest

from autopeft.errors import ModelError, SpecError, StorageError
from autopeft.search.trial import FailureKind
from autopeft.studies.drive import drive
from autopeft.studies.events import (
    Noted,
    StopReason,
    StudyEvent,
    StudyOpened,
    StudyStopped,
    TrialFinished,
    TrialReported,
)
from autopeft.studies.executor import Resources
from autopeft.studies.lock import StudyLock
from autopeft.studies.signals import StopLevel, StopRequest
from tests.studies.support import EchoTrainer, ModellessTrainer, open_study, plan, small_space

LOCAL = Resources(executor="local")


def test_a_study_runs_to_its_budget_and_further_when_it_is_raised(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    assert drive(study, plan(n_trials=3), LOCAL) is StopReason.BUDGET
    three = study.history()
    assert drive(study, plan(n_trials=3), LOCAL) is StopReason.BUDGET
    assert study.history() == three
    assert drive(study, plan(n_trials=5), LOCAL) is StopReason.BUDGET
    assert study.history().trials[:3] == three.trials
    assert len(study.history().completed) == 5


def test_listeners_hear_a_study_from_open_to_stop(tmp_path: Path) -> None:
    said: list[StudyEvent] = []
    drive(open_study(tmp_path), plan(n_trials=2), LOCAL, listeners=[said.append])
    assert isinstance(said[0], StudyOpened)
    assert (said[0].study, said[0].n_trials, len(said[0].history)) == ("s", 2, 0)
    assert isinstance(said[-1], StudyStopped)
    assert (said[-1].reason, len(said[-1].history.completed)) == (StopReason.BUDGET, 2)


def test_a_deadline_is_seen_at_the_next_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHO_SECONDS", "0.05")
    study = open_study(tmp_path)
    drive(study, plan(n_trials=2), Resources(executor="local", trial_deadline_seconds=0.01))
    for trial in study.history():
        assert trial.failure is not None
        assert trial.failure.kind is FailureKind.TIMEOUT
        assert trial.failure.message == "stopped after the deadline of 0.01 seconds"


@pytest.mark.parametrize(("level", "running"), [(StopLevel.DRAIN, 0), (StopLevel.NOW, 1)])
def test_a_stop_leaves_a_study_that_can_be_resumed(tmp_path: Path, level: StopLevel, running: int) -> None:
    study, stop = open_study(tmp_path), StopRequest()

    def listen(event: StudyEvent) -> None:
        if isinstance(event, TrialReported) and event.number == 1:
            stop.raise_to(level)

    assert drive(study, plan(n_trials=4), LOCAL, listeners=[listen], stop=stop) is StopReason.INTERRUPTED
    history = study.history()
    assert len(history) == 2
    assert len(history.completed) == 2 - running
    assert drive(study, plan(n_trials=4), LOCAL) is StopReason.BUDGET

    whole = open_study(tmp_path, "whole")
    drive(whole, plan(n_trials=4), LOCAL)
    assert [row.measurements for row in study.history()] == [row.measurements for row in whole.history()]


def test_a_stop_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHO_SECONDS", "0.2")
    stop = StopRequest()
    notes: list[str] = []

    def listen(event: StudyEvent) -> None:
        stop.raise_to(StopLevel.DRAIN)
        notes.extend([event.message] if isinstance(event, Noted) else [])

    drive(open_study(tmp_path), plan(n_trials=4), LOCAL, listeners=[listen], stop=stop)
    assert notes == []
    stop = StopRequest()

    def later(event: StudyEvent) -> None:
        if isinstance(event, TrialReported):
            stop.raise_to(StopLevel.DRAIN)
        notes.extend([event.message] if isinstance(event, Noted) else [])

    drive(open_study(tmp_path), plan(n_trials=4), LOCAL, listeners=[later], stop=stop)
    assert notes == ["stopping: what runs is finished first; once more (Ctrl-C) stops now"]


def test_wrong_input_leaves_no_study_behind(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    with pytest.raises(ModelError, match="no such folder"):
        drive(study, plan(trainer=ModellessTrainer), LOCAL)
    assert study.storage.studies() == ()


def test_wrong_input_later_keeps_what_was_finished(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    drive(study, plan(n_trials=2), LOCAL)
    with pytest.raises(ModelError):
        drive(study, plan(n_trials=4, trainer=ModellessTrainer), LOCAL)
    assert len(study.history().completed) == 2


def test_a_study_that_is_driven_already_is_refused_untouched(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    with StudyLock(study), pytest.raises(StorageError, match="drives it since"):
        drive(open_study(tmp_path), plan(), LOCAL)
    assert len(study.history()) == 0


def test_losing_the_lock_stops_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autopeft.studies import lock

    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setenv("ECHO_SECONDS", "0.1")
    study = open_study(tmp_path)

    def steal(event: StudyEvent) -> None:
        if isinstance(event, TrialFinished) and event.trial.number == 0:
            study.set_attr("driver", {"token": "another"})

    with pytest.raises(StorageError, match="another driver took it over while this one slept"):
        drive(study, plan(n_trials=30), LOCAL, listeners=[steal])
    assert len(study.history()) < 30


def test_a_bug_in_the_searcher_ends_the_run_and_frees_the_study(tmp_path: Path) -> None:
    space = small_space()
    what = plan(space=space, searcher=None)

    def broken(*_: object) -> None:
        raise ZeroDivisionError("in the searcher")

    object.__setattr__(what.searcher, "ask", broken)
    study = open_study(tmp_path)
    said: list[StudyEvent] = []
    with pytest.raises(ZeroDivisionError):
        drive(study, what, LOCAL, listeners=[said.append])
    assert isinstance(said[-1], StudyStopped)
    assert said[-1].reason is StopReason.ABORTED
    assert study.get_attr("driver") is None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"max_jobs": 0}, r"resources\.max_jobs: got 0; 1 or more"),
        ({"cpus_per_job": 0}, r"resources\.cpus_per_job: got 0; 1 or more"),
        ({"gpus_per_job": -1}, r"resources\.gpus_per_job: got -1; between 0 and 1, or a whole number"),
        ({"gpus_per_job": 1.5}, r"resources\.gpus_per_job: got 1\.5; between 0 and 1, or a whole number"),
        ({"address": "ray://host:10001"}, r"resources\.address: got 'ray://host:10001'; host:port or auto"),
    ],
)
def test_impossible_resources_are_refused(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        Resources(**wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_the_trainer_is_closed_when_a_study_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    monkeypatch.setattr(EchoTrainer, "close", lambda self: closed.append(True))
    drive(open_study(tmp_path), plan(n_trials=1), LOCAL)
    assert closed == [True]
