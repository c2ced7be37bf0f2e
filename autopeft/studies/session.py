"""A search as a user sees it: the study runs, progress shows on stderr, the tracking mirror follows."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autopeft.errors import AutoPeftError, TrackingError
from autopeft.spaces.model_shape import ModelShape
from autopeft.studies.bind import BoundStudy, bind_study
from autopeft.studies.content import content_of, data_digest
from autopeft.studies.describe import short_path
from autopeft.studies.events import Listener, Noted, StopReason
from autopeft.studies.load import load_spec, spec_from_mapping
from autopeft.studies.notes import StudyInfo
from autopeft.studies.outbox import outbox_path
from autopeft.studies.progress import ProgressMode, ProgressReporter, choose_mode
from autopeft.studies.report import report_page
from autopeft.studies.spec import RunSpec, StudySpec
from autopeft.studies.study import DEFAULT_STORAGE, Given, Study

if TYPE_CHECKING:
    from autopeft.studies.tracking import MlflowMirror

_DONE = (StopReason.BUDGET, StopReason.EXHAUSTED)
MIRROR_SECONDS = 30.0
"""How long the end of a search waits for a slow tracking server; `autopeft sync` brings the rest."""


def search(
    study: str | Path | Mapping[str, object],
    *,
    storage: str = DEFAULT_STORAGE,
    settings: Sequence[str] = (),
    progress: bool = True,
    listeners: Sequence[Listener] = (),
) -> Study:
    """Run (or resume) the study in a file, or in the same mapping in Python, to its trial budget.

    Args:
        study: A study file, or its content.
        storage: Where studies are kept.
        settings: `key.path=value` overrides.
        progress: Show on stderr how it goes.
        listeners: Told of every event while it runs.

    Returns:
        The study; its `front()` is what was looked for.

    Raises:
        InputError: Something in the file, data, model or storage is not usable; nothing was written.
    """
    if isinstance(study, Mapping):
        spec = spec_from_mapping(study, settings=settings)
    else:
        spec = load_spec(Path(study), settings=settings)
    opened = Study(spec, storage=storage)
    run_session(opened, mode=choose_mode(sys.stderr, quiet=not progress), listeners=listeners)
    return opened


def run_session(
    study: Study,
    *,
    mode: ProgressMode,
    listeners: Sequence[Listener] = (),
    bound: BoundStudy | None = None,
    given: Given | None = None,
) -> StopReason:
    """Run `study` with progress on stderr and, where its file asks for tracking, the mirror beside it."""
    bound = bound or bind_study(study.spec)
    reporter = ProgressReporter(sys.stderr, mode, shape=bound.space.shape, epochs=study.spec.training.epochs)
    with ExitStack() as stack:
        stack.callback(reporter.close)
        watching: list[Listener] = [reporter.on_event, *listeners]
        mirror = None if study.spec.mlflow is None else _mirrored(study, bound, reporter, stack)
        if mirror is not None:
            watching.append(mirror.on_event)
        reason = study.run(bound=bound, given=given, listeners=watching)
        if mirror is not None and study.history().completed:
            mirror.report(report_page(study.report()))
    if reason in _DONE and study.spec.confirm.after_search and study.history().completed:
        reason = _confirm_chosen(study, bound, mode=mode)
    return reason


def confirm_session(study: Study, *, mode: ProgressMode) -> StopReason:
    """Confirm `study`, baselines and all, with progress on stderr and, where its file asks for it, the mirror after."""
    bound = bind_study(study.spec)
    reporter = ProgressReporter(sys.stderr, mode, shape=bound.space.shape, epochs=study.spec.training.epochs)
    try:
        return study.confirm(bound=bound, listeners=[reporter.on_event])
    finally:
        reporter.close()
        _mirror_confirmed(study, bound, reporter)


def _confirm_chosen(study: Study, bound: BoundStudy, *, mode: ProgressMode) -> StopReason:
    """Confirm as many points of the front as the study's confirmation budget holds; what goes wrong is only said."""
    settings, n_trials = study.spec.confirm, len(study.history())
    points = int(settings.budget * n_trials + 1e-9) // settings.seeds
    if not points:
        return StopReason.BUDGET
    reporter = ProgressReporter(sys.stderr, mode, shape=bound.space.shape, epochs=study.spec.training.epochs)
    reason = StopReason.BUDGET
    try:
        reason = study.confirm(bound=bound, listeners=[reporter.on_event], points=points, baselines=False)
    except AutoPeftError as error:
        reporter.on_event(Noted(message=f"the front is not confirmed: {error.message}; `autopeft confirm` tries again"))
    finally:
        reporter.close()
    _mirror_confirmed(study, bound, reporter)
    return reason


def _mirror_confirmed(study: Study, bound: BoundStudy, reporter: ProgressReporter) -> None:
    """Bring what was confirmed to MLflow; where it does not answer, `autopeft sync` does that later."""
    from autopeft.studies.tracking import sync

    front = study.front()
    if study.spec.mlflow is None or not front.confirmed:
        return
    info, outbox = study_info(study.spec, bound.space.shape), outbox_path(study.storage, folder=Path())
    try:
        page = report_page(study.report())
        sync(study.spec.mlflow, info, front.history, outbox=outbox, confirmed=front.confirmed, page=page)
    except TrackingError as error:
        reporter.on_event(Noted(message=f"the confirmation is not in MLflow: {error.message}; {error.hint}"))


def _mirrored(study: Study, bound: BoundStudy, reporter: ProgressReporter, stack: ExitStack) -> "MlflowMirror":
    """A mirror in MLflow; what waits at the end is sent, or said to wait, when `stack` closes."""
    from autopeft.studies.tracking import MlflowMirror

    def say(message: str) -> None:
        reporter.on_event(Noted(message=message))

    assert study.spec.mlflow is not None
    mirror = MlflowMirror(
        study.spec.mlflow,
        study_info(study.spec, bound.space.shape),
        outbox=outbox_path(study.storage, folder=Path()),
        notify=say,
        confirmed=study.front().confirmed,
    )

    def close() -> None:
        left = mirror.close(MIRROR_SECONDS)
        if left:
            say(f"{left} notes wait for the tracking server; `autopeft sync {study.name}` sends them")

    stack.callback(close)
    return mirror


def study_info(spec: StudySpec, shape: ModelShape) -> StudyInfo:
    """What the tracking mirror says of the study as a whole."""
    settings = {"engine": spec.search.engine, "seed": spec.search.seed}
    info = run_info(RunSpec.of_study(spec), shape)
    return replace(info, data_digest=data_digest(content_of(spec)), settings=settings | dict(info.settings))


def run_info(spec: RunSpec, shape: ModelShape, *, identity: str = "") -> StudyInfo:
    """The same of a single training; `identity` tells it from others of its name."""
    data = spec.task.data
    files = [path for path in (data.train, data.validation, data.test) if path]
    named = f"{data.hub} ({data.name})" if data.hub and data.name else data.hub
    return StudyInfo(
        name=spec.name,
        objectives=spec.objectives,
        model=spec.model.name,
        task=spec.task.kind,
        data=named or ", ".join(short_path(path) for path in files),
        shape=shape,
        settings={
            "epochs": spec.training.epochs,
            "batch_size": spec.training.batch_size,
            **({"max_length": spec.training.max_length} if shape.image is None else {"tokens": shape.image.n_tokens}),
        },
        identity=identity,
    )
