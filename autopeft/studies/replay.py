"""What became of one study's front on another task: what was carried, what it cost, how near it comes to a search."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, final

from autopeft.objectives.front import Front, FrontPoint, hypervolume_curve
from autopeft.objectives.objective import Objective
from autopeft.search.trial import History, Trial
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.space import SearchSpace
from autopeft.spaces.translate import translate
from autopeft.studies.charts import completed_points, point_of
from autopeft.studies.content import PLACES
from autopeft.studies.definition import StudyDefinition

COMPARED: Final = ("model", "task", "training")
"""Parts of a study file in which two studies must agree for their trials to be measured alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedPoint:
    """A point of the source's front, and what it is in the new study's space."""

    source: FrontPoint
    configuration: Configuration | None
    """None when nothing of it can be had in the new space."""
    exact: bool
    """Whether it is the same configuration; otherwise `notes` says what is a guess."""
    notes: tuple[str, ...]


def carry_front(front: Front, shape: ModelShape, space: SearchSpace) -> tuple[CarriedPoint, ...]:
    """Every point of `front`, found on a model of `shape`, in `space`."""
    carried: list[CarriedPoint] = []
    for point in front:
        found = translate(point.configuration, source=shape, target=space)
        carried.append(
            CarriedPoint(source=point, configuration=found.configuration, exact=found.exact, notes=found.notes)
        )
    return tuple(carried)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reachable:
    """The replay beside a search of the same task: shares of the volume of all trials of both together.

    That is what is known to be reachable; what a longer search would find is not known.
    """

    study: str
    trials: int
    """Finished trials of the search."""
    seconds: float
    """All of them together."""
    hypervolume: float
    """Of the trials of both, from their common reference."""
    reference: Mapping[str, float]
    replayed: float | None
    """Share that the replay has; None where nothing is reached at all."""
    searched: float | None
    """Share that the search has."""
    passed_at: int | None
    """After how many of its trials the search had as much as the replay; None when it never had."""

    def to_json(self) -> dict[str, object]:
        return {
            "study": self.study,
            "trials": self.trials,
            "seconds": self.seconds,
            "hypervolume": self.hypervolume,
            "reference": dict(self.reference),
            "replayed": self.replayed,
            "searched": self.searched,
            "passed_at": self.passed_at,
        }


def reachable(study: str, search: History, replayed: History, objectives: Sequence[Objective]) -> Reachable | None:
    """The two histories compared; None when the search has completed no trial."""
    first, second = completed_points(search, objectives), completed_points(replayed, objectives)
    if not first:
        return None
    shifted = [replace(point, trial=point.trial + len(search)) for point in second]
    best = Front.of([*first, *shifted], objectives)
    curve = hypervolume_curve(first, objectives, reference=best.reference)
    mine = Front.of(second, objectives, reference=best.reference).hypervolume if second else 0.0

    def share(volume: float) -> float | None:
        return volume / best.hypervolume if best.hypervolume > 0 else None

    return Reachable(
        study=study,
        trials=sum(trial.state.finished for trial in search),
        seconds=sum(trial.seconds for trial in search),
        hypervolume=best.hypervolume,
        reference=best.reference,
        replayed=share(mine),
        searched=share(curve[-1][1]),
        passed_at=next((number + 1 for number, volume in curve if volume >= mine), None),
    )


def incomparable(there: StudyDefinition, here: StudyDefinition) -> str:
    """Why trials of two studies are not measured alike; empty when they are."""
    found = _measured(there).differences(_measured(here), harmless=PLACES)
    more = f"; and {len(found) - 2} more" if len(found) > 2 else ""
    return "; ".join(found[:2]) + more


def _measured(definition: StudyDefinition) -> StudyDefinition:
    spec = {key: definition.spec[key] for key in COMPARED}
    training = spec["training"]
    assert isinstance(training, Mapping)
    # Which trials were stopped early changes nothing about those that were not.
    spec["training"] = {key: value for key, value in training.items() if key != "fidelity"}
    return StudyDefinition(
        objectives=definition.objectives, spec=spec, space={"content": definition.space.get("content")}
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A front trained on another task, a study of its own in the storage."""

    study: str
    """Its name: `autopeft front`, `export` and the others take it."""
    source: str
    task: str
    """The study whose task, space and training it has."""
    points: tuple[CarriedPoint, ...]
    history: History
    objectives: tuple[Objective, ...]
    reachable: Reachable | None
    unknown: str
    """Why `reachable` is None, and what would change that; empty otherwise."""

    @property
    def front(self) -> Front:
        """Of the replayed trials."""
        return Front.of(completed_points(self.history, self.objectives), self.objectives)

    @property
    def seconds(self) -> float:
        """That the trials took, failed ones too."""
        return sum(trial.seconds for trial in self.history)

    def trial(self, point: CarriedPoint) -> Trial | None:
        """The trial that a point became; None when it was left out or has not begun."""
        wanted = None if point.configuration is None else point.configuration.id
        return next((trial for trial in self.history if trial.configuration.id == wanted), None)

    def to_json(self) -> dict[str, object]:
        front = self.front
        return {
            "study": self.study,
            "mode": "replay",
            "source": self.source,
            "task": self.task,
            "objectives": [objective.to_json() for objective in self.objectives],
            "points": [self._row(point) for point in self.points],
            "cost": {"trials": len(self.history), "seconds": self.seconds},
            "hypervolume": front.hypervolume,
            "reference": dict(front.reference),
            "reachable": None if self.reachable is None else self.reachable.to_json(),
            "unknown": self.unknown,
        }

    def _row(self, point: CarriedPoint) -> dict[str, object]:
        trial = self.trial(point)
        measured = None if trial is None else point_of(trial, self.objectives)
        failure = None if trial is None or trial.failure is None else trial.failure.kind.value
        return {
            "source_trial": point.source.trial,
            "source_values": dict(point.source.values),
            "trial": None if trial is None else trial.number,
            "values": None if measured is None else dict(measured.values),
            "failure": failure,
            "exact": point.exact,
            "notes": list(point.notes),
        }
