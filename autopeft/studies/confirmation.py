"""What confirmations found, read from the storage: scores on the held-out split, and what follows from them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from autopeft.objectives.front import Front, FrontPoint
from autopeft.objectives.objective import Objective
from autopeft.search.believed import Beliefs, updated
from autopeft.search.trial import Failure, History, Trial
from autopeft.spaces.configuration import Configuration
from autopeft.studies.baselines import LORA, RANDOM
from autopeft.studies.comparison import Difference, Estimate, Panel, Score
from autopeft.studies.confirm_jobs import read_entries
from autopeft.studies.records import RunRecord
from autopeft.studies.storage import StoredStudy, StudyStorage

FRONT = "front"
SPLIT = "test"
ROWS = "rows"
"""Attribute of a confirmation: rows of the held-out split."""
SERVED = "confirms"
"""What the definition of a study that only serves another calls that one's name."""
BELIEFS = "beliefs"
"""Attribute of a confirmation: what the search's surrogate believed of the metric, by trial number."""
CHOSEN = "chosen"
"""Attribute of a baseline's study: number of the trial that was believed best."""
WORDS = {LORA: "tuned LoRA", RANDOM: "random search"}


def confirm_name(study: str) -> str:
    """The study in which points of `study` are trained again; no study file can have such a name."""
    return f"{study}/confirm"


def baseline_name(study: str, kind: str) -> str:
    """The study that tunes a baseline of `study`."""
    return f"{study}/{kind}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One configuration that was trained again, and its scores."""

    kind: str
    """`front`, `lora` or `random`."""
    trial: int
    """The trial that found it, of its own study."""
    configuration: Configuration
    searched: float
    """What the metric was in the search."""
    believed: float
    """The same without the luck of one run: the surrogate's posterior, updated by the further seeds."""
    held_out: Mapping[int, Score]
    """Score on the held-out split by seed."""
    validation: Mapping[int, float]
    """Score on the validation rows by seed."""
    failures: Mapping[int, Failure]
    """Seeds whose training failed."""
    costs: Mapping[str, float]
    """Trainable parameters and peak memory, as the search measured them."""
    tuned: int | None = None
    """Of a baseline, the trainings that it was chosen from."""

    @property
    def label(self) -> str:
        return WORDS.get(self.kind, f"trial {self.trial}")


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """Everything that was confirmed of one study."""

    study: str
    objective: Objective
    """The metric."""
    arms: tuple[Arm, ...]
    """Points of the front first, best believed first; then the baselines."""
    seeds: int
    """Trainings that each arm was meant to have."""
    rows: int
    """Rows of the held-out split."""
    trainings: int
    """Trainings of the search, failed ones among them."""
    front: Front
    """The confirmed points that are still not dominated once their metric is what is believed."""

    def __iter__(self) -> Iterator[Arm]:
        return iter(self.arms)

    @cached_property
    def panel(self) -> Panel | None:
        """Scores of the arms that have all seeds; None where none has."""
        whole = {_key(arm): [arm.held_out[seed] for seed in range(self.seeds)] for arm in self.arms if self.whole(arm)}
        return Panel.of(self.objective, whole) if whole else None

    def whole(self, arm: Arm) -> bool:
        """Whether all seeds of an arm are scored."""
        return all(seed in arm.held_out for seed in range(self.seeds))

    def estimate(self, arm: Arm) -> Estimate | None:
        """The mean of an arm on the held-out split; None until all its seeds are scored."""
        return self.panel.estimate(_key(arm)) if self.panel is not None and self.whole(arm) else None

    def difference(self, arm: Arm, other: Arm) -> Difference | None:
        """How much better `arm` is than `other`; None until both have all seeds."""
        if self.panel is None or not (self.whole(arm) and self.whole(other)):
            return None
        return self.panel.difference(_key(arm), _key(other))

    def baseline(self, kind: str) -> Arm | None:
        return next((arm for arm in self.arms if arm.kind == kind), None)

    @property
    def points(self) -> tuple[Arm, ...]:
        """The arms that are points of the search's front."""
        return tuple(arm for arm in self.arms if arm.kind == FRONT)

    def chosen(self) -> dict[str, Arm]:
        """The points to take, by what they are best at: `best` (the metric) and `knee`.

        Chosen by what is believed after the further seeds, on validation rows; the held-out split has no say, so its
        scores of them are free of the choice.
        """
        points = {arm.trial: arm for arm in self.points if self.whole(arm)}
        if not points or not len(self.front):
            return {}
        sign = self.objective.to_loss(1.0)
        best = min(points.values(), key=lambda arm: (sign * arm.believed, arm.trial))
        return {"best": best, "knee": points[self.front.knee().trial]}


def _key(arm: Arm) -> str:
    return f"{arm.kind}/{arm.trial}"


def read_confirmation(
    storage: StudyStorage, name: str, *, history: History, objective: Objective
) -> Confirmation | None:
    """What the storage knows of confirmations of the study called `name`; None before there is any.

    Args:
        storage: Open.
        name: The study.
        history: Its trials.
        objective: The metric.
    """
    known = storage.names()
    if confirm_name(name) not in known:
        return None
    main = storage.study(confirm_name(name))
    trials = {trial.configuration.id: trial for trial in reversed(history.completed)}
    arms = [arm for arm in _arms(main, FRONT, trials, objective) if arm.held_out or arm.failures]
    arms = _believed(arms, _beliefs(main))
    for kind in WORDS:
        tuned = baseline_name(name, kind)
        if confirm_name(tuned) in known:
            arms += _baseline(storage, tuned, kind, objective)
    seeds = 1 + max((seed for arm in arms for seed in (*arm.held_out, *arm.failures)), default=-1)
    if not seeds:
        return None
    sign = objective.to_loss(1.0)
    arms.sort(key=lambda arm: (arm.kind != FRONT, arm.kind, sign * arm.believed, arm.trial))
    rows = main.get_attr(ROWS)
    return Confirmation(
        study=name,
        objective=objective,
        arms=tuple(arms),
        seeds=seeds,
        rows=rows if isinstance(rows, int) else 0,
        trainings=sum(trial.state.finished for trial in history),
        front=_front(arms, seeds, history, storage.study(name).objectives, objective),
    )


def _arms(
    study: StoredStudy, kind: str, trials: Mapping[str, Trial], objective: Objective, *, tuned: int | None = None
) -> list[Arm]:
    """The listed configurations, with what their trainings so far gave; `trials` found them, by configuration's id."""
    runs, arms = study.runs(), dict[str, Arm]()
    for number, entry in enumerate(read_entries(study)):
        trial = trials.get(entry.configuration.id)
        if trial is None or trial.final is None:
            continue
        arm = arms.setdefault(entry.configuration.id, _new_arm(kind, trial, objective, tuned=tuned))
        if number in runs:
            arms[entry.configuration.id] = _with_run(arm, entry.seed, runs[number][1], objective)
    return list(arms.values())


def _new_arm(kind: str, trial: Trial, objective: Objective, *, tuned: int | None) -> Arm:
    assert trial.final is not None
    searched = trial.final.value(objective.name)
    return Arm(
        kind=kind,
        trial=trial.number,
        configuration=trial.configuration,
        searched=searched,
        believed=searched,
        held_out={},
        validation={},
        failures={},
        costs={name: trial.final.value(name) for name in ("parameters", "memory")},
        tuned=tuned,
    )


def _with_run(arm: Arm, seed: int, run: RunRecord, objective: Objective) -> Arm:
    if run.failure is not None:
        return replace(arm, failures={**arm.failures, seed: run.failure})
    if run.ended is None or run.held_out is None or objective.name not in run.held_out.metrics:
        return arm
    score = Score(value=run.held_out.metrics[objective.name], draws=run.held_out.draws)
    return replace(
        arm,
        held_out={**arm.held_out, seed: score},
        validation={**arm.validation, seed: run.measurements[-1].value(objective.name)},
    )


def _baseline(storage: StudyStorage, tuned: str, kind: str, objective: Objective) -> list[Arm]:
    study = storage.study(tuned)
    history = study.history()
    finished = sum(trial.state.finished for trial in history)
    trials = {trial.configuration.id: trial for trial in reversed(history.completed)}
    arms = _arms(storage.study(confirm_name(tuned)), kind, trials, objective, tuned=finished)
    choice = study.get_attr(CHOSEN)
    return [arm for arm in arms if arm.trial == choice and (arm.held_out or arm.failures)]


def _beliefs(study: StoredStudy) -> Beliefs:
    kept = study.get_attr(BELIEFS)
    return {int(number): (row[0], row[1]) for number, row in kept.items()} if isinstance(kept, dict) else {}


def _believed(arms: Sequence[Arm], beliefs: Beliefs) -> list[Arm]:
    """`arms` with what the search believed of them updated by the validation scores of the further seeds."""
    noise = seed_noise(arms)
    return [
        replace(arm, believed=updated(beliefs.get(arm.trial), list(arm.validation.values()), noise=noise)[0])
        if arm.validation
        else arm
        for arm in arms
    ]


def seed_noise(arms: Sequence[Arm]) -> float:
    """Variance of validation scores between seeds of one configuration, averaged over configurations; 0.0 unknown."""
    spreads = [np.var(list(arm.validation.values()), ddof=1) for arm in arms if len(arm.validation) > 1]
    return float(np.mean(spreads)) if spreads else 0.0


def _front(
    arms: Sequence[Arm], seeds: int, history: History, objectives: Sequence[Objective], metric: Objective
) -> Front:
    trials = {trial.number: trial for trial in history.completed}
    points: list[FrontPoint] = []
    for arm in arms:
        final = trials[arm.trial].final if arm.kind == FRONT and arm.trial in trials else None
        if final is not None and all(seed in arm.held_out for seed in range(seeds)):
            point = FrontPoint.of(arm.trial, arm.configuration, measurement=final, objectives=objectives)
            changed = {metric.name: arm.believed} if metric.name in point.values else {}
            points.append(replace(point, values={**point.values, **changed}))
    return Front.of(points, objectives)


def confirmed_scores(found: Confirmation) -> dict[int, dict[str, object]]:
    """By trial number, what tables and charts show of the confirmed points: see `charts.Confirmed`."""
    rows: dict[int, dict[str, object]] = {}
    for arm in found.points:
        estimate = found.estimate(arm)
        if estimate is not None:
            score = estimate.to_json() | {"split": SPLIT, "rows": found.rows, "believed": arm.believed}
            rows[arm.trial] = {"seeds": estimate.seeds, found.objective.name: score}
    return rows
