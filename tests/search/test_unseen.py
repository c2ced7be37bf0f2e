import numpy as np
import pytest

from autopeft.search import unseen
from autopeft.search.unseen import draw_unseen
from autopeft.spaces.configuration import Configuration
from tests.search.support import space_of


def test_all_of_a_small_space_are_found_and_none_twice() -> None:
    space = space_of("tiny")
    found = draw_unseen(space, np.random.default_rng(0), 100, seen=frozenset())
    assert len({one.id for one in found}) == len(found) == space.size().configurations == 15


def test_the_last_configuration_is_found() -> None:
    space = space_of("tiny")
    everything = draw_unseen(space, np.random.default_rng(0), 100, seen=frozenset())
    for last in everything:
        seen = {one.id for one in everything} - {last.id}
        assert [one.id for one in draw_unseen(space, np.random.default_rng(1), 3, seen=seen)] == [last.id]


def test_nothing_is_left_of_an_exhausted_space() -> None:
    space = space_of("tiny")
    everything = draw_unseen(space, np.random.default_rng(0), 100, seen=frozenset())
    assert draw_unseen(space, np.random.default_rng(1), 1, seen={one.id for one in everything}) == []


def test_a_walk_over_neighbours_finds_what_enumeration_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unseen, "MAX_LISTED", 1)
    space = space_of("tiny")
    assert len(draw_unseen(space, np.random.default_rng(0), 100, seen=frozenset())) == 15


def test_a_walk_stops_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unseen, "MAX_VISITED", 80)
    space = space_of("mixed")

    def stuck(_: object, n: int) -> list[Configuration]:
        return [first] * n

    first = space.sample(np.random.default_rng(0), 1)[0]

    class Stuck:
        dimensions = space.dimensions
        size = staticmethod(space.size)
        neighbours = staticmethod(space.neighbours)
        sample = staticmethod(stuck)

    found = draw_unseen(Stuck(), np.random.default_rng(0), 500, seen=frozenset())  # type: ignore[arg-type]
    assert 1 < len(found) <= 80


def test_draws_are_uniform_over_what_was_not_seen() -> None:
    space = space_of("tiny")
    everything = [one.id for one in draw_unseen(space, np.random.default_rng(0), 100, seen=frozenset())]
    counts = dict.fromkeys(everything[5:], 0)
    for seed in range(600):
        counts[draw_unseen(space, np.random.default_rng(seed), 1, seen=set(everything[:5]))[0].id] += 1
    assert min(counts.values()) > 30
