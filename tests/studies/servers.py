"""Tracking servers in this process: MLflow's own application, if asked behind a gate, and servers that are unwell."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        return


class _Threading(ThreadingMixIn, WSGIServer):
    daemon_threads = True


@contextmanager
def serving(uri: str, artifacts: Path, *, patch: pytest.MonkeyPatch, authorization: str | None = None) -> Iterator[str]:
    """MLflow's server on the database `uri`; its address.

    With `authorization` a request without exactly this header is answered 401, as every server with authentication
    does it.
    """
    patch.setenv("_MLFLOW_SERVER_FILE_STORE", uri)
    patch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
    patch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
    patch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(artifacts))
    from mlflow.server import app, handlers

    for name in ("_tracking_store", "_model_registry_store", "_artifact_repo"):
        patch.setattr(handlers, name, None)
    gate = app.wsgi_app if authorization is None else _gated(app.wsgi_app, authorization)
    server = make_server("127.0.0.1", 0, gate, server_class=_Threading, handler_class=_Quiet)
    with _running(server):
        yield f"http://127.0.0.1:{server.server_address[1]}"


def _gated(application: Application, authorization: str) -> Application:
    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("HTTP_AUTHORIZATION") == authorization:
            return application(environ, start)
        start("401 Unauthorized", [("WWW-Authenticate", 'Basic realm="mlflow"')])
        return [b"You are not authenticated."]

    return answer


class _Unwell(BaseHTTPRequestHandler):
    stop: threading.Event | None = None

    def _answer(self) -> None:
        if self.stop is not None:
            self.stop.wait(60.0)
        self.send_response(500)
        self.end_headers()

    do_GET = do_POST = _answer  # noqa: N815  # names http.server looks for

    def log_message(self, format: str, *args: object) -> None:
        return


@contextmanager
def unwell(*, answers: bool) -> Iterator[str]:
    """A server that answers 500 to everything, or takes every request and never answers; its address."""
    stop = threading.Event()
    handler = type("Handler", (_Unwell,), {"stop": None if answers else stop})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    with _running(server):
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            stop.set()


@contextmanager
def _running(server: Any) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
