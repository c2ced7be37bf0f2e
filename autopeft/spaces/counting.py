"""How many distinct networks a space has, exactly, and the n-th of them.

Raw assignments of the dimensions are many more than networks: a masked layer hides its sizes, an absent module its
other settings, and two ramps may agree wherever the mask leaves layers. So a dynamic programme over layers and methods
counts networks: the mask is taken to be the union of the present modules (a layer where every module is absent is the
same network as a masked one), and the state holds what still constrains later layers (see `tracks`). Each network is
one path, so the counts are exact, and walking the paths by number is a bijection between 0 ... size-1 and the networks:
uniform sampling is a uniform number.

Cost: layers x methods x reachable states; states are few unless several methods have ramps under a mask.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import final

import numpy as np

from autopeft.errors import SpaceError
from autopeft.spaces.dimension import Level
from autopeft.spaces.masks import START, AbstractMask
from autopeft.spaces.scenarios import Plan, Scenario, scenarios
from autopeft.spaces.structure import Structure
from autopeft.spaces.tracks import MAX_STATES, Option, Pick, Track, track

State = tuple[bool, bool, int, tuple[tuple[int, ...], ...]]
"""Layer on, something present (here with a mask, anywhere without), state of the mask, state of each method's
tracks (and, last, whether it was present so far)."""
Move = tuple[State, int, tuple[Pick, ...]]
"""Next state, number of draws that lead there, the draws."""
Step = Callable[[State], list[Move]]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One network, as the cells and layers that make it."""

    on: tuple[int, ...]
    """Positions that are unmasked."""
    levels: dict[str, Level]
    """Of every discrete cell the network depends on, by cell name."""


@final
@dataclass(slots=True)
class _Node:
    """A state of the programme: its moves, and how many networks go through each."""

    moves: list[tuple[int, int, tuple[Pick, ...]]]
    """Index of the next node, number of draws, the draws."""
    on: bool
    """The layer is unmasked."""
    before: list[int] = field(default_factory=list)
    """Networks through earlier moves; the last entry is the total."""

    @property
    def total(self) -> int:
        return self.before[-1]


@final
class _Programme:
    """The networks of one scenario."""

    def __init__(self, structure: Structure, scenario: Scenario) -> None:
        self._structure = structure
        self._plans = scenario.plans
        self._tracks = [_method_tracks(plan) for plan in scenario.plans]
        self._n = len(structure.layers)
        self._steps = self._plain_steps() if structure.mask is None else self._masked_steps(structure.mask)
        self._nodes: list[list[_Node]] = []
        self._expand()
        self.total = self._nodes[0][0].total if self._nodes else 0

    def _masked_steps(self, mask: AbstractMask) -> list[tuple[int, Step]]:
        steps: list[tuple[int, Step]] = []
        for position in range(self._n):
            steps.append((position, self._gate(mask, position)))
            steps += [(position, self._method_step(position, index)) for index in range(len(self._plans))]
            steps.append((position, self._close(position)))
        return steps

    def _plain_steps(self) -> list[tuple[int, Step]]:
        return [
            (position, self._method_step(position, index))
            for index in range(len(self._plans))
            for position in range(self._n)
        ]

    def _gate(self, mask: AbstractMask, position: int) -> Step:
        def gate(state: State) -> list[Move]:
            _, _, before, tracks = state
            return [((on, False, after, tracks), 1, ()) for on, after in mask.ways(position, before)]

        return gate

    def _close(self, position: int) -> Step:
        def close(state: State) -> list[Move]:
            on, present, masked, tracks = state
            if on and not present:
                return []
            left = tuple(self._leave(index, position, row) for index, row in enumerate(tracks))
            return [((False, False, masked, left), 1, ())]

        return close

    def _leave(self, index: int, position: int, row: tuple[int, ...]) -> tuple[int, ...]:
        own = self._tracks[index]
        return (*(item.leave(position, state) for item, state in zip(own, row, strict=False)), row[-1])

    def _method_step(self, position: int, index: int) -> Step:
        size, *others = self._tracks[index]
        wanted = self._plans[index].present
        masked = self._structure.mask is not None

        def step(state: State) -> list[Move]:
            on, present, masked_state, tracks = state
            if not on:
                return [(state, 1, ())]
            moves: list[Move] = []
            row = tracks[index]
            for option in size.options(position, row[0]):
                if option.present and wanted is False:
                    continue
                for after, picks in _joint(option, others, position, row):
                    new = (*after, max(row[-1], int(option.present and wanted is True)))
                    new = new if masked else self._leave(index, position, new)
                    rows = (*tracks[:index], new, *tracks[index + 1 :])
                    weight = math.prod(len(pick.indices) for pick in picks)
                    moves.append(((on, present or option.present, masked_state, rows), weight, picks))
            return moves

        return step

    def _accepts(self, state: State) -> bool:
        _, present, masked, tracks = state
        met = all(row[-1] == 1 for row, plan in zip(tracks, self._plans, strict=True) if plan.present)
        return met and (present if self._structure.mask is None else self._structure.mask.accepts(masked))

    def _expand(self) -> None:
        start = tuple((*(item.start for item in own), 0) for own in self._tracks)
        states: dict[State, int] = {(self._structure.mask is None, False, START, start): 0}
        nodes = 0
        for _, step in self._steps:
            after: dict[State, int] = {}
            layer: list[_Node] = []
            for state in states:
                moves = step(state)
                rows = [(after.setdefault(to, len(after)), weight, picks) for to, weight, picks in moves]
                layer.append(_Node(moves=rows, on=state[0]))
                if nodes + len(after) > MAX_STATES:
                    raise SpaceError(
                        f"space: more than {MAX_STATES} states are needed to count it exactly",
                        hint="use fewer levels in ramp(...), or per_group(...) instead",
                    )
            nodes += len(after)
            self._nodes.append(layer)
            states = after
        self._sum([int(self._accepts(state)) for state in states])

    def _sum(self, totals: list[int]) -> None:
        for layer in reversed(self._nodes):
            for node in layer:
                node.before = [0, *accumulate(weight * totals[to] for to, weight, _ in node.moves)]
            totals = [node.total for node in layer]

    def network(self, number: int) -> Draw:
        """The network of that number, 0 <= number < total."""
        masked = self._structure.mask is not None
        on: list[int] = [] if masked else list(range(self._n))
        levels: dict[str, Level] = {}
        ramps: dict[str, list[tuple[Pick, int]]] = {}
        node = 0
        for (position, _), layer in zip(self._steps, self._nodes, strict=True):
            here = layer[node]
            way = bisect_right(here.before, number) - 1
            number -= here.before[way]
            node, weight, picks = here.moves[way]
            if masked and here.on and position not in on[-1:]:
                on.append(position)
            if picks:
                ways, number = divmod(number, (here.before[way + 1] - here.before[way]) // weight)
                _keep(picks, ways, levels, ramps)
        for rows in ramps.values():
            ramp = rows[0][0].field
            assert ramp.levels is not None
            positions = [pick.at for pick, _ in rows]
            levels |= ramp.spell_ramp(positions, [ramp.levels[index] for _, index in rows])
        return Draw(on=tuple(on), levels=levels)


def _joint(
    option: Option, others: Sequence[Track], position: int, row: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[Pick, ...]]]:
    """The size's option with every way its other fields may go on; they move only where the module is present."""
    head = () if option.pick is None else (option.pick,)
    if not option.present:
        yield (option.after, *row[1:-1]), head
        return
    partial: list[tuple[tuple[int, ...], tuple[Pick, ...]]] = [((option.after,), head)]
    for index, other in enumerate(others, start=1):
        ways = other.options(position, row[index])
        partial = [
            ((*after, way.after), picks if way.pick is None else (*picks, way.pick))
            for after, picks in partial
            for way in ways
        ]
    yield from partial


def _method_tracks(plan: Plan) -> list[Track]:
    """The size's track first, then those of the discrete fields that leave something to draw."""
    method = plan.method
    drawn = [
        field
        for field in method.beside_size
        if field.levels is not None and any(cell.dimensions for cell in field.cells)
    ]
    return [track(field, plan.allowed.get(field.field.name)) for field in (method.size, *drawn)]


def _keep(picks: Sequence[Pick], ways: int, levels: dict[str, Level], ramps: dict[str, list[tuple[Pick, int]]]) -> None:
    """Record the draws that `ways` means, read as a number with one digit a pick."""
    for pick in picks:
        ways, digit = divmod(ways, len(pick.indices))
        index = pick.indices[digit]
        if pick.field.ramp is not None:
            ramps.setdefault(pick.field.place, []).append((pick, index))
        else:
            cell = pick.field.cells[pick.at]
            assert cell.levels is not None
            levels[cell.name] = cell.levels[index]


@final
class Counter:
    """All networks of a structure, numbered from 0 to `total` - 1; continuous dimensions are not counted."""

    def __init__(self, structure: Structure) -> None:
        self._parts: list[tuple[_Programme, list[tuple[str, Sequence[Level], Sequence[int]]]]] = []
        totals: list[int] = []
        for scenario in scenarios(structure):
            programme = _Programme(structure, scenario)
            training = [
                (cell.name, cell.levels, scenario.training.get(name, range(len(cell.levels))))
                for name, cell in structure.training
                if cell.levels is not None and name not in scenario.inactive
            ]
            self._parts.append((programme, training))
            totals.append(programme.total * math.prod(len(indices) for _, _, indices in training))
        self._before = [0, *accumulate(totals)]
        self.total = self._before[-1]

    def network(self, number: int) -> Draw:
        """The network of that number."""
        part = bisect_right(self._before, number) - 1
        programme, training = self._parts[part]
        number -= self._before[part]
        drawn: dict[str, Level] = {}
        for name, levels, indices in training:
            number, digit = divmod(number, len(indices))
            drawn[name] = levels[indices[digit]]
        draw = programme.network(number)
        draw.levels.update(drawn)
        return draw

    def draw(self, rng: np.random.Generator) -> Draw:
        """A network drawn uniformly."""
        return self.network(below(rng, self.total))


def below(rng: np.random.Generator, limit: int) -> int:
    """A uniform whole number from 0 to `limit` - 1, however large `limit` is."""
    bits = limit.bit_length()
    n_bytes = (bits + 7) // 8
    while True:
        number = int.from_bytes(rng.bytes(n_bytes), "big") >> (8 * n_bytes - bits)
        if number < limit:
            return number
