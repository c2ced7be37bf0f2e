"""What the tracking mirror says about a study and its trials, as plain data; nothing here knows a tracking library.

Each function gives the content of an outbox note (see outbox.py): whole in itself, free of wall-clock times, and equal
whenever the trial is equal, so that saying it again changes nothing.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from autopeft.objectives.front import Front, FrontPoint, hypervolume_curve
from autopeft.objectives.measurement import Measurement
from autopeft.objectives.objective import Objective
from autopeft.objectives.reference import reference_point
from autopeft.search.trial import History, Trial, TrialState
from autopeft.spaces.configuration import LEARNING_RATE, Configuration, MethodSetting, Scalar
from autopeft.spaces.model_shape import ModelShape
from autopeft.studies.charts import Confirmed, completed_points, counts_line, knee_number, point_of
from autopeft.studies.describe import (
    depth,
    describe,
    human_value,
    layer_range,
    layer_sizes,
    method_word,
    number_or_set,
    site_words,
)
from autopeft.studies.events import StopReason

Json = dict[str, object]

MAX_PARAMETER = 6000
MAX_TAG = 8000
REFERENCE_TRIALS = 8
"""The tracked hypervolume's reference point is that of the first so many completed trials and then stays, because a
tracking server keeps every value it was ever sent: a curve cannot be redrawn."""
_STATUS = {
    TrialState.RUNNING: "RUNNING",
    TrialState.COMPLETED: "FINISHED",
    TrialState.PRUNED: "KILLED",
    TrialState.FAILED: "FAILED",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyInfo:
    """What the mirror says of a study as a whole."""

    name: str
    objectives: tuple[Objective, ...]
    model: str
    """Hub id or folder of the base model."""
    task: str
    """The kind of task, e.g. `text-classification`."""
    data: str
    """Where the rows come from, for people: a hub id or file names."""
    data_digest: str = ""
    """Changes when the data do; empty when unknown."""
    shape: ModelShape | None = None
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    """Further facts to filter by: engine, seed, epochs, ..."""
    identity: str = ""
    """Tells studies of one name in several storages apart; empty takes the name."""

    @property
    def mark(self) -> str:
        """The identity as a short word without marks."""
        return hashlib.sha256((self.identity or self.name).encode()).hexdigest()[:16]


def trial_name(number: int) -> str:
    """What a trial's run is called."""
    return f"trial-{number:03d}"


REPORT_KEY = "report"


def report_note(page: str) -> tuple[str, dict[str, object]]:
    """The page of the study, as `autopeft report` writes it."""
    return REPORT_KEY, {"page": page}


def study_note(info: StudyInfo) -> Json:
    """Parameters and tags of the parent run."""
    facts: dict[str, Scalar] = {
        "model": info.model,
        "task": info.task,
        "data": info.data,
        "objectives": ", ".join(objective.name for objective in info.objectives),
    }
    return {"params": _parameters(facts | _shape_facts(info) | dict(info.settings)), "tags": {}}


def base_parameters(info: StudyInfo) -> dict[str, str]:
    """Parameters of the base model, as an input of the runs."""
    return _parameters({"model": info.model} | _shape_facts(info))


def _shape_facts(info: StudyInfo) -> dict[str, Scalar]:
    return (
        {} if info.shape is None else {"n_layers": info.shape.n_layers, "base_parameters": info.shape.base_parameters}
    )


def trial_note(trial: Trial, info: StudyInfo) -> Json:
    """Everything about one trial: name, status, parameters, tags, metrics as (key, value, step, seconds from start)."""
    n_layers = depth([trial.configuration], info.shape)
    tags = {
        "state": trial.state.value,
        "rung": str(max((measurement.epoch for measurement in trial.measurements), default=0)),
        "configuration_id": trial.configuration.id,
        "description": describe(trial.configuration, info.shape),
    }
    text = json.dumps(trial.configuration.to_json(), sort_keys=True)
    if len(text) <= MAX_TAG:
        tags["configuration"] = text
    if trial.failure is not None:
        tags |= {"failure": trial.failure.kind.value, "failure_message": trial.failure.message}
    if trial.pruning is not None:
        tags["pruned_because"] = trial.pruning.because
    elif trial.resumed:
        tags["pruned_because"] = ""
    metrics = [row for measurement in trial.measurements for row in _epoch_metrics(measurement)]
    metrics += _final_metrics(trial, info.objectives)
    return {
        "name": trial_name(trial.number),
        "number": trial.number,
        "status": _STATUS[trial.state],
        "params": _parameters(configuration_parameters(trial.configuration, n_layers, info.shape)),
        "tags": {key: value[:MAX_TAG] for key, value in tags.items()},
        "metrics": metrics,
        "seconds": round(trial.seconds, 3),
    }


def configuration_parameters(
    configuration: Configuration, n_layers: int, shape: ModelShape | None = None
) -> dict[str, Scalar]:
    """A configuration as flat short parameters that sort, filter and compare well.

    Per method `<method>.layers` (`0-5`), each field, and its own learning rate where it has one: one value where it is
    the same on all its layers, else one value a layer, `0` or `-` where the method is absent. Then the training
    settings, and two summaries: `methods` and `n_adapted_layers`.
    """
    flat: dict[str, Scalar] = {
        "methods": "+".join(method_word(setting.method) for setting in configuration) or "none",
        "n_adapted_layers": len(configuration.adapted_layers),
    }
    for setting in configuration:
        flat[f"{setting.method}.layers"] = layer_range(setting.layers)
        flat |= {f"{setting.method}.{name}": _column(setting, name, n_layers, shape) for name, _ in setting.fields}
        if setting.learning_rate is not None:
            flat[f"{setting.method}.{LEARNING_RATE}"] = setting.learning_rate
    return flat | dict(configuration.training)


def _column(setting: MethodSetting, name: str, n_layers: int, shape: ModelShape | None) -> Scalar:
    column = setting.column(name)
    texts = [site_words(value, shape) if isinstance(value, tuple) else number_or_set(value) for value in column]
    if len(set(texts)) == 1:
        first = column[0]
        return texts[0] if isinstance(first, tuple) else first
    sizes = layer_sizes(setting, n_layers)
    by_layer = dict(zip(setting.layers, texts, strict=True))
    absent = "-" if any(isinstance(value, (str, tuple)) for value in column) else "0"
    return " ".join(by_layer.get(layer, absent) for layer in range(len(sizes)))


def _parameters(facts: Mapping[str, Scalar]) -> dict[str, str]:
    return {key: _fit(repr(value) if isinstance(value, float) else str(value)) for key, value in facts.items()}


def _fit(text: str) -> str:
    return text if len(text) <= MAX_PARAMETER else text[: MAX_PARAMETER - 1] + "…"


def _epoch_metrics(measurement: Measurement) -> list[tuple[str, float, int, float]]:
    offset = round(measurement.train_seconds + measurement.evaluation_seconds, 3)
    values = {f"epoch/{name}": value for name, value in measurement.metrics.items()}
    values |= {
        "epoch/train_loss": measurement.train_loss,
        "epoch/train_seconds": measurement.train_seconds,
        "epoch/memory": float(measurement.peak_bytes),
    }
    return [(key, value, measurement.epoch, offset) for key, value in values.items() if math.isfinite(value)]


def _final_metrics(trial: Trial, objectives: Sequence[Objective]) -> list[tuple[str, float, int, float]]:
    """Only of a completed trial, so that no chart shows a half-trained one as if it were a result."""
    final = trial.final
    if final is None:
        return []
    point = point_of(trial, objectives)
    values = dict(final.metrics) | {name: final.value(name) for name in ("parameters", "memory", "train_seconds")}
    values |= dict(point.values) if point is not None else {}
    if "memory" in trial.predicted:
        values["predicted_memory"] = trial.predicted["memory"]
    values |= {"seconds": trial.seconds, "tokens": float(final.tokens), **final.extra}
    return [(key, value, final.epoch, round(trial.seconds, 3)) for key, value in values.items() if math.isfinite(value)]


def progress_notes(history: History, objectives: Sequence[Objective]) -> list[tuple[str, Json]]:
    """Metrics of the parent run over trial numbers, for every trial before which none is still running.

    `hypervolume` is a share: of the box between the reference point and the best values of the first
    `REFERENCE_TRIALS` completed trials; above 1 the front has left that box. `best_<first objective>` is the best so
    far. Empty until there are enough trials.
    """
    settled = _settled(history)
    points = completed_points(settled, objectives)
    first = points[:REFERENCE_TRIALS]
    if len(first) < REFERENCE_TRIALS:
        return []
    reference, box = _box(first, objectives)
    curve = hypervolume_curve(points, objectives, reference=reference)
    values = {point.trial: point.values[objectives[0].name] for point in points}
    notes: list[tuple[str, Json]] = []
    best = math.inf
    for trial, volume in curve:
        best = min(best, objectives[0].to_loss(values[trial]))
        found = {"hypervolume": volume / box, f"best_{objectives[0].name}": objectives[0].from_loss(best)}
        notes.append((f"curve/{trial}", {"step": trial, "values": found}))
    return notes


def _settled(history: History) -> History:
    open_numbers = [trial.number for trial in history if not trial.state.finished]
    limit = min(open_numbers, default=math.inf)
    return History(trials=tuple(trial for trial in history if trial.number < limit))


def _box(points: Sequence[FrontPoint], objectives: Sequence[Objective]) -> tuple[dict[str, float], float]:
    losses = np.array([[o.to_loss(point.values[o.name]) for o in objectives] for point in points], dtype=np.float64)
    corner = reference_point(losses, objectives)
    reference = {o.name: o.from_loss(float(loss)) for o, loss in zip(objectives, corner, strict=True)}
    return reference, float(np.prod(corner - losses.min(axis=0)))


def flag_notes(history: History, front: Front) -> list[tuple[str, Json]]:
    """Whether each completed trial is on the front."""
    on_front = {point.trial for point in front}
    return [
        (f"flag/{trial.number}", {"number": trial.number, "on_front": trial.number in on_front})
        for trial in history.completed
    ]


def state_note(reason: StopReason | None) -> tuple[str, Json]:
    """How the study stands: running (None), or why it stopped."""
    ends = {StopReason.INTERRUPTED: "KILLED", StopReason.ABORTED: "FAILED"}
    status = "RUNNING" if reason is None else ends.get(reason, "FINISHED")
    return "state", {"status": status, "reason": "" if reason is None else reason.value}


def front_note(front: Front, history: History, confirmed: Confirmed = MappingProxyType({})) -> Json:
    """A mark that changes when the picture of the front would; the picture itself is drawn when it is sent."""
    scores = {"confirmed": {str(trial): dict(row) for trial, row in confirmed.items()}} if confirmed else {}
    return {"trials": [point.trial for point in front], "counts": counts_line(history, front), **scores}


def confirmed_notes(confirmed: Confirmed) -> list[tuple[str, Json]]:
    """What was confirmed of each trial, as metrics and a tag of its run."""
    notes: list[tuple[str, Json]] = []
    for trial, row in confirmed.items():
        metrics: list[tuple[str, float, int, float]] = []
        tags: dict[str, str] = {}
        for name, score in row.items():
            if isinstance(score, Mapping):
                values = {f"confirmed/{name}": score["mean"]}
                values |= {f"confirmed/{name}_{part}": score[part] for part in ("std", "low", "high")}
                metrics += [(key, float(value), 0, 0.0) for key, value in values.items() if math.isfinite(value)]
                words = f"{name} {score['mean']:.4f} ± {score['std']:.4f}"
                tags["confirmed"] = f"{words}, {row['seeds']} seeds, {score['split']} split"
        notes.append((f"confirmed/{trial}", {"number": trial, "metrics": metrics, "tags": tags}))
    return notes


def front_markdown(front: Front, history: History, *, info: StudyInfo) -> str:
    """The front as the parent run's description: counts and a table; user text cannot break out of it."""
    lines = [f"**{_cell(info.name)}**: {_cell(counts_line(history, front))}.", ""]
    if not len(front):
        return "\n".join([*lines, "No trial has completed yet."])
    heads = [objective.label or objective.name for objective in front.objectives]
    lines += ["| trial | " + " | ".join(_cell(head) for head in heads) + " | configuration |"]
    lines += ["|---:|" + "---:|" * len(heads) + "---|"]
    knee = knee_number(front)
    for point in front:
        values = [human_value(objective, point.values[objective.name]) for objective in front.objectives]
        mark = " (knee)" if point.trial == knee else ""
        text = _cell(describe(point.configuration, info.shape))
        row = f"| {point.trial}{mark} | " + " | ".join(values) + f" | {text} |"
        if sum(map(len, lines)) + len(row) > MAX_TAG - 200:
            lines += ["", "More in the artifacts: front/front.json."]
            break
        lines.append(row)
    return "\n".join([*lines, "", "Chart with hover: artifact `front/front.html`."])


def _cell(text: str) -> str:
    """`text` with everything that Markdown or HTML would act on made harmless."""
    for mark, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;")):
        text = text.replace(mark, entity)
    for mark in "\\`*_[]!#":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())
