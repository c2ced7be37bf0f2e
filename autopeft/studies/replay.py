"""A front trained on another task: what was carried of it, and what became of every point."""

from dataclasses import dataclass
from typing import final

from autopeft.objectives.front import Front, FrontPoint
from autopeft.search.trial import Trial
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.space import SearchSpace
from autopeft.spaces.translate import translate
from autopeft.studies.charts import point_of
from autopeft.studies.transferred import AbstractTransfer


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


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Replay(AbstractTransfer):
    """A front trained on another task."""

    MODE = "replay"
    SHARE = "replayed"

    points: tuple[CarriedPoint, ...]

    def trial(self, point: CarriedPoint) -> Trial | None:
        """The trial that a point became; None when it was left out or has not begun."""
        wanted = None if point.configuration is None else point.configuration.id
        return next((trial for trial in self.history if trial.configuration.id == wanted), None)

    def own_json(self) -> dict[str, object]:
        return {"points": [self._row(point) for point in self.points]}

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
