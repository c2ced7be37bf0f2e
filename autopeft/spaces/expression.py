"""The little language of search spaces: tokens, terms (`choice(0, 8)`) and the cursor that conditions share.

Nothing here is evaluated: a term is a number, a word or a call of a word on terms. Length and depth are bounded, so a
hostile text costs a scan and no stack.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

from autopeft.errors import SpaceError

MAX_LENGTH = 4096
"""Characters an expression may have."""
MAX_DEPTH = 24
"""Levels of brackets an expression may have."""

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
      | (?P<word>[A-Za-z_]\w*(?:[.-]\w+)*)
      | (?P<quoted>'[^'\n]*'|"[^"\n]*")
      | (?P<mark>==|!=|<=|>=|[<>=(),])
    )""",
    re.VERBOSE,
)
_EXCERPT = 60
CALL_HINT = "a domain looks like choice(0, 8), int(1, 64), log(1e-4, 1e-2), per_layer(choice(0, 8))"
"""Of every error in a text that is no domain; who reads something else puts a better one in its place."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    kind: str
    """`number`, `word`, `quoted`, `mark` or `end`."""
    text: str
    column: int
    """From 1."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    value: int | float
    column: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    text: str
    column: int
    quoted: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    name: str
    arguments: tuple["Term", ...]
    named: tuple[tuple[str, "Term"], ...]
    column: int


Term = Number | Word | Call


def number(text: str) -> int | float | None:
    """The number `text` spells (`8`, `1e-4`), or None when it spells none."""
    if not re.fullmatch(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", text) or len(text) > _EXCERPT:
        return None
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)


@final
class Cursor:
    """Reads the tokens of one expression from left to right."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_LENGTH:
            raise SpaceError(
                f"an expression of {len(text)} characters; at most {MAX_LENGTH} are read",
                hint="split the condition, or list fewer values",
            )
        self.text = text
        self._tokens = self._scan()
        self._next = 0
        self._depth = 0

    def _scan(self) -> list[Token]:
        tokens: list[Token] = []
        end, stop = 0, len(self.text.rstrip())
        while end < stop:
            match = _TOKEN.match(self.text, end)
            if match is None or match.lastgroup is None:
                start = end + len(self.text[end:]) - len(self.text[end:].lstrip())
                raise self.error(start + 1, f"{self.text[start]!r} has no meaning here", CALL_HINT)
            tokens.append(
                Token(kind=match.lastgroup, text=match[match.lastgroup], column=match.start(match.lastgroup) + 1)
            )
            end = match.end()
        return [*tokens, Token(kind="end", text="the end", column=stop + 1)]

    def error(self, column: int, problem: str, hint: str) -> SpaceError:
        start = max(column - 1 - _EXCERPT // 2, 0)
        excerpt = self.text[start : start + _EXCERPT]
        dots = ("..." if start else "", "..." if start + _EXCERPT < len(self.text) else "")
        return SpaceError(f"column {column} of {dots[0] + excerpt + dots[1]!r}: {problem}", hint=hint)

    @property
    def peek(self) -> Token:
        return self._tokens[self._next]

    def take(self) -> Token:
        token = self.peek
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return token

    def accept(self, *texts: str) -> Token | None:
        """The next token when it is one of these marks or words, consumed; None otherwise."""
        return self.take() if self.peek.text in texts and self.peek.kind in ("mark", "word") else None

    def expect(self, text: str, hint: str) -> Token:
        token = self.take()
        if token.text != text or token.kind == "end":
            raise self.error(token.column, f"expected {text!r}, got {token.text!r}", hint)
        return token

    @contextmanager
    def deeper(self, column: int) -> Iterator[None]:
        """One more level of brackets, opened at `column`."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self.error(column, f"more than {MAX_DEPTH} levels of brackets", "write it flatter")
        yield
        self._depth -= 1


def parse_term(text: str) -> Term:
    """The term `text` spells.

    Raises:
        SpaceError: Naming the column and the fix; also for texts that are too long or too deep.
    """
    cursor = Cursor(text)
    term = read_term(cursor)
    left = cursor.peek
    if left.kind != "end":
        raise cursor.error(left.column, f"{left.text!r} follows a complete value", CALL_HINT)
    return term


def read_term(cursor: Cursor) -> Term:
    """One term at the cursor."""
    token = cursor.take()
    if token.kind == "number":
        value = number(token.text)
        if value is None:
            raise cursor.error(token.column, "a number this long is not read", "use fewer digits")
        return Number(value=value, column=token.column)
    if token.kind == "quoted":
        return Word(text=token.text[1:-1], column=token.column, quoted=True)
    if token.kind != "word":
        raise cursor.error(token.column, f"expected a value, got {token.text!r}", CALL_HINT)
    if cursor.accept("(") is None:
        return Word(text=token.text, column=token.column)
    with cursor.deeper(token.column):
        return _read_call(cursor, token)


def _read_call(cursor: Cursor, name: Token) -> Call:
    arguments: list[Term] = []
    named: list[tuple[str, Term]] = []
    while cursor.accept(")") is None:
        term = read_term(cursor)
        if isinstance(term, Word) and cursor.accept("=") is not None:
            named.append((term.text, read_term(cursor)))
        else:
            arguments.append(term)
        if cursor.peek.text != ")":
            cursor.expect(",", f"separate values by commas and close {name.text}( with ')'")
    return Call(name=name.text, arguments=tuple(arguments), named=tuple(named), column=name.column)
