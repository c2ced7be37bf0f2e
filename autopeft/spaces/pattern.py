r"""Regular expressions over site names, matched in time proportional to name times pattern.

The words are those of Python's `re` that site names need: characters, `.`, `[abc]`, `[a-z]`, `[^...]`, `\d`, `\w`,
escaped characters, groups, `|`, `*`, `+`, `?`. A pattern must match the whole name, as peft's do. It is matched by
following all its states at once (Thompson 1968), so that no pattern can make it backtrack.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import final

from autopeft.errors import SpaceError

MAX_LENGTH = 200
"""Characters a pattern may have."""
MAX_DEPTH = 16
"""Groups within groups."""
_HINT = "a pattern looks like re:.*(query|value) or re:mlp\\..*_proj"
_CLASSES: dict[str, Callable[[str], bool]] = {
    "d": str.isdigit,
    "w": lambda character: character.isalnum() or character == "_",
}


@final
@dataclass(slots=True)
class _State:
    """Where a pattern may be: what it reads next, and where it may go without reading."""

    reads: Callable[[str], bool] | None = None
    then: "_State | None" = None
    free: "list[_State]" = field(default_factory=list)


_Part = tuple[_State, _State]
"""First and last state of a part of the pattern."""


@final
class Pattern:
    """A compiled pattern.

    Raises:
        SpaceError: It is too long or malformed, or has what is not understood; names the column.
    """

    def __init__(self, text: str) -> None:
        if len(text) > MAX_LENGTH:
            raise SpaceError(
                f"a pattern of {len(text)} characters; at most {MAX_LENGTH} are read", hint="write a shorter one"
            )
        self._text = text
        self._next = 0
        self._depth = 0
        self._start, self._end = self._either()
        if self._peek:
            raise self._error(self._next, "closes a group that was never opened")

    def matches(self, name: str) -> bool:
        """Whether the pattern matches all of `name`."""
        states = _closure([self._start])
        for character in name:
            states = _closure(
                state.then for state in states if state.then is not None and state.reads and state.reads(character)
            )
        return any(state is self._end for state in states)

    @property
    def _peek(self) -> str:
        return self._text[self._next : self._next + 1]

    def _take(self) -> str:
        character = self._peek
        self._next += 1
        return character

    def _error(self, at: int, problem: str) -> SpaceError:
        shown = repr(self._text[at]) if at < len(self._text) else "the end"
        return SpaceError(f"column {at + 1} of the pattern {self._text!r}: {shown} {problem}", hint=_HINT)

    def _either(self) -> _Part:
        first, last = _State(), _State()
        while True:
            start, end = self._sequence()
            first.free.append(start)
            end.free.append(last)
            if self._peek != "|":
                return first, last
            self._next += 1

    def _sequence(self) -> _Part:
        first = last = _State()
        while self._peek and self._peek not in "|)":
            start, end = self._repeated()
            last.free.append(start)
            last = end
        return first, last

    def _repeated(self) -> _Part:
        start, end = self._one()
        while self._peek and self._peek in "*+?":
            mark, first, last = self._take(), _State(), _State()
            first.free.append(start)
            end.free.append(last)
            if mark != "?":
                end.free.append(start)
            if mark != "+":
                first.free.append(last)
            start, end = first, last
        return start, end

    def _one(self) -> _Part:
        at, character = self._next, self._take()
        if character == "(":
            return self._group(at)
        if character in "*+?":
            raise self._error(at, "repeats nothing")
        if character in "{}]^$'\"":
            raise self._error(at, "has no meaning; a pattern matches the whole name and repeats by * + ?")
        reads = self._set(at) if character == "[" else self._character(at, character)
        last = _State()
        return _State(reads=reads, then=last), last

    def _group(self, at: int) -> _Part:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(at, f"opens more than {MAX_DEPTH} groups within each other")
        if self._text.startswith("?:", self._next):
            self._next += 2
        elif self._peek == "?":
            raise self._error(self._next, "is not understood after '('; plain groups and (?: ) are")
        part = self._either()
        if self._take() != ")":
            raise self._error(at, "opens a group without end")
        self._depth -= 1
        return part

    def _character(self, at: int, character: str) -> Callable[[str], bool]:
        if character == ".":
            return lambda _: True
        if character == "\\":
            escaped = self._take()
            if escaped in _CLASSES:
                return _CLASSES[escaped]
            if not escaped or escaped.isalnum():
                raise self._error(at, "escapes what has no meaning; \\d, \\w and marks such as \\. have one")
            character = escaped
        return lambda other, own=character: other == own

    def _set(self, at: int) -> Callable[[str], bool]:
        negated = self._peek == "^"
        self._next += negated
        members: list[Callable[[str], bool]] = []
        while self._peek != "]" or not members:
            if not self._peek:
                raise self._error(at, "opens a set without end")
            members.append(self._member())
        self._next += 1
        return lambda character: any(member(character) for member in members) is not negated

    def _member(self) -> Callable[[str], bool]:
        at, low = self._next, self._take()
        if low == "\\" or self._peek != "-" or self._text[self._next + 1 : self._next + 2] in ("]", ""):
            return self._character(at, low) if low == "\\" else lambda character, own=low: character == own
        self._next += 1
        high = self._take()
        if high < low:
            raise self._error(at, f"to {high!r} is a range that runs backwards")
        return lambda character, low=low, high=high: low <= character <= high


def _closure(states: Iterable[_State]) -> list[_State]:
    """`states` and all that they reach without reading, each once."""
    found: dict[int, _State] = {}
    left = list(states)
    while left:
        state = left.pop()
        if id(state) not in found:
            found[id(state)] = state
            left += state.free
    return list(found.values())


@lru_cache(maxsize=256)
def pattern(text: str) -> Pattern:
    """The compiled pattern, kept; see `Pattern`."""
    return Pattern(text)
