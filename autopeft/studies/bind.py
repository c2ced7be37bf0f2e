"""From a study file to the space as bound to its model: read the shape, predict memory, check the constraints."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autopeft.errors import InfeasibleError, SpecError
from autopeft.objectives.memory import Setup
from autopeft.spaces.configuration import LEARNING_RATE, Configuration, Scalar
from autopeft.spaces.domain import Choice, Domain, Fixed
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.space import SearchSpace
from autopeft.spaces.training import ACTIVE_WITH
from autopeft.spaces.validity_rules import RULED_SETTINGS
from autopeft.spaces.virtual_tokens import most_virtual_tokens
from autopeft.studies.capacity import capacity_of
from autopeft.studies.describe import human_bytes
from autopeft.studies.spec import RunSpec, StudySpec
from autopeft.trainers.job import ModelSpec, TaskSpec, TrainingSettings
from autopeft.trainers.task import TaskSummary, check_task

if TYPE_CHECKING:
    import torch

REGRESSION_METRICS = ("pearson", "spearman")


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundStudy:
    """A study whose file, data and model were read and fit each other; nothing was trained or written."""

    spec: StudySpec
    space: SearchSpace
    data: TaskSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedMemory:
    """Predicted peak training memory of a configuration in bytes; picklable, called by the search space.

    What was traced of the model stays in the process, so a second call costs milliseconds.
    """

    model: ModelSpec
    """In the dtype and with the attention that the base is trained with on this machine."""
    task: TaskSpec
    n_labels: int | None
    setup: Setup
    device: str

    def __call__(self, configuration: Configuration) -> float:
        from autopeft.trainers.forecast import forecast_for

        forecast = forecast_for(self.model, self.task, n_labels=self.n_labels, device=self.device)
        return float(forecast.predict(configuration, self.setup).measurable)


def bind_study(spec: StudySpec) -> BoundStudy:
    """Read what `spec` names and check that it fits together.

    Raises:
        InputError: Data, labels, model, targets, sizes or constraints are not usable; the message names the place.
    """
    from autopeft.trainers.checkpoint import check_length

    _check_resources(spec)
    _check_active(spec)
    run = RunSpec.of_study(spec)
    data, shape = _read(run)
    _check_rate(spec, head=_n_labels(run, data) is not None)
    space = _bound_space(spec, shape, memory=_predicted_memory(run, shape, data))
    if shape.image is None:
        check_length(spec.model, spec.training.max_length, virtual=most_virtual_tokens(space.structure))
    return BoundStudy(spec=spec, space=space, data=data)


def _bound_space(spec: StudySpec, shape: ModelShape, *, memory: PredictedMemory) -> SearchSpace:
    """The study's space, without what cannot fit the memory of a job."""
    capacity = capacity_of(spec.resources)
    limits = () if capacity is None else (capacity.constraint,)
    try:
        return SearchSpace.bind(
            spec.space,
            shape,
            constraints=(*spec.constraints, *limits),
            quantities={"memory": memory},
            settings=_ruled_settings(spec.training),
        )
    except InfeasibleError as error:
        if capacity is None or error.constraint not in limits:
            raise
        named = "memory_per_job" if spec.resources.memory_per_job is not None else "gpus_per_job"
        raise SpecError(
            f"resources.{named}: a job has {human_bytes(capacity.n_bytes)}; the smallest configuration found "
            f"is predicted to take {human_bytes(error.closest)}",
            hint="give a job more, make batch_size or max_length smaller, or give the space smaller sizes",
        ) from None


def bind_run(spec: RunSpec) -> tuple[ModelShape, PredictedMemory]:
    """The same for a single training: the shape of its model, and what predicts its memory.

    Raises:
        InputError: Data, labels or model are not usable; the message names the place.
    """
    data, shape = _read(spec)
    return shape, _predicted_memory(spec, shape, data)


def _read(spec: RunSpec) -> tuple[TaskSummary, ModelShape]:
    """Data and model, checked against each other."""
    from autopeft.trainers.checkpoint import load_image_reader
    from autopeft.trainers.kinds import check_kind
    from autopeft.trainers.model import read_shape

    data = check_task(spec.task, seed=spec.training.seed)
    shape = read_shape(spec.model)
    check_kind(spec.task.kind, shape, place=f"model {spec.model.name!r}", custom_code=spec.model.trust_remote_code)
    if shape.image is not None:
        load_image_reader(spec.model)
    return data, shape


def _predicted_memory(spec: RunSpec, shape: ModelShape, data: TaskSummary) -> PredictedMemory:
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = spec.training
    return PredictedMemory(
        model=_as_trained(spec, shape, device),
        task=spec.task,
        n_labels=_n_labels(spec, data),
        setup=Setup(
            batch_size=training.batch_size,
            length=_longest(spec, shape),
            sequences=len(data.classes) if spec.task.kind == "multiple-choice" else 1,
            optimizer=training.optimizer,
            checkpointing=training.checkpointing,
            accumulation=training.accumulation,
            evaluation_batch_size=training.evaluation_batch_size,
        ),
        device=device.type,
    )


def _ruled_settings(training: TrainingSettings) -> dict[str, Scalar]:
    """The study's own settings that rules ask for, where they are not the default."""
    plain = TrainingSettings()
    return {name: getattr(training, name) for name in RULED_SETTINGS if getattr(training, name) != getattr(plain, name)}


def _longest(spec: RunSpec, shape: ModelShape) -> int:
    """Tokens of the longest row there may be."""
    return spec.training.max_length if shape.image is None else shape.image.n_tokens


def _as_trained(spec: RunSpec, shape: ModelShape, device: "torch.device") -> ModelSpec:
    """The model with the dtype and attention that a trainer on a machine like this one chooses."""
    from autopeft.trainers.precision import fit_model

    return fit_model(spec.model, spec.training.precision, device=device, max_length=_longest(spec, shape))


def _n_labels(spec: RunSpec, data: TaskSummary) -> int | None:
    """Outputs of the new head; None where the model's own vocabulary is predicted."""
    if not data.classes:
        return 1 if spec.task.metric in REGRESSION_METRICS else None
    return 1 if spec.task.kind == "multiple-choice" else len(data.classes)


def _check_active(spec: StudySpec) -> None:
    """Refuse a dimension that means nothing beside any value that another setting may have."""
    decided = {name: spread.domain for name, spread in spec.space.training}
    for name in sorted(decided.keys() & ACTIVE_WITH.keys()):
        other, values = ACTIVE_WITH[name]
        own = _words(decided[other]) if other in decided else (getattr(spec.training, other),)
        if not set(own) & set(values):
            raise SpecError(
                f"space.{name}: means something only with {other} {' or '.join(map(str, values))}, and this study has"
                f" {' or '.join(map(str, own))}",
                hint=f"put {other} into training or space, or leave {name} out",
            )


def _words(domain: Domain) -> tuple[object, ...]:
    """What a category may be."""
    if isinstance(domain, Choice):
        return domain.values
    return (domain.value,) if isinstance(domain, Fixed) else ()


def _check_rate(spec: StudySpec, *, head: bool) -> None:
    """Refuse to search a common learning rate that nothing takes."""
    common = dict(spec.space.training).get(LEARNING_RATE)
    searched = common is not None and not isinstance(common.domain, Fixed)
    if searched and not head and all(block.spread(LEARNING_RATE) for block in spec.space.methods):
        raise SpecError(
            f"space.{LEARNING_RATE}: every method has a rate of its own, and {spec.task.kind} trains no head beside"
            " them, so nothing would take this one",
            hint="leave it out",
        )


def _check_resources(spec: StudySpec) -> None:
    if spec.resources.gpus_per_job and spec.resources.address is None:
        import torch

        there = torch.cuda.device_count()
        if spec.resources.gpus_per_job > there:
            raise SpecError(
                f"resources.gpus_per_job: got {spec.resources.gpus_per_job:g}; this machine has {there}",
                hint="leave it out to use what there is",
            )
