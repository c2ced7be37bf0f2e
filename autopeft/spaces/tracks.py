"""What the counting programme remembers of one field while it walks up the layers.

A track is a small automaton. Its state says which draws are still possible; an option is one way to go on at a layer:
whether the module is present (for sizes), which draw that fixes, and the state after it. Draws that lead to the same
state are one option with a multiplicity, so that the programme's cost does not grow with the number of values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from autopeft.spaces.bound import BoundField
from autopeft.spaces.configuration import Scalar
from autopeft.spaces.dimension import Level
from autopeft.spaces.methods.method import FieldKind

MAX_STATES = 300_000
"""States the counting programme may have before it gives up with an error."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """A draw among `indices` of a field's levels, to be kept for the cell (or, on a ramp, the position) `at`."""

    field: BoundField
    at: int
    indices: Sequence[int]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    present: bool
    pick: Pick | None
    after: int


_FREE, _ZERO, _SET = 0, 1, 2


@final
class ScopeTrack:
    """A field with one draw a scope: undecided until the scope's first use, then fixed to its end."""

    def __init__(self, field: BoundField, allowed: Sequence[int] | None) -> None:
        self._field = field
        self._options: list[dict[int, tuple[Option, ...]]] = []
        for scope, cell in enumerate(field.cells):
            assert cell.levels is not None
            indices = range(len(cell.levels)) if allowed is None else allowed
            zeros, positive = split(field, cell.levels, indices)
            free = (
                [Option(present=False, pick=Pick(field=field, at=scope, indices=zeros), after=_ZERO)] if zeros else []
            )
            if positive:
                free.append(Option(present=True, pick=Pick(field=field, at=scope, indices=positive), after=_SET))
            self._options.append(
                {
                    _FREE: tuple(free),
                    _ZERO: (Option(present=False, pick=None, after=_ZERO),),
                    _SET: (Option(present=True, pick=None, after=_SET),),
                }
            )

    start = _FREE

    def options(self, position: int, state: int) -> tuple[Option, ...]:
        return self._options[self._field.scope_of[position]][state]

    def leave(self, position: int, state: int) -> int:
        """The state with which the next position begins."""
        scopes = self._field.scope_of
        last = position + 1 == len(scopes)
        return _FREE if last or scopes[position + 1] != scopes[position] else state


@final
class RampTrack:
    """A ramp: the state is the set of ramps that agree with every layer seen so far.

    Two ramps that agree on all layers yet to come are one from there on (`_future`), so that ramps which give the same
    network count once however many layers the mask leaves out.
    """

    def __init__(self, field: BoundField, allowed: Sequence[int] | None) -> None:
        assert field.ramp is not None
        assert field.levels is not None
        self._field = field
        self._ramp = field.ramp
        indices = range(len(field.levels)) if allowed is None else allowed
        self._zero = frozenset(split(field, field.levels, range(len(field.levels)))[0])
        self._allowed = frozenset(indices)
        self._future = _futures(self._ramp)
        self._ids: dict[frozenset[int], int] = {}
        self._sets: list[frozenset[int]] = []
        self._options: dict[tuple[int, int], tuple[Option, ...]] = {}
        self.start = self._intern(frozenset(self._future[0]))

    def options(self, position: int, state: int) -> tuple[Option, ...]:
        key = (position, state)
        if key not in self._options:
            groups: dict[int, set[int]] = {}
            row = self._ramp[position]
            for pair in self._sets[state]:
                if row[pair] in self._allowed:
                    groups.setdefault(row[pair], set()).add(pair)
            self._options[key] = tuple(
                Option(
                    present=index not in self._zero,
                    pick=Pick(field=self._field, at=position, indices=(index,)),
                    after=self._intern(frozenset(pairs)),
                )
                for index, pairs in sorted(groups.items())
            )
        return self._options[key]

    def leave(self, position: int, state: int) -> int:
        """The state with which the next position begins: each ramp stands for all with the same future."""
        future = self._future[position + 1]
        return self._intern(frozenset(future[pair] for pair in self._sets[state]))

    def _intern(self, pairs: frozenset[int]) -> int:
        if pairs not in self._ids:
            self._ids[pairs] = len(self._sets)
            self._sets.append(pairs)
        return self._ids[pairs]


Track = ScopeTrack | RampTrack


def track(field: BoundField, allowed: Sequence[int] | None) -> Track:
    """The track of a discrete field, its levels restricted to the indices `allowed`."""
    return ScopeTrack(field, allowed) if field.ramp is None else RampTrack(field, allowed)


def split(field: BoundField, levels: Sequence[Level], indices: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """`indices` of levels that mean absence, and the others. Only sizes have the first kind."""
    if field.field.kind is not FieldKind.SIZE:
        return (), indices
    zeros = [index for index in indices if levels[index] == 0] if _starts_at_zero(levels) else []
    return zeros, indices[len(zeros) :]


def _starts_at_zero(levels: Sequence[Level]) -> bool:
    first: Scalar | tuple[str, ...] = levels[0]
    return first == 0


def _futures(ramp: Sequence[Sequence[int]]) -> list[dict[int, int]]:
    """For each position (and one past the last) and pair: the smallest pair that agrees from there on."""
    pairs = range(len(ramp[0]))
    futures: list[dict[int, int]] = [dict.fromkeys(pairs, 0)]
    for row in reversed(ramp):
        later = futures[0]
        first: dict[tuple[int, int], int] = {}
        futures.insert(0, {pair: first.setdefault((row[pair], later[pair]), pair) for pair in pairs})
    return futures
