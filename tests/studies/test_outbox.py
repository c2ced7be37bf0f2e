import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from autopeft.errors import StorageError, TrackingError
from autopeft.studies.outbox import KnownRun, Outbox, outbox_path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.outbox.db"


def open_box(path: Path, *, target: str = "sqlite:///a.db", study: str = "s") -> Outbox:
    return Outbox(path, target=target, study=study)


def test_notes_come_out_in_the_order_they_went_in(path: Path) -> None:
    box = open_box(path)
    assert box.put([("b", {"x": 1}), ("a", {"x": 2})]) == 2
    assert [(note.key, note.content) for note in box.pending()] == [("b", {"x": 1}), ("a", {"x": 2})]
    assert [note.key for note in box.pending(limit=1)] == ["b"]


def test_a_newer_note_replaces_the_older_one_of_its_key(path: Path) -> None:
    box = open_box(path)
    box.put([("a", {"x": 1}), ("b", {"x": 1})])
    box.put([("a", {"x": 2})])
    assert [(note.key, note.content["x"]) for note in box.pending()] == [("b", 1), ("a", 2)]


def test_a_note_that_was_delivered_is_not_queued_again_but_a_changed_one_is(path: Path) -> None:
    box = open_box(path)
    box.put([("a", {"x": 1})])
    box.settle(box.pending())
    assert box.put([("a", {"x": 1})]) == 0
    assert box.put([("a", {"x": 2})]) == 1
    assert box.count() == 1
    assert box.put([("a", {"x": 1})]) == 0, "the server already has this one"
    assert box.count() == 0


def test_settling_keeps_a_note_that_changed_while_it_was_being_sent(path: Path) -> None:
    box = open_box(path)
    box.put([("a", {"x": 1})])
    sending = box.pending()
    box.put([("a", {"x": 2})])
    box.settle(sending)
    assert [note.content for note in box.pending()] == [{"x": 2}]


def test_targets_and_studies_in_one_file_do_not_meet(path: Path) -> None:
    boxes = [open_box(path), open_box(path, study="other"), open_box(path, target="http://x")]
    boxes[0].put([("a", {})])
    boxes[0].keep_run("a", KnownRun(run_id="r", started_ms=5))
    assert [box.count() for box in boxes] == [1, 0, 0]
    assert [len(box.runs()) for box in boxes] == [1, 0, 0]


def test_forgetting_a_run_makes_its_notes_new_again(path: Path) -> None:
    box = open_box(path)
    box.put([("a", {}), ("b", {})])
    box.settle(box.pending())
    box.keep_run("a", KnownRun(run_id="r", started_ms=5))
    box.forget(["a"])
    assert (box.runs(), box.put([("a", {}), ("b", {})])) == ({}, 1)
    box.settle(box.pending())
    box.forget()
    assert box.put([("a", {}), ("b", {})]) == 2


def test_everything_is_still_there_after_a_reopening(path: Path) -> None:
    box = open_box(path)
    box.put([("a", {"x": [1, "<&>", None]})])
    box.keep_run("a", KnownRun(run_id="r", started_ms=5))
    box.close()
    again = open_box(path)
    assert again.pending()[0].content == {"x": [1, "<&>", None]}
    assert again.runs() == {"a": KnownRun(run_id="r", started_ms=5)}


def test_a_killed_process_loses_no_note(path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom autopeft.studies.outbox import Outbox\n"
        "box = Outbox(Path(sys.argv[1]), target='sqlite:///a.db', study='s')\n"
        "for n in range(10**9):\n    box.put([(f'trial/{n}', {'n': n})])\n    print(n, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(40)]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    kept = {note.key for note in open_box(path).pending(limit=10**6)}
    assert kept >= {f"trial/{n}" for n in said}


def test_another_programs_database_is_refused_and_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE mine (x)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match="another program's database"):
        open_box(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"not a database at all, but long enough to look like one" * 40)
    with pytest.raises(StorageError, match=r"tracking outbox .*file is not a database"):
        open_box(path)


def test_a_broken_outbox_is_a_tracking_error(path: Path) -> None:
    box = open_box(path)
    box.close()
    with pytest.raises(TrackingError, match=r"tracking outbox .*closed database"):
        box.put([("a", {})])


def test_the_outbox_lies_beside_a_sqlite_storage_and_in_the_folder_otherwise(tmp_path: Path) -> None:
    assert outbox_path("sqlite:///runs/autopeft.db", folder=tmp_path) == Path("runs/autopeft.outbox.db")
    assert outbox_path("postgresql://h/d", folder=tmp_path) == tmp_path / "autopeft.outbox.db"
