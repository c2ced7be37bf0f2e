"""The nearest known name, for error messages."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'rank'?`, or an empty string when nothing known is close."""
    close = difflib.get_close_matches(name[:100], list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""
