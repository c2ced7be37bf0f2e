"""A terminal table whose last column is long text: beside the values where there is room, below them where not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

MIN_TEXT_WIDTH = 20
"""Columns that the text needs to be readable beside the values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row: its values, the first of which names it, and its text."""

    cells: Sequence[Text]
    text: Text
    style: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedRows:
    """Rows of values with a text each."""

    columns: Sequence[tuple[str, dict[str, Any]]]
    """Head and rich's settings of each column of values."""
    text_head: str
    rows: Sequence[Row]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        values = self._table(range(len(self.columns)), text=False)
        needed = Measurement.get(console, options.update(max_width=10_000), values).maximum
        if options.max_width - needed >= MIN_TEXT_WIDTH:
            yield self._table(range(len(self.columns)), text=True)
        else:
            yield values
            yield self._table(range(1), text=True)

    def _table(self, shown: Sequence[int], *, text: bool) -> Table:
        table = plain_table()
        for index in shown:
            head, settings = self.columns[index]
            table.add_column(head, **settings)
        if text:
            table.add_column(self.text_head, ratio=1, overflow="fold")
        for row in self.rows:
            cells = [row.cells[index] for index in shown]
            table.add_row(*cells, *([row.text] if text else []), style=row.style)
        return table


def plain_table() -> Table:
    """As wide as the terminal, with a line under its head and nothing else."""
    return Table(
        box=SIMPLE_HEAD,
        expand=True,
        pad_edge=False,
        padding=(0, 1),
        collapse_padding=True,
        header_style="bold",
        show_edge=False,
    )
