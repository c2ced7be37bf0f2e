"""The study's loop in two calls: proposing, recording, replay."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.search.scheduler import AbstractScheduler
from autopeft.search.schedulers import Fidelity, make_scheduler
from autopeft.search.searcher import AbstractSearcher
from autopeft.search.trial import FailureKind, History, TrialState
from autopeft.spaces.configuration import Configuration
from autopeft.studies.artifacts import Artifacts
from autopeft.studies.events import Listener, Noted, StopReason, StudyEvent, TrialFinished, TrialReported, TrialStarted
from autopeft.studies.executor import Assignment, WorkerLost
from autopeft.studies.runner import Runner, trial_seed
from autopeft.trainers.job import Report
from tests.studies.support import OBJECTIVES, FreshDraws, InOrder, measurement, open_study, small_space

SPACE = small_space()


def runner(
    folder: Path,
    *,
    n_trials: int = 4,
    listeners: Sequence[Listener] = (),
    searcher: AbstractSearcher | None = None,
    artifacts: Artifacts | None = None,
    scheduler: AbstractScheduler | None = None,
) -> Runner:
    return Runner(
        open_study(folder),
        space=SPACE,
        searcher=searcher or FreshDraws(SPACE, seed=1),
        seed=11,
        n_trials=n_trials,
        epochs=2,
        scheduler=scheduler,
        artifacts=artifacts,
        listeners=listeners,
    )


def ranks(*sizes: int) -> AbstractSearcher:
    return InOrder(SPACE, *sizes)


def report(job: Assignment, epoch: int, *, accuracy: float = 0.5) -> Report:
    row = measurement(job.job.configurations[0], epoch, accuracy)
    return Report(slot=0, measurement=row, done=epoch == job.job.epochs)


def finish(run: Runner, job: Assignment, *, accuracy: float = 0.5) -> None:
    assert run.record(job, report(job, 1, accuracy=accuracy))
    assert not run.record(job, report(job, 2, accuracy=accuracy))


def test_a_proposal_is_durable_before_it_is_handed_out(tmp_path: Path) -> None:
    jobs = runner(tmp_path).propose(2)
    stored = open_study(tmp_path).history()
    assert [job.numbers for job in jobs] == [(0,), (1,)]
    assert [trial.state for trial in stored] == [TrialState.RUNNING] * 2
    assert [trial.configuration for trial in stored] == [job.job.configurations[0] for job in jobs]
    assert [job.job.seeds for job in jobs] == [(trial_seed(11, 0),), (trial_seed(11, 1),)]
    assert stored.trials[0].predicted["parameters"] == SPACE.parameters(stored.trials[0].configuration)


def test_each_report_is_durable_when_record_returns(tmp_path: Path) -> None:
    run = runner(tmp_path)
    (job,) = run.propose(1)
    assert run.record(job, report(job, 1))
    assert len(open_study(tmp_path).history().trials[0].measurements) == 1
    assert not run.record(job, report(job, 2))
    (trial,) = open_study(tmp_path).history().completed
    assert [row.epoch for row in trial.measurements] == [1, 2]
    assert trial == run.history().trials[0]


def test_the_budget_counts_every_trial(tmp_path: Path) -> None:
    run = runner(tmp_path, n_trials=3)
    first, second = run.propose(2)
    run.record(first, Report(slot=0, measurement=None, failure=("oom", "no room"), done=True))
    assert len(run.propose(5)) == 1
    assert run.propose(1) == []
    finish(run, second)
    stranger = Assignment(numbers=(2,), job=second.job)
    assert not run.record(stranger, report(stranger, 1)), "an assignment that was never handed out"


def test_a_spent_budget_and_an_exhausted_space_are_told_apart(tmp_path: Path) -> None:
    class Nothing(AbstractSearcher):
        def ask(self, history: History, n: int) -> Sequence[Configuration]:
            return ()

    run = runner(tmp_path, n_trials=1)
    finish(run, run.propose(1)[0])
    assert (run.propose(1), run.outcome) == ([], StopReason.BUDGET)
    more = runner(tmp_path, n_trials=2, searcher=Nothing())
    assert (more.propose(1), more.outcome) == ([], StopReason.EXHAUSTED)


@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        (lambda job: report(job, 2, accuracy=math.nan), FailureKind.DIVERGED, "accuracy is nan after epoch 2"),
        (lambda job: report(job, 1, accuracy=math.inf), FailureKind.DIVERGED, "accuracy is inf after epoch 1"),
        (lambda job: Report(slot=0, measurement=None, done=True), FailureKind.CRASHED, "reported no measurement"),
        (lambda job: Report(slot=0, measurement=None, failure=("timeout", "late")), FailureKind.TIMEOUT, "late"),
        (lambda job: Report(slot=0, measurement=None, failure=("odd", "what")), FailureKind.CRASHED, "what"),
        (
            lambda job: Report(slot=0, measurement=replace(measurement(job.job.configurations[0], 1, 0.5), metrics={})),
            FailureKind.CRASHED,
            "did not measure accuracy",
        ),
    ],
)
def test_a_failure_is_data(tmp_path: Path, bad: object, kind: FailureKind, words: str) -> None:
    run = runner(tmp_path)
    (job,) = run.propose(1)
    assert not run.record(job, bad(job))  # type: ignore[operator]  # one of the functions above
    (trial,) = open_study(tmp_path).history()
    assert trial.state is TrialState.FAILED
    assert trial.failure is not None
    assert (trial.failure.kind, words in trial.failure.message) == (kind, True)
    assert not run.record(job, report(job, 2)), "what comes later is ignored"


def test_a_resumed_study_runs_what_was_in_flight_again_under_the_same_number_and_seed(tmp_path: Path) -> None:
    first = runner(tmp_path)
    one, two = first.propose(2)
    finish(first, one)
    first.record(two, report(two, 1))

    second = runner(tmp_path)
    (again,) = second.propose(1)

    assert (again.numbers, again.job) == (two.numbers, two.job)
    assert second.history().trials[1].measurements == ()
    assert open_study(tmp_path).runs()[1][1].attempt == 2
    finish(second, again)
    assert [trial.state for trial in second.history()] == [TrialState.COMPLETED] * 2


def test_one_job_at_a_time_replays_the_study_wherever_it_was_killed(tmp_path: Path) -> None:
    def drive(folder: Path, *, dies_after: int | None) -> list[tuple[int, str, float]]:
        folder.mkdir(exist_ok=True)
        run = runner(folder, n_trials=5)
        for count in range(100):
            jobs = run.propose(1)
            if not jobs or count == dies_after:
                break
            finish(run, jobs[0], accuracy=(jobs[0].job.seeds[0] % 1000) / 1000)
        return [
            (row.number, row.configuration.id, row.final.metrics["accuracy"] if row.final else -1)
            for row in run.history()
        ]

    whole = drive(tmp_path / "whole", dies_after=None)
    for after in range(4):
        folder = tmp_path / str(after)
        drive(folder, dies_after=after)
        assert drive(folder, dies_after=None) == whole


def test_a_trial_may_lose_one_worker_but_not_two(tmp_path: Path) -> None:
    said: list[StudyEvent] = []
    run = runner(tmp_path, n_trials=1, listeners=[said.append])
    (job,) = run.propose(1)
    run.record(job, report(job, 1))
    assert not run.record(job, WorkerLost(reason="killed"))
    assert not run.record(job, report(job, 2)), "a late report of the dead"
    (again,) = run.propose(1)
    assert (again.numbers, again.job.seeds) == (job.numbers, job.job.seeds)
    run.record(again, WorkerLost(reason="killed again"))
    (trial,) = run.history()
    assert trial.failure is not None
    assert trial.failure.message == "2 workers died under this trial, the last one: killed again"
    assert run.propose(1) == []
    assert [type(event) for event in said] == [TrialStarted, TrialReported, Noted, TrialStarted, TrialFinished]


def test_a_lost_node_is_not_the_trials_fault(tmp_path: Path) -> None:
    run = runner(tmp_path)
    for _ in range(4):
        (job,) = run.propose(1)
        run.record(job, WorkerLost(reason="its node has died", counted=False))
    finish(run, run.propose(1)[0])


def test_events_come_in_order_and_after_the_fact(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def listen(event: StudyEvent) -> None:
        seen.append((type(event).__name__, len(open_study(tmp_path).history().completed)))

    run = runner(tmp_path, listeners=[listen])
    finish(run, run.propose(1)[0])
    assert seen == [("TrialStarted", 0), ("TrialReported", 0), ("TrialReported", 1), ("TrialFinished", 1)]


def test_a_broken_listener_is_noted_once_and_stops_nothing(tmp_path: Path) -> None:
    said: list[StudyEvent] = []

    def broken(event: StudyEvent) -> None:
        raise OSError("the display is gone")

    run = runner(tmp_path, n_trials=2, listeners=[broken, said.append])
    for _ in range(2):
        finish(run, run.propose(1)[0])
    notes = [event.message for event in said if isinstance(event, Noted)]
    assert notes == ["the search goes on without this: OSError: the display is gone"]
    assert len(run.history().completed) == 2


def test_a_closed_runner_writes_nothing(tmp_path: Path) -> None:
    run = runner(tmp_path)
    (job,) = run.propose(1)
    run.close()
    assert not run.record(job, report(job, 1))
    assert run.propose(1) == []
    assert len(open_study(tmp_path).history()) == 1


def test_dominated_adapters_are_deleted_as_the_study_goes(tmp_path: Path) -> None:
    kept = Artifacts(tmp_path / "adapters", "s")
    run = runner(tmp_path, artifacts=kept)
    for accuracy in (0.1, 0.2, 0.3, 0.4):
        (job,) = run.propose(1)
        (folder,) = job.job.output_dirs
        assert folder is not None
        folder.mkdir()
        finish(run, job, accuracy=accuracy)
    there = {int(path.name.partition("-")[2]) for path in kept.folder.iterdir()}
    assert 3 in there
    front = {
        row.number
        for row in run.history()
        if not any(
            other.number > row.number and other.configuration.method("lora") and _ranks(other) <= _ranks(row)
            for other in run.history()
        )
    }
    assert there == front


def _ranks(trial: object) -> int:
    return trial.final.parameters  # type: ignore[attr-defined]  # a completed trial


@given(seed=st.integers(0, 2**32 - 1), number=st.integers(0, 10_000))
def test_trial_seeds_are_children_of_the_studys(seed: int, number: int) -> None:
    assert 0 <= trial_seed(seed, number) < 2**32
    assert trial_seed(seed, number) == trial_seed(seed, number)
    assert trial_seed(seed, number) != trial_seed(seed, number + 1)


def test_a_trial_that_its_rung_has_no_room_for_is_stopped_and_says_why(tmp_path: Path) -> None:
    run = runner(tmp_path, n_trials=3, scheduler=make_scheduler(Fidelity(), OBJECTIVES, epochs=2), searcher=ranks(1, 2))
    first, second = run.propose(2)
    assert run.record(first, report(first, 1, accuracy=0.9))
    assert not run.record(second, report(second, 1, accuracy=0.8)), "larger and worse"
    (stopped,) = open_study(tmp_path).history().in_state(TrialState.PRUNED)
    assert stopped.pruning is not None
    assert (stopped.number, stopped.pruning.rung, len(stopped.measurements)) == (1, 1, 1)
    assert "place 2 of 2, the best goes on" in stopped.pruning.because
    assert stopped == run.history().trials[1]
    assert not run.record(second, report(second, 2)), "it is over"
    assert not run.record(first, report(first, 2, accuracy=0.9)), "the last epoch is no rung"
    assert [row.state for row in run.history()] == [TrialState.COMPLETED, TrialState.PRUNED]


def test_slots_of_one_job_are_judged_one_by_one(tmp_path: Path) -> None:
    """The scheduler is asked for a trial, whatever job trains it."""
    run = runner(tmp_path, n_trials=2, scheduler=make_scheduler(Fidelity(), OBJECTIVES, epochs=2), searcher=ranks(1, 2))
    one, other = run.propose(2)
    both = replace(
        one,
        numbers=(0, 1),
        job=replace(
            one.job, configurations=(*one.job.configurations, *other.job.configurations), seeds=one.job.seeds * 2
        ),
    )
    run._live = dict.fromkeys((0, 1), both)
    assert run.record(both, report(one, 1, accuracy=0.9))
    assert not run.record(both, replace(report(other, 1, accuracy=0.8), slot=1))
    assert not run.record(both, report(one, 2, accuracy=0.9))
    assert [row.state for row in run.history()] == [TrialState.COMPLETED, TrialState.PRUNED]


def rungs(folder: Path, *sizes: int, **more: object) -> Runner:
    halving = make_scheduler(Fidelity(), OBJECTIVES, epochs=2)
    kept = Artifacts(folder, "s")
    return runner(folder, n_trials=len(sizes), scheduler=halving, searcher=ranks(*sizes), artifacts=kept, **more)  # type: ignore[arg-type]


def train(run: Runner, accuracy: float) -> Assignment:
    """The next job's first epoch."""
    (job,) = run.propose(1)
    run.record(job, report(job, 1, accuracy=accuracy))
    return job


def test_a_stopped_trial_goes_on_before_anything_new_is_asked_for(tmp_path: Path) -> None:
    said: list[StudyEvent] = []
    run = rungs(tmp_path, 1, 2, 3, 4, 5, listeners=[said.append])
    finish(run, run.propose(1)[0], accuracy=0.9)
    for accuracy in (0.8, 0.7, 0.6):
        train(run, accuracy)
    assert [row.state for row in run.history()] == [TrialState.COMPLETED, *[TrialState.PRUNED] * 3]
    (again,) = run.propose(1)
    assert again.numbers == (1,), "the second of four, of whom two go on now"
    assert again.job.seeds == (trial_seed(11, 1),)
    (trial,) = run.history().in_state(TrialState.RUNNING)
    assert (trial.number, len(trial.measurements), trial.pruning, trial.resumed) == (1, 1, None, True)
    started = [event for event in said if isinstance(event, TrialStarted)]
    assert started[-1].attempt == 2
    assert open_study(tmp_path).history() == run.history()


def test_a_trial_that_goes_on_reports_again_what_is_known_and_nothing_comes_of_it(tmp_path: Path) -> None:
    said: list[StudyEvent] = []
    run = rungs(tmp_path, 1, 2, 3, 4, listeners=[said.append])
    finish(run, run.propose(1)[0], accuracy=0.9)
    for accuracy in (0.8, 0.7, 0.6):
        train(run, accuracy)
    (again,) = run.propose(1)
    before = len(said)
    assert run.record(again, report(again, 1, accuracy=0.1)), "not judged a second time"
    assert len(said) == before
    assert not run.record(again, report(again, 2, accuracy=0.85))
    trial = run.history().trials[1]
    assert [row.metrics["accuracy"] for row in trial.measurements] == [0.8, 0.85]
    assert trial.state is TrialState.COMPLETED


def test_a_study_is_not_over_while_a_stopped_trial_is_to_go_on(tmp_path: Path) -> None:
    run = rungs(tmp_path, 1, 2, 3, 4)
    finish(run, run.propose(1)[0], accuracy=0.9)
    for accuracy in (0.8, 0.7, 0.6):
        train(run, accuracy)
    assert not run.spent
    again = rungs(tmp_path, 1, 2, 3, 4)
    (job,) = again.propose(1)
    assert job.numbers == (1,)
    again.record(job, report(job, 2))
    assert again.propose(1) == []
    assert (again.spent, again.outcome) == (True, StopReason.BUDGET)


def test_checkpoints_stay_while_their_trials_may_go_on(tmp_path: Path) -> None:
    run = rungs(tmp_path, 1, 2, 3, 4)
    stale = tmp_path / "s" / "checkpoint-0.pt"
    stale.parent.mkdir()
    stale.touch()
    (first,) = run.propose(1)
    assert not stale.exists(), "of an earlier study of that name"
    assert first.job.checkpoints == (stale,)
    stale.touch()
    finish(run, first, accuracy=0.9)
    assert not stale.exists()
    (second,) = run.propose(1)
    kept = second.job.checkpoints[0]
    assert kept is not None
    kept.touch()
    run.record(second, report(second, 1, accuracy=0.8))
    train(run, 0.7)
    train(run, 0.6)
    assert kept.exists()
    (again,) = run.propose(1)
    assert again.numbers == (1,)
    assert kept.exists()
    run.record(again, report(again, 2))
    assert not kept.exists()


def test_a_trial_that_was_running_when_its_driver_died_keeps_what_was_decided(tmp_path: Path) -> None:
    halving = make_scheduler(Fidelity(), OBJECTIVES, epochs=4)
    first = Runner(
        open_study(tmp_path), space=SPACE, searcher=ranks(1), seed=1, n_trials=1, epochs=4, scheduler=halving
    )
    (job,) = first.propose(1)
    first.record(job, report(job, 1, accuracy=0.7))
    second = Runner(
        open_study(tmp_path), space=SPACE, searcher=ranks(1), seed=1, n_trials=1, epochs=4, scheduler=halving
    )
    (again,) = second.propose(1)
    assert len(second.history().trials[0].measurements) == 1
    assert not second.history().trials[0].resumed
    assert second.record(again, report(again, 1, accuracy=0.7))
    assert second.record(again, report(again, 2, accuracy=0.7))
    assert [row.epoch for row in second.history().trials[0].measurements] == [1, 2]


def test_without_rungs_a_trial_that_is_run_again_begins_again(tmp_path: Path) -> None:
    run = runner(tmp_path)
    (job,) = run.propose(1)
    run.record(job, report(job, 1))
    (again,) = runner(tmp_path).propose(1)
    assert again.job.checkpoints == ()
    assert open_study(tmp_path).history().trials[0].measurements == ()


def test_a_paused_trial_waits_in_optuna_and_is_counted_as_pruned(tmp_path: Path) -> None:
    run = rungs(tmp_path, 1, 2, 3, 4)
    finish(run, run.propose(1)[0], accuracy=0.9)
    train(run, 0.8)
    study = open_study(tmp_path)
    assert [row.state.name for row in study._frozen()] == ["COMPLETE", "WAITING"]
    (summary,) = study.storage.studies()
    assert (summary.trials[TrialState.COMPLETED], summary.trials[TrialState.PRUNED]) == (1, 1)
