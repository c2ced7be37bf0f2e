"""The nearest known name, for error messages."""

import difflib
from collections.abc import Collection


def closest(name: str, known: Collection[str]) -> str | None:
    """The known name that looks most like `name`, None when none does.

    The one name that `name` begins is meant; else swapped letters are the likeliest slip.
    """
    begun = {word for word in known if word.startswith(name)} if len(name) > 2 else set()
    if len(begun) == 1:
        return begun.pop()
    close = difflib.get_close_matches(name[:100], known, n=3, cutoff=0.5)
    return min(close, key=lambda word: sorted(word) != sorted(name), default=None)


def nearest(name: str, known: Collection[str]) -> str:
    """`did you mean 'rank'?`, or an empty string when nothing known is close."""
    close = closest(name, known)
    return f"did you mean {close!r}?" if close else ""
