"""The MLflow mirror: a parent run per study, a child run per trial, the front as artifacts; the only user of MLflow.

The mirror can lag, fail or be thrown away: the study storage is the truth. Telling it something costs the driver one
short SQLite write (see outbox.py); a thread talks to the server (see mirror.py). A server that is away or slow delays
only that thread, and what it missed is sent when it is back, by the next run of the study, or by `autopeft sync`.
"""

import hashlib
import importlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from autopeft import __version__
from autopeft.errors import TrackingError
from autopeft.objectives.front import Front
from autopeft.search.trial import History
from autopeft.studies.charts import front_page
from autopeft.studies.events import StudyEvent
from autopeft.studies.mirror import Mirror, RefusedError
from autopeft.studies.notes import StudyInfo, front_markdown
from autopeft.studies.outbox import KnownRun, Note, Outbox
from autopeft.studies.plots import front_picture
from autopeft.studies.saved_view import VIEW_TAG, knows, view_value
from autopeft.studies.tracking_settings import (
    apply_environment,
    check_uri,
    environment,
    public_uri,
    restore_environment,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MAX_METRICS, MAX_PARAMS, MAX_TAGS = 800, 100, 100
"""Of one request; MLflow takes 1000 entries in all, and 1000, 100 and 100 of each kind."""
_REFUSALS = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST"})
_PARENT = "study"
EXPERIMENT_KIND: Final = "custom_model_development"
"""The UI then shows its training pages, not those for language-model applications."""
_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncCounts:
    """What `sync` did."""

    trials: int
    """Trials of the study."""
    queued: int
    """Trials the server did not have, or had otherwise."""
    sent: int
    """Notes sent in all (flags, curves and the front among them)."""


@final
class MlflowMirror:
    """Mirrors a running study; a `Listener` through `on_event`.

    Imports MLflow (a second or two), makes the outbox file, starts a thread; asks nothing of the network by itself.

    Args:
        uri: MLflow's tracking URI.
        info: What to say of the study as a whole.
        outbox: The outbox file (`outbox.outbox_path`).
        notify: Gets one line, once, when the server does not answer; the default logs a warning.

    Raises:
        SpecError: `uri` is nothing MLflow keeps runs in.
        StorageError: The outbox cannot be opened.
    """

    def __init__(
        self,
        uri: str,
        info: StudyInfo,
        *,
        outbox: Path,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        uri = check_uri(uri)
        self._applied = apply_environment()
        _load()
        box = Outbox(outbox, target=public_uri(uri), study=info.name)
        self._mirror = Mirror(MlflowCourier(uri, box, info=info), box, info=info, notify=notify or _LOG.warning)
        self._mirror.start()

    def on_event(self, event: StudyEvent) -> None:
        """Take note of an event of the study; about a millisecond."""
        self._mirror.on_event(event)

    def close(self, timeout: float = 30.0) -> int:
        """Send what waits, for at most `timeout` seconds; returns how many notes still wait (for `autopeft sync`)."""
        left = self._mirror.close(timeout)
        restore_environment(self._applied)
        return left


def sync(uri: str, info: StudyInfo, history: History, *, outbox: Path) -> SyncCounts:
    """Make the server hold what `history` holds. Doing it twice changes nothing; runs deleted there are made again.

    Raises:
        SpecError: `uri` is nothing MLflow keeps runs in.
        TrackingError: The server does not answer; what was queued stays in the outbox.
    """
    uri = check_uri(uri)
    with environment():
        _load()
        box = Outbox(outbox, target=public_uri(uri), study=info.name)
        try:
            courier = MlflowCourier(uri, box, info=info)
            courier.connect()
            mirror = Mirror(courier, box, info=info, notify=_LOG.warning)
            queued = mirror.restate(history)
            mirror.flush()
        finally:
            box.close()
    return SyncCounts(trials=len(history), queued=queued, sent=mirror.sent)


def experiment_id(uri: str, study: str) -> str | None:
    """The id of a study's experiment; None when the store has none.

    Raises:
        TrackingError: The server does not answer.
    """
    with environment(), _translated(check_uri(uri)):
        _load()
        from mlflow import MlflowClient

        found = MlflowClient(check_uri(uri)).get_experiment_by_name(study)
        return None if found is None else found.experiment_id


@final
class MlflowCourier:
    """Brings notes to MLflow; see `mirror.Courier`."""

    def __init__(self, uri: str, outbox: Outbox, *, info: StudyInfo) -> None:
        self._uri, self._outbox, self._info = uri, outbox, info
        self._identity = hashlib.sha256((info.identity or info.name).encode()).hexdigest()[:16]
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._runs: dict[str, KnownRun] = {}
        self._sent_metrics: dict[str, set[_MetricRow]] = {}

    def connect(self) -> bool:
        with _translated(self._uri):
            client = self._open()
            self._experiment = self._find_experiment(client)
            live = self._live_runs(client)
        known = self._outbox.runs()
        gone = [key for key, run in known.items() if key not in live or live[key].run_id != run.run_id]
        if gone:
            self._outbox.forget(
                None if _PARENT in gone else [other for key in gone for other in (key, key.replace("trial/", "flag/"))]
            )
        for key, run in live.items():
            self._outbox.keep_run(key, run)
        self._runs = dict(live)
        self._sent_metrics.clear()
        with _translated(self._uri):
            self._name_view(client)
        return bool(gone)

    def deliver(self, note: Note) -> None:
        content = note.content
        with _translated(self._uri):
            if note.key == _PARENT:
                self._log(self._parent(), content)
            elif note.key == "state":
                self._set_status(self._parent(), content, seconds=None)
            elif note.key.startswith("curve/"):
                self._log_curve(content)
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

    def deliver_front(self, front: Front, history: History) -> None:
        page = front_page(front, history, study=self._info.name, shape=self._info.shape)
        data = {"study": self._info.name, **front.to_json()}
        with tempfile.TemporaryDirectory() as folder, _translated(self._uri):
            (Path(folder) / "front.html").write_text(page, "utf-8")
            (Path(folder) / "front.json").write_text(json.dumps(data, indent=1), "utf-8")
            picture = front_picture(front, history, suffix=".png", study=self._info.name)
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
        if key in self._runs:
            return self._runs[key]
        tags = {
            "autopeft.study": self._identity,
            "autopeft.key": key,
            "mlflow.source.name": f"autopeft {__version__}",
            "mlflow.source.type": "LOCAL",
        }
        if key != _PARENT:
            tags["mlflow.parentRunId"] = self._parent().run_id
        started = int((time.time() - seconds) * 1000)
        run = _known(self._connected().create_run(self._experiment, start_time=started, tags=tags, run_name=name))
        self._outbox.keep_run(key, run)
        self._runs[key] = run
        self._log_data(run)
        return run

    def _log_data(self, run: KnownRun) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": self._info.data})
        digest = self._info.data_digest[:36] or hashlib.sha256(self._info.data.encode()).hexdigest()[:8]
        rows = Dataset(name=self._info.data[-500:], digest=digest, source_type="local", source=source)
        self._connected().log_inputs(run.run_id, [DatasetInput(rows, [InputTag("mlflow.data.context", "training")])])

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
def _translated(uri: str) -> Iterator[None]:
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


def _away(uri: str, error: BaseException) -> TrackingError:
    return TrackingError(
        f"MLflow at {public_uri(uri)} does not take anything: {_first_line(error)}",
        hint="`autopeft sync` mirrors a study afterwards",
    )


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


def _load() -> None:
    """Import MLflow on the caller's thread: two threads that import large packages can meet half-made modules."""
    importlib.import_module("mlflow")
    importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
