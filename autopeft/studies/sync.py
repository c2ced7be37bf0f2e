"""A study brought to MLflow afterwards: its runs, and the points that are to be models there."""

import tempfile
from dataclasses import replace
from pathlib import Path

from autopeft.errors import SpecError
from autopeft.objectives.front import FrontPoint
from autopeft.studies.load import load_spec
from autopeft.studies.outbox import outbox_path
from autopeft.studies.registry import Registered, alias_of, find_registered, register
from autopeft.studies.report import report_page
from autopeft.studies.session import study_info
from autopeft.studies.study import Study
from autopeft.studies.tracking import SyncCounts
from autopeft.studies.tracking import sync as mirror


def open_tracked(name: str, *, storage: str) -> Study:
    """The study called `name`, or the one of the study file `name` with the tracking that the file says now.

    Raises:
        NotFoundError: No such study, or no such storage.
        SpecError: It has no tracking.
    """
    study = Study.open(name, storage=storage)
    if name.endswith((".yaml", ".yml")):
        study.spec = replace(study.spec, mlflow=load_spec(Path(name)).mlflow)
    if study.spec.mlflow is None:
        raise SpecError(
            f"study {study.name}: tracking is off",
            hint="set tracking.mlflow in the study file and name that file instead of the study",
        )
    return study


def sync_study(study: Study) -> SyncCounts:
    """Mirror what is not there yet of a study that tracks.

    Raises:
        UnreachableError: The server does not answer.
    """
    assert study.spec.mlflow is not None
    driven = study.is_running()  # Before its trials are read: what ends in between is told by its driver.
    info = study_info(study.spec, study.shape())
    front = study.front()
    page = None if driven else report_page(study.report())
    return mirror(
        study.spec.mlflow,
        info,
        front.history,
        outbox=_outbox(study),
        driven=driven,
        confirmed=front.confirmed,
        page=page,
    )


def register_point(study: Study, pick: str, point: FrontPoint) -> Registered:
    """The version of the model registry that holds a mirrored trial, made if the registry has none.

    Args:
        study: It tracks.
        pick: How the user named the point; `knee` and `best:OBJECTIVE` become aliases.
        point: What that is.

    Raises:
        NotFoundError: The trained adapter of the trial is gone.
        UnreachableError: The server does not answer.
    """
    assert study.spec.mlflow is not None
    uri, info = study.spec.mlflow, study_info(study.spec, study.shape())
    there = find_registered(uri, info, point.trial, alias=alias_of(pick))
    if there is not None:
        return there
    with tempfile.TemporaryDirectory(prefix="autopeft-") as bench:
        done = study.export(point, Path(bench) / "model", format="mlflow")
        return register(
            uri,
            info,
            point,
            folder=done.folder,
            held_out=done.held_out,
            outbox=_outbox(study),
            alias=alias_of(pick),
        )


def _outbox(study: Study) -> Path:
    return outbox_path(study.storage, folder=Path())
