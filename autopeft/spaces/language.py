"""Text and plain values to domains and spreads, and back (`str` of a spread is its text)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

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
)
from autopeft.spaces.expression import CALL_HINT, Call, Number, Term, Word, parse_term
from autopeft.spaces.layer_sets import LayerRange, LayerSet, LayersFrom, TopLayers
from autopeft.spaces.spread import SPREADS, Groups, PerGroup, PerLayer, Ramp, Shared, Spread, as_spread, per_group
from autopeft.spaces.suggest import nearest
from autopeft.spaces.targets import REGEX

DOMAIN_WORDS = ("bool", "choice", "halvings", "int", "log", "real", "subset")
SPREAD_WORDS = ("groups", "per_group", "per_layer", "ramp", "shared")
LAYERS_HINT = "write all, subset(min=1, max=4), range, top(int(1, 4)), from(2), or a list such as [0, 3, 5]"
_EXAMPLES = {
    "bool": "bool",
    "choice": "choice(0, 8, 16)",
    "from": "from(int(0, 6)) or from(3)",
    "groups": "groups(2, 4, 6, 8)",
    "halvings": "halvings(hidden)",
    "int": "int(1, 64) or int(1, 64, log)",
    "log": "log(1e-4, 1e-2)",
    "per_group": "per_group(4, choice(0, 8))",
    "per_layer": "per_layer(choice(0, 8))",
    "ramp": "ramp(choice(2, 4, 8))",
    "range": "range, or range(min=1, max=4)",
    "real": "real(0, 0.1)",
    "shared": "shared(choice(0, 8))",
    "subset": "subset(query, value) or subset(min=1, max=4)",
    "top": "top(int(1, 6)) or top(4)",
}


def read_spread(value: object) -> Spread:
    """The spread that a value of a space mapping means: text of the language, a plain value, or an object already.

    Raises:
        SpaceError: What is wrong with it; the caller puts the place before.
    """
    if isinstance(value, (Shared, PerLayer, PerGroup, Ramp, Groups)):
        return value
    if isinstance(value, (Choice, Integer, Real, LogReal, Flag, Subset, Halvings, Fixed)):
        return as_spread(value)
    if isinstance(value, str):
        pattern = value.strip().startswith(REGEX)
        return Shared(domain=Fixed(value=value.strip())) if pattern else _from_text(value)
    if isinstance(value, (bool, int, float)):
        return Shared(domain=Fixed(value=value))
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, str) for item in value):
        return Shared(domain=Fixed(value=tuple(value)))
    raise SpaceError(
        f"{value!r} is no domain and no value",
        hint="write a domain such as choice(0, 8), or one plain value; per-layer values are per_layer(...)",
    )


def read_layers(text: str) -> LayerSet:
    """The set of layers that the text of `layers` means.

    Raises:
        SpaceError: What is wrong with it; the caller puts the place before.
    """
    reader, term = _Reader(text=text), _parse_layers(text)
    match term:
        case Word(text="subset", quoted=False):
            return Subset()
        case Word(text="range", quoted=False):
            return LayerRange()
        case Call(name="subset" | "range" as name, arguments=()):
            limits = _limits(reader, term)
            least, most = limits.get("min", 1), limits.get("max")
            return Subset(min=least, max=most) if name == "subset" else LayerRange(min=least, max=most)
        case Call(name="top" | "from" as name, arguments=(inner,), named=()):
            numbers = _domain(reader, inner)
            if not isinstance(numbers, (Choice, Integer, Fixed)):
                raise _misuse(reader, term)
            return TopLayers(count=numbers) if name == "top" else LayersFrom(first=numbers)
        case Word(text="top" | "from" as name, quoted=False) | Call(name="top" | "from" as name):
            raise reader.error(term.column, f"{name} needs one argument", f"write {_EXAMPLES[name]}")
        case Call(name="subset" | "range" as name):
            example = "subset, or subset(min=1, max=4)" if name == "subset" else _EXAMPLES[name]
            raise reader.error(term.column, f"{name} of layers takes min and max by name alone", f"write {example}")
        case _:
            raise SpaceError(f"got {text}", hint=LAYERS_HINT)


def to_plain(spread: Spread) -> object:
    """What `read_spread` reads back as an equal spread: text for domains, the value itself where it is fixed."""
    if isinstance(spread, Shared) and isinstance(spread.domain, Fixed):
        fixed = spread.domain.value
        return list(fixed) if isinstance(fixed, tuple) else fixed
    return str(spread)


def _parse_layers(text: str) -> Term:
    try:
        return _parse(text)
    except SpaceError as error:
        raise SpaceError(error.message, hint=LAYERS_HINT if error.hint == CALL_HINT else error.hint) from None


def _from_text(text: str) -> Spread:
    return _spread(_Reader(text=text), _parse(text))


def _parse(text: str) -> Term:
    stripped = text.strip()
    if stripped.count("(") > stripped.count(")") and len(stripped) < 200:
        raise SpaceError(
            f"got {text!r}, a call without its end",
            hint='inside YAML braces a call must be quoted: {rank: "choice(2, 8)"}',
        )
    return parse_term(text)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """The text being read, for messages that name the column."""

    text: str

    def error(self, column: int, problem: str, hint: str) -> SpaceError:
        shown = self.text if len(self.text) <= 80 else f"{self.text[:77]}..."
        return SpaceError(f"column {column} of {shown!r}: {problem}", hint=hint)


def _spread(reader: _Reader, term: Term) -> Spread:
    if not isinstance(term, Call) or term.name not in SPREAD_WORDS:
        return Shared(domain=_domain(reader, term))
    if term.name == "groups":
        if term.named:
            raise _misuse(reader, term)
        return Groups(values=_scalars(reader, term))
    wanted = 2 if term.name == "per_group" else 1
    if len(term.arguments) != wanted or term.named:
        raise _misuse(reader, term)
    inner = term.arguments[-1]
    if not isinstance(inner, (Call, Word)) or (isinstance(inner, Call) and inner.name in SPREAD_WORDS):
        raise reader.error(inner.column, f"{term.name}(...) takes a domain", f"write {_EXAMPLES[term.name]}")
    if isinstance(inner, Word) and inner.text not in ("bool", "subset"):
        raise reader.error(inner.column, f"{inner.text!r} is no domain", f"write {_EXAMPLES[term.name]}")
    domain = _domain(reader, inner)
    if term.name != "per_group":
        return SPREADS[term.name](domain)
    groups = term.arguments[0]
    if not isinstance(groups, Number) or not isinstance(groups.value, int):
        raise reader.error(groups.column, "the number of groups is a whole number", f"write {_EXAMPLES['per_group']}")
    return per_group(groups.value, domain)


def _domain(reader: _Reader, term: Term) -> Domain:
    match term:
        case Number(value=value):
            return Fixed(value=value)
        case Word(text="bool", quoted=False):
            return Flag()
        case Word(text="subset", quoted=False):
            return Subset()
        case Word(text=word, column=column, quoted=quoted):
            if word in DOMAIN_WORDS + SPREAD_WORDS and not quoted:
                raise reader.error(column, f"{word} needs its arguments", f"write {_EXAMPLES[word]}")
            return Fixed(value=_word(word, quoted))
        case Call(name=name, column=column):
            if name not in _BUILDERS:
                known = ", ".join((*DOMAIN_WORDS, *SPREAD_WORDS))
                hint = nearest(name, DOMAIN_WORDS + SPREAD_WORDS) or "nothing else can be called"
                raise reader.error(column, f"{name!r} is none of {known}", hint)
            return _BUILDERS[name](reader, term)


def _word(text: str, quoted: bool) -> Scalar:
    return {"true": True, "True": True, "false": False, "False": False}.get(text, text) if not quoted else text


def _misuse(reader: _Reader, call: Call) -> SpaceError:
    return reader.error(call.column, f"{call.name}(...) does not take these arguments", f"write {_EXAMPLES[call.name]}")


def _scalars(reader: _Reader, call: Call) -> tuple[Scalar, ...]:
    values: list[Scalar] = []
    for term in call.arguments:
        match term:
            case Number(value=value):
                values.append(value)
            case Word(text=text, quoted=quoted):
                values.append(_word(text, quoted))
            case Call(name=name, column=column):
                raise reader.error(column, f"{name}(...) is no plain value", f"write {_EXAMPLES[call.name]}")
    return tuple(values)


def _range(reader: _Reader, call: Call) -> tuple[int | float, int | float]:
    values = _scalars(reader, call)
    if len(values) != 2 or call.named or not all(is_number(value) for value in values):
        raise _misuse(reader, call)
    return values[0], values[1]  # type: ignore[return-value]  # two numbers


def _build_choice(reader: _Reader, call: Call) -> Domain:
    if call.named:
        raise _misuse(reader, call)
    return Choice(values=_scalars(reader, call))


def _build_int(reader: _Reader, call: Call) -> Domain:
    values = _scalars(reader, call)
    log = len(values) == 3 and values[2] == "log"
    if call.named or len(values) != 2 + log or not all(is_number(value) for value in values[:2]):
        raise _misuse(reader, call)
    return Integer(low=values[0], high=values[1], log=log)  # type: ignore[arg-type]  # the class checks whole numbers


def _build_real(reader: _Reader, call: Call) -> Domain:
    low, high = _range(reader, call)
    return Real(low=low, high=high)


def _build_log(reader: _Reader, call: Call) -> Domain:
    low, high = _range(reader, call)
    return LogReal(low=low, high=high)


def _build_bool(reader: _Reader, call: Call) -> Domain:
    if call.arguments or call.named:
        raise _misuse(reader, call)
    return Flag()


def _build_subset(reader: _Reader, call: Call) -> Domain:
    items, limits = _scalars(reader, call), _limits(reader, call)
    if not all(isinstance(item, str) for item in items):
        raise _misuse(reader, call)
    return Subset(items=tuple(str(item) for item in items), min=limits.get("min", 1), max=limits.get("max"))


def _limits(reader: _Reader, call: Call) -> dict[str, int]:
    """The named `min` and `max`."""
    limits: dict[str, int] = {}
    for name, term in call.named:
        if (
            name not in ("min", "max")
            or name in limits
            or not isinstance(term, Number)
            or not math.isfinite(term.value)
            or term.value != int(term.value)
        ):
            raise _misuse(reader, call)
        limits[name] = int(term.value)
    return limits


def _build_halvings(reader: _Reader, call: Call) -> Domain:
    values = _scalars(reader, call)
    if call.named or not 1 <= len(values) <= 2 or values[0] != "hidden":
        raise _misuse(reader, call)
    return Halvings(steps=values[1]) if len(values) == 2 else Halvings()  # type: ignore[arg-type]  # the class checks


_BUILDERS: dict[str, Callable[[_Reader, Call], Domain]] = {
    "bool": _build_bool,
    "choice": _build_choice,
    "halvings": _build_halvings,
    "int": _build_int,
    "log": _build_log,
    "real": _build_real,
    "subset": _build_subset,
}
