"""Brings a study's notes to an MLflow server: finds or makes its runs, logs in batches, translates every failure."""

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from autopeft import __version__
from autopeft.errors import TrackingError, UnreachableError
from autopeft.objectives.front import Front
from autopeft.search.trial import History
from autopeft.studies.charts import Confirmed, front_page
from autopeft.studies.mirror import RefusedError
from autopeft.studies.notes import REPORT_KEY, StudyInfo, base_parameters, front_markdown
from autopeft.studies.outbox import KnownRun, Note, Outbox
from autopeft.studies.plots import front_picture
from autopeft.studies.saved_view import VIEW_TAG, knows, view_value
from autopeft.studies.tracking_settings import public_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MAX_METRICS, MAX_PARAMS, MAX_TAGS = 800, 100, 100
"""Of one request; MLflow takes 1000 entries in all, and 1000, 100 and 100 of each kind."""
_REFUSALS = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST"})
_PARENT = "study"
EXPERIMENT_KIND: Final = "custom_model_development"
"""The UI then shows its training pages, not those for language-model applications."""


@final
class MlflowCourier:
    """Brings notes to MLflow; see `mirror.Courier`."""

    def __init__(self, uri: str, outbox: Outbox, *, info: StudyInfo) -> None:
        self._uri, self._outbox, self._info = uri, outbox, info
        self._identity = info.mark
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._runs: dict[str, KnownRun] = {}
        self._base: str | None = None
        self._sent_metrics: dict[str, set[_MetricRow]] = {}

    def connect(self) -> bool:
        with translated(self._uri), self._outbox.making():
            client = self._open()
            self._experiment = self._find_experiment(client)
            known = self._outbox.runs()
            live = self._live_runs(client)
            self._name_view(client)
        gone = [key for key, run in known.items() if key not in live or live[key].run_id != run.run_id]
        if gone:
            self._outbox.forget(
                None
                if _PARENT in gone
                else [key.replace("trial/", kind) for key in gone for kind in ("trial/", "flag/", "confirmed/")]
            )
        for key, run in live.items():
            self._outbox.keep_run(key, run)
        self._runs = dict(live)
        self._sent_metrics.clear()
        self._base = None
        return bool(gone)

    def deliver(self, note: Note) -> None:
        content = note.content
        with translated(self._uri):
            if note.key == _PARENT:
                self._log(self._parent(), content)
            elif note.key == "state":
                self._set_status(self._parent(), content, seconds=None)
            elif note.key == REPORT_KEY:
                self._connected().log_text(self._parent().run_id, str(content["page"]), "report.html")
            elif note.key.startswith("curve/"):
                self._log_curve(content)
            elif note.key.startswith("system/"):
                self._log_system(content)
            elif note.key.startswith("confirmed/"):
                run = self._runs.get(f"trial/{content['number']}")
                if run is not None:
                    self._log(run, content)
            elif note.key.startswith("flag/"):
                run = self._runs.get(f"trial/{content['number']}")
                if run is not None:
                    flag = "true" if content["on_front"] else "false"
                    self._connected().set_tag(run.run_id, "on_front", flag)
            else:
                self._deliver_trial(note)

    def _deliver_trial(self, note: Note) -> None:
        content = note.content
        run = self._run(note.key, name=str(content["name"]), seconds=float(str(content["seconds"])))
        self._log(run, content)
        if content["status"] != "RUNNING":
            self._set_status(run, content, seconds=float(str(content["seconds"])))

    def deliver_front(self, front: Front, history: History, confirmed: Confirmed) -> None:
        page = front_page(front, history, study=self._info.name, shape=self._info.shape, confirmed=confirmed)
        data = {"study": self._info.name, **front.to_json()}
        with tempfile.TemporaryDirectory() as folder, translated(self._uri):
            (Path(folder) / "front.html").write_text(page, "utf-8")
            (Path(folder) / "front.json").write_text(json.dumps(data, indent=1), "utf-8")
            picture = front_picture(front, history, suffix=".png", study=self._info.name, confirmed=confirmed)
            (Path(folder) / "front.png").write_bytes(picture)
            parent, client = self._parent(), self._connected()
            client.log_artifacts(parent.run_id, folder, "front")
            client.set_tag(parent.run_id, "mlflow.note.content", front_markdown(front, history, info=self._info))

    def _open(self) -> "MlflowClient":
        if self._uri.startswith("sqlite:///"):
            Path(self._uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        from mlflow import MlflowClient

        self._client = self._client or MlflowClient(self._uri)
        return self._client

    def _connected(self) -> "MlflowClient":
        assert self._client is not None
        return self._client

    def _find_experiment(self, client: "MlflowClient") -> str:
        name = self._info.name
        found = client.get_experiment_by_name(name)
        if found is None:
            return client.create_experiment(name, self._artifact_location(), {"mlflow.experimentKind": EXPERIMENT_KIND})
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"MLflow {public_uri(self._uri)}: the experiment {name!r} was deleted",
                hint=f"`mlflow experiments restore -x {found.experiment_id}` brings it back",
            )
        return found.experiment_id

    def _artifact_location(self) -> str | None:
        """Beside a SQLite file, so that the folder moves with it; a server decides by itself."""
        if not self._uri.startswith("sqlite:///"):
            return None
        folder = Path(self._uri.removeprefix("sqlite:///")).parent / "mlartifacts"
        return (folder / hashlib.sha256(self._info.name.encode()).hexdigest()[:12]).as_uri()

    def _live_runs(self, client: "MlflowClient") -> dict[str, KnownRun]:
        live: dict[str, KnownRun] = {}
        token: str | None = None
        while token != "":
            page = client.search_runs(
                [self._experiment], f"tags.`autopeft.study` = '{self._identity}'", max_results=1000, page_token=token
            )
            for run in page:
                live.setdefault(run.data.tags.get("autopeft.key", ""), _known(run))
            token = page.token or ""
        return live

    def _parent(self) -> KnownRun:
        return self._run(_PARENT, name=self._info.name, seconds=0.0)

    def _run(self, key: str, *, name: str, seconds: float) -> KnownRun:
        """The run for `key`, made when it is not there; its start is `seconds` ago then."""
        if key not in self._runs:
            parent = None if key == _PARENT else self._parent()
            with self._outbox.making():
                self._runs[key] = self._outbox.runs().get(key) or self._make_run(
                    key, name=name, seconds=seconds, parent=parent
                )
        return self._runs[key]

    def _make_run(self, key: str, *, name: str, seconds: float, parent: KnownRun | None) -> KnownRun:
        tags = {
            "autopeft.study": self._identity,
            "autopeft.key": key,
            "mlflow.source.name": f"autopeft {__version__}",
            "mlflow.source.type": "LOCAL",
        }
        if parent is not None:
            tags["mlflow.parentRunId"] = parent.run_id
        started = int((time.time() - seconds) * 1000)
        run = _known(self._connected().create_run(self._experiment, start_time=started, tags=tags, run_name=name))
        self._outbox.keep_run(key, run)
        self._log_inputs(run)
        return run

    def _log_inputs(self, run: KnownRun) -> None:
        """The data set and the base model as inputs of a run."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput

        client, info = self._connected(), self._info
        source = json.dumps({"uri": info.data})
        digest = info.data_digest[:36] or hashlib.sha256(info.data.encode()).hexdigest()[:8]
        rows = Dataset(name=info.data[-500:], digest=digest, source_type="local", source=source)
        client.log_inputs(run.run_id, [DatasetInput(rows, [InputTag("mlflow.data.context", "training")])])
        if self._base is None:
            self._base = self._find_base(client)
        if self._base:
            client.log_inputs(run.run_id, models=[LoggedModelInput(self._base)])

    def _find_base(self, client: "MlflowClient") -> str:
        """The id of the experiment's logged model that stands for the base model, made when there is none.

        Only facts: the weights stay where they are. Empty for a server that is too old to keep models.
        """
        from mlflow.exceptions import MlflowException

        info = self._info
        name = re.sub(r"[^\w-]", "-", info.model.rstrip("/\\").replace("\\", "/").rpartition("/")[2])[-200:] or "base"
        mark = hashlib.sha256(info.model.encode()).hexdigest()[:16]
        try:
            found = client.search_logged_models([self._experiment], f"tags.`autopeft.base` = '{mark}'", max_results=1)
            if found:
                return str(found[0].model_id)
            made = client.create_logged_model(
                self._experiment,
                name=name,
                tags={"autopeft.base": mark, "mlflow.model.isExternal": "true"},
                params=base_parameters(info),
                model_type="base model",
            )
            client.finalize_logged_model(made.model_id, "READY")
        except MlflowException as error:
            if error.get_http_status_code() == HTTPStatus.NOT_FOUND:
                return ""
            raise
        return str(made.model_id)

    def _log(self, run: KnownRun, content: Mapping[str, object]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        sent = self._sent_metrics.setdefault(run.run_id, set())
        fresh = [row for row in _rows(content.get("metrics")) if row not in sent]
        metrics = [Metric(key, value, run.started_ms + int(1000 * at), step) for key, value, step, at in fresh]
        params = [Param(key, value) for key, value in _pairs(content.get("params"))]
        tags = [RunTag(key, value) for key, value in _pairs(content.get("tags"))]
        while metrics or params or tags:
            batch = metrics[:MAX_METRICS], params[:MAX_PARAMS], tags[:MAX_TAGS]
            self._connected().log_batch(run.run_id, metrics=batch[0], params=batch[1], tags=batch[2])
            metrics, params, tags = metrics[MAX_METRICS:], params[MAX_PARAMS:], tags[MAX_TAGS:]
        sent.update(fresh)

    def _log_curve(self, content: Mapping[str, object]) -> None:
        step = int(str(content["step"]))
        rows = [(key, value, step, step) for key, value in _pairs(content["values"])]
        self._log(self._parent(), {"metrics": rows})

    def _log_system(self, content: Mapping[str, object]) -> None:
        """A reading of the devices; its step is the second of the study it was taken in."""
        parent = self._parent()
        at = (int(str(content["at_ms"])) - parent.started_ms) / 1000
        self._log(parent, {"metrics": [(key, value, max(0, int(at)), at) for key, value in _pairs(content["values"])]})

    def _set_status(self, run: KnownRun, content: Mapping[str, object], *, seconds: float | None) -> None:
        status = str(content["status"])
        if status == "RUNNING":
            self._connected().update_run(run.run_id, status=status)
            return
        end = None if seconds is None else run.started_ms + int(1000 * seconds)
        self._connected().set_terminated(run.run_id, status=status, end_time=end)

    def _name_view(self, client: "MlflowClient") -> None:
        import mlflow

        value = view_value(self._info.objectives)
        if knows(mlflow.__version__) and len(value) <= 20_000:
            client.set_experiment_tag(self._experiment, VIEW_TAG, value)


@contextmanager
def translated(uri: str) -> Iterator[None]:
    """Every way the server or its database can fail, as TrackingError, or RefusedError when it answered no."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        if error.error_code in _REFUSALS:
            raise RefusedError(_first_line(error)) from error
        raise _away(uri, error) from error
    except (OSError, SQLAlchemyError, ValueError) as error:
        raise _away(uri, error) from error


def _away(uri: str, error: BaseException) -> UnreachableError:
    hint = "`autopeft sync` mirrors a study afterwards"
    if _status(error) in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        hint = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN; then " + hint
    return UnreachableError(f"MLflow at {public_uri(uri)} does not take anything: {_reason(error)}", hint=hint)


def _reason(error: BaseException) -> str:
    """What the operating system said of the connection, if it said anything; else the error's own words."""
    said, below = error, error
    while (below := below.__cause__ or below.__context__) is not None:
        if isinstance(below, ConnectionError | TimeoutError) and below.__class__.__module__ == "builtins":
            said = below
    return _first_line(said)


def _status(error: BaseException) -> int | None:
    from mlflow.exceptions import MlflowException

    return error.get_http_status_code() if isinstance(error, MlflowException) else None


def _known(run: "Run") -> KnownRun:
    return KnownRun(run_id=run.info.run_id, started_ms=int(run.info.start_time))


_MetricRow = tuple[str, float, int, float]
"""Key, value, step, seconds since the run began."""


def _rows(value: object) -> list[_MetricRow]:
    rows = value if isinstance(value, list) else []
    return [(str(key), float(number), int(step), float(at)) for key, number, step, at in rows]


def _pairs(value: object) -> list[tuple[str, str]]:
    return list(value.items()) if isinstance(value, dict) else []


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 160 else lines[0][:159] + "…"
