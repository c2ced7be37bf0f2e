"""What local files hold, so that a study stays itself when its folder moves, and is another when its rows change."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from autopeft.studies.spec import StudySpec

PLACES = ("model.name", "task.data.train", "task.data.validation", "task.data.test")
"""Fields of a study file that may name local files; what counts is what those hold (`content_of`)."""


def content_of(spec: StudySpec) -> dict[str, str]:
    """For each of `PLACES`: digits of the SHA-256 of the file, of the model's configuration, of the names and sizes of
    the files in a folder of images, or the hub id itself.
    """
    data = spec.task.data
    named = dict(zip(PLACES, (spec.model.name, data.train, data.validation, data.test), strict=True))
    return {place: _identity(name) for place, name in named.items() if name is not None}


def data_digest(content: Mapping[str, str]) -> str:
    """One short digest of all data files; empty when there are none."""
    rows = [f"{place}={value}" for place, value in sorted(content.items()) if place.startswith("task.data")]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:12] if rows else ""


def _identity(name: str) -> str:
    path = Path(name)
    if path.is_file():
        return _seal(path)
    config = path / "config.json"
    if config.is_file():
        weights = sorted(f"{file.name}:{file.stat().st_size}" for file in path.glob("*.safetensors"))
        return hashlib.sha256((_seal(config) + ",".join(weights)).encode()).hexdigest()[:16]
    if path.is_dir():
        files = sorted(f"{file.relative_to(path).as_posix()}:{file.stat().st_size}" for file in path.rglob("*.*"))
        return hashlib.sha256("\n".join(files).encode()).hexdigest()[:16]
    return name


def _seal(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
