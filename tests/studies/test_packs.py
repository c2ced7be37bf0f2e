"""Trials that share a worker: how many fit, whom reports are about, what a lost worker means for each."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from autopeft.errors import SpecError
from autopeft.search.trial import FailureKind, TrialState
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.space import SearchSpace
from autopeft.studies.capacity import Capacity
from autopeft.studies.drive import drive
from autopeft.studies.events import StopReason
from autopeft.studies.executor import Assignment, Resources, WorkerLost
from autopeft.studies.flights import Book, InFlight
from autopeft.studies.load import spec_from_mapping
from autopeft.studies.packs import Bundle, Mailbox, at_once
from autopeft.studies.runner import Runner
from autopeft.studies.signals import StopRequest
from autopeft.studies.storage import StoredStudy
from autopeft.trainers.job import Report, TrainJob
from tests.studies.projects import study_data
from tests.studies.support import FreshDraws, PackTrainer, open_study, plan, small_space, worker

BASE = 4.0 * small_space().shape.base_parameters


def memory(configuration: Configuration) -> float:
    return BASE + 100.0 * small_space().parameters(configuration)


SPACE = SearchSpace.bind(small_space().definition, small_space().shape, quantities={"memory": memory})


def runner(folder: Path, *, capacity: Capacity | None = None, n_trials: int = 20) -> Runner:
    folder.mkdir(exist_ok=True)
    return Runner(
        open_study(folder),
        space=SPACE,
        searcher=FreshDraws(SPACE, seed=1),
        seed=11,
        n_trials=n_trials,
        epochs=2,
        capacity=capacity,
        deadline_seconds=9.0,
    )


def predicted(study: Runner, assignments: Sequence[Assignment]) -> list[float]:
    trials = study.history().trials
    return [trials[number].predicted["memory"] for row in assignments for number in row.numbers]


def test_as_many_trials_are_proposed_as_fit_the_memory_together(tmp_path: Path) -> None:
    free = runner(tmp_path / "free")
    first = free.propose(6)
    peaks = predicted(free, first)
    assert len(peaks) == 6
    three = BASE + sum(1.05 * peak - BASE for peak in peaks[:3])
    tight = runner(tmp_path / "tight", capacity=Capacity(n_bytes=three + 1))
    some = tight.propose(6)
    assert len(some) == 3
    assert tight.propose(6, beside=some) == []
    assert len(tight.history()) == 3, "what does not fit is not begun"
    assert len(tight.propose(1)) == 1, "a worker of its own has room"


def test_a_trial_that_lost_its_worker_is_run_again_by_itself(tmp_path: Path) -> None:
    study = runner(tmp_path)
    pack = study.propose(3)
    for assignment in pack[:2]:
        study.record(assignment, WorkerLost(reason="killed"))
    (again,) = study.propose(3)
    assert again.numbers == pack[0].numbers
    assert study.propose(2, beside=[again]) == [], "nothing joins it"
    (fresh,) = study.propose(1, beside=[pack[2]])
    assert fresh.numbers == (3,), "and it joins nobody"
    (last,) = study.propose(3)
    assert last.numbers == pack[1].numbers


def bundle(n: int, *, slots: int, folder: Path) -> Bundle:
    return Bundle(runner(folder).propose(n), at_once=slots)


def test_a_bundle_is_one_job_and_its_reports_are_each_trials_own(tmp_path: Path) -> None:
    made = bundle(2, slots=3, folder=tmp_path)
    job = made.job
    assert (len(job.configurations), len(set(job.seeds)), job.at_once, made.free) == (2, 2, 3, 1)
    assert job.settings["deadline_seconds"] == 9.0, "each has the deadline to itself"
    heard: list[tuple[Assignment, Report | WorkerLost]] = []

    def tell(assignment: Assignment, event: Report | WorkerLost) -> bool:
        heard.append((assignment, event))
        return False

    first, second = made.open
    assert not made.record(tell, Report(slot=1, measurement=None, done=True))
    assert heard == [(second, Report(slot=0, measurement=None, done=True))]
    assert made.open == [first]
    assert not made.record(tell, Report(slot=1, measurement=None, done=True)), "it has ended"
    assert len(heard) == 1
    single = Bundle([first])
    assert single.job is first.job


def test_a_trial_that_shares_a_device_may_take_longer_by_its_neighbours(tmp_path: Path) -> None:
    made = bundle(2, slots=3, folder=tmp_path)
    made._since = [time.monotonic() - 20, time.monotonic() - 28]
    assert made.late() == [made.open[1]]


def test_a_mailbox_hands_out_what_was_put_in() -> None:
    box, job = Mailbox(), TrainJob(configurations=(), seeds=(), epochs=1)
    assert not box.stopped(2)
    assert box.refill() is None
    box.put([2], [job])
    assert box.stopped(2)
    assert box.refill() is job
    assert box.refill() is None


def test_refills_are_thought_of_beside_the_training_and_not_twice_for_nothing(tmp_path: Path) -> None:
    source = runner(tmp_path, n_trials=3)
    book = Book(source=source, stop=StopRequest(), spec=worker())
    flight = InFlight(bundle=Bundle(source.propose(2), at_once=3), ready=True)
    with ThreadPoolExecutor(1) as pool:
        assert book.refilled(flight, pool) == []
        assert flight.refill is not None
        flight.refill.result()
        (third,) = book.refilled(flight, pool)
        assert third.numbers == (2,)
        flight.bundle.add(third)
        flight.bundle.end(third)
        assert book.refilled(flight, pool) == []
        assert flight.refill is not None
        flight.refill.result()
        assert book.refilled(flight, pool) == []
        assert book.refilled(flight, pool) == []
        assert flight.refill is None, "nothing has ended since there was nothing"
        book.ended += 1
        book.refilled(flight, pool)
        assert flight.refill is not None


def test_a_pack_killed_for_memory_blames_nobody_yet(tmp_path: Path) -> None:
    source = runner(tmp_path)
    book = Book(source=source, stop=StopRequest(), spec=worker(), any_ready=True)
    book.flying["a"] = InFlight(bundle=Bundle(source.propose(2), at_once=2))
    book.lose("a", "Task was killed due to the node running low on memory.")
    assert [trial.state for trial in source.history()] == [TrialState.RUNNING] * 2
    book.flying["b"] = InFlight(bundle=Bundle(source.propose(2), at_once=2))
    book.lose("b", "Task was killed due to the node running low on memory.")
    first = source.history().trials[0]
    assert first.failure is not None
    assert first.failure.kind is FailureKind.OOM


def test_how_many_trials_share_a_worker() -> None:
    assert at_once(Resources(trials_per_job=7)) == 7
    assert at_once(Resources(gpus_per_job=0)) == 1, "a processor is busy with one"
    with pytest.raises(SpecError, match=r"resources.trials_per_job: got 0; 1 or more"):
        Resources(trials_per_job=0)


def test_a_study_that_is_resumed_in_packs_is_finished(tmp_path: Path) -> None:
    study: StoredStudy = open_study(tmp_path)
    what = plan(n_trials=5, trainer=PackTrainer)
    drive(study, what, Resources(executor="local"))
    more = plan(n_trials=11, trainer=PackTrainer)
    assert drive(study, more, Resources(executor="local", trials_per_job=4)) is StopReason.BUDGET
    assert len(study.history().completed) == 11


def test_what_the_study_file_leaves_to_the_device_is_called_auto() -> None:
    names = ("trials_per_job", "max_jobs", "gpus_per_job", "trial_deadline_seconds")
    spec = spec_from_mapping(study_data(resources=dict.fromkeys(names, "auto")))
    assert [getattr(spec.resources, name) for name in names] == [None] * 4
    assert spec_from_mapping(study_data(resources={"trials_per_job": 6})).resources.trials_per_job == 6
