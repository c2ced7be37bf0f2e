"""The nearest known name, for error messages."""

import difflib
from collections.abc import Iterable


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like `name`, None when none does; swapped letters are the likeliest slip."""
    close = difflib.get_close_matches(name[:100], list(known), n=3, cutoff=0.5)
    return min(close, key=lambda word: sorted(word) != sorted(name), default=None)


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'rank'?`, or an empty string when nothing known is close."""
    close = closest(name, known)
    return f"did you mean {close!r}?" if close else ""
