"""What every executor must do, whatever it runs on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from autopeft.search.schedulers import Fidelity
from autopeft.search.trial import FailureKind, History, TrialState
from autopeft.studies.drive import drive
from autopeft.studies.events import StopReason, StudyEvent, TrialFinished, TrialReported
from autopeft.studies.executor import Resources
from autopeft.studies.signals import StopLevel, StopRequest
from tests.studies.support import (
    FreshDraws,
    InOrder,
    PackTrainer,
    TroubledTrainer,
    open_study,
    plan,
    small_space,
    tiny_space,
)

pytest.importorskip("ray")
Kind = Literal["local", "ray"]
KINDS: tuple[Kind, ...] = ("local", "ray")


@pytest.fixture(scope="module", autouse=True)
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray for all tests of this module."""
    from autopeft.studies.tune import ray_session

    with ray_session(Resources(max_jobs=2)):
        yield


def facts(history: History) -> list[tuple[object, ...]]:
    return [
        (row.number, row.configuration, row.state, row.measurements, row.failure, row.pruning, dict(row.predicted))
        for row in history
    ]


def test_all_executors_write_the_same_trials_with_one_worker(tmp_path: Path) -> None:
    written = {}
    for kind in KINDS:
        study = open_study(tmp_path, kind)
        assert drive(study, plan(n_trials=12), Resources(executor=kind, max_jobs=1)) is StopReason.BUDGET
        written[kind] = facts(study.history())
    assert len(written["local"]) == 12
    assert written["ray"] == written["local"]


def test_all_executors_stop_the_same_trials_at_their_rungs(tmp_path: Path) -> None:
    written = {}
    for kind in KINDS:
        study = open_study(tmp_path, kind)
        what = plan(n_trials=12, epochs=4, fidelity=Fidelity())
        assert drive(study, what, Resources(executor=kind, max_jobs=1)) is StopReason.BUDGET
        written[kind] = facts(study.history())
        pruned = study.history().in_state(TrialState.PRUNED)
        assert 2 <= len(pruned) < 12
        assert all(row.pruning and len(row.measurements) == row.pruning.rung < 4 for row in pruned)
    assert written["ray"] == written["local"]


@pytest.mark.parametrize("kind", KINDS)
def test_packs_write_the_trials_that_single_ones_write(tmp_path: Path, kind: Kind) -> None:
    space = small_space()
    what = plan(
        space=space, searcher=InOrder(space, *range(9, 18)), n_trials=9, trainer=PackTrainer, artifacts=tmp_path
    )
    written: list[list[tuple[object, ...]]] = []
    kept: list[set[str]] = []
    for n in (1, 4):
        study = open_study(tmp_path, f"{n}")
        resources = Resources(executor=kind, max_jobs=1, trials_per_job=n)
        assert drive(study, what, resources) is StopReason.BUDGET
        written.append(facts(study.history()))
        kept.append({path.name for path in (tmp_path / f"{n}").iterdir()})
    assert written[0] == written[1]
    assert kept[0] == kept[1] != set()
    assert [row[4] is not None for row in written[0]] == [rank == 13 for rank in range(9, 18)]


@pytest.mark.parametrize("kind", KINDS)
def test_slots_of_stopped_trials_are_filled(tmp_path: Path, kind: Kind) -> None:
    study = open_study(tmp_path)
    what = plan(n_trials=14, epochs=4, fidelity=Fidelity(), trainer=PackTrainer)
    assert drive(study, what, Resources(executor=kind, max_jobs=1, trials_per_job=3)) is StopReason.BUDGET
    history = study.history()
    assert len(history) == 14
    assert all(trial.state.finished for trial in history)
    pruned = history.in_state(TrialState.PRUNED)
    assert len(pruned) >= 2
    assert all(row.pruning and len(row.measurements) == row.pruning.rung < 4 for row in pruned)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_failure_is_recorded(tmp_path: Path, kind: Kind) -> None:
    space = small_space()
    what = plan(space=space, searcher=InOrder(space, *range(1, 8)), n_trials=7, trainer=TroubledTrainer)
    study = open_study(tmp_path)
    assert drive(study, what, Resources(executor=kind, max_jobs=1)) is StopReason.BUDGET
    *failed, fine = study.history()
    assert [row.failure.kind for row in failed if row.failure] == [
        FailureKind.CRASHED,
        FailureKind.OOM,
        FailureKind.DIVERGED,
        FailureKind.DIVERGED,
        FailureKind.CRASHED,
        FailureKind.CRASHED,
    ]
    assert fine.final is not None


@pytest.mark.parametrize("kind", KINDS)
def test_an_exhausted_space_ends_the_study(tmp_path: Path, kind: Kind) -> None:
    space, study = tiny_space(), open_study(tmp_path)
    what = plan(space=space, searcher=FreshDraws(space), n_trials=50)
    assert drive(study, what, Resources(executor=kind, max_jobs=1)) is StopReason.EXHAUSTED
    assert len(study.history().completed) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_the_front_are_on_disk(tmp_path: Path, kind: Kind) -> None:
    study = open_study(tmp_path)
    drive(study, plan(n_trials=8, artifacts=tmp_path), Resources(executor=kind, max_jobs=1))
    folders = {int(path.name.partition("-")[2]): path for path in (tmp_path / "s").iterdir()}
    assert 1 <= len(folders) < 8
    for number, path in folders.items():
        assert (path / "adapter.json").read_text() == study.history().trials[number].configuration.id


@pytest.mark.parametrize("kind", KINDS)
def test_a_drained_study_has_nothing_in_flight(tmp_path: Path, kind: Kind) -> None:
    study, stop = open_study(tmp_path), StopRequest()

    def listen(event: StudyEvent) -> None:
        if isinstance(event, TrialFinished):
            stop.raise_to(StopLevel.DRAIN)

    assert drive(study, plan(n_trials=9), Resources(executor=kind, max_jobs=2), listeners=[listen], stop=stop) is (
        StopReason.INTERRUPTED
    )
    assert 1 <= len(study.history().completed) <= 3


@pytest.mark.parametrize("kind", KINDS)
def test_an_abandoned_study_is_resumed_to_the_same_trials(tmp_path: Path, kind: Kind) -> None:
    study, stop = open_study(tmp_path), StopRequest()

    def listen(event: StudyEvent) -> None:
        if isinstance(event, TrialReported) and event.number == 2:
            stop.raise_to(StopLevel.NOW)

    resources = Resources(executor=kind, max_jobs=1)
    assert drive(study, plan(n_trials=5), resources, listeners=[listen], stop=stop) is StopReason.INTERRUPTED
    assert drive(study, plan(n_trials=5), Resources(executor="local")) is StopReason.BUDGET
    whole = open_study(tmp_path, "whole")
    drive(whole, plan(n_trials=5), Resources(executor="local"))
    assert facts(study.history()) == facts(whole.history())
