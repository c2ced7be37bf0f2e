"""What an executor makes of jobs whose workers die."""

import time
from collections.abc import Sequence

import pytest

from autopeft.errors import StorageError, TrialError
from autopeft.studies.executor import AbstractTrialSource, Assignment, WorkerLost
from autopeft.studies.flights import Book, InFlight
from autopeft.studies.packs import Bundle
from autopeft.studies.signals import StopLevel, StopRequest
from autopeft.trainers.job import Report, TrainJob
from tests.studies.support import worker


class Source(AbstractTrialSource):
    def __init__(self) -> None:
        self.told: list[Report | WorkerLost] = []

    def propose(self, n: int, *, beside: Sequence[Assignment] = (), more: int = 0) -> list[Assignment]:
        return []

    def record(self, assignment: Assignment, event: Report | WorkerLost) -> bool:
        self.told.append(event)
        return False


def assignment(*, deadline: float | None = None) -> Assignment:
    job = TrainJob(configurations=(), seeds=(), epochs=1)
    return Assignment(numbers=(0,), job=job, deadline_seconds=deadline)


def book(source: AbstractTrialSource | None = None) -> Book:
    return Book(source=source or Source(), stop=StopRequest(), spec=worker())


def test_a_death_is_told_once() -> None:
    source = Source()
    kept = book(source)
    kept.any_ready = True
    kept.flying["a"] = InFlight(bundle=Bundle([assignment()]))
    kept.lose("a", "gone")
    kept.lose("a", "gone")
    assert source.told == [WorkerLost(reason="gone")]
    assert (kept.ended, kept.flying) == (1, {})


def test_a_worker_killed_for_memory_fails_its_trial_as_oom() -> None:
    source = Source()
    kept = book(source)
    kept.flying["a"] = InFlight(bundle=Bundle([assignment()]))
    kept.lose("a", "Task was killed due to the node running low on memory.")
    first = source.told[0]
    assert isinstance(first, Report)
    assert first.failure is not None
    assert first.failure[0] == "oom"


def test_a_lost_node_is_not_counted() -> None:
    source = Source()
    kept = book(source)
    kept.flying["a"] = InFlight(bundle=Bundle([assignment()]))
    kept.lose("a", "The actor died because its node has died.")
    assert source.told == [WorkerLost(reason="The actor died because its node has died.", counted=False)]


@pytest.mark.parametrize("any_ready", [False, True])
def test_workers_that_never_load_the_model_end_the_run(*, any_ready: bool) -> None:
    kept = book()
    kept.any_ready = any_ready
    for name in "abc":
        kept.flying[name] = InFlight(bundle=Bundle([assignment()]))
        kept.lose(name, "no such library")
    assert kept.stopping != any_ready
    if not any_ready:
        assert isinstance(kept.fatal, TrialError)
        assert str(kept.fatal) == "workers die before they have loaded the model: no such library"


def test_the_runners_error_is_kept_for_the_end() -> None:
    class Full(Source):
        def record(self, assignment: Assignment, event: Report | WorkerLost) -> bool:
            raise StorageError("storage: database or disk is full")

    kept = book(Full())
    assert not kept.record(assignment(), WorkerLost(reason="x"))
    assert isinstance(kept.fatal, StorageError)


def flight(since: float, *, deadline: float | None = None, ready: bool = False) -> InFlight:
    made = InFlight(bundle=Bundle([assignment(deadline=deadline)]), since=since, ready=ready)
    made.bundle._since = [since]
    return made


def test_a_deadline_begins_when_the_worker_is_ready() -> None:
    long_ago = time.monotonic() - 100
    assert not flight(long_ago, ready=True).late
    assert flight(long_ago, deadline=10, ready=True).late
    assert not flight(long_ago, deadline=10).late
    assert flight(long_ago - 1800, deadline=10).late


def test_a_stop_request_only_rises() -> None:
    stop = StopRequest()
    stop.rise()
    assert stop.level is StopLevel.DRAIN
    stop.rise()
    stop.rise()
    stop.raise_to(StopLevel.DRAIN)
    assert stop.level is StopLevel.NOW
