"""A replay as a terminal shows it: a row a point of the source's front, what was a guess, the cost, and the verdict."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from autopeft.objectives.objective import Objective
from autopeft.search.trial import History, Trial
from autopeft.spaces.model_shape import ModelShape
from autopeft.studies.charts import point_of
from autopeft.studies.describe import describe, human_seconds, human_value
from autopeft.studies.described_rows import DescribedRows, Row
from autopeft.studies.replay import CarriedPoint, Replay
from autopeft.studies.transferred import Reachable


def replay_table(replay: Replay, *, shape: ModelShape | None = None) -> RenderableType:
    """Title, the carried points, and what they cost and reach.

    Args:
        replay: What is shown.
        shape: The new study's model.
    """
    right = {"justify": "right", "no_wrap": True}
    values = [(objective.name.replace("_", " "), right) for objective in replay.objectives]
    table = DescribedRows(
        columns=[("from", right), ("trial", right), *values],
        text_head="configuration",
        rows=[_row(replay, point, shape) for point in replay.points],
    )
    title = Text.assemble((f"Front of {replay.source} on {replay.task}", "bold"), (f"  study {replay.study}", "dim"))
    return Group(title, table, *(Text(line) for line in summary_lines(replay)))


def summary_lines(replay: Replay) -> Iterator[str]:
    """How much of it is a guess, what it cost, and how near it comes to a search."""
    exact, left = sum(point.exact for point in replay.points), _left_out(replay)
    kept = f"{exact} of {len(replay.points)} points are the same configurations"
    yield kept if exact == len(replay.points) else f"{kept}; the others are guesses{left}"
    yield cost_line(replay.history)
    found = replay.reachable
    yield f"reachable: {f'unknown; {replay.unknown}' if found is None else verdict(found, what='replay')}"


def cost_line(history: History) -> str:
    """How many trainings there were, and how long they took."""
    noun = "training" if len(history) == 1 else "trainings"
    return f"cost: {len(history)} {noun}, {human_seconds(sum(trial.seconds for trial in history))}"


def _left_out(replay: Replay) -> str:
    n = sum(point.configuration is None for point in replay.points)
    return f", {n} could not be had in the new space" if n else ""


def verdict(known: Reachable, *, what: str) -> str:
    """A study, called `what`, beside a search of the same task."""
    if known.replayed is None or known.searched is None:
        return f"nothing; neither the {what} nor the {known.trials} trials of {known.study} reach any volume"
    passed = "never had as much" if known.passed_at is None else f"had as much after {known.passed_at} of its trials"
    return (
        f"{known.replayed:.1%} of the hypervolume that this {what} and the {known.trials} trials of {known.study}"
        f" ({human_seconds(known.seconds)}) reach together; the search by itself has {known.searched:.1%} of it and"
        f" {passed}"
    )


def _row(replay: Replay, point: CarriedPoint, shape: ModelShape | None) -> Row:
    trial = replay.trial(point)
    cells = [
        Text(str(point.source.trial)),
        Text("-" if trial is None else str(trial.number)),
        *(Text(_value(trial, objective)) for objective in replay.objectives),
    ]
    lines = ["left out" if point.configuration is None else describe(point.configuration, shape)]
    lines += [f"failed: {trial.failure.kind.value}"] if trial is not None and trial.failure is not None else []
    lines += [f"guess: {note}" for note in point.notes]
    return Row(cells=cells, text=Text("\n".join(lines)))


def _value(trial: Trial | None, objective: Objective) -> str:
    measured = None if trial is None else point_of(trial, [objective])
    return "-" if measured is None else human_value(objective, measured.values[objective.name])
