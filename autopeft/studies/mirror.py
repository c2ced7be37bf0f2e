"""The background side of tracking: takes events, keeps notes in the outbox, sends them when the server is there.

Knows no tracking library: a courier does the sending (tracking.py has the MLflow one).
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Protocol

from autopeft.errors import TrackingError
from autopeft.objectives.front import Front
from autopeft.search.trial import History, Trial
from autopeft.studies.charts import Confirmed, completed_points
from autopeft.studies.events import (
    StopReason,
    StudyEvent,
    StudyOpened,
    StudyStopped,
    TrialFinished,
    TrialReported,
    TrialStarted,
)
from autopeft.studies.notes import (
    StudyInfo,
    confirmed_notes,
    flag_notes,
    front_note,
    progress_notes,
    state_note,
    study_note,
    trial_note,
)
from autopeft.studies.outbox import Note, Outbox

FRONT_SECONDS = 20.0
"""The front's chart and table are drawn again at most this often while a study runs (half a second of one core)."""
DERIVE_SECONDS = 2.0
DERIVE_SHARE = 20.0
"""Flags and curves are worked out at most every 2 s, and never for more than a twentieth of the time."""
LONGEST_WAIT = 60.0
"""Seconds between two tries at a server that does not answer."""
FRONT_KEY = "front"


class RefusedError(TrackingError):
    """The server answered that it will never take this note; sending it again is of no use."""


class Courier(Protocol):
    """Brings notes to a tracking server. Every method may raise TrackingError: try again later."""

    def connect(self) -> bool:
        """Find or make the study's place on the server. True when the outbox had to forget runs that are gone."""
        ...

    def deliver(self, note: Note) -> None:
        """Send one note; doing it twice changes nothing. Raises RefusedError for one that can never be sent."""
        ...

    def deliver_front(self, front: Front, history: History, confirmed: Confirmed) -> None:
        """Put the front's chart, data and description on the study's run."""
        ...


class Mirror:
    """Sends a study's events through a courier, from a thread of its own.

    Args:
        courier: Who brings notes to the server.
        outbox: Where notes wait; closed by `close`.
        info: What to say of the study as a whole.
        notify: Told, at most once a run, that the server does not answer, and of notes that it refuses.
        confirmed: Scores of further seeds, by trial.
    """

    def __init__(
        self,
        courier: Courier,
        outbox: Outbox,
        *,
        info: StudyInfo,
        notify: Callable[[str], None],
        confirmed: Confirmed = MappingProxyType({}),
    ) -> None:
        self._courier, self._outbox, self._info, self._notify = courier, outbox, info, notify
        self._confirmed = confirmed
        self._trials: dict[int, Trial] = {}
        self._wake, self._closing = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._version = self._derived_version = 0
        self._next_derive = self._next_front = 0.0
        self._connected = self._failing = self._warned = False
        self._refused = self._sent = 0
        self._thread = threading.Thread(target=self._work, name="autopeft-mirror", daemon=True)

    @property
    def history(self) -> History:
        """The trials as told so far."""
        with self._lock:
            return History(trials=tuple(self._trials[number] for number in sorted(self._trials)))

    @property
    def sent(self) -> int:
        """Notes the server has taken from this mirror."""
        return self._sent

    def start(self) -> None:
        self._thread.start()

    def on_event(self, event: StudyEvent) -> None:
        """Take note of an event; one short write to the outbox, no network."""
        match event:
            case StudyOpened(history=history):
                self.restate(history)
                self._outbox.put([state_note(None)])
            case TrialStarted(trial=trial) | TrialFinished(trial=trial):
                self._record(trial)
            case TrialReported(number=number, measurement=measurement) if number in self._trials:
                known = self._trials[number]
                self._record(replace(known, measurements=(*known.measurements, measurement)))
            case StudyStopped(reason=reason, history=history):
                self.restate(history)
                self._outbox.put([state_note(reason)])
            case _:
                return
        self._wake.set()

    def tell(self, key: str, content: Mapping[str, object]) -> None:
        """Queue one more note."""
        self._outbox.put([(key, dict(content))])
        self._wake.set()

    def restate(self, history: History, *, driven: bool = False) -> int:
        """Queue what the server does not have yet of `history`; returns how many trials that is.

        With `driven` another process runs the study now: it tells of its unfinished trials, which it knows better.
        """
        with self._lock:
            self._trials = {trial.number: trial for trial in history}
            self._version += 1
        self._outbox.put([("study", study_note(self._info))])
        told = [trial for trial in history if trial.state.finished or not driven]
        return self._outbox.put((f"trial/{trial.number}", trial_note(trial, self._info)) for trial in told)

    def settle_state(self, history: History) -> None:
        """Queue how a study stands that nobody runs now, if the server never heard it."""
        if not self._outbox.has_delivered("state"):
            unfinished = any(not trial.state.finished for trial in history)
            self._outbox.put([state_note(StopReason.INTERRUPTED if unfinished else StopReason.BUDGET)])

    def _record(self, trial: Trial) -> None:
        with self._lock:
            self._trials[trial.number] = trial
            self._version += 1
        self._outbox.put([(f"trial/{trial.number}", trial_note(trial, self._info))])

    def close(self, timeout: float) -> int:
        """Send what waits, for at most `timeout` seconds (one try when the server is known to be away).

        Returns:
            How many notes still wait in the outbox; `autopeft sync` or the next run sends them.
        """
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
        left = self._outbox.count()
        if not self._thread.is_alive():
            self._outbox.close()
        return left

    def flush(self) -> None:
        """Send everything now, on the caller's thread.

        Raises:
            TrackingError: The server does not answer.
        """
        self._connect()
        self._derive(at_once=True)
        self._send(at_once=True)

    def _work(self) -> None:
        wait = 0.0
        while True:
            self._wake.wait(timeout=self._pause(wait))
            self._wake.clear()
            closing = self._closing.is_set()
            if closing and not self._version and not self._outbox.count():
                return  # A study that was refused before it began leaves nothing on the server either.
            try:
                self._connect()
                self._derive(at_once=closing)
                self._send(at_once=closing)
                self._failing, wait = False, 0.0
            except TrackingError as error:
                self._connected, self._failing = False, True
                wait = min(LONGEST_WAIT, 2 * wait or 1.0)
                self._warn(error)
                if not closing:
                    self._closing.wait(wait)
            if closing:
                return

    def _pause(self, wait: float) -> float | None:
        """Seconds until something is due without a new event; None when nothing is."""
        if wait:
            return 0.0
        now = time.monotonic()
        due = [self._next_derive - now] if self._derived_version < self._version else []
        due += [self._next_front - now] if self._outbox.count() else []
        return max(0.0, min(due)) if due else None

    def _connect(self) -> None:
        if self._connected:
            return
        if self._courier.connect():
            self.restate(self.history)
        self._connected = True

    def _derive(self, *, at_once: bool) -> None:
        """Queue what follows from all trials together: flags, curves, the front."""
        began = time.monotonic()
        with self._lock:
            version = self._version
        if version == self._derived_version or (began < self._next_derive and not at_once):
            return
        history, objectives = self.history, self._info.objectives
        front = Front.of(completed_points(history, objectives), objectives)
        notes = [*flag_notes(history, front), *progress_notes(history, objectives)]
        notes += confirmed_notes(self._confirmed)
        self._outbox.put([*notes, (FRONT_KEY, front_note(front, history, self._confirmed))])
        self._derived_version = version
        ended = time.monotonic()
        self._next_derive = ended + max(DERIVE_SECONDS, DERIVE_SHARE * (ended - began))

    def _send(self, *, at_once: bool) -> None:
        while True:
            notes = self._outbox.pending()
            if not at_once and time.monotonic() < self._next_front:
                notes = [note for note in notes if note.key != FRONT_KEY]
            if not notes:
                return
            for note in notes:
                self._deliver(note)
                self._outbox.settle([note])
                self._sent += 1

    def _deliver(self, note: Note) -> None:
        try:
            if note.key != FRONT_KEY:
                self._courier.deliver(note)
                return
            history, objectives = self.history, self._info.objectives
            front = Front.of(completed_points(history, objectives), objectives)
            self._courier.deliver_front(front, history, self._confirmed)
            self._next_front = time.monotonic() + FRONT_SECONDS
        except RefusedError as error:
            self._refused += 1
            if self._refused == 1:
                self._notify(f"tracking: the server refused {note.key}: {error}; the study goes on")

    def _warn(self, error: TrackingError) -> None:
        if self._warned:
            return
        self._warned = True
        self._notify(f"{error.message}; the study goes on and what is missing is sent later ({error.hint})")
