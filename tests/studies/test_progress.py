import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from autopeft.search.trial import History, Trial, TrialState
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
from autopeft.studies.progress import ProgressMode, ProgressReporter, StudyProgress, choose_mode
from tests.studies.synthetic import OBJECTIVES, front_of, history, stopped

TOLD = history(8)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def running(trial: Trial) -> Trial:
    return replace(trial, state=TrialState.RUNNING, measurements=(), failure=None, seconds=0.0)


def events(told: History = TOLD, *, before: int = 0, stop: StopReason = StopReason.BUDGET) -> list[StudyEvent]:
    known = History(trials=told.trials[:before])
    said: list[StudyEvent] = [StudyOpened(study="rte", objectives=OBJECTIVES, n_trials=len(told), history=known)]
    for trial in told.trials[before:]:
        said.append(TrialStarted(trial=running(trial), seed=0, attempt=1))
        said += [TrialReported(number=trial.number, measurement=one) for one in trial.measurements]
        said.append(TrialFinished(trial=trial))
    return [*said, StudyStopped(reason=stop, history=told)]


def shown(mode: ProgressMode, said: list[StudyEvent]) -> str:
    stream = io.StringIO()
    reporter = ProgressReporter(stream, mode, epochs=3)
    for event in said:
        reporter.on_event(event)
    reporter.close()
    return stream.getvalue()


def test_a_log_has_a_line_for_each_finished_trial() -> None:
    lines = shown(ProgressMode.LINES, events()).splitlines()
    assert len(lines) == 10
    assert lines[0] == "study rte: 8 trials"
    assert lines[1].startswith("[1/8] trial 0: accuracy 0.")
    assert lines[4].startswith("[4/8] trial 3 failed, diverged: loss became nan in epoch 1 (")
    assert lines[-1].startswith(f"study rte: finished; 8 trials, {len(front_of(TOLD))} on the front, ")


@pytest.mark.parametrize("mode", list(ProgressMode))
def test_trainings_of_a_confirmation_have_no_front(mode: ProgressMode) -> None:
    opened, *rest = events()
    assert isinstance(opened, StudyOpened)
    text = shown(mode, [replace(opened, competing=False), *rest])
    assert "[front]" not in text
    assert "on the front" not in text
    if mode is ProgressMode.LINES:
        assert text.splitlines()[0] == "study rte: 8 trainings"
        assert text.splitlines()[1].startswith("[1/8] training 0: accuracy 0.")
        assert text.splitlines()[-1].startswith("study rte: finished; 8 trainings, ")
    if mode is ProgressMode.JSON:
        assert {tuple(row.get("front", ())) for row in map(json.loads, text.splitlines())} == {()}


def test_a_stopped_trial_says_why() -> None:
    one = stopped(TOLD.trials[0])
    lines = shown(ProgressMode.LINES, [*events()[:1], TrialFinished(trial=one)]).splitlines()
    assert lines[1].startswith("[1/8] trial 0 pruned, after epoch 1: place 4 of 9, the best 3 go on (")
    row = json.loads(shown(ProgressMode.JSON, [TrialFinished(trial=one)]))
    assert (row["state"], row["pruned"]["rung"]) == ("pruned", 1)


def test_a_long_line_of_a_log_is_never_broken() -> None:
    assert all(line.startswith(("[", "study")) for line in shown(ProgressMode.LINES, events()).splitlines())


def test_a_resumed_study_says_what_was_done_before() -> None:
    lines = shown(ProgressMode.LINES, events(before=5)).splitlines()
    assert lines[0] == "study rte: 8 trials, 5 done before"
    assert lines[1].startswith("[6/8] trial 5")


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (StopReason.EXHAUSTED, "every configuration of the space was tried"),
        (StopReason.INTERRUPTED, "interrupted; the same command resumes it"),
        (StopReason.ABORTED, "stopped by an error; the same command resumes it"),
    ],
)
def test_the_last_line_says_why_it_ended(reason: StopReason, words: str) -> None:
    assert words in shown(ProgressMode.LINES, events(stop=reason)).splitlines()[-1]


def test_json_mode_is_one_object_a_line_with_all_that_happened() -> None:
    rows = [json.loads(line) for line in shown(ProgressMode.JSON, [*events(), Noted(message="x")]).splitlines()]
    kinds = [row["event"] for row in rows]
    assert (kinds[0], kinds[-2], kinds[-1]) == ("opened", "stopped", "noted")
    assert kinds.count("finished") == kinds.count("started") == 8
    finished = [row for row in rows if row["event"] == "finished"]
    assert finished[3]["failure"] == "diverged"
    assert finished[-1]["front"] == [point.trial for point in front_of(TOLD)]
    assert finished[-1]["hypervolume"] == pytest.approx(front_of(TOLD).hypervolume)


def test_quiet_mode_says_only_what_needs_attention() -> None:
    assert shown(ProgressMode.QUIET, events()) == ""
    assert shown(ProgressMode.QUIET, [*events()[:-1], Noted(message="look [here]")]) == "look [here]\n"


def test_a_note_is_text_and_not_markup() -> None:
    assert "[/red] oops" in shown(ProgressMode.LINES, [Noted(message="[/red] oops")])


def test_the_mode_follows_the_stream_unless_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert choose_mode(io.StringIO()) is ProgressMode.LINES
    assert choose_mode(Terminal()) is ProgressMode.LIVE
    assert choose_mode(Terminal(), quiet=True) is ProgressMode.QUIET
    assert choose_mode(Terminal(), quiet=True, as_json=True) is ProgressMode.JSON
    monkeypatch.setenv("TERM", "dumb")
    assert choose_mode(Terminal()) is ProgressMode.LINES


def test_the_live_display_shows_running_trials_the_front_and_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    reporter = ProgressReporter(stream, ProgressMode.LIVE, epochs=3)
    said = events(before=6)
    for event in said[:3]:
        reporter.on_event(event)
    assert reporter._live is not None
    screen = io.StringIO()
    Console(file=screen, width=100).print(reporter._live.renderable)
    reporter.on_event(Noted(message="the server is away"))
    reporter.on_event(said[-1])
    text = screen.getvalue()
    assert "6/8" in text
    assert "5 done  1 running  1 failed" in text
    assert "trial 6  epoch 1/3  accuracy 0." in text
    assert "Pareto front of rte" in text
    assert "hypervolume" in text
    assert "the server is away" in stream.getvalue()
    assert "study rte: finished" in stream.getvalue()


def test_time_left_follows_the_pace_of_this_run_only() -> None:
    now = [100.0]
    progress = StudyProgress(clock=lambda: now[0])
    said = events(before=4)
    progress.update(said[0])
    assert progress.left is None
    now[0] += 10
    progress.update(TrialFinished(trial=TOLD.trials[4]))
    assert progress.elapsed == 10
    assert progress.left == pytest.approx(30)


def test_reports_of_a_trial_nobody_started_are_passed_over() -> None:
    progress = StudyProgress()
    report = next(event for event in events() if isinstance(event, TrialReported))
    progress.update(report)
    assert len(progress.history) == 0
