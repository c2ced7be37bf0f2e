from collections.abc import Sequence

import numpy as np

from autopeft.objectives.pareto import Array
from autopeft.search.candidates import best_candidate, decoded
from autopeft.spaces.configuration import Configuration
from tests.search.support import accuracy_of, space_of

SPACE = space_of("mixed")


def score(configurations: Sequence[Configuration]) -> Array:
    return np.array([accuracy_of(one, SPACE) for one in configurations])


def test_the_end_is_no_worse_than_any_new_neighbour() -> None:
    found = best_candidate(SPACE, score, parents=(), excluded=frozenset(), rng=np.random.default_rng(0))
    assert found is not None
    assert score([found])[0] >= score(SPACE.neighbours(found)).max()


def test_it_beats_the_best_of_a_thousand_uniform_draws() -> None:
    draws = SPACE.sample(np.random.default_rng(1), 1000)
    found = best_candidate(SPACE, score, parents=draws[:5], excluded=frozenset(), rng=np.random.default_rng(0))
    assert found is not None
    assert score([found])[0] > score(draws).max()


def test_excluded_configurations_are_never_returned() -> None:
    excluded: set[Configuration] = set()
    for _ in range(5):
        found = best_candidate(SPACE, score, parents=(), excluded=excluded, rng=np.random.default_rng(0))
        assert found is not None
        assert found not in excluded
        excluded.add(found)


def test_none_is_returned_when_everything_is_excluded() -> None:
    tiny = space_of("tiny")
    everything = {one for one in tiny.sample(np.random.default_rng(0), 500)}
    flat = lambda configurations: np.zeros(len(configurations))  # noqa: E731
    assert best_candidate(tiny, flat, parents=(), excluded=everything, rng=np.random.default_rng(0)) is None


def test_the_seed_decides_a_tie() -> None:
    flat = lambda configurations: np.zeros(len(configurations))  # noqa: E731
    picks = [
        best_candidate(SPACE, flat, parents=(), excluded=frozenset(), rng=np.random.default_rng(seed))
        for seed in (0, 0, 1)
    ]
    assert picks[0] == picks[1] != picks[2]


def test_a_vector_of_an_invalid_or_refused_network_decodes_to_none() -> None:
    assert decoded(SPACE, np.zeros(len(SPACE.dimensions))) is None
    strict = space_of("mixed", constraints=("parameters <= 100",))
    assert decoded(strict, np.ones(len(strict.dimensions))) is None
    assert decoded(SPACE, np.ones(len(SPACE.dimensions))) is not None
