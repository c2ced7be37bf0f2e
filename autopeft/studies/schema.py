"""The door: what a study file may hold. Everything behind it trusts its types.

pydantic checks keys and types here and nowhere else; errors come out as one line that names the place, the value,
what is allowed and the nearest known key.
"""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError
from pydantic_core import ErrorDetails

from autopeft.errors import SpecError
from autopeft.objectives.objective import METRICS
from autopeft.spaces.suggest import nearest
from autopeft.studies.yaml_file import Document, Path_, dotted

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]


def _auto_is_none(value: object) -> object:
    return None if value == "auto" else value


def _all_is_none(value: object) -> object:
    return None if value == "all" else value


AutoInt = Annotated[Annotated[int, Field(gt=0)] | None, BeforeValidator(_auto_is_none)]
AutoFloat = Annotated[Annotated[float, Field(gt=0.0)] | None, BeforeValidator(_auto_is_none)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ModelSection(_Section):
    name: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    attention: Literal["sdpa", "eager"] | None = None
    trust_remote_code: bool = False


class DataSection(_Section):
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    hub: str | None = None
    name: str | None = None
    revision: str | None = None
    validation_fraction: Fraction = 0.1
    test_fraction: Fraction = 0.1
    max_train_rows: PositiveInt | None = None
    max_validation_rows: PositiveInt | None = None


class TaskSection(_Section):
    kind: Literal[
        "text-classification",
        "token-classification",
        "multiple-choice",
        "causal-lm",
        "seq2seq",
        "image-classification",
    ]
    data: DataSection
    text: str | list[str] | None = None
    image: str | None = None
    label: str | None = None
    metric: str
    extra_metrics: list[str] = []


class LayersFromSection(_Section):
    study: str
    trial: Annotated[int, Field(ge=0)] | None = None


def _score_or_study(value: object) -> str:
    """Which of the two a value is meant to be, so that errors are about that one."""
    return "str" if isinstance(value, str) else "LayersFromSection"


ScoreOrStudy = Annotated[
    Annotated[str, Tag("str")] | Annotated[LayersFromSection, Tag("LayersFromSection")], Discriminator(_score_or_study)
]


class SearchSection(_Section):
    engine: Literal["random", "sobol", "nsga2", "tpe", "gp", "bayesian"] = "bayesian"
    trials: PositiveInt = 50
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    layers_from: ScoreOrStudy | None = None
    past: list[str] = Field(default=[], alias="from")


class FidelitySection(_Section):
    scheduler: Literal["halving", "curves", "all"] = "halving"
    reduction: Annotated[int, Field(ge=2)] = 3
    minimum: PositiveInt = 1


class TrainingSection(_Section):
    epochs: PositiveInt = 3
    fidelity: FidelitySection | None = None
    batch_size: PositiveInt = 32
    accumulation: PositiveInt = 1
    checkpointing: bool = False
    evaluation_batch_size: PositiveInt = 128
    max_length: PositiveInt = 128
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    warmup_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.06
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    clip_norm: Annotated[float, Field(gt=0.0)] | None = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    optimizer: Literal["adamw", "lora_fa", "galore"] = "adamw"
    lora_plus_ratio: Annotated[float, Field(gt=0.0)] = 1.0
    weight_decay_b: Annotated[float, Field(ge=0.0)] | None = None
    ba_consistency: Annotated[float, Field(ge=0.0)] = 0.0
    ba_diversity: Annotated[float, Field(ge=0.0)] = 0.0
    ba_spectrum: Annotated[float, Field(ge=0.0)] = 0.0
    density: Annotated[float, Field(ge=0.0)] = 0.0
    density_epsilon: Annotated[float, Field(gt=0.0)] = 1e-7
    ggpo_sigma: Annotated[float, Field(ge=0.0)] = 0.0
    ggpo_beta: Annotated[float, Field(ge=0.0)] = 0.0
    measure_density: bool = False
    galore_rank: PositiveInt = 8
    layer_sampling: Literal["none", "importance", "random"] = "none"
    layers_kept: Annotated[float, Field(gt=0.0, le=1.0)] = 0.25
    sampling_interval: PositiveInt = 10
    suppression: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class ResourcesSection(_Section):
    executor: Literal["ray", "local"] = "ray"
    max_jobs: AutoInt = None
    cpus_per_job: PositiveInt = 1
    gpus_per_job: Annotated[Annotated[float, Field(ge=0.0)] | None, BeforeValidator(_auto_is_none)] = None
    memory_per_job: PositiveInt | str | None = None
    memory_confidence: Fraction = 0.95
    prefix_cache: Annotated[int, Field(ge=0)] | str = 1 << 30
    trials_per_job: AutoInt = None
    address: str | None = None
    trial_deadline_seconds: AutoFloat = None


class TrackingSection(_Section):
    mlflow: str | None = "sqlite:///mlflow.db"


def _off_is_no_stage(value: object) -> object:
    return {"after_search": False} if value is False else value


class ConfirmSection(_Section):
    after_search: bool = True
    budget: Annotated[float, Field(gt=0.0)] = 0.3
    seeds: Annotated[int, Field(ge=3)] = 3
    points: Annotated[PositiveInt | None, BeforeValidator(_all_is_none)] = None
    baseline_trials: Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(_auto_is_none)] = None


Confirming = Annotated[ConfirmSection, BeforeValidator(_off_is_no_stage)]


class StudyFile(_Section):
    study: str
    model: str | ModelSection
    task: TaskSection
    space: str | dict[str, object]
    constraints: list[str] = []
    objectives: list[str] | None = None
    search: SearchSection = SearchSection()
    training: TrainingSection = TrainingSection()
    resources: ResourcesSection = ResourcesSection()
    tracking: TrackingSection | None = TrackingSection()
    confirm: Confirming = ConfirmSection()


class RunFile(_Section):
    """A study file of which only what training needs is looked at; a study file is one."""

    study: str = "train"
    model: str | ModelSection
    task: TaskSection
    space: str | dict[str, object] | None = None
    constraints: list[str] = []
    objectives: list[str] | None = None
    search: SearchSection = SearchSection()
    training: TrainingSection = TrainingSection()
    resources: ResourcesSection = ResourcesSection()
    tracking: TrackingSection | None = TrackingSection()
    confirm: Confirming = ConfirmSection()


def validate(document: Document) -> StudyFile:
    """The study file in `document`, checked.

    Raises:
        SpecError: The first thing that is wrong, with its place.
    """
    try:
        file = StudyFile.model_validate(document.data)
    except ValidationError as error:
        raise _first_error(error, document) from None
    _check_name(file, document)
    _check_metrics(file, document)
    return file


def validate_run(document: Document) -> RunFile:
    """The task file in `document` (or the study file), checked.

    Raises:
        SpecError: The first thing that is wrong, with its place.
    """
    try:
        file = RunFile.model_validate(document.data)
    except ValidationError as error:
        raise _first_error(error, document) from None
    _check_name(file, document)
    _check_metrics(file, document)
    return file


def _check_name(file: StudyFile | RunFile, document: Document) -> None:
    if not NAME.match(file.study):
        raise SpecError(
            f"{document.place(('study',))}: got {file.study!r}; letters, digits, '.', '_' and '-', at most 100",
            hint="the name becomes a folder and a tracking experiment",
        )


def _check_metrics(file: StudyFile | RunFile, document: Document) -> None:
    for name in (file.task.metric, *file.task.extra_metrics):
        if name not in METRICS:
            place = document.place(("task", "metric" if name == file.task.metric else "extra_metrics"))
            raise SpecError(
                f"{place}: unknown metric {name!r}; known: {', '.join(METRICS)}", hint=nearest(name, METRICS)
            )


def _first_error(error: ValidationError, document: Document) -> SpecError:
    details = min(error.errors(), key=lambda item: _severity(item, document))
    path: Path_ = _strip_union_tags(details["loc"])
    place = document.place(path)
    if details["type"] == "extra_forbidden":
        section = _section_at(path[:-1])
        known = sorted(field.alias or name for name, field in section.model_fields.items()) if section else []
        return SpecError(
            f"{place}: unknown key {str(path[-1])!r}; known here: {', '.join(known)}",
            hint=nearest(str(path[-1]), known),
        )
    if details["type"] == "missing":
        return SpecError(f"{place}: missing", hint=f"add `{dotted(path)}: ...`")
    got = shorten(details.get("input"))
    wanted, hint = _EITHER.get(path, (_wanted(details), ""))
    return SpecError(f"{place}: got {got}; {wanted}", hint=hint)


def _severity(item: ErrorDetails, document: Document) -> tuple[int, int]:
    """Unknown keys first (they explain what is missing), then by line."""
    order = {"extra_forbidden": 0, "missing": 2}.get(item["type"], 1)
    path = _strip_union_tags(item["loc"])
    return order, document.lines.get(path, 10**6)


def _strip_union_tags(loc: tuple[int | str, ...]) -> Path_:
    """Pydantic puts the member of a union into the path; a user never wrote it."""
    sections = ("ModelSection", "LayersFromSection")
    tags = {"str", "list[str]", "dict[str,object]", "int", "float", "constrained-int", *sections}
    return tuple(step for step in loc if not (isinstance(step, str) and (step in tags or "[" in step or "'" in step)))


def _section_at(path: Path_) -> type[BaseModel] | None:
    sections: dict[Path_, type[BaseModel]] = {
        (): StudyFile,
        ("model",): ModelSection,
        ("task",): TaskSection,
        ("task", "data"): DataSection,
        ("search",): SearchSection,
        ("search", "layers_from"): LayersFromSection,
        ("training",): TrainingSection,
        ("training", "fidelity"): FidelitySection,
        ("resources",): ResourcesSection,
        ("tracking",): TrackingSection,
        ("confirm",): ConfirmSection,
    }
    return sections.get(path)


_EITHER: dict[Path_, tuple[str, str]] = {
    ("space",): (
        "the name of a preset or a mapping of methods is needed",
        'write for instance space: {lora: {rank: "choice(0, 4, 8)"}}',
    ),
    ("search", "layers_from"): (
        "the name of a score or a mapping with a study is needed",
        "write for instance layers_from: gradient_norm, or layers_from: {study: NAME}",
    ),
}
"""What is needed where a value may be of two kinds, and the hint."""

_WANTED = {
    "literal_error": "allowed: {expected}",
    "int_type": "a whole number is needed",
    "int_from_float": "a whole number is needed",
    "float_type": "a number is needed",
    "string_type": "a word is needed",
    "bool_type": "true or false is needed",
    "list_type": "a list is needed, e.g. [a, b]",
    "model_type": "a mapping of keys to values is needed",
    "dict_type": "a mapping of keys to values is needed",
    "greater_than": "it must be above {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be below {lt}",
    "less_than_equal": "it must be at most {le}",
}
"""What is allowed, by pydantic's name of the error and with its context filled in."""


def _wanted(details: ErrorDetails) -> str:
    if details["type"] not in _WANTED:
        return details["msg"].lower()
    return _WANTED[details["type"]].format(**details.get("ctx", {}))


def shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
