"""What a running study shows on stderr: a live display, a line a trial, JSON lines, or nothing.

Data never goes here: stdout is the caller's. Under `--json` the events are JSON objects, one a line, on stderr too, so
that stdout holds one JSON document at the end and nothing else.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from enum import StrEnum
from typing import TextIO, final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autopeft.objectives.front import Front
from autopeft.objectives.objective import Objective
from autopeft.search.trial import History, Trial, TrialState
from autopeft.spaces.model_shape import ModelShape
from autopeft.studies.charts import completed_points, point_of
from autopeft.studies.describe import describe, human_seconds, human_value
from autopeft.studies.events import (
    Noted,
    StopReason,
    StudyEvent,
    StudyOpened,
    StudyStopped,
    TrialFinished,
    TrialReported,
    TrialStarted,
)
from autopeft.studies.tables import front_table

FRONT_ROWS = 6
RUNNING_ROWS = 6
_STOPS = {
    StopReason.BUDGET: "finished",
    StopReason.EXHAUSTED: "finished: every configuration of the space was tried",
    StopReason.INTERRUPTED: "interrupted; the same command resumes it",
    StopReason.ABORTED: "stopped by an error; the same command resumes it",
}


class ProgressMode(StrEnum):
    """How a running study reports."""

    LIVE = "live"
    """A display that redraws itself; for terminals."""
    LINES = "lines"
    """One line for each finished trial; for logs."""
    JSON = "json"
    """One JSON object for each event."""
    QUIET = "quiet"
    """Only what needs the user's attention."""


def choose_mode(stream: TextIO, *, quiet: bool = False, as_json: bool = False) -> ProgressMode:
    """The mode for `stream`: what was asked for, else live on a terminal that can redraw, else lines."""
    if as_json:
        return ProgressMode.JSON
    if quiet:
        return ProgressMode.QUIET
    console = Console(file=stream)
    return ProgressMode.LIVE if console.is_terminal and not console.is_dumb_terminal else ProgressMode.LINES


@final
class StudyProgress:
    """What is known of a running study, whatever shows it."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.study, self.objectives, self.n_trials, self.word = "", tuple[Objective, ...](), 0, "trial"
        self.history = History()
        self.front = Front.of([], ())
        self._clock, self._began = clock, clock()
        self._finished_before = 0

    def update(self, event: StudyEvent) -> None:
        match event:
            case StudyOpened():
                self.study, self.objectives, self.n_trials = event.study, event.objectives, event.n_trials
                self.word = "trial" if event.competing else "training"
                self.history, self._began = event.history, self._clock()
                self._finished_before = self.n_finished
                self._renew_front()
            case TrialStarted(trial=trial):
                self._put(trial)
            case TrialFinished(trial=trial):
                self._put(trial)
                self._renew_front()
            case TrialReported(number=number, measurement=measurement):
                for trial in self.history.in_state(TrialState.RUNNING):
                    if trial.number == number:
                        self._put(replace(trial, measurements=(*trial.measurements, measurement)))
            case StudyStopped(history=history):
                self.history = history
                self._renew_front()
            case _:
                pass

    def _put(self, trial: Trial) -> None:
        others = [other for other in self.history if other.number != trial.number]
        self.history = History(trials=tuple(sorted([*others, trial], key=lambda one: one.number)))

    def _renew_front(self) -> None:
        """The front, of trials that compete for one."""
        points = completed_points(self.history, self.objectives) if self.word == "trial" else []
        self.front = Front.of(points, self.objectives)

    @property
    def n_finished(self) -> int:
        return sum(trial.state.finished for trial in self.history)

    @property
    def elapsed(self) -> float:
        """Seconds since this run of the study began."""
        return self._clock() - self._began

    @property
    def left(self) -> float | None:
        """Seconds this run will still take at its pace so far; None before the first trial of it has finished."""
        done = self.n_finished - self._finished_before
        return self.elapsed * (self.n_trials - self.n_finished) / done if done > 0 else None

    def counts(self) -> list[tuple[str, int, str]]:
        """(word, number, style) for done, running and, where there are any, pruned and failed."""
        styles = {"done": "green", "running": "cyan", "pruned": "yellow", "failed": "red"}
        states = [TrialState.COMPLETED, TrialState.RUNNING, TrialState.PRUNED, TrialState.FAILED]
        rows = [(word, len(self.history.in_state(s)), styles[word]) for word, s in zip(styles, states, strict=True)]
        return [row for row in rows if row[1] or row[0] in ("done", "running")]


class ProgressReporter:
    """Shows a study's events on `stream`; a `Listener` through `on_event`.

    Args:
        stream: Where to, usually stderr.
        mode: How (`choose_mode`).
        shape: The base model, when known, for shorter configurations.
        epochs: Epochs of a full trial, when known, to show how far a running one is.
    """

    def __init__(
        self, stream: TextIO, mode: ProgressMode, *, shape: ModelShape | None = None, epochs: int | None = None
    ) -> None:
        self._mode, self._shape, self._stream = mode, shape, stream
        self.progress = StudyProgress()
        self._console = Console(file=stream, highlight=False, soft_wrap=mode is not ProgressMode.LIVE)
        self._live: Live | None = None
        if mode is ProgressMode.LIVE:
            display = _Display(self.progress, shape=shape, epochs=epochs)
            self._live = Live(display, console=self._console, refresh_per_second=4, transient=True)

    def on_event(self, event: StudyEvent) -> None:
        self.progress.update(event)
        match self._mode:
            case ProgressMode.JSON:
                self._stream.write(json.dumps(event_json(event, self.progress)) + "\n")
                self._stream.flush()
            case ProgressMode.QUIET:
                if isinstance(event, Noted):
                    self._say(event.message)
            case ProgressMode.LIVE | ProgressMode.LINES:
                self._show(event)

    def close(self) -> None:
        """Take the live display away; what was said stays."""
        if self._live is not None and self._live.is_started:
            self._live.stop()

    def _show(self, event: StudyEvent) -> None:
        if self._live is not None and isinstance(event, StudyOpened):
            self._live.start()
        if isinstance(event, StudyStopped):
            self.close()
        if self._live is None or isinstance(event, (Noted, StudyStopped)):
            line = event_line(event, self.progress, self._shape)
            if line:
                self._say(line)

    def _say(self, line: str) -> None:
        self._console.print(Text(line))


def event_line(event: StudyEvent, progress: StudyProgress, shape: ModelShape | None = None) -> str:
    """One plain line for a log; empty for events that need none."""
    match event:
        case StudyOpened():
            known = f", {progress.n_finished} done before" if progress.n_finished else ""
            return f"study {event.study}: {event.n_trials} {progress.word}s{known}"
        case TrialFinished(trial=trial):
            return f"[{progress.n_finished}/{progress.n_trials}] {_trial_line(trial, progress, shape)}"
        case Noted(message=message):
            return message
        case StudyStopped(reason=reason):
            front = f"{len(progress.front)} on the front, " if progress.word == "trial" else ""
            done = f"{progress.n_finished} {progress.word}s, {front}{human_seconds(progress.elapsed)}"
            return f"study {progress.study}: {_STOPS[reason]}; {done}"
        case _:
            return ""


def _trial_line(trial: Trial, progress: StudyProgress, shape: ModelShape | None) -> str:
    text, name = describe(trial.configuration, shape), f"{progress.word} {trial.number}"
    if trial.failure is not None:
        return f"{name} failed, {trial.failure.kind.value}: {trial.failure.message} ({text})"
    if trial.pruning is not None:
        return f"{name} pruned, {trial.pruning.because} ({text})"
    point = point_of(trial, progress.objectives)
    if point is None:
        return f"{name} {trial.state.value} ({text})"
    values = ", ".join(f"{o.name} {human_value(o, point.values[o.name])}" for o in progress.objectives)
    mark = " [front]" if any(other.trial == trial.number for other in progress.front) else ""
    return f"{name}: {values}, {human_seconds(trial.seconds)}{mark} ({text})"


def event_json(event: StudyEvent, progress: StudyProgress) -> dict[str, object]:
    """An event as one JSON object; `event` says which."""
    match event:
        case StudyOpened():
            return {"event": "opened", "study": event.study, "trials": event.n_trials, "finished": progress.n_finished}
        case TrialStarted():
            number, text = event.trial.number, event.trial.configuration.to_json()
            return {"event": "started", "trial": number, "attempt": event.attempt, "configuration": text}
        case TrialReported():
            return {"event": "reported", "trial": event.number, "measurement": event.measurement.to_json()}
        case TrialFinished(trial=trial):
            point = point_of(trial, progress.objectives)
            return {
                "event": "finished",
                "trial": trial.number,
                "state": trial.state.value,
                "failure": None if trial.failure is None else trial.failure.kind.value,
                **({} if trial.pruning is None else {"pruned": asdict(trial.pruning)}),
                "values": None if point is None else dict(point.values),
                "seconds": trial.seconds,
                "front": [other.trial for other in progress.front],
                "hypervolume": progress.front.hypervolume,
            }
        case Noted():
            return {"event": "noted", "message": event.message}
        case StudyStopped():
            return {"event": "stopped", "reason": event.reason.value, "finished": progress.n_finished}


@final
class _Display:
    """The live display; reads the progress each time it is drawn."""

    def __init__(self, progress: StudyProgress, *, shape: ModelShape | None, epochs: int | None) -> None:
        self._progress, self._shape, self._epochs = progress, shape, epochs

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        progress = self._progress
        parts: list[RenderableType] = [self._head(options.max_width), self._counts()]
        running = progress.history.in_state(TrialState.RUNNING)
        parts += [self._running(trial) for trial in running[:RUNNING_ROWS]]
        if len(running) > RUNNING_ROWS:
            parts.append(Text(f"  and {len(running) - RUNNING_ROWS} more", style="dim"))
        if len(progress.front):
            table = front_table(
                progress.front, progress.history, study=progress.study, shape=self._shape, limit=FRONT_ROWS
            )
            parts += [Text(""), table]
        yield Group(*parts)

    def _head(self, width: int) -> RenderableType:
        progress = self._progress
        left = "" if progress.left is None else f", about {human_seconds(progress.left)} left"
        name = progress.study if len(progress.study) <= 32 else progress.study[:31] + "…"
        row = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(1, progress.n_trials), completed=progress.n_finished, width=max(10, width // 4))
        count = f"{progress.n_finished}/{progress.n_trials}"
        row.add_row(
            Text(name, style="bold"), bar, Text(count), Text(f"{human_seconds(progress.elapsed)}{left}", style="dim")
        )
        return row

    def _counts(self) -> Text:
        text = Text("  ")
        for word, number, style in self._progress.counts():
            text.append(f"{number} {word}", style=style if number else "dim")
            text.append("  ")
        if len(self._progress.front):
            text.append(f"hypervolume {self._progress.front.hypervolume:.4g}", style="dim")
        return text

    def _running(self, trial: Trial) -> Text:
        epochs = len(trial.measurements)
        of = f"/{self._epochs}" if self._epochs else ""
        line = Text("  ", no_wrap=True, overflow="ellipsis")
        line.append(f"{self._progress.word} {trial.number}", style="cyan")
        line.append(f"  epoch {epochs}{of}  ")
        metric = self._progress.objectives[0] if self._progress.objectives else None
        if metric is not None and trial.measurements and metric.name in trial.measurements[-1].metrics:
            line.append(f"{metric.name} {human_value(metric, trial.measurements[-1].metrics[metric.name])}  ")
        line.append(describe(trial.configuration, self._shape), style="dim")
        return line
