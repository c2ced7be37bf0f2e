"""Which dimensions a `when` may speak of, and the order in which blocks are decided."""

from collections.abc import Mapping

from autopeft.errors import SpaceError
from autopeft.spaces.condition import Atom, Comparison, Condition, Membership, Present, atoms
from autopeft.spaces.configuration import Scalar
from autopeft.spaces.domain import LogReal, Real, Subset, is_number, spelled
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.method import RATE, Field, FieldKind
from autopeft.spaces.spread import Shared, Spread
from autopeft.spaces.suggest import nearest
from autopeft.spaces.training import TRAINING_FIELDS

_NUMBERS = (FieldKind.SIZE, FieldKind.INTEGER, FieldKind.REAL)


def check_conditions(blocks: Mapping[str, Condition | None], spreads: Mapping[str, Spread]) -> None:
    """Raise SpaceError when a condition names what is not there, not shared, not discrete, or of another type.

    Args:
        blocks: The condition of each method block.
        spreads: Every written field as `method.field`, and training fields by name.
    """
    for name, condition in blocks.items():
        for atom in atoms(condition) if condition is not None else ():
            try:
                _check_atom(atom, blocks, spreads)
            except SpaceError as error:
                raise error.at(f"space.{name}.when") from None
    decision_order(blocks)


def method_of(name: str) -> str | None:
    """The method that a condition's name belongs to; None for training dimensions."""
    head = name.partition(".")[0]
    return head if head in METHODS else None


def decision_order(blocks: Mapping[str, Condition | None]) -> tuple[str, ...]:
    """Method names such that every condition speaks of earlier ones only.

    Raises:
        SpaceError: Two blocks wait for each other.
    """
    waits = {
        name: {method for atom in (atoms(condition) if condition else ()) if (method := method_of(atom.name))}
        for name, condition in blocks.items()
    }
    order: list[str] = []
    while len(order) < len(waits):
        ready = [name for name in waits if name not in order and waits[name] <= set(order)]
        if not ready:
            left = ", ".join(name for name in waits if name not in order)
            raise SpaceError(
                f"space: the conditions of {left} depend on each other", hint="take one of these 'when' away"
            )
        order.append(ready[0])
    return tuple(order)


def _check_atom(atom: Atom, blocks: Mapping[str, object], spreads: Mapping[str, Spread]) -> None:
    if isinstance(atom, Present):
        if atom.name not in blocks:
            raise _unknown(atom.name, blocks, spreads)
        return
    field = _field(atom.name)
    method = method_of(atom.name)
    absent = atom.name not in spreads if method is None or field is RATE else method not in blocks
    if field is None or absent:
        raise _unknown(atom.name, blocks, spreads)
    spread = spreads.get(atom.name)
    if spread is not None and not isinstance(spread, Shared):
        raise SpaceError(f"{atom.name} differs from layer to layer ({spread})", hint="compare a shared dimension")
    if field.kind is FieldKind.TARGETS or (spread and isinstance(spread.domain, (Real, LogReal, Subset))):
        raise SpaceError(f"{atom.name} has no single levels to compare with", hint="compare a choice, int or bool")
    for value in atom.values if isinstance(atom, Membership) else (atom.value,):
        _check_value(atom, field, value)


def _check_value(atom: Comparison | Membership, field: Field, value: Scalar) -> None:
    kind = "a number" if field.kind in _NUMBERS else "true or false" if field.kind is FieldKind.BOOL else "a word"
    right = {
        "a number": is_number(value),
        "true or false": isinstance(value, bool),
        "a word": value in field.choices,
    }[kind]
    if not right:
        allowed = f" of {', '.join(field.choices)}" if field.choices else ""
        raise SpaceError(f"{atom.name} is compared with {spelled(value)!r}", hint=f"compare it with {kind}{allowed}")
    if kind != "a number" and isinstance(atom, Comparison) and atom.operator not in ("==", "!="):
        raise SpaceError(f"{atom.name} {atom.operator} {spelled(value)} has no order", hint="use == or !=")


def _field(name: str) -> Field | None:
    method, _, field = name.partition(".")
    if method in METHODS and field:
        return next((row for row in METHODS[method].settings if row.name == field), None)
    return TRAINING_FIELDS.get(name)


def _unknown(name: str, blocks: Mapping[str, object], spreads: Mapping[str, Spread]) -> SpaceError:
    fields = [f"{method}.{field.name}" for method in blocks for field in METHODS[method].fields]
    known = [*blocks, *fields, *(name for name in spreads if name not in fields)]
    hint = nearest(name, known) or "a condition compares dimensions of this space"
    return SpaceError(f"{name!r} is no dimension of this space; known are {', '.join(known)}", hint=hint)
