"""One driver a study, and what becomes of dead ones."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autopeft.errors import StorageError
from autopeft.studies import lock
from autopeft.studies.lock import StudyLock, is_alive, process_start
from tests.studies.support import open_study


def test_a_second_driver_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    with (
        StudyLock(study),
        pytest.raises(StorageError, match=rf"process {os.getpid()} on .* drives it since .*kill {os.getpid()}"),
        StudyLock(open_study(tmp_path)),
    ):
        pytest.fail("two drivers")


def test_the_lock_is_free_again_after(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    for _ in range(2):
        with StudyLock(study):
            assert study.get_attr("driver") is not None
        assert study.get_attr("driver") is None


def test_other_studies_of_the_storage_are_not_locked(tmp_path: Path) -> None:
    with StudyLock(open_study(tmp_path, "a")), StudyLock(open_study(tmp_path, "b")) as held:
        assert not held.lost


def test_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    script = (
        "import os, sys; from pathlib import Path; from autopeft.studies.lock import StudyLock;"
        "from tests.studies.support import open_study;"
        "StudyLock(open_study(Path(sys.argv[1]))).__enter__(); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parents[2], check=False)
    assert ended.returncode == -9
    assert study.get_attr("driver") is not None
    with StudyLock(study):
        pass


def test_a_reused_process_id_is_not_taken_for_the_owner(tmp_path: Path) -> None:
    with StudyLock(open_study(tmp_path)) as held:
        owner = dict(held._mine)
    assert is_alive(owner)
    assert not is_alive(owner | {"process_start": "1"})


def test_an_owner_elsewhere_lives_by_its_heartbeat(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    with StudyLock(study) as held:
        elsewhere = held._mine | {"machine": "other/boot/pid:[1]", "host": "gpu-7", "pid": 4}
    study.set_attr("driver", elsewhere | {"heartbeat": time.time() - 10})
    with pytest.raises(StorageError, match=r"process 4 on gpu-7.*wait 90 seconds"), StudyLock(study):
        pytest.fail("two drivers")
    study.set_attr("driver", elsewhere | {"heartbeat": time.time() - 100})
    with StudyLock(study):
        pass


def test_a_driver_that_was_taken_over_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.02)
    study = open_study(tmp_path)
    told: list[bool] = []
    with StudyLock(study, on_lost=lambda: told.append(True)) as held:
        first = held._mine["heartbeat"]
        while held._mine["heartbeat"] == first:
            time.sleep(0.01)
        study.set_attr("driver", {"token": "another"})
        while not told:
            time.sleep(0.01)
        assert held.lost
    assert study.get_attr("driver") == {"token": "another"}


def test_there_is_no_process_with_an_impossible_id() -> None:
    assert process_start(2**31 - 1) is None
    assert process_start(os.getpid()) is not None
