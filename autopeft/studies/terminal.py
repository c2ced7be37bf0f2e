"""What every verb prints with: a table or one JSON document on stdout."""

import json

from rich.console import Console, RenderableType


def print_table(renderable: RenderableType, *, width: int | None = None) -> None:
    """Print to stdout; colour only on a terminal without `NO_COLOR`, `width` columns wide (the terminal's)."""
    Console(width=width, highlight=False).print(renderable)


def print_json(data: object) -> None:
    """One JSON document on stdout."""
    print(json.dumps(data, indent=2))


def percentage(part: int, whole: int) -> str:
    """A share of `whole` in percent, two digits of it or all before the point."""
    share = 100 * part / whole
    return f"{share:.0f} %" if share >= 99.5 else f"{share:.2g} %"
