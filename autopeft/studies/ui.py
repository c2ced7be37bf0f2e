"""The MLflow UI on a study's tracking store, opened on the front."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO
from urllib.parse import urlsplit

from autopeft.errors import NotFoundError, SpecError, TrackingError
from autopeft.studies.saved_view import view_path
from autopeft.studies.tracking import experiment_id
from autopeft.studies.tracking_settings import ENVIRONMENT, check_uri

HOST = "127.0.0.1"
START_SECONDS = 90.0
"""How long a server may take to answer; seven seconds are usual on two cores."""
STOP_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningUi:
    """A UI that answers."""

    url: str
    """Address to open: the study's front, or the server's first page."""
    process: "subprocess.Popen[bytes] | None"
    """The server that was started; None when the tracking URI is a server already."""

    def wait(self) -> None:
        """Return when the server ends; at once when it is not ours."""
        if self.process is not None:
            self.process.wait()


@contextmanager
def start_ui(
    uri: str, study: str | None = None, *, port: int = 5000, open_browser: bool = False
) -> Iterator[RunningUi]:
    """Serve the UI while the block runs; the server is stopped at its end, however it ends.

    A tracking URI that is a server already is not served again, only its address is made.

    Args:
        uri: MLflow's tracking URI.
        study: Study whose front to open on; None opens the list of experiments.
        port: Port on this machine only; 0 takes a free one.
        open_browser: Open the address in the user's browser.

    Raises:
        SpecError: A bad URI, or the port is taken.
        NotFoundError: The tracking store has no such study.
        TrackingError: The server does not start or does not answer.
    """
    uri = check_uri(uri)
    path = "" if study is None else view_path(_experiment(uri, study))
    if urlsplit(uri).scheme in ("http", "https"):
        running = RunningUi(url=uri.rstrip("/") + path, process=None)
        _open(running.url, wanted=open_browser)
        yield running
        return
    port = _free_port(port)
    with tempfile.TemporaryFile() as log, _serve(uri, port, log) as process:
        _wait_until_ready(process, port, log)
        running = RunningUi(url=f"http://{HOST}:{port}{path}", process=process)
        _open(running.url, wanted=open_browser)
        yield running


@contextmanager
def _serve(uri: str, port: int, log: IO[bytes]) -> Iterator["subprocess.Popen[bytes]"]:
    """The server in a process group of its own: Ctrl-C reaches us first, and its worker ends with it."""
    process = subprocess.Popen(
        _command(uri, port), env=_environment(os.environ), stdout=log, stderr=log, start_new_session=True
    )
    try:
        yield process
    finally:
        _stop(process)


def _experiment(uri: str, study: str) -> str:
    found = experiment_id(uri, study)
    if found is None:
        raise NotFoundError(
            f"tracking store {uri}: it has no study {study!r}", hint=f"`autopeft sync {study}` mirrors it there"
        )
    return found


def _command(uri: str, port: int) -> list[str]:
    options = ["--backend-store-uri", uri, "--host", HOST, "--port", str(port), "--workers", "1"]
    options += ["--uvicorn-opts", "--log-level warning"]
    return [sys.executable, "-m", "mlflow", "server", *options]


def _environment(outer: Mapping[str, str]) -> dict[str, str]:
    """One worker without the job queue starts in 7 s and 370 MB instead of 16 s and 2.3 GB."""
    return {**ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_LOGGING_LEVEL": "WARNING", **outer}


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise SpecError(f"--port: {port} cannot be used: {error.strerror}", hint="give another, or 0") from error
        return int(probe.getsockname()[1])


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int, log: IO[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise TrackingError(
                f"the MLflow server ended with status {process.returncode}: {_last_line(log)}",
                hint="`mlflow server --backend-store-uri ...` shows all it says",
            )
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=2.0):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise TrackingError(f"the MLflow server did not answer on port {port} in {START_SECONDS:.0f} s", hint="try again")


def _open(url: str, *, wanted: bool) -> None:
    if wanted:
        import webbrowser

        webbrowser.open(url)


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"


def _stop(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
            return
