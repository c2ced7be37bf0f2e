"""Drivers that are killed or told to stop: nothing finished is lost, and the same command goes on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from autopeft.search.trial import TrialState
from autopeft.studies.drive import drive
from autopeft.studies.executor import Resources
from autopeft.studies.storage import StudyStorage
from tests.studies.support import halved, open_study, plan

ROOT = Path(__file__).parents[2]


def start(
    folder: Path, *, trials: int, executor: str, jobs: int = 1, seconds: float = 0.02, rungs: bool = False
) -> subprocess.Popen[str]:
    environment = os.environ | {"ECHO_SECONDS": str(seconds), "HOME": str(folder), "MARK": str(folder)}
    environment |= {"TRAINED": str(folder / "trained")}
    command = [sys.executable, "-m", "tests.studies.driver", str(folder), str(trials), executor, str(jobs)]
    command += ["rungs"] if rungs else []
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def events(process: "subprocess.Popen[str]") -> Iterator[dict[str, object]]:
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("{"):
            yield json.loads(line)


def wait_for(process: "subprocess.Popen[str]", event: str, *, times: int = 1) -> None:
    for told in events(process):
        times -= told["event"] == event
        if not times:
            return
    pytest.fail(f"the driver ended without {event}")


def finished(folder: Path) -> dict[int, object]:
    try:
        with StudyStorage.open(f"sqlite:///{folder}/studies.db") as storage:
            return {row.number: row for row in storage.study("s").history() if row.state.finished}
    except LookupError:
        return {}


def left_over(folder: Path, *, agents: bool = True) -> list[str]:
    """Command lines of living processes that a driver in `folder` started, Ray's two idle agents among them or not."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"MARK={folder}".encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [line for line in found if line and (agents or "Agent" not in line)]


def wait_until_gone(folder: Path, *, agents: bool) -> None:
    until = time.monotonic() + (150 if agents else 40)
    while left_over(folder, agents=agents) and time.monotonic() < until:
        time.sleep(0.2)
    assert left_over(folder, agents=agents) == []


def assert_same_as_undisturbed(folder: Path, *, trials: int) -> None:
    whole = open_study(folder, "whole")
    drive(whole, plan(n_trials=trials), Resources(executor="local"))
    mine = open_study(folder).history()
    assert [(row.number, row.configuration, row.state, row.measurements) for row in mine] == [
        (row.number, row.configuration, row.state, row.measurements) for row in whole.history()
    ]


def test_a_driver_killed_at_random_moments_loses_nothing_and_goes_on(tmp_path: Path) -> None:
    rng = random.Random(5)
    known: dict[int, object] = {}
    for _ in range(3):
        process = start(tmp_path, trials=14, executor="local")
        wait_for(process, "TrialFinished", times=rng.randint(1, 4))
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.wait()
        now = finished(tmp_path)
        assert known.items() <= now.items()
        known = now
    process = start(tmp_path, trials=14, executor="local")
    assert [told["event"] for told in events(process)][-1] == "budget"
    assert process.wait() == 0
    assert known.items() <= finished(tmp_path).items()
    assert_same_as_undisturbed(tmp_path, trials=14)


def test_a_driver_killed_between_rungs_decides_the_same_and_trains_no_epoch_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(8)
    for _ in range(4):
        process = start(tmp_path, trials=12, executor="local", rungs=True)
        wait_for(process, "TrialReported", times=rng.randint(3, 9))
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.wait()
    process = start(tmp_path, trials=12, executor="local", rungs=True)
    assert [told["event"] for told in events(process)][-1] == "budget"
    assert process.wait() == 0
    monkeypatch.setenv("TRAINED", str(tmp_path / "once"))
    whole = open_study(tmp_path, "whole")
    drive(whole, halved(12, tmp_path / "other"), Resources(executor="local"))
    mine = open_study(tmp_path).history()
    assert [(row.number, row.configuration, row.state, row.measurements, row.pruning, row.resumed) for row in mine] == [
        (row.number, row.configuration, row.state, row.measurements, row.pruning, row.resumed)
        for row in whole.history()
    ]
    assert any(row.resumed for row in mine), "a trial that was stopped went on"
    trained, once = (Counter((tmp_path / name).read_text().splitlines()) for name in ("trained", "once"))
    assert set(trained) == set(once)
    assert set(once.values()) == {1}, "what goes on does not begin again"
    assert sum(trained.values()) - len(trained) <= 4, "each kill costs the epoch at hand at most"


@pytest.mark.slow
def test_a_driver_killed_while_it_makes_the_storage_can_be_started_again(tmp_path: Path) -> None:
    for count in range(12):
        folder = tmp_path / str(count)
        folder.mkdir()
        process = start(folder, trials=2, executor="local")
        while not any(folder.glob("studies.db*")) and process.poll() is None:
            time.sleep(0.001)
        time.sleep(count * 0.02)
        process.kill()
        process.wait()
        process = start(folder, trials=2, executor="local")
        assert [told["event"] for told in events(process)][-1] == "budget"
        assert process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_finishes_what_runs(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, trials=50, executor="local", seconds=0.1)
    wait_for(process, "TrialStarted", times=2)
    process.send_signal(number)
    assert [told["event"] for told in events(process)][-1] == "interrupted"
    assert process.wait() == 0
    history = open_study(tmp_path).history()
    assert [row.state for row in history] == [TrialState.COMPLETED] * len(history)


def test_a_driver_on_ray_is_killed_with_its_workers_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    process = start(tmp_path, trials=6, executor="ray", seconds=0.05)
    wait_for(process, "TrialFinished", times=2)
    process.kill()
    process.wait()
    known = finished(tmp_path)
    assert len(known) >= 2
    wait_until_gone(tmp_path, agents=False)

    process = start(tmp_path, trials=6, executor="ray")
    output, told = process.communicate(timeout=120)
    assert process.returncode == 0
    assert output == "", "stdout is for data"
    assert json.loads(told.splitlines()[-1]) == {"event": "budget"}
    assert [line for line in told.splitlines() if not line.startswith("{")] == [], "Ray's chatter"
    assert known.items() <= finished(tmp_path).items()
    assert_same_as_undisturbed(tmp_path, trials=6)
    assert not (tmp_path / ".ray").exists(), "a token was written below the home folder"
    wait_until_gone(tmp_path, agents=False)


@pytest.mark.slow
@pytest.mark.parametrize("signals", [1, 2])
def test_signals_stop_a_driver_on_ray(tmp_path: Path, signals: int) -> None:
    pytest.importorskip("ray")
    process = start(tmp_path, trials=50, executor="ray", jobs=2, seconds=0.5)
    wait_for(process, "TrialReported")
    for _ in range(signals):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    assert [told["event"] for told in events(process)][-1] == "interrupted"
    assert process.wait() == 0
    running = open_study(tmp_path).history().in_state(TrialState.RUNNING)
    assert (len(running) > 0) == (signals == 2)
    assert left_over(tmp_path) == []


@pytest.mark.slow
def test_the_agents_of_a_killed_driver_end_too(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    process = start(tmp_path, trials=50, executor="ray")
    wait_for(process, "TrialFinished")
    process.kill()
    process.wait()
    wait_until_gone(tmp_path, agents=True)
