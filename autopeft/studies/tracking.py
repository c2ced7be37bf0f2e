"""The MLflow mirror: a parent run per study, a child run per trial, the front as artifacts.

The mirror can lag, fail or be thrown away: the study storage is the truth. Telling it something costs the driver one
short SQLite write (see outbox.py); a thread talks to the server (see mirror.py). A server that is away or slow delays
only that thread, and what it missed is sent when it is back, by the next run of the study, or by `autopeft sync`.
"""

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, final

from autopeft.search.trial import History
from autopeft.studies.charts import Confirmed
from autopeft.studies.courier import MlflowCourier, translated
from autopeft.studies.events import StudyEvent
from autopeft.studies.gpu_metrics import GpuSampler, wanted
from autopeft.studies.mirror import Mirror
from autopeft.studies.notes import StudyInfo, report_note
from autopeft.studies.outbox import Outbox
from autopeft.studies.tracking_settings import (
    apply_environment,
    check_uri,
    environment,
    public_uri,
    restore_environment,
)

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
        confirmed: Scores of further seeds, by trial.

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
        confirmed: Confirmed = MappingProxyType({}),
    ) -> None:
        uri = check_uri(uri)
        self._applied = apply_environment()
        _load()
        box = Outbox(outbox, target=public_uri(uri), study=info.name)
        courier = MlflowCourier(uri, box, info=info)
        self._mirror = Mirror(courier, box, info=info, notify=notify or _LOG.warning, confirmed=confirmed)
        self._mirror.start()
        self._sampler = GpuSampler(self._mirror.tell) if wanted() else None
        if self._sampler is not None:
            self._sampler.start()

    def on_event(self, event: StudyEvent) -> None:
        """Take note of an event of the study; about a millisecond."""
        self._mirror.on_event(event)

    def report(self, page: str) -> None:
        """Take note of the page of the study."""
        self._mirror.tell(*report_note(page))

    def close(self, timeout: float = 30.0) -> int:
        """Send what waits, for at most `timeout` seconds; returns how many notes still wait (for `autopeft sync`)."""
        if self._sampler is not None:
            self._sampler.close()
        left = self._mirror.close(timeout)
        restore_environment(self._applied)
        return left


def sync(
    uri: str,
    info: StudyInfo,
    history: History,
    *,
    outbox: Path,
    driven: bool = False,
    confirmed: Confirmed = MappingProxyType({}),
    page: str | None = None,
) -> SyncCounts:
    """Make the server hold what `history` holds. Doing it twice changes nothing; runs deleted there are made again.

    Args:
        uri: MLflow's tracking URI.
        info: What to say of the study as a whole.
        history: Its trials.
        outbox: The outbox file (`outbox.outbox_path`).
        driven: Another process runs the study now; what is unfinished is left to it.
        confirmed: Scores of further seeds, by trial.
        page: The page of the study; None leaves the one that is there.

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
            mirror = Mirror(courier, box, info=info, notify=_LOG.warning, confirmed=confirmed)
            queued = mirror.restate(history, driven=driven)
            if not driven:
                mirror.settle_state(history)
            if page is not None:
                mirror.tell(*report_note(page))
            mirror.flush()
        finally:
            box.close()
    return SyncCounts(trials=len(history), queued=queued, sent=mirror.sent)


def experiment_id(uri: str, study: str) -> str | None:
    """The id of a study's experiment; None when the store has none.

    Raises:
        TrackingError: The server does not answer.
    """
    with environment(), translated(check_uri(uri)):
        _load()
        from mlflow import MlflowClient

        found = MlflowClient(check_uri(uri)).get_experiment_by_name(study)
        return None if found is None else found.experiment_id


def _load() -> None:
    """Import MLflow on the caller's thread: two threads that import large packages can meet half-made modules."""
    importlib.import_module("mlflow")
    importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
