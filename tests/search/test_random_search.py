from collections import Counter

from autopeft.search.random_search import RandomSearcher
from autopeft.search.trial import History
from tests.search.support import problem_of, space_of


def test_first_draws_over_seeds_are_uniform_over_networks() -> None:
    tiny = space_of("tiny")
    counts = Counter(RandomSearcher(problem_of(tiny, seed=seed)).ask(History(), 1)[0].id for seed in range(600))
    assert len(counts) == 15
    assert min(counts.values()) > 15
