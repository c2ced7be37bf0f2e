"""The validated study: frozen values that the rest of the program trusts."""

from dataclasses import asdict, dataclass

from autopeft.objectives.objective import Objective, resolve_objectives
from autopeft.search.schedulers import Fidelity
from autopeft.spaces.definition import SpaceDefinition
from autopeft.studies.executor import Resources
from autopeft.trainers.job import ModelSpec, TaskSpec, TrainingSettings

TRAINER = "autopeft.trainers.trainer:Trainer"
"""What trains the trials of every study; named, not imported, because workers load it and drivers do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorSource:
    """The trial of another study whose layer importances lead the first trials."""

    study: str
    trial: int | None = None
    """None takes the best one, in that study's first objective, that learnt any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """How the search goes about it."""

    engine: str = "bayesian"
    trials: int = 50
    seed: int = 0
    layers_from: PriorSource | str | None = None
    """A key of `autopeft.spaces.layer_prior.LAYER_SCORES`, or where importances were learnt."""
    past: tuple[str, ...] = ()
    """Studies that it begins from (`search.from`): names in the storage, or files that were exported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmSettings:
    """How points of the front are trained again, and what beside."""

    after_search: bool = True
    """Whether a search that is done confirms its front's knee and best points by itself."""
    budget: float = 0.3
    """Trainings that this may take, as a share of the search's; `autopeft confirm` has no such limit."""
    seeds: int = 3
    """Trainings of each point."""
    points: int | None = None
    """How many points of the front `autopeft confirm` trains; None takes all."""
    baseline_trials: int | None = None
    """Trainings that tune each baseline; None takes as many as the search had, 0 leaves the baselines out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySpec:
    """One study file, read, checked and complete."""

    study: str
    model: ModelSpec
    task: TaskSpec
    space: SpaceDefinition
    constraints: tuple[str, ...]
    objectives: tuple[Objective, ...]
    search: SearchSettings
    training: TrainingSettings
    resources: Resources
    mlflow: str | None
    """MLflow tracking URI; None: no tracking."""
    confirm: ConfirmSettings = ConfirmSettings()
    fidelity: Fidelity | None = None
    """When trials are stopped before their last epoch; None trains all to it. In the file a part of `training`."""

    def to_mapping(self) -> dict[str, object]:
        """The study file this came from, complete with defaults; `autopeft.studies.load.to_spec` reads it back."""
        return {
            "study": self.study,
            "model": _given(asdict(self.model)),
            "task": _task_mapping(self.task),
            "space": self.space.to_mapping(),
            "constraints": list(self.constraints),
            "objectives": [objective.name for objective in self.objectives],
            "search": _search_mapping(self.search),
            "training": self.training.to_mapping() | ({"fidelity": asdict(self.fidelity)} if self.fidelity else {}),
            "resources": _given(asdict(self.resources)),
            "tracking": {"mlflow": self.mlflow},
            "confirm": _given(asdict(self.confirm)),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """What one configuration is trained with: a study file without its search."""

    name: str
    """Of the MLflow experiment and the card."""
    model: ModelSpec
    task: TaskSpec
    training: TrainingSettings
    objectives: tuple[Objective, ...]
    threads: int | None
    """Of linear algebra; None leaves the library's default."""
    mlflow: str | None
    """MLflow tracking URI; None: no tracking."""

    @classmethod
    def of_study(cls, spec: StudySpec) -> "RunSpec":
        return cls(
            name=spec.study,
            model=spec.model,
            task=spec.task,
            training=spec.training,
            objectives=spec.objectives,
            threads=spec.resources.cpus_per_job,
            mlflow=spec.mlflow,
        )

    def to_mapping(self) -> dict[str, object]:
        """The task file this came from, complete with defaults; `autopeft.studies.load.to_run` reads it back."""
        return {
            "study": self.name,
            "model": _given(asdict(self.model)),
            "task": _task_mapping(self.task),
            "training": self.training.to_mapping(),
            "tracking": {"mlflow": self.mlflow},
        }


def _search_mapping(search: SearchSettings) -> dict[str, object]:
    fields = _given(asdict(search))
    past = fields.pop("past")
    return fields | ({"from": list(search.past)} if past else {})


def _task_mapping(task: TaskSpec) -> dict[str, object]:
    fields = _given(asdict(task)) | {"data": _given(asdict(task.data)), "extra_metrics": list(task.extra_metrics)}
    text = {"text": list(task.text)} if task.text else {}
    return {key: value for key, value in fields.items() if key != "text"} | text


def _given(section: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in section.items() if value is not None}


def default_objectives(metric: str) -> tuple[Objective, ...]:
    """The three axes a study has when its file names none."""
    return resolve_objectives((metric, "parameters", "memory"), metric=metric)
