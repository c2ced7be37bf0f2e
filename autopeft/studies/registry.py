"""Points of a front as models in MLflow: a logged model on the trial's run, and a version in the model registry.

What is logged is the folder that `autopeft export --format mlflow` writes, with its signature and input example.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from autopeft.errors import NotFoundError
from autopeft.objectives.front import FrontPoint
from autopeft.studies.artifacts import safe_name
from autopeft.studies.courier import translated
from autopeft.studies.describe import describe
from autopeft.studies.notes import StudyInfo, trial_name
from autopeft.studies.outbox import KnownRun, Outbox
from autopeft.studies.tracking_settings import check_uri, environment, public_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

HELD_OUT: Final = "test/"
"""Before the name of a metric on the split that the search never saw."""
_TRIAL, _STUDY, _MODEL = "autopeft.trial", "autopeft.study", "autopeft.model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A version of a registered model."""

    trial: int
    name: str
    """Of the registered model."""
    version: str
    model_id: str
    """Of the logged model."""
    made: bool
    """False when the registry had this trial already."""

    @property
    def uri(self) -> str:
        """What MLflow's `load_model` takes."""
        return f"models:/{self.name}/{self.version}"

    def to_json(self) -> dict[str, object]:
        return {
            "trial": self.trial,
            "name": self.name,
            "version": self.version,
            "model_id": self.model_id,
            "uri": self.uri,
            "made": self.made,
        }


def find_registered(uri: str, info: StudyInfo, trial: int, *, alias: str | None) -> Registered | None:
    """The version that the registry has of a trial, called `alias` from now on; None when there is none.

    Raises:
        UnreachableError: The server does not answer.
    """
    name = safe_name(info.name)
    with environment(), translated(check_uri(uri)):
        from mlflow import MlflowClient

        client = MlflowClient(check_uri(uri))
        for version in client.search_model_versions(f"name = '{name}'"):
            tags = version.tags
            if tags.get(_TRIAL) == str(trial) and tags.get(_STUDY) == info.mark and _MODEL in tags:
                if alias is not None:
                    client.set_registered_model_alias(name, alias, version.version)
                return _registered(version, trial, made=False)
    return None


def register(
    uri: str,
    info: StudyInfo,
    point: FrontPoint,
    *,
    folder: Path,
    held_out: Mapping[str, float],
    outbox: Path,
    alias: str | None,
) -> Registered:
    """Log the model in `folder` on the run of its trial, and make it a version of the registered model of the study.

    Args:
        uri: MLflow's tracking URI.
        info: The study.
        point: The trial; it was mirrored before.
        folder: What an export in the format mlflow wrote; not changed.
        held_out: Its metrics on the test split; they go on the run too, tied to the model.
        outbox: The outbox file; it knows the runs.
        alias: A name that points to this version from now on, e.g. `knee`; None for none.

    Raises:
        NotFoundError: The trial was not mirrored.
        UnreachableError: The server does not answer; nothing half-made is left there that it can be told to delete.
    """
    uri = check_uri(uri)
    run = _run_of(uri, info, point.trial, outbox)
    with environment(), translated(uri), _default_uri(uri):
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        with _logged_model(client, info, point, run) as model_id:
            _upload(client, folder, model_id, run)
            _log_scores(client, run, model_id, held_out, step=point.measurement.epoch)
        version = _version(client, info, point, run=run, model_id=model_id)
        if alias is not None:
            client.set_registered_model_alias(version.name, alias, version.version)
        return _registered(version, point.trial, made=True)


@contextmanager
def _default_uri(uri: str) -> Iterator[None]:
    """MLflow looks up the source of a version at the process's own tracking URI, whatever its client was made for."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def alias_of(pick: str) -> str | None:
    """The alias for what a user picked: `knee`, `best-accuracy`; None for a trial number or a query."""
    kind, _, value = (part.strip() for part in pick.partition(":"))
    if kind == "knee":
        return kind
    return f"best-{value}" if kind == "best" and value else None


def _run_of(uri: str, info: StudyInfo, trial: int, outbox: Path) -> KnownRun:
    box = Outbox(outbox, target=public_uri(uri), study=info.name)
    try:
        return box.runs()[f"trial/{trial}"]
    except KeyError:
        raise NotFoundError(
            f"study {info.name}: trial {trial} has no run in MLflow at {public_uri(uri)}",
            hint=f"mirror it first: autopeft sync {info.name}",
        ) from None
    finally:
        box.close()


@contextmanager
def _logged_model(client: "MlflowClient", info: StudyInfo, point: FrontPoint, run: KnownRun) -> Iterator[str]:
    """A logged model that is ready when the block ends well, and gone otherwise; its id."""
    model = client.create_logged_model(
        client.get_run(run.run_id).info.experiment_id,
        name=trial_name(point.trial),
        source_run_id=run.run_id,
        tags=_tags(info, point),
        params=dict(client.get_run(run.run_id).data.params),
        model_type="adapter",
    )
    try:
        yield model.model_id
        client.finalize_logged_model(model.model_id, "READY")
    except BaseException:
        with suppress(Exception):
            client.delete_logged_model(model.model_id)
        raise


def _upload(client: "MlflowClient", folder: Path, model_id: str, run: KnownRun) -> None:
    """Put a copy of `folder` that says whose model it is on the server."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    with tempfile.TemporaryDirectory() as bench:
        copy = Path(shutil.copytree(folder, Path(bench) / "model"))
        model = Model.load(str(copy))
        model.model_id, model.model_uuid, model.run_id = model_id, model_id, run.run_id
        model.artifact_path = client.get_logged_model(model_id).artifact_location
        model.save(str(copy / "MLmodel"))
        client.log_model_artifacts(model_id, str(copy))
    client.log_outputs(run.run_id, [LoggedModelOutput(model_id, step=0)])


def _log_scores(
    client: "MlflowClient", run: KnownRun, model_id: str, held_out: Mapping[str, float], *, step: int
) -> None:
    from mlflow.entities import Metric

    rows = [
        Metric(f"{HELD_OUT}{name}", value, run.started_ms, step, model_id=model_id) for name, value in held_out.items()
    ]
    client.log_batch(run.run_id, metrics=rows)


def _version(
    client: "MlflowClient", info: StudyInfo, point: FrontPoint, *, run: KnownRun, model_id: str
) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    name = safe_name(info.name)
    try:
        about = f"Adapters for {info.model} found by the AutoPEFT study {info.name}"
        client.create_registered_model(name, description=about)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.create_model_version(
        name,
        source=f"models:/{model_id}",
        run_id=run.run_id,
        tags={**_tags(info, point), _MODEL: model_id},
        description=describe(point.configuration, info.shape),
        model_id=model_id,
    )


def _tags(info: StudyInfo, point: FrontPoint) -> dict[str, str]:
    values = {name: repr(value) for name, value in point.values.items()}
    return {_STUDY: info.mark, _TRIAL: str(point.trial), **values}


def _registered(version: "ModelVersion", trial: int, *, made: bool) -> Registered:
    return Registered(
        trial=trial, name=version.name, version=str(version.version), model_id=version.tags[_MODEL], made=made
    )
