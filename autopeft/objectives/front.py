"""The Pareto front of a study: its points, their volume, and the ways to choose one of them."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from autopeft.errors import NotFoundError, SpecError
from autopeft.objectives.hypervolume import hypervolume
from autopeft.objectives.measurement import Measurement
from autopeft.objectives.objective import COSTS, Objective
from autopeft.objectives.pareto import Array, knee, non_dominated
from autopeft.objectives.pick import FORMS, parse_query
from autopeft.objectives.reference import reference_point
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.suggest import nearest

if TYPE_CHECKING:
    import pandas as pd

WHOLE_UNITS = ("parameters", "bytes")
"""Units whose values are whole numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """A completed trial as the front sees it."""

    trial: int
    """Trial number."""
    values: Mapping[str, float]
    """Objectives by name, in their own units and directions."""
    configuration: Configuration
    measurement: Measurement
    """The trial's last one."""

    @classmethod
    def of(
        cls, trial: int, configuration: Configuration, *, measurement: Measurement, objectives: Sequence[Objective]
    ) -> "FrontPoint":
        """The point of a trial that ended with `measurement`; KeyError when it lacks an objective."""
        values = {objective.name: measurement.value(objective.name) for objective in objectives}
        return cls(trial=trial, values=values, configuration=configuration, measurement=measurement)

    @property
    def named(self) -> dict[str, float]:
        """Every number a query may name: the objectives, the costs, and every metric that was measured."""
        measured = self.measurement
        costs = {name: measured.value(name) for name in ("parameters", "memory", "train_seconds")}
        return {**measured.metrics, **costs, **self.values}


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """Non-dominated trials, best in the first objective first; build one with `Front.of`."""

    points: tuple[FrontPoint, ...]
    objectives: tuple[Objective, ...]
    reference: Mapping[str, float] = field(default_factory=dict)
    """The corner that bounds the hypervolume, by objective, in the objectives' own units and directions."""
    hypervolume: float = 0.0
    """Volume between the front and `reference`, in the product of the objectives' units."""

    @classmethod
    def of(
        cls,
        candidates: Iterable[FrontPoint],
        objectives: Sequence[Objective],
        *,
        reference: Mapping[str, float] | None = None,
    ) -> "Front":
        """The front of `candidates`, all completed trials of a study.

        Of trials with equal values the earliest stands for all. Trials with a value that is not finite are left out.

        Args:
            candidates: Every completed trial, dominated ones too (they set the reference).
            objectives: What to compare by.
            reference: The corner of the hypervolume; None chooses it (`reference.reference_point`).
        """
        objectives = tuple(objectives)
        rows = sorted(_finite(candidates, objectives), key=lambda point: point.trial)
        if not rows:
            return cls(points=(), objectives=objectives, reference=dict(reference or {}))
        losses = losses_of(rows, objectives)
        corner = _corner(reference, objectives, losses)
        chosen = [rows[index] for index in np.flatnonzero(non_dominated(losses))]
        first = objectives[0]
        chosen.sort(key=lambda point: (first.to_loss(point.values[first.name]), point.trial))
        return cls(
            points=tuple(chosen),
            objectives=objectives,
            reference={o.name: o.from_loss(float(loss)) for o, loss in zip(objectives, corner, strict=True)},
            hypervolume=hypervolume(losses, corner),
        )

    def __iter__(self) -> Iterator[FrontPoint]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> FrontPoint:
        return self.points[index]

    @property
    def losses(self) -> Array:
        """`[len(self), m]` losses of the points, in their order."""
        return losses_of(self.points, self.objectives)

    def knee(self) -> FrontPoint:
        """The point of best compromise (`pareto.knee`).

        Costs count by their logarithm, the metric as it is; together the costs weigh as much as the metric, since
        parameters, memory and seconds rise and fall together and would outvote it.

        Raises:
            NotFoundError: The front is empty.
        """
        return self._knee_of(self._filled())

    def best(self, name: str) -> FrontPoint:
        """The point that is best in objective `name`; the knee's side of ties, then the earliest.

        Raises:
            NotFoundError: The front is empty, or `name` is not one of its objectives.
        """
        points = self._filled()
        known = {objective.name: objective for objective in self.objectives}
        if name not in known:
            near = nearest(name, known)
            raise NotFoundError(
                f"pick: no objective called {name!r}", hint=f"{near} there are {', '.join(known)}".strip()
            )
        losses = [known[name].to_loss(point.values[name]) for point in points]
        tied = [point for point, loss in zip(points, losses, strict=True) if loss == min(losses)]
        return self._knee_of(tied)

    def pick(self, text: str) -> FrontPoint:
        """The point that `text` names: `knee`, `best:OBJECTIVE`, `trial:N` or a query (`pick.parse_query`).

        Raises:
            SpecError: `text` is none of these.
            NotFoundError: The front has no such trial or objective, or no point meets the query; the hint lists
                what there is.
        """
        text = text.strip()
        if text == "knee":
            return self.knee()
        kind, colon, value = (part.strip() for part in text.partition(":"))
        if not colon:
            query = parse_query(text)
            kept = query.select(self._filled())
            return kept[0] if query.name else self._knee_of(kept)
        if kind == "best":
            return self.best(value)
        if kind == "trial" and value.isdecimal():
            return self._numbered(int(value))
        raise SpecError(f"pick: got {text!r}", hint=f"a pick is {FORMS}")

    def to_json(self) -> dict[str, object]:
        """What `front --json` shows of the front: objectives, hypervolume, reference and points."""
        rows = [
            {"trial": point.trial, "values": self._values(point), "configuration": point.configuration.to_json()}
            for point in self.points
        ]
        return {
            "objectives": [objective.to_json() for objective in self.objectives],
            "hypervolume": self.hypervolume,
            "reference": dict(self.reference),
            "front": rows,
        }

    def to_frame(self) -> "pd.DataFrame":
        """A table with a row a point: `trial`, the objectives, and the configuration as canonical JSON text."""
        import pandas as pd

        rows = [
            {"trial": point.trial, **self._values(point), "configuration": json.dumps(point.configuration.to_json())}
            for point in self.points
        ]
        return pd.DataFrame(rows, columns=["trial", *(o.name for o in self.objectives), "configuration"])

    def _values(self, point: FrontPoint) -> dict[str, float]:
        whole = {objective.name for objective in self.objectives if objective.unit in WHOLE_UNITS}
        return {name: round(value) if name in whole else value for name, value in point.values.items()}

    def _filled(self) -> tuple[FrontPoint, ...]:
        if not self.points:
            raise NotFoundError("the front is empty: no trial has completed", hint="run the search first")
        return self.points

    def _knee_of(self, points: Sequence[FrontPoint]) -> FrontPoint:
        losses = losses_of(points, self.objectives)
        is_cost = np.array([objective.name in COSTS for objective in self.objectives])
        for index in np.flatnonzero(is_cost & (losses > 0).all(axis=0)):
            losses[:, index] = np.log(losses[:, index])
        return points[knee(losses, weights=np.where(is_cost, 1.0 / max(is_cost.sum(), 1), 1.0))]

    def _numbered(self, trial: int) -> FrontPoint:
        for point in self._filled():
            if point.trial == trial:
                return point
        numbers = sorted(point.trial for point in self.points)
        near = min(numbers, key=lambda number: (abs(number - trial), number))
        there = ", ".join(map(str, numbers))
        raise NotFoundError(
            f"pick: trial {trial} is not on the front", hint=f"the nearest is trial:{near}; its trials are {there}"
        )


def losses_of(points: Sequence[FrontPoint], objectives: Sequence[Objective]) -> Array:
    """`[n, m]` losses of `points`."""
    rows = [[objective.to_loss(point.values[objective.name]) for objective in objectives] for point in points]
    return np.array(rows, dtype=np.float64).reshape(len(points), len(objectives))


def hypervolume_curve(
    candidates: Iterable[FrontPoint], objectives: Sequence[Objective], *, reference: Mapping[str, float] | None = None
) -> list[tuple[int, float]]:
    """(trial number, hypervolume of all trials up to it), by trial number; never falls.

    One reference serves every entry: the one given, else that of all candidates together.
    """
    objectives = tuple(objectives)
    rows = sorted(_finite(candidates, objectives), key=lambda point: point.trial)
    if not rows:
        return []
    losses = losses_of(rows, objectives)
    corner = _corner(reference, objectives, losses)
    curve: list[tuple[int, float]] = []
    volume, front = 0.0, np.empty((0, len(objectives)))
    for point, loss in zip(rows, losses, strict=True):
        if not (front <= loss).all(axis=1).any():
            front = np.vstack([front, loss])
            front = front[non_dominated(front)]
            volume = max(volume, hypervolume(front, corner))
        curve.append((point.trial, volume))
    return curve


def _corner(reference: Mapping[str, float] | None, objectives: Sequence[Objective], losses: Array) -> Array:
    """Losses of `reference`, or of the one chosen from `losses`.

    Raises:
        SpecError: `reference` lacks an objective.
    """
    if reference is None:
        return reference_point(losses, objectives)
    missing = [objective.name for objective in objectives if objective.name not in reference]
    if missing:
        raise SpecError(f"reference: no value for {', '.join(missing)}", hint="give one for every objective")
    return np.array([objective.to_loss(reference[objective.name]) for objective in objectives], dtype=np.float64)


def _finite(candidates: Iterable[FrontPoint], objectives: Sequence[Objective]) -> list[FrontPoint]:
    return [c for c in candidates if all(math.isfinite(c.values[objective.name]) for objective in objectives)]
