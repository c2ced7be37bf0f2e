"""Studies, trials and fronts as terminal tables and as JSON; every user string is text, never markup."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autopeft.objectives.front import Front, FrontPoint
from autopeft.objectives.objective import Direction, Objective
from autopeft.search.schedulers import Fidelity
from autopeft.search.successive_halving import rungs_of
from autopeft.search.trial import History, Trial, TrialState
from autopeft.spaces.layer_prior import LayerScores
from autopeft.spaces.model_shape import ModelShape
from autopeft.studies.charts import Confirmed, counts_line, knee_number, point_of
from autopeft.studies.describe import describe, human_bytes, human_seconds, human_value, number
from autopeft.studies.described_rows import DescribedRows, Row, plain_table
from autopeft.studies.layer_prior import LayerPrior, prior_words
from autopeft.studies.past import CarriedStudy
from autopeft.studies.terminal import percentage

STATE_STYLES = {
    TrialState.COMPLETED: "green",
    TrialState.RUNNING: "cyan",
    TrialState.PRUNED: "yellow",
    TrialState.FAILED: "red",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSummary:
    """What `autopeft check` found, for people and as JSON."""

    study: str
    model: str
    n_layers: int
    objectives: tuple[Objective, ...]
    dimensions: tuple[tuple[str, str], ...]
    """Name and domain of each dimension, as they are written."""
    configurations: int
    """Distinct networks, exactly."""
    continuous: tuple[str, ...]
    """Dimensions that are continuous and so not counted."""
    parameters: tuple[int, int]
    """Fewest and most trainable adapter parameters of a valid configuration that was looked at."""
    base_parameters: int
    memory: tuple[float, float] | None
    """Least and most predicted peak memory, bytes; None when nothing predicts it."""
    n_trials: int
    engine: str
    epochs: int
    fidelity: Fidelity | None = None
    """When trials are stopped early; None trains all to their last epoch."""
    rules: tuple[str, ...] = ()
    """Rules between dimensions that may refuse some of the counted configurations."""
    layer_prior: LayerPrior | LayerScores | None = None
    """Importances of another study, or scores of the base model, that lead the first trials."""
    layer_score: str | None = None
    """The score that is asked for; `layer_prior` is None while it is not computed."""
    past: tuple[CarriedStudy, ...] = ()
    """Studies that the search begins from."""

    def to_json(self) -> dict[str, object]:
        return {
            "study": self.study,
            "model": self.model,
            "n_layers": self.n_layers,
            "objectives": [objective.to_json() for objective in self.objectives],
            "dimensions": [{"name": name, "domain": domain} for name, domain in self.dimensions],
            "configurations": self.configurations,
            "continuous": list(self.continuous),
            "parameters": list(self.parameters),
            "base_parameters": self.base_parameters,
            "memory": None if self.memory is None else list(self.memory),
            "trials": self.n_trials,
            "engine": self.engine,
            "epochs": self.epochs,
            "fidelity": None if self.fidelity is None else asdict(self.fidelity),
            "rules": list(self.rules),
            "layer_prior": None if self.layer_prior is None else self.layer_prior.to_json(),
            "layer_score": self.layer_score,
            "from": [study.to_json() for study in self.past],
        }


def front_table(
    front: Front,
    history: History,
    *,
    study: str,
    shape: ModelShape | None = None,
    limit: int | None = None,
    confirmed: Confirmed = MappingProxyType({}),
) -> RenderableType:
    """The front, best in the first objective first, the knee marked.

    Args:
        front: The points.
        history: All trials, for the line of counts.
        study: The study's name, for the title.
        shape: The base model, when known.
        limit: Show only so many rows (the knee always among them).
        confirmed: Scores of further seeds on the held-out split, in columns of their own.
    """
    title = Text.assemble((f"Pareto front of {study}", "bold"), "  ", (counts_line(history, front), "dim"))
    if not len(front):
        return Group(title, Text("No trial has completed yet.", style="dim"))
    knee = knee_number(front)
    shown, hidden = _shown(front, limit, knee)
    heads = _confirmed_heads(confirmed)
    columns = [_trial_column(), *_value_columns(front.objectives)]
    columns += [(head, {"justify": "right", "no_wrap": True}) for head in heads.values()]
    rows = [_front_row(point, front.objectives, shape, knee=point.trial == knee) for point in shown]
    rows = [
        replace(row, cells=[*row.cells, *(_confirmed_cell(confirmed, point, name) for name in heads)])
        for row, point in zip(rows, shown, strict=True)
    ]
    table = DescribedRows(columns=columns, text_head="configuration", rows=rows)
    foot = "* the knee: the best compromise" + (f"; {hidden} more on the front" if hidden else "")
    foot += "; ±: standard deviation over new seeds, scored on rows the search never saw" if heads else ""
    return Group(title, table, Text(foot, style="dim"))


def _confirmed_heads(confirmed: Confirmed) -> dict[str, str]:
    """The head of the column of each metric that was confirmed."""
    heads: dict[str, str] = {}
    for scores in confirmed.values():
        for name, score in scores.items():
            if isinstance(score, Mapping):
                heads[name] = f"{score['split']}, {scores['seeds']} seeds"
    return heads


def _confirmed_cell(confirmed: Confirmed, point: FrontPoint, name: str) -> Text:
    score = confirmed.get(point.trial, {}).get(name)
    return Text(f"{float(score['mean']):.4f} ± {float(score['std']):.4f}" if isinstance(score, Mapping) else "-")


def _shown(front: Front, limit: int | None, knee: int | None) -> tuple[list[FrontPoint], int]:
    points = list(front)
    if limit is None or len(points) <= limit:
        return points, 0
    kept = points[:limit]
    if knee not in {point.trial for point in kept}:
        kept[-1] = next(point for point in points if point.trial == knee)
    return kept, len(points) - limit


def trials_table(
    history: History, objectives: Sequence[Objective], *, shape: ModelShape | None = None
) -> RenderableType:
    """Every trial with state, values, seconds, and what went wrong."""
    if not len(history):
        return Text("The study has no trials yet.", style="dim")
    columns = [
        _trial_column(),
        ("state", {"no_wrap": True}),
        *_value_columns(objectives),
        ("time", {"justify": "right", "no_wrap": True}),
    ]
    rows = [_trial_row(trial, objectives, shape) for trial in history]
    return DescribedRows(columns=columns, text_head="configuration", rows=rows)


def _trial_column() -> tuple[str, dict[str, Any]]:
    return "trial", {"justify": "right", "no_wrap": True}


def _value_columns(objectives: Sequence[Objective]) -> list[tuple[str, dict[str, Any]]]:
    return [(_head(objective), {"justify": "right", "no_wrap": True}) for objective in objectives]


def _front_row(point: FrontPoint, objectives: Sequence[Objective], shape: ModelShape | None, *, knee: bool) -> Row:
    mark = Text(f"{point.trial}{'*' if knee else ' '}")
    values = [Text(human_value(objective, point.values[objective.name])) for objective in objectives]
    text = Text(describe(point.configuration, shape))
    return Row(cells=[mark, *values], text=text, style="bold" if knee else "")


def _trial_row(trial: Trial, objectives: Sequence[Objective], shape: ModelShape | None) -> Row:
    word = trial.failure.kind.value if trial.failure is not None else trial.state.value
    text = describe(trial.configuration, shape)
    if trial.failure is not None:
        text += f"\n{trial.failure.message}"
    if trial.pruning is not None:
        text += f"\n{trial.pruning.because}"
    seconds = human_seconds(trial.seconds) if trial.state.finished else ""
    values = [Text(_shown_value(trial, objective)) for objective in objectives]
    cells = [Text(str(trial.number)), Text(word, style=STATE_STYLES[trial.state]), *values, Text(seconds)]
    return Row(cells=cells, text=Text(text))


def _shown_value(trial: Trial, objective: Objective) -> str:
    if trial.final is not None:
        point = point_of(trial, [objective])
        return "-" if point is None else human_value(objective, point.values[objective.name])
    if objective.name in trial.predicted and objective.unit == "parameters":
        return human_value(objective, trial.predicted[objective.name])
    return "-"


def studies_table(studies: Sequence[tuple[str, Sequence[Objective], Mapping[TrialState, int]]]) -> RenderableType:
    """One row a study: name, objectives, how many trials in each state."""
    if not studies:
        return Text("The storage has no studies.", style="dim")
    table = plain_table()
    table.add_column("study", overflow="fold")
    table.add_column("objectives", overflow="fold")
    for state in TrialState:
        table.add_column(state.value, justify="right", no_wrap=True)
    for name, objectives, counts in studies:
        words = ", ".join(objective.name for objective in objectives)
        numbers = [Text(str(counts.get(state, 0) or "-")) for state in TrialState]
        table.add_row(Text(name), Text(words), *numbers)
    return table


def check_table(summary: CheckSummary) -> RenderableType:
    """The summary of a study file that is fine."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(summary):
        facts.add_row(name, Text(value))
    dimensions = plain_table()
    dimensions.add_column("dimension", no_wrap=True)
    dimensions.add_column("domain", ratio=1, overflow="fold")
    for name, domain in summary.dimensions:
        dimensions.add_row(Text(name), Text(domain))
    title = Text.assemble((f"{summary.study}", "bold"), ("  the study file is fine", "dim"))
    return Group(title, Padding(facts, (1, 0, 0, 1)), dimensions)


def _facts(summary: CheckSummary) -> list[tuple[str, str]]:
    low, high = summary.parameters
    share = f" ({_share(low, summary)} to {_share(high, summary)} of the base model)" if summary.base_parameters else ""
    size = f"{summary.configurations:,} configurations"
    if summary.configurations >= 10**15:
        size = f"{float(summary.configurations):.2e} configurations"
    if summary.continuous:
        size += f", times {', '.join(summary.continuous)} (continuous)"
    goals = ", ".join(f"{o.name} ({_arrow(o)})" for o in summary.objectives)
    rows = [
        ("model", f"{summary.model}, {summary.n_layers} layers, {summary.base_parameters:,} parameters"),
        ("objectives", goals),
        ("search", f"{summary.n_trials} trials, {summary.engine}"),
        ("space", size),
        ("trainable", f"{low:,} to {high:,} parameters{share}"),
    ]
    if summary.fidelity is not None:
        rows.insert(3, ("training", _budget(summary)))
    if summary.rules:
        rows.insert(-1, ("rules", f"{', '.join(summary.rules)} (what breaks one is counted, never proposed)"))
    if summary.layer_prior is not None or summary.layer_score is not None:
        rows.insert(3, ("layers", _prior(summary)))
    if summary.past:
        rows.insert(3, ("begins from", "; ".join(map(str, summary.past))))
    if summary.memory is not None:
        rows.append(("memory", " to ".join(human_bytes(value) for value in summary.memory) + " predicted"))
    return rows


def _budget(summary: CheckSummary) -> str:
    """How far trials are trained."""
    whole = f"{summary.epochs} epoch{'s' if summary.epochs > 1 else ''} a trial"
    fidelity = summary.fidelity
    if fidelity is None or fidelity.scheduler == "all":
        return whole
    if fidelity.scheduler == "curves":
        return f"{whole}; from epoch {fidelity.minimum} on those that can no longer enter the front stop"
    rungs = rungs_of(minimum=fidelity.minimum, reduction=fidelity.reduction, epochs=summary.epochs)
    return f"{whole}; one in {fidelity.reduction} goes on after epoch {', '.join(map(str, rungs))}"


def _prior(summary: CheckSummary) -> str:
    prior, later = summary.layer_prior, f"{summary.layer_score}, computed when the search begins"
    return f"first trials led by {later if prior is None else prior_words(prior, n_layers=summary.n_layers)}"


def _share(parameters: int, summary: CheckSummary) -> str:
    return percentage(parameters, summary.base_parameters)


def _arrow(objective: Objective) -> str:
    return "higher is better" if objective.direction is Direction.MAXIMIZE else "lower is better"


def _head(objective: Objective) -> str:
    return objective.name.replace("_", " ")


def methods_table(rows: Sequence[Mapping[str, object]]) -> RenderableType:
    """One line a method."""
    table = plain_table()
    table.add_column("method", no_wrap=True)
    table.add_column("what it does", ratio=1, overflow="fold")
    for row in rows:
        table.add_row(Text(str(row["method"])), Text(str(row["summary"])))
    return Group(table, Text("`autopeft methods NAME` shows a method's fields and source", style="dim"))


def method_table(row: Mapping[str, object]) -> RenderableType:
    """One method with its fields."""
    table = plain_table()
    for name in ("field", "kind", "default", "allowed"):
        table.add_column(name, no_wrap=name in ("field", "kind"), overflow="fold")
    table.add_column("", ratio=1, overflow="fold")
    fields = row["fields"]
    assert isinstance(fields, list)
    for field in fields:
        default = field["default"]
        shown = ", ".join(default) if isinstance(default, list) else "-" if default is None else f"{default}"
        table.add_row(*map(Text, (field["field"], field["kind"], shown, field["allowed"], field["help"])))
    title = Text.assemble((f"{row['method']}", "bold"), f"  {row['summary']}")
    return Group(title, Text(f"source: {row['source']}", style="dim"), Text(_rates(row)), Text(""), table)


def _rates(row: Mapping[str, object]) -> str:
    """The learning rates that `auto` means for a method, and where they come from."""
    rates = row["learning_rates"]
    assert isinstance(rates, Mapping)
    source = rates["source"] or "no published range known; wide on purpose"
    return f"learning_rate: auto is log({number(rates['low'])}, {number(rates['high'])})  ({source})"


def front_json(
    front: Front, history: History, *, study: str, confirmed: Confirmed = MappingProxyType({})
) -> dict[str, object]:
    """What `autopeft front --json` prints; only points that were confirmed have an entry `confirmed`."""
    states = (TrialState.COMPLETED, TrialState.PRUNED, TrialState.FAILED)
    counts = {state.value: len(history.in_state(state)) for state in states}
    whole = front.to_json()
    rows = whole["front"]
    assert isinstance(rows, list)
    marked = [row | ({"confirmed": confirmed[row["trial"]]} if row["trial"] in confirmed else {}) for row in rows]
    return {"study": study, **whole, "front": marked, "trials": counts}


def trials_json(history: History, objectives: Sequence[Objective]) -> list[dict[str, object]]:
    """What `autopeft trials --json` prints: one object a trial, bytes and seconds."""
    return [_trial_json(trial, objectives) for trial in history]


def _trial_json(trial: Trial, objectives: Sequence[Objective]) -> dict[str, object]:
    point = point_of(trial, objectives)
    failure = None
    if trial.failure is not None:
        failure = {"kind": trial.failure.kind.value, "message": trial.failure.message}
    return {
        "trial": trial.number,
        "state": trial.state.value,
        "values": None if point is None else dict(point.values),
        "predicted": dict(trial.predicted),
        "seconds": trial.seconds,
        "failure": failure,
        **({} if trial.pruning is None else {"pruned": asdict(trial.pruning)}),
        "configuration_id": trial.configuration.id,
        "configuration": trial.configuration.to_json(),
        "epochs": [measurement.to_json() for measurement in trial.measurements],
    }
