import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from autopeft.errors import NotFoundError, SpecError, TrackingError
from autopeft.studies import ui
from autopeft.studies.tracking import sync
from autopeft.studies.ui import start_ui
from tests.studies.synthetic import history
from tests.studies.test_tracking import INFO, closed_port

ROOT = Path(__file__).parents[2]


def group_is_gone(process: "subprocess.Popen[bytes]") -> bool:
    return subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, check=False).returncode == 1


def test_the_ui_answers_on_this_machine_only_and_leaves_nothing_behind(uri: str, tmp_path: Path) -> None:
    sync(uri, INFO, history(3), outbox=tmp_path / "o.db")
    with start_ui(uri, INFO.name, port=0) as running:
        server = running.url.split("/#")[0]
        query = "viewStateShareKey=autopeft-front&compareRunsMode=CHART&workflowType=machine_learning"
        assert running.url == f"{server}/#/experiments/1/runs?{query}"
        assert server.startswith("http://127.0.0.1:")
        address = f"{server}/ajax-api/2.0/mlflow/experiments/get?experiment_id=1"
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert b'"rte"' in answer.read()
        assert running.process is not None
        assert running.process.poll() is None
    assert running.process.poll() is not None
    if shutil.which("pgrep"):
        assert group_is_gone(running.process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_ends_the_command_ends_its_server(tmp_path: Path, number: signal.Signals) -> None:
    script = (
        "import os, signal, sys; from autopeft.studies import ui;"
        " signal.signal(signal.SIGHUP, signal.SIG_DFL);"  # a suite that runs under nohup hands down that it is ignored
        " ui._command = lambda uri, port: [sys.executable, '-c', 'import time; time.sleep(99)'];"
        " ui._wait_until_ready = lambda process, port, log: print('server', process.pid, flush=True);"
        f" from autopeft.studies.commands import ui as run; os.chdir({str(tmp_path)!r});"
        " run(None, storage='sqlite:///s.db', port=0, open_browser=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    server = int(process.stdout.readline().split()[1])
    assert process.stdout.readline().startswith("MLflow UI: http://127.0.0.1:")
    process.send_signal(number)
    assert process.wait(timeout=30) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)


def test_a_server_that_runs_already_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    with start_ui("http://team-server:5000/", open_browser=True) as running:
        assert (running.url, running.process) == ("http://team-server:5000", None)
        running.wait()
    assert opened == ["http://team-server:5000"]


def test_a_study_that_was_never_mirrored_is_not_found(uri: str) -> None:
    with pytest.raises(NotFoundError, match="it has no study 'nope'") as caught, start_ui(uri, "nope"):
        pass
    assert "autopeft sync nope" in caught.value.hint


def test_a_tracking_server_that_is_away_is_reported() -> None:
    with (
        pytest.raises(TrackingError, match="does not take anything"),
        start_ui(f"http://127.0.0.1:{closed_port()}", "s"),
    ):
        pass


def test_a_port_that_is_taken_is_refused(uri: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SpecError, match=f"--port: {port} cannot be used"), start_ui(uri, port=port):
            pass


def test_a_server_that_ends_at_once_tells_its_last_words(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys; print('no such thing', file=sys.stderr); sys.exit(3)"
    monkeypatch.setattr(ui, "_command", lambda uri, port: [sys.executable, "-c", script])
    with pytest.raises(TrackingError, match="ended with status 3: no such thing"), start_ui(uri, port=0):
        pass


def test_a_server_that_never_answers_is_given_up_and_stopped(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "_command", lambda uri, port: [sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(ui, "START_SECONDS", 0.5)
    with pytest.raises(TrackingError, match="did not answer on port"), start_ui(uri, port=0):
        pass
