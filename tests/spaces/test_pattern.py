"""Regular expressions over site names, against Python's."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import SpaceError
from autopeft.spaces.pattern import MAX_LENGTH, Pattern

NAMES = ("self_attn.q_proj", "mlp.down_proj", "attention.self.query", "h", "ab", "a.b", "aab", "")


@st.composite
def patterns(draw: st.DrawFn, depth: int = 3) -> str:
    """A pattern that both matchers understand, without doubled repetition marks."""
    if depth == 0:
        return draw(st.sampled_from([*"ab._q", "[ab]", "[^a-m]", "[a-z_]", "\\w", "\\d", "\\.", "."]))
    inner = patterns(depth=depth - 1)
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return draw(inner)
    if kind == 1:
        return draw(inner) + draw(inner)
    if kind == 2:
        return f"(?:{draw(inner)}|{draw(inner)})"
    if kind == 3:
        return f"({draw(inner)}|)"
    return f"({draw(inner)}){draw(st.sampled_from('*+?'))}"


@given(text=patterns(), name=st.one_of(st.sampled_from(NAMES), st.text("ab.q_1", max_size=8)))
def test_matching_agrees_with_python(text: str, name: str) -> None:
    assert Pattern(text).matches(name) == (re.fullmatch(text, name) is not None)


@pytest.mark.parametrize("text", ["(a+)+b", "(a|a)*b", "(.*)*" * 20 + "x", "a?" * 60 + "a" * 60, "((a|.)(.|a))*!"])
def test_hostile_patterns_are_matched_at_once(text: str) -> None:
    began = time.perf_counter()
    Pattern(text).matches("a" * 60)
    assert time.perf_counter() - began < 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a" * (MAX_LENGTH + 1), r"a pattern of 201 characters; at most 200"),
        ("(a", r"column 1 of the pattern '\(a': '\(' opens a group without end"),
        ("a)", r"column 2 .*'\)' closes a group that was never opened"),
        ("*a", r"column 1 .*'\*' repeats nothing"),
        ("[ab", r"column 1 .*'\[' opens a set without end"),
        ("[b-a]", r"column 2 .*'b' to 'a' is a range that runs backwards"),
        ("a{3}", r"column 2 .*'\{' has no meaning; a pattern matches the whole name"),
        ("^a$", r"column 1 .*'\^' has no meaning"),
        ("(?=a)", r"column 2 .*'\?' is not understood after '\('"),
        ("\\b", r"escapes what has no meaning"),
        ("a\\", r"escapes what has no meaning"),
        ("(" * 20 + ")" * 20, r"opens more than 16 groups within each other"),
    ],
)
def test_patterns_that_cannot_be_read_are_refused_by_column(text: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        Pattern(text)
