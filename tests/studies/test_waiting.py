"""Which proposals share a pack: the fewest unshared layers, nothing proposed twice, nothing left out."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from autopeft.search.bayesian import BayesianSearcher
from autopeft.search.random_search import RandomSearcher
from autopeft.search.searcher import AbstractSearcher, SearchProblem
from autopeft.search.sobol import SobolSearcher
from autopeft.search.trial import History, Trial, TrialState
from autopeft.spaces.configuration import Configuration
from autopeft.studies.drive import _likeness
from autopeft.studies.runner import Runner
from autopeft.studies.waiting import PACKS_AHEAD, Likeness, WaitingRoom, joining, partition, unshared
from tests.configurations import configuration, setting
from tests.studies.support import FreshDraws, open_study, plan, small_space

SPACE = small_space()


def drawn(rng: np.random.Generator, n: int) -> list[Likeness]:
    return [Likeness(int(rng.integers(5)), int(rng.choice([16, 32]))) for _ in range(n)]


def partitions(rows: tuple[int, ...], n: int, *, smaller: bool) -> Iterator[list[tuple[int, ...]]]:
    """Every way to cut `rows` into packs of `n`, of which one may have what is left over."""
    if not rows:
        yield []
        return
    first, rest = rows[0], rows[1:]
    left = len(rows) % n
    for size in {n, left} if smaller and left else {n}:
        for others in combinations(rest, size - 1):
            remaining = tuple(row for row in rest if row not in others)
            for packs in partitions(remaining, n, smaller=smaller and size == n):
                yield [(first, *others), *packs]


@pytest.mark.parametrize("seed", range(12))
def test_no_partition_leaves_fewer_layers_unshared(seed: int) -> None:
    rng = np.random.default_rng(seed)
    m, n = int(rng.integers(1, 9)), int(rng.integers(1, 4))
    rows = drawn(rng, m)
    packs = partition(rows, n)
    assert sorted(index for pack in packs for index in pack) == list(range(m))
    assert sorted(map(len, packs)) == sorted([n] * (m // n) + ([m % n] if m % n else []))
    best = min(
        sum(unshared([rows[i] for i in pack]) for pack in packs)
        for packs in partitions(tuple(range(m)), n, smaller=True)
    )
    assert sum(unshared([rows[i] for i in pack]) for pack in packs) == best


@pytest.mark.parametrize("seed", range(20))
def test_no_choice_of_who_joins_leaves_fewer_layers_unshared(seed: int) -> None:
    rng = np.random.default_rng([seed, 1])
    rows, beside = drawn(rng, int(rng.integers(1, 9))), drawn(rng, int(rng.integers(1, 4)))
    n = int(rng.integers(1, 5))
    chosen = joining(rows, n, beside=beside)
    assert len(set(chosen)) == len(chosen) == min(n, len(rows))
    best = min(unshared([*beside, *(rows[i] for i in some)]) for some in combinations(range(len(rows)), len(chosen)))
    assert unshared([*beside, *(rows[i] for i in chosen)]) == best


def test_of_equals_those_join_that_have_batches_of_the_same_size_and_then_the_first() -> None:
    rows = [Likeness(3, 16), Likeness(3, 32), Likeness(3, 32), Likeness(2, 32)]
    assert joining(rows, 1, beside=[Likeness(3, 32)]) == [1]
    assert joining(rows, 1, beside=[Likeness(3, 64)]) == [0]
    assert joining(rows, 2, beside=[Likeness(2, 32), Likeness(2, 32)]) == [3, 1]


def lora(lowest: int, rank: int) -> Configuration:
    return configuration(setting("lora", tuple(range(lowest, 3)), rank=rank))


class Listed(AbstractSearcher):
    """Proposes these, in this order."""

    def __init__(self, rows: Sequence[Configuration], *, foreseen: int) -> None:
        self.rows, self.ahead = rows, foreseen
        self.asked: list[int] = []

    def ask(self, history: History, n: int) -> Sequence[Configuration]:
        self.asked.append(n)
        return [row for row in self.rows if row.id not in history.ids][:n]

    def foreseen(self, history: History) -> int:
        return max(0, self.ahead - len(history))


def lowest(one: Configuration) -> Likeness:
    return Likeness(min(one.methods[0].layers))


def begun(rows: Sequence[Configuration]) -> History:
    trials = [
        Trial(number=number, configuration=row, state=TrialState.RUNNING, predicted={})
        for number, row in enumerate(rows)
    ]
    return History(trials=tuple(trials))


def packs_of(room: WaitingRoom, *, n: int, trials: int, more: int = 0) -> list[list[Configuration]]:
    found: list[list[Configuration]] = []
    while sum(map(len, found)) < trials:
        taken = [row for pack in found for row in pack]
        pack = list(room.ask(begun(taken), n, more=more, room=trials - len(taken)))
        room.took(pack)
        found.append(pack)
    return found


MIXED = [lora(depth, rank) for rank in (2, 3) for depth in (0, 2, 1, 0, 2, 1)]
MIXED = list({row.id: row for row in MIXED}.values()) + [lora(depth, rank) for rank in (4, 5) for depth in (0, 1, 2)]


def test_what_is_foreseen_is_grouped_and_all_of_it_is_trained() -> None:
    searcher = Listed(MIXED, foreseen=100)
    found = packs_of(WaitingRoom(searcher, likeness=lowest, at_once=4), n=4, trials=12)
    assert {row.id for pack in found for row in pack} == {row.id for row in MIXED}
    assert searcher.asked == [12], "asked once, ahead"
    assert [{lowest(row).lowest for row in pack} for pack in found] == [{0}, {2}, {1}]
    waste = sum(unshared([lowest(row) for row in pack]) for pack in found)
    assert waste < sum(unshared([lowest(row) for row in MIXED[at : at + 4]]) for at in (0, 4, 8))


def test_what_depends_on_results_is_never_asked_for_ahead() -> None:
    searcher = Listed(MIXED, foreseen=4)
    found = packs_of(WaitingRoom(searcher, likeness=lowest, at_once=4), n=4, trials=12)
    assert searcher.asked == [4, 4, 4]
    assert [row.id for pack in found for row in pack] == [row.id for row in MIXED], "in the order of proposal"


def test_workers_that_are_free_at_the_same_time_are_asked_for_together() -> None:
    searcher = Listed(MIXED, foreseen=0)
    room = WaitingRoom(searcher, likeness=lowest, at_once=4)
    found = packs_of(room, n=4, trials=12, more=8)
    assert searcher.asked == [12]
    assert [{lowest(row).lowest for row in pack} for pack in found] == [{0}, {2}, {1}]


def test_no_more_wait_than_some_packs_and_none_beyond_the_budget() -> None:
    searcher = Listed([lora(0, rank) for rank in range(1, 40)], foreseen=1000)
    WaitingRoom(searcher, likeness=lowest, at_once=2).ask(History(), 2, room=1000)
    WaitingRoom(searcher, likeness=lowest, at_once=2).ask(History(), 2, room=5)
    assert searcher.asked == [2 * PACKS_AHEAD, 5]
    assert list(WaitingRoom(searcher, likeness=lowest, at_once=2).ask(History(), 2, room=0)) == []


def test_one_trial_a_worker_is_asked_for_as_ever() -> None:
    searcher = Listed(MIXED, foreseen=1000)
    room = WaitingRoom(searcher, likeness=lowest, at_once=1)
    assert [row.id for row in room.ask(History(), 1, room=12)] == [MIXED[0].id]
    assert searcher.asked == [1]


def test_what_is_asked_for_ahead_is_what_would_have_been_proposed() -> None:
    """A design is the same whatever its trials come to, and so are draws; a model's proposals are not foreseen."""
    problem = SearchProblem(space=SPACE, objectives=(), seed=3, n_trials=20)
    assert RandomSearcher(problem).foreseen(History()) == SobolSearcher(problem).foreseen(History()) == 20
    designed = BayesianSearcher(problem)
    n = designed.foreseen(History())
    ahead = [row.id for row in designed.ask(History(), n)]
    one_by_one: list[Configuration] = []
    for _ in range(n):
        one_by_one += designed.ask(begun(one_by_one), 1)
    assert [row.id for row in one_by_one] == ahead
    assert designed.foreseen(begun(one_by_one)) == 0


def test_the_runner_refills_with_the_waiting_proposal_that_fits(tmp_path: Path) -> None:
    class Foreseen(FreshDraws):
        def foreseen(self, history: History) -> int:
            return 1000

    study = Runner(
        open_study(tmp_path),
        space=SPACE,
        searcher=Foreseen(SPACE, seed=1),
        seed=11,
        n_trials=12,
        epochs=2,
        likeness=lowest_of_all,
        at_once=3,
    )
    pack = study.propose(3)
    beside = pack[:2]
    waiting = [lowest_of_all(row) for row in study._room._waiting]
    (found,) = study.propose(1, beside=beside)
    company = [lowest_of_all(row.job.configurations[0]) for row in beside]
    chosen = lowest_of_all(found.job.configurations[0])
    assert unshared([*company, chosen]) == min(unshared([*company, row]) for row in waiting)
    rest = [one for _ in range(4) for one in study.propose(3)]
    numbers = [number for row in (*pack, found, *rest) for number in row.numbers]
    assert numbers == list(range(12)), "every proposal is trained once, and no number is left out"


def test_what_waited_when_a_driver_died_is_what_the_next_one_goes_on_with(tmp_path: Path) -> None:
    def proposed(folder: Path, *packs_before_death: int) -> list[str]:
        folder.mkdir()
        stored, found = open_study(folder), list[str]()
        for packs in (*packs_before_death, 12):
            problem = SearchProblem(space=SPACE, objectives=(), seed=3, n_trials=12)
            runner = Runner(
                stored,
                space=SPACE,
                searcher=RandomSearcher(problem),
                seed=11,
                n_trials=12,
                epochs=2,
                likeness=lowest_of_all,
                at_once=2,
            )
            runner._queue.clear()  # what ran is not what is looked at
            for _ in range(packs):
                found += [one.id for row in runner.propose(2) for one in row.job.configurations]
        return found

    whole = proposed(tmp_path / "whole")
    assert len(set(whole)) == 12
    assert proposed(tmp_path / "killed", 1, 3) == whole


def lowest_of_all(one: Configuration) -> Likeness:
    return Likeness(min([3, *(min(row.layers) for row in one)]))


def test_a_plan_says_what_is_alike() -> None:
    alike = _likeness(plan())
    assert alike(lora(2, 4)).lowest == 2
    batches = [alike(configuration(setting("lora", (1,), rank=2), batch_size=size)).cells for size in (8, 16)]
    assert 0 < 2 * batches[0] == batches[1]
    assert alike(configuration(setting("lora", (1,), rank=2), batch_size=0)) == Likeness(0)
