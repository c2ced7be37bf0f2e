"""Does a domain suit the field it is written for? Values get the field's type, so that equal spellings are equal."""

import math
from collections.abc import Callable
from typing import cast

from autopeft.errors import SpaceError
from autopeft.spaces.configuration import Scalar
from autopeft.spaces.domain import (
    Choice,
    Domain,
    Fixed,
    Flag,
    Halvings,
    Integer,
    LogReal,
    Real,
    Subset,
    is_number,
    significant,
    spelled,
)
from autopeft.spaces.expression import number
from autopeft.spaces.methods.method import Field, FieldKind
from autopeft.spaces.spread import Groups, PerGroup, PerLayer, Ramp, Shared, Spread
from autopeft.spaces.suggest import nearest

TARGETS_HINT = "write a list [query, value], subset(query, value), choice(attention, mlp) or a pattern re:.*_proj"
MAX_RAMP_LEVELS = 32
"""Levels a ramp's domain may have."""

_ALLOWED: dict[FieldKind, tuple[tuple[type, ...], str]] = {
    FieldKind.SIZE: ((Choice, Integer, Halvings, Fixed), "choice(0, 8, 16), int(1, 64) or a whole number"),
    FieldKind.INTEGER: ((Choice, Integer, Fixed), "choice(16, 32), int(1, 64) or a whole number"),
    FieldKind.REAL: ((Choice, Real, LogReal, Fixed), "real(0, 0.1), log(1e-4, 1e-2), choice(...) or a number"),
    FieldKind.BOOL: ((Choice, Flag, Fixed), "bool, true or false"),
    FieldKind.CATEGORY: ((Choice, Fixed), "choice(...) or one of its words"),
    FieldKind.TARGETS: ((Subset, Choice, Fixed), "subset(query, value), choice(attention, mlp) or a list of targets"),
}


def fit_spread(field: Field, spread: Spread) -> Spread:
    """`spread` with its values in the type of `field`.

    Raises:
        SpaceError: A domain of another kind, a value out of the field's range, or a spread it cannot have.
    """
    if isinstance(spread, Groups):
        return Groups(values=tuple(fit_value(field, value) for value in spread.values))
    domain = fit_domain(field, spread.domain)
    match spread:
        case Ramp():
            _check_ramp(domain)
            return Ramp(domain=domain)
        case PerLayer():
            return PerLayer(domain=domain)
        case PerGroup(groups=groups):
            return PerGroup(groups=groups, domain=domain)
        case Shared():
            return Shared(domain=domain)


def fit_domain(field: Field, domain: Domain) -> Domain:
    """`domain` with its values in the type of `field`; see `fit_spread`."""
    kinds, allowed = _ALLOWED[field.kind][0], _allowed(field)
    if isinstance(domain, Flag) and _is_switch(field):
        return Choice(values=(0, 1))
    if not isinstance(domain, kinds):
        raise SpaceError(f"got {domain}, but {field.name} is of kind {field.kind}", hint=f"write {allowed}")
    match domain:
        case Choice(values=values):
            return Choice(values=tuple(fit_value(field, value) for value in values))
        case Fixed(value=value) if field.kind is FieldKind.TARGETS:
            return Fixed(value=_words(value))
        case Fixed(value=tuple() as value):
            raise SpaceError(
                f"got the list {list(value)}, but {field.name} is of kind {field.kind}", hint=f"write {allowed}"
            )
        case Fixed(value=value):
            return Fixed(value=fit_value(field, cast(Scalar, value)))
        case Integer() | Real() | LogReal():
            return _fit_range(field, domain)
        case Subset(items=()):
            raise SpaceError("got a bare subset", hint="name its items: subset(query, key, value)")
        case _:
            return domain


def fit_value(field: Field, value: Scalar) -> Scalar:
    """`value` as the field holds it: whole numbers as int, others as float rounded to six digits, words as they are."""
    if field.kind is FieldKind.BOOL:
        if not isinstance(value, bool):
            raise SpaceError(f"got {value!r}, but {field.name} is of kind bool", hint="write true or false")
        return value
    if field.kind is FieldKind.TARGETS:
        return _words(value)[0]
    if field.kind is FieldKind.CATEGORY:
        return _category(field, value)
    if isinstance(value, bool) and _is_switch(field):
        return int(value)
    if isinstance(value, str):
        value = _parsed(field, value)
    if not is_number(value):
        raise SpaceError(f"got {spelled(value)!r}, but {field.name} is of kind {field.kind}", hint="write a number")
    return _in_range(field, _typed(field, value))


def _is_switch(field: Field) -> bool:
    """A size that says only whether the method is there: `bool`, `true` and `false` are other words for it."""
    return field.kind is FieldKind.SIZE and field.high == 1


def _allowed(field: Field) -> str:
    return "choice(0, 1), bool or 1" if _is_switch(field) else _ALLOWED[field.kind][1]


def _parsed(field: Field, text: str) -> Scalar:
    value = number(text.strip())
    if value is None:
        raise SpaceError(f"got {text!r}, but {field.name} is of kind {field.kind}", hint=f"write {_allowed(field)}")
    return value


def _typed(field: Field, value: Scalar) -> int | float:
    if not math.isfinite(value):  # type: ignore[arg-type]  # a number
        raise SpaceError(f"got {value}, no finite number", hint="leave nan and inf out")
    if field.kind is FieldKind.REAL:
        return significant(float(value))
    if int(value) != value:
        raise SpaceError(f"got {value}, but {field.name} is a whole number", hint=f"write {int(value)}")
    return int(value)


def _in_range(field: Field, value: int | float) -> int | float:
    low = -float("inf") if field.low is None else field.low
    high = float("inf") if field.high is None else field.high
    if not low <= value <= high:
        negative = field.kind is FieldKind.SIZE and value < low
        kind = "size, which is negative" if negative else f"value outside {low:g} to {high:g}"
        zero = "; 0 means the module is absent" if negative else ""
        raise SpaceError(
            f"got {value}, a {kind}", hint=f"use {low:g} or more{zero}" if value < low else f"at most {high:g}"
        )
    return value


def _category(field: Field, value: Scalar) -> str:
    if value not in field.choices:
        hint = nearest(str(value), field.choices) or f"write {field.choices[0]}"
        raise SpaceError(f"got {spelled(value)!r}; it is one of {', '.join(field.choices)}", hint=hint)
    return str(value)


def _words(value: object) -> tuple[str, ...]:
    words = (value,) if isinstance(value, str) else value
    if not isinstance(words, tuple) or not words or not all(isinstance(word, str) for word in words):
        raise SpaceError(f"got {value!r}, but targets are words", hint="write query, or a list [query, value]")
    return cast(tuple[str, ...], words)


def _fit_range(field: Field, domain: Integer | Real | LogReal) -> Domain:
    low, high = fit_value(field, domain.low), fit_value(field, domain.high)
    match domain:
        case Integer(log=log):
            return Integer(low=int(low), high=int(high), log=log)
        case Real():
            return Real(low=float(low), high=float(high))
        case LogReal():
            return LogReal(low=float(low), high=float(high))


def _check_ramp(domain: Domain) -> None:
    levels: dict[type, Callable[[], int]] = {
        Choice: lambda: len(cast(Choice, domain).values),
        Integer: lambda: len(cast(Integer, domain).levels),
        Halvings: lambda: cast(Halvings, domain).steps,
    }
    ordered = domain.ordinal if isinstance(domain, Choice) else type(domain) in levels
    if not ordered or not 2 <= levels[type(domain)]() <= MAX_RAMP_LEVELS:
        raise SpaceError(
            f"ramp({domain}): a ramp runs over 2 to {MAX_RAMP_LEVELS} numbers",
            hint="write ramp(choice(2, 4, 8)), or per_group(4, ...) for what is no number",
        )
