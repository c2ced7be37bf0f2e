import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autopeft.errors import TrackingError
from autopeft.objectives.front import Front
from autopeft.search.trial import History
from autopeft.studies import mirror as mirror_module
from autopeft.studies.charts import Confirmed
from autopeft.studies.events import Noted, StopReason, StudyOpened, StudyStopped, TrialFinished
from autopeft.studies.mirror import Mirror, RefusedError
from autopeft.studies.notes import StudyInfo
from autopeft.studies.outbox import Note, Outbox
from tests.studies.synthetic import OBJECTIVES, history

INFO = StudyInfo(name="rte", objectives=OBJECTIVES, model="m", task="t", data="d")


class Postman:
    """A courier to a server in memory that can be away, slow to forgive, or picky."""

    def __init__(self) -> None:
        self.away = False
        self.refuses: set[str] = set()
        self.forgot = False
        self.taken: list[str] = []
        self.fronts = 0

    def connect(self) -> bool:
        self._need()
        return self.forgot

    def deliver(self, note: Note) -> None:
        self._need()
        if note.key in self.refuses:
            raise RefusedError("no")
        self.taken.append(note.key)

    def deliver_front(self, front: Front, history: History, confirmed: Confirmed) -> None:
        self._need()
        self.fronts += 1

    def _need(self) -> None:
        if self.away:
            raise TrackingError("nobody there", hint="wait")


@pytest.fixture
def postman() -> Postman:
    return Postman()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def box(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "o.db", target="t", study="s")


@pytest.fixture
def mirror(postman: Postman, said: list[str], box: Outbox) -> Iterator[Mirror]:
    made = Mirror(postman, box, info=INFO, notify=said.append)
    yield made
    made.close(5.0)


def run(mirror: Mirror, told: History) -> None:
    mirror.on_event(StudyOpened(study="s", objectives=OBJECTIVES, n_trials=len(told), history=History()))
    for trial in told:
        mirror.on_event(TrialFinished(trial=trial))


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_server_that_comes_back_gets_everything_and_the_user_hears_once(
    mirror: Mirror, postman: Postman, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "LONGEST_WAIT", 0.02)
    postman.away = True
    mirror.start()
    run(mirror, history(6))
    until(lambda: bool(said))
    time.sleep(0.1)
    postman.away = False
    until(lambda: {f"trial/{n}" for n in range(6)} <= set(postman.taken))
    assert len(said) == 1
    assert said[0] == "nobody there; the study goes on and what is missing is sent later (wait)"


def test_closing_sends_all_there_is_and_says_how_much_is_left(postman: Postman, box: Outbox) -> None:
    mirror = Mirror(postman, box, info=INFO, notify=print)
    mirror.start()
    told = history(6)
    run(mirror, told)
    mirror.on_event(StudyStopped(reason=StopReason.BUDGET, history=told))
    assert mirror.close(10.0) == 0
    assert {"study", "state", *(f"trial/{n}" for n in range(6))} <= set(postman.taken)
    assert postman.fronts >= 1


def test_a_study_that_never_began_leaves_nothing_on_the_server(postman: Postman, box: Outbox) -> None:
    connected: list[int] = []
    postman.connect = lambda: bool(connected.append(1))  # type: ignore[method-assign]  # a spy
    mirror = Mirror(postman, box, info=INFO, notify=print)
    mirror.start()
    assert mirror.close(5.0) == 0
    assert not connected


def test_closing_with_the_server_away_is_quick_and_keeps_the_notes(postman: Postman, box: Outbox) -> None:
    postman.away = True
    mirror = Mirror(postman, box, info=INFO, notify=lambda _: None)
    mirror.start()
    run(mirror, history(6))
    began = time.monotonic()
    assert mirror.close(10.0) >= 6
    assert time.monotonic() - began < 2.0


def test_while_a_study_runs_the_front_is_not_drawn_for_every_trial(postman: Postman, box: Outbox) -> None:
    mirror = Mirror(postman, box, info=INFO, notify=print)
    mirror.start()
    for trial in history(12):
        mirror.on_event(TrialFinished(trial=trial))
        time.sleep(0.02)
    mirror.close(10.0)
    assert 1 <= postman.fronts <= 2


def test_notes_that_are_refused_are_dropped_and_told_once(mirror: Mirror, postman: Postman, said: list[str]) -> None:
    postman.refuses = {"trial/1", "trial/2"}
    mirror.restate(history(4))
    mirror.flush()
    assert {"trial/0", "trial/3"} <= set(postman.taken)
    assert len(said) == 1
    assert "refused trial/1: no" in said[0]


def test_a_server_that_forgot_its_runs_is_told_again(mirror: Mirror, postman: Postman, box: Outbox) -> None:
    mirror.restate(history(3))
    mirror.flush()
    box.forget()
    postman.taken.clear()
    postman.forgot = True
    again = Mirror(postman, box, info=INFO, notify=print)
    again.restate(history(3))
    again.flush()
    assert {"trial/0", "trial/1", "trial/2"} <= set(postman.taken)


def test_flushing_with_the_server_away_raises(mirror: Mirror, postman: Postman) -> None:
    postman.away = True
    mirror.restate(history(2))
    with pytest.raises(TrackingError, match="nobody there"):
        mirror.flush()


def test_notes_to_the_user_are_none_of_the_mirrors_business(mirror: Mirror, box: Outbox) -> None:
    mirror.on_event(Noted(message="x"))
    assert box.count() == 0
