from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from autopeft.objectives.front import Front
from autopeft.search.bayesian import BayesianSearcher
from autopeft.search.initial_design import design_size, initial_design
from autopeft.search.observations import front_points
from autopeft.search.trial import History
from tests.search.support import history_of, problem_of, run, space_of


@pytest.mark.parametrize(("n_trials", "size"), [(8, 6), (24, 6), (36, 9), (400, 10)])
def test_it_takes_a_quarter_of_the_budget_within_bounds(n_trials: int, size: int) -> None:
    assert design_size(problem_of(space_of("mixed"), n_trials=n_trials)) == size


@pytest.mark.parametrize("name", ["mixed", "sizes", "per-layer"])
def test_it_spans_the_costs(name: str) -> None:
    space = space_of(name)
    counts = [space.parameters(one) for one in initial_design(problem_of(space, n_trials=40))]
    draws = [space.parameters(one) for one in space.sample(np.random.default_rng(9), 500)]
    assert min(counts) <= min(draws)
    assert max(counts) >= max(draws)
    assert any(2 * min(counts) < count < max(counts) / 2 for count in counts)


@pytest.mark.parametrize("name", ["mixed", "sizes"])
def test_it_has_each_method_alone(name: str) -> None:
    space = space_of(name)
    design = initial_design(problem_of(space, n_trials=40))
    alone = {one.methods[0].method for one in design if len(one.methods) == 1}
    assert alone == {setting.method for one in space.sample(np.random.default_rng(0), 50) for setting in one}


def test_it_is_distinct_valid_and_of_the_size_promised() -> None:
    space = space_of("mixed", constraints=("parameters <= 2000",))
    problem = problem_of(space, n_trials=40)
    design = initial_design(problem)
    assert len({one.id for one in design}) == len(design) == design_size(problem)
    assert all(space.contains(one) for one in design)


def test_a_space_with_fewer_configurations_is_used_up() -> None:
    assert 6 <= len(initial_design(problem_of(space_of("tiny"), n_trials=400))) <= 15


def test_the_rest_lies_further_from_what_is_chosen_than_uniform_draws_do() -> None:
    space = space_of("mixed")
    design = np.array([space.features(one) for one in initial_design(problem_of(space, n_trials=40))])
    draws = np.array([space.features(one) for one in space.sample(np.random.default_rng(3), 100)])
    for count in range(len(design) - 3, len(design)):
        gaps = np.linalg.norm(draws[:, None] - design[None, :count], axis=2).min(axis=1)
        assert np.linalg.norm(design[count] - design[:count], axis=1).min() > np.median(gaps)


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
    told = history_of(list(dict.fromkeys(drawn))[: design_size(problem)], problem.space)
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
