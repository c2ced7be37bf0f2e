"""Conditions of `when:`: comparisons of shared dimensions, joined by `and`, `or`, `not`.

`lora` alone means "lora is present". A comparison with a dimension that is inactive (its method is absent) is false.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import final

from autopeft.spaces.configuration import Scalar
from autopeft.spaces.domain import is_number, spelled
from autopeft.spaces.expression import Call, Cursor, Number, Term, Word, read_term

OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    "<=": lambda left, right: left <= right,
    ">=": lambda left, right: left >= right,
    "<": lambda left, right: left < right,
    ">": lambda left, right: left > right,
}
_HINT = "a condition looks like: lora and lora.rank > 4, or serial_adapter.activation in (gelu, silu)"
Lookup = Callable[[str], Scalar | None]
"""Value of a dimension by name (True or False for a method's name), None when it is inactive."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """A method's name: true when the method is present somewhere."""

    name: str

    def __str__(self) -> str:
        return self.name

    def holds(self, lookup: Lookup) -> bool:
        return lookup(self.name) is True


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    name: str
    operator: str
    value: Scalar

    def __str__(self) -> str:
        return f"{self.name} {self.operator} {spelled(self.value)}"

    def holds(self, lookup: Lookup) -> bool:
        left = lookup(self.name)
        if left is None:
            return False
        if is_number(left) and is_number(self.value):
            return OPERATORS[self.operator](left, self.value)  # type: ignore[arg-type]  # two numbers
        return {"==": left == self.value, "!=": left != self.value}.get(self.operator, False)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    name: str
    values: tuple[Scalar, ...]

    def __str__(self) -> str:
        return f"{self.name} in ({', '.join(spelled(value) for value in self.values)})"

    def holds(self, lookup: Lookup) -> bool:
        left = lookup(self.name)
        return left is not None and left in self.values


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Not:
    term: "Condition"

    def __str__(self) -> str:
        return f"not {_bracketed(self.term, And, Or)}"

    def holds(self, lookup: Lookup) -> bool:
        return not self.term.holds(lookup)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class And:
    terms: tuple["Condition", ...]

    def __str__(self) -> str:
        return " and ".join(_bracketed(term, And, Or) for term in self.terms)

    def holds(self, lookup: Lookup) -> bool:
        return all(term.holds(lookup) for term in self.terms)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Or:
    terms: tuple["Condition", ...]

    def __str__(self) -> str:
        return " or ".join(_bracketed(term, Or) for term in self.terms)

    def holds(self, lookup: Lookup) -> bool:
        return any(term.holds(lookup) for term in self.terms)


Atom = Present | Comparison | Membership
Condition = Atom | Not | And | Or


def _bracketed(term: Condition, *kinds: type) -> str:
    return f"({term})" if isinstance(term, kinds) else str(term)


def atoms(condition: Condition) -> Iterator[Atom]:
    """The comparisons and names of `condition`, from left to right."""
    match condition:
        case Not(term=term):
            yield from atoms(term)
        case And(terms=terms) | Or(terms=terms):
            for term in terms:
                yield from atoms(term)
        case _:
            yield condition


def parse_condition(text: str) -> Condition:
    """The condition `text` spells; `str` of it parses to an equal one.

    Raises:
        SpaceError: Naming the column and the fix.
    """
    cursor = Cursor(text)
    condition = _disjunction(cursor)
    left = cursor.peek
    if left.kind != "end":
        raise cursor.error(left.column, f"{left.text!r} follows a complete condition", _HINT)
    return condition


def _disjunction(cursor: Cursor) -> Condition:
    terms = [_conjunction(cursor)]
    while cursor.accept("or") is not None:
        terms.append(_conjunction(cursor))
    return terms[0] if len(terms) == 1 else Or(terms=tuple(terms))


def _conjunction(cursor: Cursor) -> Condition:
    terms = [_negation(cursor)]
    while cursor.accept("and") is not None:
        terms.append(_negation(cursor))
    return terms[0] if len(terms) == 1 else And(terms=tuple(terms))


def _negation(cursor: Cursor) -> Condition:
    token = cursor.peek
    if cursor.accept("not") is not None:
        with cursor.deeper(token.column):
            return Not(term=_negation(cursor))
    if cursor.accept("(") is not None:
        with cursor.deeper(token.column):
            condition = _disjunction(cursor)
            cursor.expect(")", "close the bracket")
            return condition
    return _atom(cursor)


def _atom(cursor: Cursor) -> Condition:
    name = cursor.take()
    if name.kind != "word" or name.text in ("and", "or", "in"):
        raise cursor.error(name.column, f"expected a dimension or method, got {name.text!r}", _HINT)
    if cursor.accept("in") is not None:
        return Membership(name=name.text, values=_values(cursor))
    if cursor.peek.text == "not":
        cursor.take()
        cursor.expect("in", _HINT)
        return Not(term=Membership(name=name.text, values=_values(cursor)))
    if cursor.peek.text == "=":
        raise cursor.error(cursor.peek.column, "'=' does not compare", "write ==")
    if cursor.peek.text in OPERATORS:
        operator = cursor.take().text
        return Comparison(name=name.text, operator=operator, value=_value(cursor, read_term(cursor)))
    if cursor.peek.text == "(":
        raise cursor.error(name.column, f"{name.text!r} cannot be called in a condition", _HINT)
    return Present(name=name.text)


def _values(cursor: Cursor) -> tuple[Scalar, ...]:
    cursor.expect("(", "list the values in round brackets: in (1, 2)")
    values = [_value(cursor, read_term(cursor))]
    while cursor.accept(",") is not None:
        values.append(_value(cursor, read_term(cursor)))
    cursor.expect(")", "close the list of values")
    return tuple(values)


def _value(cursor: Cursor, term: Term) -> Scalar:
    match term:
        case Number(value=value):
            return value
        case Word(text="true" | "True", quoted=False):
            return True
        case Word(text="false" | "False", quoted=False):
            return False
        case Word(text=text):
            return text
        case Call(name=name, column=column):
            raise cursor.error(column, f"{name}(...) is no value to compare with", _HINT)
