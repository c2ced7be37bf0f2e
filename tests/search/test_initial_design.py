from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.objectives.front import Front
from autopeft.search.bayesian import BayesianSearcher
from autopeft.search.belief import MIN_OUTCOMES
from autopeft.search.initial_design import DEAREST, DESIGN, MARGIN, POOL, _sequence, initial_design
from autopeft.search.observations import front_points
from autopeft.search.shrunk import shrunk
from autopeft.search.trial import History
from tests.search.support import history_of, problem_of, run, space_of


def test_it_is_as_short_as_a_model_can_learn_from() -> None:
    assert MIN_OUTCOMES < DESIGN == 4


@pytest.mark.parametrize("seed", range(8))
def test_of_four_every_one_has_a_rate_of_its_own_and_sizes_differ_by_as_much_as_draws_do(seed: int) -> None:
    space = space_of("mixed")
    problem = problem_of(space, seed=seed)
    features = np.array([space.features(one) for one in initial_design(problem)])
    rates, sizes = np.sort(features[:, [space.feature_names.index("learning_rate"), -1]], axis=0).T
    assert np.diff(rates).min() > 0.08
    assert MARGIN - 0.05 < rates[0] < rates[-1] < 1 - MARGIN + 0.05
    drawn = np.array([space.features(one)[-1] for one in space.sample(np.random.default_rng(9), 500)])
    low, high = np.quantile(drawn, [0.0, DEAREST])
    assert np.ptp(sizes) > 0.4 * (high - low)
    assert sizes[-1] < high + 0.05


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 4), st.integers(0, 1000))
def test_the_first_few_points_of_the_sequence_are_even_in_every_dimension(d: int, seed: int) -> None:
    points = _sequence(d, n=16, seed=seed)
    assert ((points >= 0) & (points < 1)).all()
    for n in (4, 8, 16):
        ordered = np.sort(points[:n], axis=0)
        gaps = np.diff(np.vstack([ordered, 1 + ordered[:1]]), axis=0)
        assert gaps.max() < 4.5 / n


@pytest.mark.parametrize("seed", range(4))
def test_small_ones_are_tried_where_hardly_a_draw_is_small(seed: int) -> None:
    space = space_of("per-layer", n_layers=12)
    design = initial_design(problem_of(space, ["accuracy", "parameters"], seed=seed), size=6)
    drawn = [space.parameters(one) for one in space.sample(np.random.default_rng(9), 300)]
    counts = sorted(map(space.parameters, design))
    assert counts[0] < min(drawn)
    assert counts[2] < np.quantile(drawn, 0.25)
    assert counts[-1] > np.quantile(drawn, 0.1)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(["mixed", "sizes", "per-layer"]), st.integers(0, 1000), st.floats(0.01, 1.0))
def test_shrinking_comes_near_and_stays_valid(name: str, seed: int, share: float) -> None:
    space, rng = space_of(name), np.random.default_rng(seed)
    (one,) = space.sample(rng, 1)
    found = shrunk(space, one, share * space.parameters(one), rng)
    assert space.contains(found)
    assert space.parameters(found) <= space.parameters(one)
    if 2 * space.parameter_bounds[0] < share * space.parameters(one):
        assert 0.2 < space.parameters(found) / (share * space.parameters(one)) < 5


def test_where_nothing_known_is_an_objective_the_largest_are_tried_too() -> None:
    space = space_of("sizes")
    plain, costly = (
        np.array([space.parameters(one) for one in initial_design(problem_of(space, names), size=32)])
        for names in (["accuracy"], ["accuracy", "parameters"])
    )
    drawn = [space.parameters(one) for one in space.sample(np.random.default_rng(9), 500)]
    assert max(plain) > np.quantile(drawn, 0.95) > max(costly)


def test_it_is_distinct_valid_and_of_the_size_promised() -> None:
    space = space_of("mixed", constraints=("parameters <= 2000",))
    problem = problem_of(space, n_trials=40)
    for size in (DESIGN, 20):
        design = initial_design(problem, size=size)
        assert len({one.id for one in design}) == len(design) == size
        assert all(space.contains(one) for one in design)


def test_a_longer_one_begins_with_a_shorter_one() -> None:
    problem = problem_of(space_of("mixed"))
    assert initial_design(problem, size=POOL)[:DESIGN] == initial_design(problem)


def test_a_space_with_fewer_configurations_is_used_up() -> None:
    assert 6 <= len(initial_design(problem_of(space_of("tiny"), n_trials=400), size=POOL)) <= 15


def test_it_keeps_to_what_there_is_to_choose_from() -> None:
    space = space_of("mixed")
    rows = space.sample(np.random.default_rng(3), 12)
    assert set(initial_design(problem_of(space), size=8, among=rows)) <= set(rows)
    assert set(initial_design(problem_of(space), size=POOL, among=rows)) == set(rows)


def test_a_design_of_given_configurations_stays_as_they_are_used_up() -> None:
    space = space_of("mixed")
    rows = list(dict.fromkeys(space.sample(np.random.default_rng(4), 40)))
    left, problem = list(rows), problem_of(space)
    searcher, history = BayesianSearcher(problem, among=lambda _: left), History()
    for _ in range(DESIGN):
        (asked,) = searcher.ask(history, 1)
        left.remove(asked)
        history = history_of([*(trial.configuration for trial in history), asked], space)
    assert [trial.configuration for trial in history] == list(initial_design(problem, among=rows))


def test_layers_that_mattered_elsewhere_are_tried_first() -> None:
    problem = problem_of(space_of("per-layer"), n_trials=100)
    last = problem.space.shape.n_layers - 1
    layers = [one.adapted_layers for one in initial_design(replace(problem, layer_weights={0: 0.01, last: 0.99}))]
    plain = [one.adapted_layers for one in initial_design(problem)]
    assert sum(0 in rows for rows in layers) < sum(0 in rows for rows in plain)
    assert sum(last in rows for rows in layers) > sum(last in rows for rows in plain) - 1


def test_after_the_first_design_layer_weights_say_nothing() -> None:
    problem = problem_of(space_of("per-layer"), n_trials=24)
    led = replace(problem, layer_weights={layer: 0.1 for layer in range(4)})
    drawn = problem.space.sample(np.random.default_rng(5), 60)
    told = history_of(list(dict.fromkeys(drawn))[:DESIGN], problem.space)
    assert BayesianSearcher(led).ask(told, 2) == BayesianSearcher(problem).ask(told, 2)
    early = History(trials=told.trials[:1])
    assert BayesianSearcher(led).ask(early, 2) != BayesianSearcher(problem).ask(early, 2)


def volumes_with(weights: Mapping[int, float], *, seed: int, n: int = 16) -> list[float]:
    """Last volumes of a search without `weights` and of one with them, from one reference; later layers are better."""
    plain = problem_of(space_of("per-layer"), ["accuracy", "parameters"], seed=seed, n_trials=n)
    groups = [
        front_points(run(BayesianSearcher(one), one.space, n=n), one.objectives)
        for one in (plain, replace(plain, layer_weights=weights))
    ]
    reference = Front.of([point for group in groups for point in group], plain.objectives).reference
    return [Front.of(group, plain.objectives, reference=reference).hypervolume for group in groups]


MISLEADING = {0: 0.9, 1: 0.65, 2: 0.35, 3: 0.1}


def test_weights_that_mislead_cost_little() -> None:
    plain, led = volumes_with(MISLEADING, seed=0)
    assert led > 0.95 * plain


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_over_seeds_weights_that_mislead_cost_at_most_three_per_cent() -> None:
    found = [volumes_with(MISLEADING, seed=seed) for seed in range(10)]
    assert np.mean([led / plain for plain, led in found]) >= 0.97
    assert min(led / plain for plain, led in found) >= 0.9
