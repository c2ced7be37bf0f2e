"""A search that begins from other studies: better with a related one, no worse with one that misleads."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from autopeft.objectives.front import Front, hypervolume_curve
from autopeft.objectives.hypervolume import hypervolume
from autopeft.objectives.reference import reference_point
from autopeft.search.bayesian import BayesianSearcher
from autopeft.search.belief import Belief, ordered
from autopeft.search.costs import carried_cost
from autopeft.search.dearest import dearest
from autopeft.search.initial_design import DESIGN, FROM_SOURCES, initial_design
from autopeft.search.observations import front_points
from autopeft.search.past_study import PastStudy
from autopeft.search.ranking import agreement, chances_of_best_order
from autopeft.search.source_model import SourceModel, source_models
from autopeft.search.surrogate import Averaged, SurrogateError, condition, fit
from autopeft.search.trial import History, Trial, TrialState
from autopeft.search.warm_design import begun_from
from autopeft.search.warm_start import WarmProcess, levels_of, transferred, with_sources
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.space import SearchSpace
from tests.search.support import accuracy_of, history_of, problem_of, run, space_of, trial_of

SPACE = space_of("mixed")


def past_of(
    space: SearchSpace, *, n: int = 40, seed: int = 5, change: Callable[[float], float] = lambda value: value
) -> PastStudy:
    """A study of `n` uniform trials of the same task, each metric put through `change`."""
    drawn = list({one.id: one for one in space.sample(np.random.default_rng(seed), n)}.values())
    trials = [trial_of(number, one, space) for number, one in enumerate(drawn)]
    history = History(trials=tuple(_changed(trial, change) for trial in trials))
    learned, *others = ordered(problem_of(space).objectives)
    carried = {one: one for one in drawn}
    return PastStudy.of("before", history, carried, space=space, learned=learned, others=others)


def _changed(trial: Trial, change: Callable[[float], float]) -> Trial:
    measured = trial.measurements[-1]
    metrics = {"accuracy": change(measured.metrics["accuracy"])}
    return replace(trial, measurements=(replace(measured, metrics=metrics),))


def dearest_of(space: SearchSpace) -> Configuration:
    found = dearest(space, seed=0)
    assert found is not None
    return found


def truth_of(configurations: Sequence[Configuration]) -> np.ndarray:
    """`[n, 2]` losses by accuracy and parameters."""
    return np.array([[-accuracy_of(one, SPACE), float(SPACE.parameters(one))] for one in configurations])


def reference_of(configurations: Sequence[Configuration]) -> np.ndarray:
    return reference_point(truth_of(configurations), problem_of(SPACE, ["accuracy", "parameters"]).objectives)


def volume_of(configurations: Sequence[Configuration], reference: np.ndarray) -> float:
    return hypervolume(truth_of(configurations), reference)


def rescale(value: float) -> float:
    return 50.0 * value - 7.0


def reverse(value: float) -> float:
    return 1.4 - value


@cache
def observed(n: int, *, seed: int = 9) -> tuple[list[Configuration], np.ndarray, np.ndarray]:
    """`n` configurations of the space, their features and their losses."""
    drawn = SPACE.sample(np.random.default_rng(seed), n)
    losses = np.array([-trial.measurements[-1].metrics["accuracy"] for trial in history_of(drawn, SPACE)])
    return drawn, np.array([SPACE.features(one) for one in drawn]), losses


@cache
def model(change: Callable[[float], float] = lambda value: value) -> SourceModel:
    return SourceModel.of(past_of(SPACE, change=change), SPACE, seed=0)


def believed(n: int, sources: Sequence[SourceModel]) -> Averaged | WarmProcess:
    _, x, y = observed(n)
    return with_sources(fit(x, y, seed=0), x, y, sources, seed=0)


def share(n: int, *sources: SourceModel) -> float:
    process = believed(n, sources)
    return process.share if isinstance(process, WarmProcess) else 0.0


def error(process: Averaged | WarmProcess) -> float:
    """Root mean squared error at configurations that nobody has seen."""
    _, x, y = observed(100, seed=77)
    return float(np.sqrt(((process.posterior(x)[0] - y) ** 2).mean()))


@pytest.mark.parametrize("n", [6, 20])
def test_a_source_of_the_same_task_is_believed_and_lowers_the_error(n: int) -> None:
    source = model()
    assert share(n, source) > 0.5
    assert error(believed(n, [source])) < 0.8 * error(believed(n, []))


@pytest.mark.parametrize("n", [6, 20])
def test_a_source_in_another_unit_helps_as_much(n: int) -> None:
    same, other = model(), model(rescale)
    assert error(believed(n, [other])) == pytest.approx(error(believed(n, [same])), rel=0.2)


@pytest.mark.parametrize("n", [5, 8, 12, 20])
def test_a_source_that_misleads_leaves_the_error_as_it_is(n: int) -> None:
    assert error(believed(n, [model(reverse)])) < 1.1 * error(believed(n, []))


@pytest.mark.parametrize("n", [6, 20])
def test_a_source_that_misleads_beside_a_good_one_takes_little_from_it(n: int) -> None:
    good, bad = model(), model(reverse)
    assert error(believed(n, [bad, good])) < 0.9 * error(believed(n, []))


def test_without_sources_the_belief_is_the_cold_one() -> None:
    _, x, y = observed(8)
    cold = fit(x, y, seed=0)
    assert with_sources(cold, x, y, [], seed=0) is cold


@pytest.mark.parametrize("n", [6, 12])
def test_a_fantasy_is_met_where_it_was_had_and_narrows_the_belief_there(n: int) -> None:
    process = believed(n, [model()])
    _, x, _ = observed(3, seed=3)
    mean, before = process.posterior(x)
    again, after = process.fantasise(x).posterior(x)
    np.testing.assert_allclose(again, mean, atol=0.25 * before.max())
    assert (after <= before + 1e-9).all()


def test_the_residual_is_dropped_where_the_source_contradicts_and_the_input_stays() -> None:
    _, x, y = observed(12)
    assert [one.slopes is None for one in transferred(x, y, [model()], seed=0)] == [False, True]
    (only,) = transferred(x, y, [model(reverse)], seed=0)
    assert only.slopes is None
    means, deviations = only.left_out(x)
    assert means.shape == deviations.shape == (len(only.processes.each), 12)


@pytest.mark.parametrize("change", [lambda value: value, reverse])
def test_left_out_predictions_are_those_of_a_process_that_never_saw_the_observation(
    change: Callable[[float], float],
) -> None:
    _, x, y = observed(10)
    for part in transferred(x, y, [model(change)], seed=0):
        means, deviations = part.left_out(x)
        taken = np.zeros(10) if part.slopes is None else levels_of(part.sources, x) @ part.slopes
        inputs = np.column_stack([x, levels_of(part.sources, x)]) if part.slopes is None else x
        rest = np.arange(10) != 4
        process = part.processes.each[0]
        z = (y - taken - process.location) / process.scale
        without = condition(
            process.hyperparameters, inputs[rest], z[rest], location=process.location, scale=process.scale
        )
        mean, deviation = without.posterior(inputs[~rest])
        noisy = np.hypot(deviation, process.scale * process.hyperparameters.noise**0.5)
        assert means[0, 4] == pytest.approx(float(mean[0] + taken[4]), abs=1e-8)
        assert deviations[0, 4] == pytest.approx(float(noisy[0]), rel=1e-6)


def test_shares_are_chances_and_the_one_that_orders_best_has_the_largest() -> None:
    y = np.arange(8.0)
    narrow = np.full((3, 8), 0.1)
    parts = [(np.tile(y, (3, 1)), narrow), (np.tile(-y, (3, 1)), narrow), (np.tile(y, (3, 1)), narrow + 3.0)]
    shares = chances_of_best_order(parts, y, seed=0)
    assert shares.sum() == pytest.approx(1.0)
    assert shares[0] > 0.95
    assert shares[1] == 0.0
    assert chances_of_best_order(parts[:1] * 2, y, seed=0)[0] == pytest.approx(0.5)
    assert chances_of_best_order(parts, np.ones(8), seed=0).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("scores", "tau"), [([1, 2, 3], 1.0), ([3, 2, 1], -1.0), ([1, 3, 2], 1 / 3), ([1, 1, 1], 0.0), ([7], 0.0)]
)
def test_agreement_is_kendalls(scores: list[float], tau: float) -> None:
    assert agreement(np.array(scores, dtype=float), np.arange(len(scores), dtype=float)) == pytest.approx(tau)


def test_levels_are_between_the_best_and_the_worst_that_the_source_saw() -> None:
    source = model()
    levels = source.level(np.array([SPACE.features(one) for one in source.past.configurations]))
    assert (levels.min(), levels.max()) == (pytest.approx(0.0), pytest.approx(1.0))
    assert source.past.losses[int(np.argmin(levels))] < np.quantile(source.past.losses, 0.1)


def test_two_that_a_source_expects_most_of_are_worth_as_much_as_any_two_of_its_forty_trials() -> None:
    worth: list[float] = []
    for seed in range(5, 9):
        source = SourceModel.of(past_of(SPACE, seed=seed), SPACE, seed=0)
        tried = source.past.configurations
        reference = reference_of([*tried, dearest_of(SPACE)])
        begun = begun_from(problem_of(SPACE, ["accuracy", "parameters"]), [source], n=2)
        best = max(volume_of(two, reference) for two in itertools.combinations(tried, 2))
        assert len(set(begun)) == 2
        assert volume_of(begun, reference) > volume_of(begun[:1], reference)
        worth.append(volume_of(begun, reference) / best)
    assert np.mean(worth) > 0.98, worth


@pytest.mark.parametrize("seed", range(4))
def test_of_a_noisy_source_the_front_that_it_expects_is_begun_with(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source = SourceModel.of(past_of(SPACE, change=lambda value: value + 0.2 * rng.standard_normal()), SPACE, seed=0)
    problem, tried = problem_of(SPACE, ["accuracy", "parameters"]), source.past.configurations
    parameters = [float(SPACE.parameters(one)) for one in (*tried, dearest_of(SPACE))]
    corner = reference_point(np.column_stack([[*source.seen, source.seen.max()], parameters]), problem.objectives)

    def expected(configurations: Sequence[Configuration]) -> float:
        means, _ = source.process.posterior(np.array([SPACE.features(one) for one in configurations]))
        return hypervolume(np.column_stack([means, [SPACE.parameters(one) for one in configurations]]), corner)

    begun = begun_from(problem, [source], n=2)
    assert expected(begun) >= max(expected((begun[0], one)) for one in tried) > expected(begun[:1])


def test_costs_that_this_study_knows_are_its_own() -> None:
    past = past_of(SPACE)
    assert past.costs[:, 0].tolist() == [SPACE.parameters(one) for one in past.configurations]
    assert past.costs[:, 1].tolist() == [SPACE.predicted(one)["memory"] for one in past.configurations]
    learned, seconds = ordered(problem_of(SPACE, ["accuracy", "train_seconds"]).objectives)
    history = history_of(past.configurations[:4], SPACE, state=lambda n: [*TrialState][n % 2])
    carried = {one: one for one in past.configurations[1:]}
    other = PastStudy.of("other", history, carried, space=SPACE, learned=learned, others=[seconds])
    assert other.configurations == (past.configurations[1], past.configurations[3])
    assert other.costs[:, 0].tolist() == [1.0 + 0.1 * len(one.adapted_layers) for one in other.configurations]


def test_a_source_of_two_trials_says_nothing() -> None:
    past = past_of(SPACE, n=2)
    with pytest.raises(SurrogateError, match="2 trials of before, 3 are needed"):
        SourceModel.of(past, SPACE, seed=0)
    assert source_models([past, past_of(SPACE)], SPACE, seed=0)[0].past.name == "before"


def test_the_design_begins_with_what_the_sources_expect_in_turn_and_goes_on_as_a_cold_one() -> None:
    sources = source_models((past_of(SPACE), past_of(SPACE, seed=6)), SPACE, seed=0)
    problem = replace(problem_of(SPACE), past=tuple(source.past for source in sources))
    design, cold = initial_design(problem, sources), initial_design(problem_of(SPACE))
    assert design[:FROM_SOURCES] == begun_from(problem, sources, n=FROM_SOURCES)
    assert design[:1] == begun_from(problem, sources[:1], n=1)
    assert design[1] != begun_from(problem, sources[:1], n=2)[1]
    assert len(design) == len(set(design)) == DESIGN
    assert design[FROM_SOURCES:] == cold[: DESIGN - FROM_SOURCES]
    assert BayesianSearcher(problem).ask(History(), DESIGN) == list(design)


def test_of_given_configurations_the_expected_ones_are_begun_with() -> None:
    problem, source = problem_of(SPACE), model()
    rows, _, _ = observed(60)
    begun = begun_from(problem, [source], n=3, among=rows)
    assert len(set(begun)) == 3
    assert set(begun) <= set(rows)
    assert begun[0] != begun_from(problem, [model(reverse)], n=1, among=rows)[0]


def test_a_source_whose_process_becomes_singular_is_asked_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    def singular(self: Belief, pending: Sequence[Configuration]) -> Belief:
        raise SurrogateError("kernel matrix of 41 observations")

    problem, source = problem_of(SPACE), model()
    monkeypatch.setattr(Belief, "fantasise", singular)
    assert begun_from(problem, [source], n=2) == begun_from(problem, [source], n=1) != ()
    assert len(initial_design(replace(problem, past=(source.past,)), [source])) == DESIGN


def test_a_cost_that_only_the_source_measured_is_learned_from_it() -> None:
    learned, seconds = ordered(problem_of(SPACE, ["accuracy", "train_seconds"]).objectives)
    history = history_of(past_of(SPACE).configurations, SPACE)
    carried = {trial.configuration: trial.configuration for trial in history}
    past = PastStudy.of("before", history, carried, space=SPACE, learned=learned, others=[seconds])
    source = SourceModel.of(past, SPACE, seed=0)
    cost = carried_cost(SPACE, seconds, past, 0, seed=0)
    few = min(past.configurations, key=lambda one: len(one.adapted_layers))
    many = max(past.configurations, key=lambda one: len(one.adapted_layers))
    quick, slow = cost.losses([few, many], np.array([SPACE.features(one) for one in (few, many)]))
    assert quick < slow
    (begun,) = begun_from(problem_of(SPACE, ["accuracy", "train_seconds"]), [source], n=1)
    assert accuracy_of(begun, SPACE) > np.median([accuracy_of(one, SPACE) for one in past.configurations])


def test_a_belief_knows_its_sources() -> None:
    problem = problem_of(SPACE)
    drawn, _, _ = observed(12)
    history = history_of(drawn, SPACE)
    warm = Belief.of(problem, history, sources=[model()])
    assert isinstance(warm.process, WarmProcess)
    assert isinstance(Belief.of(problem, history).process, Averaged)
    assert (warm.improvement()(drawn) >= 0).all()


def curves(space: SearchSpace, seed: int, *, n: int, changes: Sequence[Callable[[float], float]]) -> list[list[float]]:
    """Hypervolume after each of `n` trials, from one reference: of a cold search, then of one begun from each."""
    cold = problem_of(space, ["accuracy", "parameters"], seed=seed, n_trials=n)
    warm = [replace(cold, past=(past_of(space, seed=seed + 50, change=change),)) for change in changes]
    groups = [front_points(run(BayesianSearcher(problem), space, n=n), problem.objectives) for problem in (cold, *warm)]
    reference = Front.of([point for group in groups for point in group], cold.objectives).reference
    return [
        [volume for _, volume in hypervolume_curve(group, cold.objectives, reference=reference)] for group in groups
    ]


def reached(curve: Sequence[float], volume: float) -> int:
    """Trials after which a search has `volume`; one more than it made when it never has."""
    return next((n for n, there in enumerate(curve, start=1) if there >= volume), len(curve) + 1)


def test_a_source_of_the_same_task_saves_trials_and_one_that_misleads_costs_little() -> None:
    cold, same, misled = curves(SPACE, 2, n=11, changes=[lambda value: value, reverse])
    assert reached(same, cold[-1]) <= 8
    assert misled[-1] > 0.95 * cold[-1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_over_seeds_the_same_task_saves_trials_and_a_source_that_misleads_costs_at_most_three_per_cent() -> None:
    found = {
        name: [
            curves(space_of(name, n_layers=6), seed, n=20, changes=[lambda value: value, reverse]) for seed in range(4)
        ]
        for name in ("per-layer", "mixed", "sizes")
    }
    every = [row for rows in found.values() for row in rows]
    assert np.mean([same[-1] / cold[-1] for cold, same, _ in every]) > 1.0
    assert np.mean([misled[-1] / cold[-1] for cold, _, misled in every]) >= 0.97
    assert min(misled[-1] / cold[-1] for cold, _, misled in every) >= 0.9
    saved = [reached(cold, 0.98 * cold[-1]) - reached(same, 0.98 * cold[-1]) for cold, same, _ in found["mixed"]]
    assert np.mean(saved) >= 2
