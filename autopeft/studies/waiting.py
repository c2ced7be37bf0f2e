"""Which of several proposals share a pack: those whose lowest adapted layers are alike.

Below the lowest adapted layer of a pack the base runs once for all its slots, so a slot whose own lowest layer is c
has `c - min` layers run for it that it could have shared. Proposals that do not depend on what trials come to are asked
for ahead, and wait here; they are all trained, in the order in which they share most. What is proposed does not change,
and is kept with the study: a driver that is killed leaves those that waited to the next one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, final

from autopeft.search.searcher import AbstractSearcher
from autopeft.search.trial import History
from autopeft.spaces.canonical import read_configuration
from autopeft.spaces.configuration import Configuration
from autopeft.studies.storage import StoredStudy

PACKS_AHEAD: Final = 4
"""Packs' worth of proposals that may wait."""
WAITING: Final = "waiting"
"""Attribute of a study: the proposals that waited when some were last asked for ahead, trials by now or not."""


@dataclass(frozen=True, slots=True, order=True)
class Likeness:
    """What two trials should have in common to share a pack."""

    lowest: int
    """Their lowest adapted layer: what is below is run once for both."""
    cells: int = 0
    """Cells (rows times longest row) of a batch at most: equal ones end their epochs together."""


LikenessOf = Callable[[Configuration], Likeness]


def partition(rows: Sequence[Likeness], n: int) -> list[list[int]]:
    """Indices of `rows` in packs of `n`, one of them perhaps smaller, with the fewest unshared layers in all.

    Packs of fixed sizes are best cut from the rows in order; which place the smaller one has is tried. Cost: O(m^2 / n)
    for m rows. Its twin in the tests tries every partition.
    """
    order = sorted(range(len(rows)), key=lambda index: (rows[index], index))
    rest = len(rows) % n
    choices: list[tuple[int, list[list[int]]]] = []
    for place in range(len(rows) // n + 1 if rest else 1):
        packs: list[list[int]] = []
        start = 0
        while start < len(order):
            size = rest if rest and len(packs) == place else n
            packs.append(order[start : start + size])
            start += size
        choices.append((sum(unshared([rows[index] for index in pack]) for pack in packs), packs))
    return min(choices, key=lambda choice: choice[0])[1]


def joining(rows: Sequence[Likeness], n: int, *, beside: Sequence[Likeness]) -> list[int]:
    """Indices of the `n` of `rows` that leave the fewest unshared layers in a pack with `beside`; ties to the first.

    With a given lowest layer of the whole the best are those closest above it, so each possible one is tried. Cost:
    O(m^2 log m) for m rows. Its twin in the tests tries every choice.
    """
    floor = min(row.lowest for row in beside)
    sizes = {row.cells for row in beside}
    order = sorted(range(len(rows)), key=lambda index: (rows[index].lowest, rows[index].cells not in sizes, index))
    choices: list[tuple[int, int, list[int]]] = []
    for lowest in sorted({floor, *(row.lowest for row in rows if row.lowest < floor)}, reverse=True):
        chosen = [index for index in order if rows[index].lowest >= lowest][:n]
        if len(chosen) == min(n, len(rows)):
            together = [*beside, *(rows[index] for index in chosen)]
            choices.append((unshared(together), len(choices), chosen))
    return min(choices)[2]


def unshared(rows: Sequence[Likeness]) -> int:
    """Layers that are run for the slots of one pack and that they could have shared in packs of their like."""
    return sum(row.lowest for row in rows) - len(rows) * min((row.lowest for row in rows), default=0)


def left_waiting(study: StoredStudy, history: History) -> list[Configuration]:
    """The proposals that were asked for ahead and are no trials yet."""
    rows = study.get_attr(WAITING) or []
    assert isinstance(rows, list)
    return [one for one in map(read_configuration, rows) if one.id not in history.ids]


@final
class WaitingRoom:
    """Proposals of a searcher, those first that share most with whom they join.

    Args:
        searcher: Proposes.
        likeness: Of a configuration; None where trials have workers for themselves, and nothing waits.
        at_once: Slots of a pack.
        waiting: Proposals that waited when the study was left.
        keep: Told of all that wait, before one of them is a trial.
    """

    def __init__(
        self,
        searcher: AbstractSearcher,
        *,
        likeness: LikenessOf | None = None,
        at_once: int = 1,
        waiting: Sequence[Configuration] = (),
        keep: Callable[[Sequence[Configuration]], None] = lambda waiting: None,
    ) -> None:
        self._searcher = searcher
        self._likeness = likeness if at_once > 1 else None
        self._at_once = at_once
        self._waiting, self._keep = list(waiting), keep

    def ask(
        self, history: History, n: int, *, company: Sequence[Configuration] = (), more: int = 0, room: int
    ) -> Sequence[Configuration]:
        """Up to `n` configurations to try next; see `AbstractSearcher.ask`. They wait until `took` says otherwise.

        Args:
            history: Of the study.
            n: How many.
            company: What they share a pack with.
            more: How many others are wanted at the same time, for other packs.
            room: How many trials may be begun at all.
        """
        n = min(n, room)
        if n < 1:
            return ()
        if not self._waiting:
            foreseen = 0 if self._likeness is None else self._searcher.foreseen(history)
            many = min(room, max(n + more, min(foreseen, PACKS_AHEAD * self._at_once)))
            if self._likeness is None or many <= n:
                return self._searcher.ask(history, n)
            self._waiting = list(self._searcher.ask(history, many))
            self._keep(self._waiting)
        chosen = self.preferred(self._waiting, n, company=company)
        return [self._waiting[index] for index in chosen]

    def took(self, configurations: Sequence[Configuration]) -> None:
        """These are trials now, and wait no longer."""
        gone = {configuration.id for configuration in configurations}
        self._waiting = [one for one in self._waiting if one.id not in gone]

    def preferred(self, rows: Sequence[Configuration], n: int, *, company: Sequence[Configuration] = ()) -> list[int]:
        """Indices of the `n` of `rows` that should begin now, beside `company`, in the order of `rows`.

        Without company it is the pack of the first one, so that nothing waits for ever.
        """
        if self._likeness is None or not 0 < n < len(rows):
            return list(range(min(n, len(rows))))
        alike = [self._likeness(row) for row in rows]
        if company:
            return sorted(joining(alike, n, beside=[self._likeness(row) for row in company]))
        packs = partition(alike, n)
        return sorted(next(pack for pack in packs if 0 in pack))
