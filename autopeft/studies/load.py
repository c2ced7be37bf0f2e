"""From a study file (or the same mapping in Python) to a `StudySpec`."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from autopeft.errors import SpecError
from autopeft.objectives.objective import Objective, resolve_objectives
from autopeft.search.schedulers import Fidelity
from autopeft.spaces.constraints import read_amount
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.layer_prior import LAYER_SCORES
from autopeft.spaces.suggest import nearest
from autopeft.studies.executor import Resources
from autopeft.studies.paths import resolve_path
from autopeft.studies.schema import LayersFromSection, RunFile, StudyFile, shorten, validate, validate_run
from autopeft.studies.spec import ConfirmSettings, PriorSource, RunSpec, SearchSettings, StudySpec, default_objectives
from autopeft.studies.yaml_file import Document, Path_, Plain, parse_yaml, read_yaml
from autopeft.trainers.job import DataSpec, ModelSpec, TaskSpec, TrainingSettings

SPLITS = ("train", "validation", "test")


def load_spec(path: Path, *, settings: Sequence[str] = ()) -> StudySpec:
    """The study in the file at `path`, with `key.path=value` overrides put in.

    Paths in the file are taken from the file's folder, then from the working folder.

    Raises:
        SpecError: The first thing that is wrong, with its line.
    """
    return to_spec(override(read_yaml(path), settings), folder=path.resolve().parent)


def spec_from_mapping(data: Mapping[str, object], *, settings: Sequence[str] = ()) -> StudySpec:
    """The study that `data` describes, keys and values as in a study file (the space may hold Python objects)."""
    plain = {key: value for key, value in data.items() if key != "space"}
    space = data.get("space")
    if isinstance(space, Mapping):
        space = SpaceDefinition.from_mapping(space).to_mapping()
    document = Document(data={**plain, **({"space": space} if space is not None else {})}, source="study")  # type: ignore[arg-type]  # checked by the schema
    return to_spec(override(document, settings), folder=None)


def to_spec(document: Document, *, folder: Path | None) -> StudySpec:
    """The complete, checked study; see `load_spec`."""
    file = validate(document)
    try:
        space = SpaceDefinition.from_mapping(file.space)
    except SpecError as error:
        raise _placed(error, document, "space") from error
    objectives = _objectives(file, document)
    return StudySpec(
        study=file.study,
        model=_model(file, folder),
        task=_task(file, document, folder),
        space=space,
        constraints=tuple(file.constraints),
        objectives=objectives,
        search=_search(file, document, folder),
        training=_training(file, objectives),
        fidelity=_fidelity(file, document),
        resources=_resources(file),
        mlflow=file.tracking.mlflow if file.tracking else None,
        confirm=ConfirmSettings(**file.confirm.model_dump()),
    )


def load_run(path: Path, *, settings: Sequence[str] = ()) -> RunSpec:
    """What the task file (or study file) at `path` says of training one configuration; see `load_spec`."""
    return to_run(override(read_yaml(path), settings), folder=path.resolve().parent)


def run_from_mapping(data: Mapping[str, object], *, settings: Sequence[str] = ()) -> RunSpec:
    """The same from keys and values as in such a file."""
    document = Document(data=dict(data), source="task")  # type: ignore[arg-type]  # checked by the schema
    return to_run(override(document, settings), folder=None)


def to_run(document: Document, *, folder: Path | None) -> RunSpec:
    """The complete, checked task file; see `load_run`."""
    file = validate_run(document)
    objectives = _objectives(file, document)
    return RunSpec(
        name=file.study,
        model=_model(file, folder),
        task=_task(file, document, folder),
        training=_training(file, objectives),
        objectives=objectives,
        threads=file.resources.cpus_per_job if "cpus_per_job" in file.resources.model_fields_set else None,
        mlflow=file.tracking.mlflow if file.tracking else None,
    )


def _model(file: StudyFile | RunFile, folder: Path | None) -> ModelSpec:
    if isinstance(file.model, str):
        return ModelSpec(name=resolve_path(file.model, folder=folder))
    section = file.model.model_dump()
    return ModelSpec(**{**section, "name": resolve_path(section["name"], folder=folder)})


def _task(file: StudyFile | RunFile, document: Document, folder: Path | None) -> TaskSpec:
    section = file.task
    data = section.data.model_dump()
    if data["hub"] is None and data["train"] is None:
        raise SpecError(
            f"{document.place(('task', 'data'))}: no training rows named",
            hint="give `train: FILE`, or `hub: DATASET` (and `name: CONFIGURATION`)",
        )
    if data["hub"] is None:
        data |= {split: resolve_path(data[split], folder=folder) for split in SPLITS if data[split] is not None}
    reads = "image" if section.kind == "image-classification" else "text"
    if getattr(section, reads) is None:
        raise SpecError(f"{document.place(('task', reads))}: missing", hint=f"add `task.{reads}: ...`")
    text = (section.text,) if isinstance(section.text, str) else tuple(section.text or ())
    if reads == "text" and not 1 <= len(text) <= 2 and section.kind != "multiple-choice":
        raise SpecError(f"{document.place(('task', 'text'))}: got {len(text)} columns; one or two are needed")
    return TaskSpec(
        kind=section.kind,
        data=DataSpec(**data),
        text=text,
        image=section.image,
        label=section.label,
        metric=section.metric,
        extra_metrics=tuple(section.extra_metrics),
    )


def _search(file: StudyFile, document: Document, folder: Path | None) -> SearchSettings:
    section = file.search
    source = section.layers_from
    if isinstance(source, LayersFromSection) and source.study == file.study:
        raise SpecError(
            f"{document.place(('search', 'layers_from', 'study'))}: got {source.study!r}, which is this study",
            hint="name one that has learnt layer importances before",
        )
    if isinstance(source, str) and source not in LAYER_SCORES:
        raise SpecError(
            f"{document.place(('search', 'layers_from'))}: got {shorten(source)}; scores of layers:"
            f" {', '.join(LAYER_SCORES)}",
            hint=nearest(source, LAYER_SCORES) or "write {study: NAME} for importances that another study learnt",
        )
    prior = PriorSource(**source.model_dump()) if isinstance(source, LayersFromSection) else source
    past = tuple(_file_or_name(entry, folder) for entry in section.past)
    for index, entry in enumerate(section.past):
        if entry == file.study:
            raise SpecError(
                f"{document.place(('search', 'from', index))}: got {entry!r}, which is this study",
                hint="name one that came before",
            )
    return SearchSettings(engine=section.engine, trials=section.trials, seed=section.seed, layers_from=prior, past=past)


def _objectives(file: StudyFile | RunFile, document: Document) -> tuple[Objective, ...]:
    if file.objectives is None:
        return default_objectives(file.task.metric)
    try:
        return resolve_objectives(tuple(file.objectives), metric=file.task.metric)
    except SpecError as error:
        raise _placed(error, document, "objectives") from error


def _training(file: StudyFile | RunFile, objectives: Sequence[Objective]) -> TrainingSettings:
    """The settings written, and what the objectives need to be measured."""
    settings = TrainingSettings(**file.training.model_dump(exclude={"fidelity"}))
    asked = any(objective.name == "activation_density" for objective in objectives)
    return replace(settings, measure_density=settings.measure_density or asked)


def _fidelity(file: StudyFile, document: Document) -> Fidelity | None:
    if file.training.fidelity is None:
        return None
    fidelity = Fidelity(**file.training.fidelity.model_dump())
    try:
        fidelity.check(file.training.epochs)
    except SpecError as error:
        raise _placed(error, document, "training") from error
    return fidelity


def _resources(file: StudyFile) -> Resources:
    section = file.resources
    memory, prefix = section.memory_per_job, section.prefix_cache
    return Resources(
        memory_per_job=read_amount(memory, place="resources.memory_per_job") if isinstance(memory, str) else memory,
        prefix_cache=int(read_amount(prefix, place="resources.prefix_cache")) if isinstance(prefix, str) else prefix,
        memory_confidence=section.memory_confidence,
        max_jobs=section.max_jobs,
        cpus_per_job=section.cpus_per_job,
        gpus_per_job=section.gpus_per_job,
        executor=section.executor,
        address=section.address,
        trials_per_job=section.trials_per_job,
        trial_deadline_seconds=section.trial_deadline_seconds,
    )


def _placed(error: SpecError, document: Document, key: str) -> SpecError:
    """`error`, whose message begins with a dotted path under `key`, with file and line put before it."""
    path: list[str | int] = [key]
    head = error.message.partition(": ")[0]
    if head.startswith(key):
        path = list(head.split("."))
    line = document.place(tuple(path)).removesuffix(": " + head).partition(": ")[0]
    return error.at(line)


def _file_or_name(entry: str, folder: Path | None) -> str:
    """`entry` as an absolute path where it is a file; a folder may be called like a study."""
    path = resolve_path(entry, folder=folder)
    return path if Path(path).is_file() else entry


def override(document: Document, settings: Sequence[str]) -> Document:
    """`document` with `key.path=value` settings put in, each value read as YAML would read it.

    Raises:
        SpecError: A setting without `=`, or a path through something that is no mapping.
    """
    if not settings:
        return document
    data: dict[str, Plain] = copy.deepcopy(document.data)
    lines = dict(document.lines)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise SpecError(f"--set {setting}: not of the form key=value", hint="e.g. --set search.trials=40")
        path: Path_ = tuple(key.strip().split("."))
        value = parse_yaml(f"value: {text}", source=f"--set {key}").data["value"]
        _put(data, path, value, setting=setting)
        lines = {known: line for known, line in lines.items() if known[: len(path)] != path}
    return Document(data=data, lines=lines, source=document.source)


def _put(data: dict[str, Plain], path: Path_, value: Plain, *, setting: str) -> None:
    holder = data
    for depth, step in enumerate(path[:-1]):
        empty: dict[str, Plain] = {}
        below = holder.setdefault(str(step), empty)
        if isinstance(below, str) and depth == 0 and step in ("space", "model"):
            named: dict[str, Plain] = {"preset" if step == "space" else "name": below}
            below = holder[str(step)] = named
        if not isinstance(below, dict):
            raise SpecError(f"--set {setting}: {step!r} holds {shorten(below)}, which has no keys")
        holder = below
    holder[str(path[-1])] = value
