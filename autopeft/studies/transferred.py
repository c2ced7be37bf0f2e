"""A study that came out of another one, beside a search of the same task: what both modes of a transfer share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

from autopeft.objectives.front import Front, hypervolume_curve
from autopeft.objectives.objective import Objective
from autopeft.search.trial import History
from autopeft.studies.charts import completed_points
from autopeft.studies.content import PLACES
from autopeft.studies.definition import StudyDefinition

COMPARED: Final = ("model", "task", "training")
"""Parts of a study file in which two studies must agree for their trials to be measured alike."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class AbstractTransfer(ABC):
    """What became of a finished study on another task, a study of its own in the storage."""

    MODE: ClassVar[str]
    """Its name on the command line."""
    SHARE: ClassVar[str]
    """What its share of the volume is called in `to_json`."""

    study: str
    """Its name: `autopeft front`, `export` and the others take it."""
    source: str
    task: str
    """The study whose task, space and training it has."""
    history: History
    objectives: tuple[Objective, ...]
    reachable: Reachable | None
    """It beside a search of the same task that began without the source."""
    unknown: str
    """Why `reachable` is None, and what would change that; empty otherwise."""

    @property
    def front(self) -> Front:
        """Of its own trials."""
        return Front.of(completed_points(self.history, self.objectives), self.objectives)

    @property
    def seconds(self) -> float:
        """That its trials took, failed ones too."""
        return sum(trial.seconds for trial in self.history)

    @abstractmethod
    def own_json(self) -> dict[str, object]:
        """What only this mode has to say."""

    def to_json(self) -> dict[str, object]:
        """What `autopeft transfer --json` prints."""
        front, known = self.front, None
        if self.reachable is not None:
            told = self.reachable.to_json()
            known = {(self.SHARE if key == "replayed" else key): value for key, value in told.items()}
        return {
            "study": self.study,
            "mode": self.MODE,
            "source": self.source,
            "task": self.task,
            "objectives": [objective.to_json() for objective in self.objectives],
            **self.own_json(),
            "cost": {"trials": len(self.history), "seconds": self.seconds},
            "hypervolume": front.hypervolume,
            "reference": dict(front.reference),
            "reachable": known,
            "unknown": self.unknown,
        }
