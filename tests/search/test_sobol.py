import numpy as np

from autopeft.search.random_search import RandomSearcher
from autopeft.search.sobol import SobolSearcher
from autopeft.search.trial import History
from tests.search.support import problem_of, run, space_of

SPACE = space_of("mixed")


def test_one_by_one_and_all_at_once_are_the_same_sequence() -> None:
    searcher = SobolSearcher(problem_of(SPACE))
    together = searcher.ask(History(), 16)
    single = run(searcher, SPACE, n=16)
    assert [trial.configuration for trial in single] == list(together)


def test_it_fills_each_dimension_more_evenly_than_random_draws() -> None:
    def gap(configurations: object) -> float:
        rates = sorted(np.log10(dict(one.training)["learning_rate"]) for one in configurations)  # type: ignore[attr-defined]
        return float(np.diff(rates).max())

    sobol, random = [], []
    for seed in range(8):
        problem = problem_of(SPACE, seed=seed)
        sobol.append(gap(SobolSearcher(problem).ask(History(), 32)))
        random.append(gap(RandomSearcher(problem).ask(History(), 32)))
    assert np.mean(sobol) < 0.7 * np.mean(random)


def test_it_draws_at_random_once_the_sequence_finds_nothing_new() -> None:
    tiny = space_of("tiny")
    assert len({one.id for one in SobolSearcher(problem_of(tiny)).ask(History(), 15)}) == 15
