"""The outcomes that conditions tell apart: every method's presence and the classes of the dimensions compared.

Counting goes through scenarios one by one: inside one, every `when` has a fixed answer, so methods no longer depend on
each other. Levels that no comparison tells apart are one class, so there are few scenarios whatever the ranges.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import final

from autopeft.spaces.condition import Atom, Present, atoms
from autopeft.spaces.conditions_check import method_of
from autopeft.spaces.configuration import Scalar
from autopeft.spaces.dimension import Level
from autopeft.spaces.structure import BoundMethod, Structure
from autopeft.spaces.training import ACTIVE_WITH, is_active

Indices = Sequence[int]
Known = dict[str, Scalar | None]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a scenario says of one enabled method."""

    method: BoundMethod
    present: bool | None
    """Whether it must be present somewhere; None where nothing asks."""
    allowed: Mapping[str, Indices]
    """Level indices that its compared fields may take."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    plans: tuple[Plan, ...]
    """Of the enabled methods, in decision order."""
    training: Mapping[str, Indices]
    """Level indices that training dimensions may take, where they are compared or others depend on them."""
    inactive: frozenset[str]
    """Training dimensions that mean nothing here."""


def scenarios(structure: Structure) -> Iterator[Scenario]:
    """All scenarios; each network of the space belongs to exactly one."""
    asked = [atom for method in structure.methods if method.when for atom in atoms(method.when)]
    cells, decided = dict(structure.training), {name for name, _ in structure.training}
    for pivots in _pivots(structure):
        pinned: Known = {name: cells[name].levels[index] for name, index in pivots.items()}  # type: ignore[index, misc]  # discrete scalars
        inactive = frozenset(name for name in decided if not is_active(name, decided=decided, values=pinned))
        compared = [
            name for name in cells if any(atom.name == name for atom in asked) and name not in inactive | pivots.keys()
        ]
        classes = [list(_classes(cells[name].levels or (), name, asked, is_size=False)) for name in compared]
        for chosen in product(*classes):
            known = pinned | {name: value for name, (value, _) in zip(compared, chosen, strict=True)}
            training: dict[str, Indices] = {name: (index,) for name, index in pivots.items()}
            training |= {name: indices for name, (_, indices) in zip(compared, chosen, strict=True)}
            for plans in _extend(structure.methods, asked, known):
                yield Scenario(plans=plans, training=training, inactive=inactive)


def _pivots(structure: Structure) -> Iterator[dict[str, int]]:
    """Every assignment of level indices to the training dimensions that others depend on."""
    decided = {name for name, _ in structure.training}
    names = {other for name, (other, _) in ACTIVE_WITH.items() if name in decided and other in decided}
    rows = [(name, cell.levels) for name, cell in structure.training if name in names]
    for indices in product(*(range(len(levels or ())) for _, levels in rows)):
        yield {name: index for (name, _), index in zip(rows, indices, strict=True)}


def _extend(methods: Sequence[BoundMethod], asked: Sequence[Atom], known: Known) -> Iterator[tuple[Plan, ...]]:
    if not methods:
        yield ()
        return
    for plan, learnt in _outcomes(methods[0], asked, known):
        for rest in _extend(methods[1:], asked, known | learnt):
            yield (plan, *rest) if plan else rest


def _outcomes(method: BoundMethod, asked: Sequence[Atom], known: Known) -> Iterator[tuple[Plan | None, Known]]:
    names = [atom.name for atom in asked if method_of(atom.name) == method.name]
    fields = sorted({name.partition(".")[2] for name in names} - {""})
    if method.when is not None and not method.when.holds(known.get):
        yield None, {method.name: False}
        return
    if not names:
        yield Plan(method=method, present=None, allowed={}), {}
        return
    size = method.size.field.name
    for present in (True, False):
        asks_size = [size] if size in fields else []
        asks = asks_size + ([name for name in fields if name != size] if present else [])
        rows = [list(_field_classes(method, name, asked)) for name in asks]
        for chosen in product(*rows):
            if asks_size and bool(chosen[0][0]) is not present:
                continue
            learnt: Known = {f"{method.name}.{name}": value for name, (value, _) in zip(asks, chosen, strict=True)}
            allowed = {name: indices for name, (_, indices) in zip(asks, chosen, strict=True)}
            yield Plan(method=method, present=present, allowed=allowed), learnt | {method.name: present}


def _field_classes(method: BoundMethod, name: str, asked: Sequence[Atom]) -> Iterator[tuple[Scalar, Indices]]:
    field = method.field(name)
    is_size = name == method.size.field.name
    return _classes(field.levels or (), f"{method.name}.{name}", asked, is_size=is_size)


def _classes(
    levels: Sequence[Level], name: str, asked: Sequence[Atom], *, is_size: bool
) -> Iterator[tuple[Scalar, Indices]]:
    """Levels that no question tells apart: one of them, and the indices of all."""
    questions: list[Callable[[Callable[[str], Scalar | None]], bool]] = [
        atom.holds for atom in asked if atom.name == name and not isinstance(atom, Present)
    ]
    found: dict[tuple[bool, ...], list[int]] = {}
    for index, level in enumerate(levels):
        value: Scalar = level  # type: ignore[assignment]  # targets are never compared
        answers = tuple(question({name: value}.get) for question in questions)
        found.setdefault((*answers, is_size and value == 0), []).append(index)
    for indices in found.values():
        yield levels[indices[0]], indices  # type: ignore[misc]  # targets are never compared
