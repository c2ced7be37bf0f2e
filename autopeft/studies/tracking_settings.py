"""Where tracking goes and how MLflow is to behave meanwhile; imports no MLflow."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from autopeft.errors import SpecError

SCHEMES: Final = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")
ENVIRONMENT: Final[Mapping[str, str]] = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""MLflow's own settings as this package wants them while it talks to MLflow; a variable that is already set stays."""


def check_uri(uri: str) -> str:
    """`uri` with a SQLite file's path made absolute.

    Raises:
        SpecError: Not a database or server that MLflow keeps runs in (its file store is gone).
    """
    scheme = urlsplit(uri).scheme.split("+")[0]
    if scheme not in SCHEMES or uri == "sqlite:///" or (scheme == "sqlite" and not uri.startswith("sqlite:///")):
        raise SpecError(
            f"tracking.mlflow: got {uri!r}; a database or server is needed: sqlite:///FILE, {', '.join(SCHEMES[1:])}",
            hint="use sqlite:///mlflow.db, or the address of a server such as http://127.0.0.1:5000",
        )
    if scheme != "sqlite":
        return uri
    return "sqlite:///" + str(Path(uri.removeprefix("sqlite:///")).absolute())


def public_uri(uri: str) -> str:
    """`uri` without user name and password."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.netloc else uri


def apply_environment() -> dict[str, str]:
    """Set what of `ENVIRONMENT` is not set; returns what was."""
    applied = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(applied)
    return applied


def restore_environment(applied: Mapping[str, str]) -> None:
    """Take back what `apply_environment` set."""
    for name in applied:
        os.environ.pop(name, None)


@contextmanager
def environment() -> Iterator[None]:
    """`ENVIRONMENT` while the block runs."""
    applied = apply_environment()
    try:
        yield
    finally:
        restore_environment(applied)
