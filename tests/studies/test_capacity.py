"""What cannot fit is not started, and every trial says more of what fits."""

from dataclasses import replace
from pathlib import Path

import pytest

from autopeft.errors import SpaceError, SpecError
from autopeft.search.trial import Failure, FailureKind, Trial, TrialState
from autopeft.spaces.constraints import parse_constraint, read_amount
from autopeft.spaces.space import SearchSpace
from autopeft.studies.capacity import Capacity, capacity_of, refused, residual_of
from autopeft.studies.executor import Resources
from autopeft.studies.runner import Runner
from tests.studies.support import FreshDraws, measurement, open_study, tiny_space

SPACE = tiny_space()
CONFIGURATION = next(iter(SPACE.configurations()))


def trial(number: int, *, predicted: float, peak: int | None = None, message: str = "out of memory") -> Trial:
    """One that trained to a peak, or ran out of memory."""
    done = peak is not None
    rows = (measurement(CONFIGURATION, 1, 0.5),) if done else ()
    return Trial(
        number=number,
        configuration=CONFIGURATION,
        state=TrialState.COMPLETED if done else TrialState.FAILED,
        measurements=tuple(replace(row, peak_bytes=peak or 0) for row in rows),
        predicted={"memory": predicted},
        failure=None if done else Failure(kind=FailureKind.OOM, message=message),
    )


def test_the_bound_learns_from_trials_and_from_those_that_ran_out() -> None:
    capacity = Capacity(n_bytes=1000, confidence=0.9)
    assert capacity.refusal(950, []) is None
    too_large = capacity.refusal(960, [])
    assert too_large is not None
    assert too_large.message == "not started: predicted 960 B, up to 0.984 KiB; a job has 0.977 KiB"
    lower = [trial(number, predicted=100, peak=90) for number in range(9)]
    assert capacity.refusal(1100, lower) is None, "peaks are a tenth below their predictions"
    ceiling = capacity.refusal(700, [*lower, trial(9, predicted=650)])
    assert ceiling is not None
    assert "as much has run out of memory; a job has" in ceiling.message
    assert capacity.refusal(None, lower) is None


def test_a_trial_that_was_never_started_says_nothing() -> None:
    failure = Capacity(n_bytes=10).refusal(100, [])
    assert failure is not None
    assert refused(failure)
    assert residual_of([trial(0, predicted=100, message=failure.message)]).fits(100, 1000)


def test_the_study_file_sets_the_memory_of_a_job() -> None:
    found = capacity_of(Resources(memory_per_job=2**30, memory_confidence=0.5))
    assert found == Capacity(n_bytes=2**30, confidence=0.5)
    limit = parse_constraint(found.constraint, quantities=("memory",), shape=SPACE.shape)
    assert limit.limit == pytest.approx(2**30 / 1.05, rel=1e-6)
    assert capacity_of(Resources(gpus_per_job=0)) is None, "a CPU has no limit of its own"
    with pytest.raises(SpecError, match=r"resources.memory_confidence: got 1; between 0 and 1"):
        Resources(memory_confidence=1.0)


def test_amounts_are_read_with_their_unit() -> None:
    assert read_amount("24GiB", place="--fit") == 24 * 2**30
    assert read_amount(" 1.5 GB ", place="--fit") == 1_500_000_000
    for text in ("24", "0 GiB", "24 parsecs", ""):
        with pytest.raises(SpaceError, match=r"--fit: got .*an amount of memory is needed"):
            read_amount(text, place="--fit")


def test_the_runner_fails_what_may_not_fit_and_goes_on(tmp_path: Path) -> None:
    def memory(configuration: object) -> float:
        return 100.0 * SPACE.parameters(configuration)  # type: ignore[arg-type]  # a configuration

    space = SearchSpace.bind(SPACE.definition, SPACE.shape, quantities={"memory": memory})
    costs = sorted(memory(one) for one in space.configurations())
    limit = costs[len(costs) // 2]
    run = Runner(
        open_study(tmp_path),
        space=space,
        searcher=FreshDraws(space, seed=1),
        seed=11,
        n_trials=5,
        epochs=1,
        capacity=Capacity(n_bytes=1.05 * limit),
    )
    started = [number for _ in range(5) for job in run.propose(1) for number in job.numbers]
    trials = open_study(tmp_path).history().trials
    assert len(trials) == 5
    for one in trials:
        fits = one.predicted["memory"] <= limit
        assert (one.number in started) == fits == (one.state is TrialState.RUNNING)
        assert fits or (one.failure is not None and one.failure.kind is FailureKind.OOM)
    assert 0 < len(started) < 5
