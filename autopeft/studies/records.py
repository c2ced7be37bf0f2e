"""What the storage keeps of a trial beyond Optuna's own columns, and how a configuration becomes parameters."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from autopeft.errors import ConfigurationError, StorageError
from autopeft.objectives.measurement import Measurement
from autopeft.search.trial import Failure, FailureKind, Pruning
from autopeft.spaces.canonical import read_configuration
from autopeft.spaces.configuration import Configuration, Scalar
from autopeft.spaces.domain import Integer, LogReal, Real, ScalarDomain
from autopeft.spaces.space import SearchSpace

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """What is fixed when a trial is proposed."""

    configuration: Configuration
    predicted: Mapping[str, float]
    epochs: int
    """Budget it was started with."""

    def to_json(self) -> dict[str, object]:
        return {
            "configuration": self.configuration.to_json(),
            "id": self.configuration.id,
            "predicted": dict(self.predicted),
            "epochs": self.epochs,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> "TrialRecord":
        return cls(
            configuration=_read_configuration(data["configuration"]),  # type: ignore[arg-type]  # written by to_json
            predicted=data["predicted"],  # type: ignore[arg-type]  # written by to_json
            epochs=data["epochs"],  # type: ignore[arg-type]  # written by to_json
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """What a trained trial scored on the held-out split."""

    metrics: Mapping[str, float]
    draws: tuple[float, ...] = ()
    """The task's metric on rows drawn again; see `autopeft.trainers.job.Report.test_draws`."""

    def to_json(self) -> dict[str, object]:
        return {"metrics": dict(self.metrics), "draws": list(self.draws)}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> "HeldOut":
        return cls(metrics=data["metrics"], draws=tuple(data["draws"]))  # type: ignore[arg-type]  # written by to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What happened to a trial since its latest start; a trial that is run again begins a new one."""

    attempt: int = 1
    started: float
    """Unix seconds."""
    ended: float | None = None
    measurements: tuple[Measurement, ...] = ()
    failure: Failure | None = None
    losses: int = 0
    """How many workers died under this trial; a driver's death is not counted."""
    held_out: HeldOut | None = None
    """Its score on the held-out split; None in a search, which never asks for one."""
    pruning: Pruning | None = None
    """Why it was stopped early, where it was."""
    resumed: bool = False
    """Whether it went on after it had been stopped early."""
    spent: float = 0.0
    """Seconds it ran until then."""

    @property
    def seconds(self) -> float:
        return self.spent + (0.0 if self.ended is None else max(0.0, self.ended - self.started))

    def to_json(self) -> dict[str, object]:
        failure = self.failure and {"kind": self.failure.kind.value, "message": self.failure.message}
        return {
            "attempt": self.attempt,
            "started": self.started,
            "ended": self.ended,
            "measurements": [plain(measurement.to_json()) for measurement in self.measurements],
            "failure": failure,
            "losses": self.losses,
            **({"held_out": plain(self.held_out.to_json())} if self.held_out else {}),
            **({"pruning": asdict(self.pruning)} if self.pruning else {}),
            **({"resumed": True, "spent": self.spent} if self.resumed else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> "RunRecord":
        failure: dict[str, str] | None = data["failure"]  # type: ignore[assignment]  # written by to_json
        rows: list[Mapping[str, object]] = data["measurements"]  # type: ignore[assignment]  # written by to_json
        return cls(
            attempt=data["attempt"],  # type: ignore[arg-type]  # written by to_json
            started=data["started"],  # type: ignore[arg-type]  # written by to_json
            ended=data["ended"],  # type: ignore[arg-type]  # written by to_json
            measurements=tuple(Measurement.from_json(row) for row in rows),
            failure=Failure(kind=FailureKind(failure["kind"]), message=failure["message"]) if failure else None,
            losses=data["losses"],  # type: ignore[arg-type]  # written by to_json
            held_out=HeldOut.from_json(data["held_out"]) if "held_out" in data else None,  # type: ignore[arg-type]  # same
            pruning=Pruning(**data["pruning"]) if "pruning" in data else None,  # type: ignore[arg-type]  # same
            resumed="resumed" in data,
            spent=data.get("spent", 0.0),  # type: ignore[arg-type]  # same
        )


def plain(document: object) -> object:
    """`document` with numbers of numpy and torch turned into JSON's."""
    return json.loads(json.dumps(document, default=lambda number: number.item()))


def _read_configuration(data: Mapping[str, object]) -> Configuration:
    try:
        return read_configuration(data)
    except ConfigurationError as error:
        raise StorageError(f"storage: a trial's {error.message}", hint=error.hint) from None


def optuna_parameters(
    space: SearchSpace, configuration: Configuration
) -> "tuple[dict[str, Scalar], dict[str, BaseDistribution]]":
    """The active dimensions of `configuration` as Optuna's parameters, and the range of each."""
    domains = {dimension.name: dimension.domain for dimension in space.dimensions}
    values = dict(space.spell(configuration))
    return values, {name: distribution(domains[name]) for name in values}


def distribution(domain: ScalarDomain) -> "BaseDistribution":
    """Optuna's spelling of `domain`; the same for every trial of a study, as Optuna demands."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, Integer):
        return IntDistribution(domain.low, domain.high, log=domain.log)
    if isinstance(domain, Real | LogReal):
        return FloatDistribution(domain.low, domain.high, log=isinstance(domain, LogReal))
    return CategoricalDistribution(tuple(domain.levels))
