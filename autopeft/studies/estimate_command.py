"""The verb `estimate`, apart from the others because it is to answer quickly and loads only what it needs."""

import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from autopeft.studies.describe import human_bytes
from autopeft.studies.described_rows import plain_table
from autopeft.studies.estimate import Conditions, Counted
from autopeft.studies.terminal import percentage, print_json, print_table
from autopeft.trainers.tokens import cache_folder


def estimate(model: str, file: Path, conditions: Conditions, *, fit: str | None, as_json: bool) -> None:
    """Say what a configuration costs."""
    from autopeft.studies.estimate import estimate as cost

    kept = cache_folder() / "estimates"
    if as_json:
        print_json(cost(model, file, conditions, fit=fit, prepare=_prepare, cache=kept).to_json())
        return

    def say(count: Counted) -> None:
        print_table(count_lines(count.parameters, count.base_parameters, count.described))
        sys.stdout.flush()

    print_table(
        estimate_table(cost(model, file, conditions, fit=fit, counted=say, prepare=_prepare, cache=kept).to_json())
    )


def _prepare() -> None:
    from autopeft.trainers.lean_imports import import_lean

    import_lean()


def count_lines(parameters: int, base: int, described: str) -> RenderableType:
    """How many numbers a configuration trains."""
    share = f"{parameters:,} trainable parameters, {percentage(parameters, base)} of {base:,}"
    return Group(Text(described, style="bold"), Text(share))


def estimate_table(estimate: Mapping[str, object]) -> RenderableType:
    """The memory that training a configuration takes, part by part."""
    memory = estimate["memory"]
    assert isinstance(memory, Mapping)
    table = plain_table()
    table.add_column("memory", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("", ratio=1)
    for part, n_bytes in memory.items():
        table.add_row(Text(part), Text(human_bytes(n_bytes)), "", style="bold" if part == "total" else "")
    rows: list[RenderableType] = [Text(""), table]
    fit = estimate.get("fit")
    if isinstance(fit, Mapping):
        rows.append(
            Text(f"largest batch within {human_bytes(fit['capacity'])}: {fit['batch_size']} rows", style="bold")
        )
    return Group(*rows)
