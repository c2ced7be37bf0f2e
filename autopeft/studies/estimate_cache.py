"""What earlier estimates found, kept on disk: a second question about a model needs no torch.

An entry is named by everything that its answer follows from: the bytes of the model's configuration, the question, the
versions of the libraries, and the sources of this package. So nothing ever has to be invalidated. Only models in a
local folder are kept; what a hub id stands for may change.
"""

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, final

from autopeft.errors import AutoPeftError
from autopeft.objectives.memory import MemoryBreakdown
from autopeft.spaces.model_shape import ModelShape

_FILES: Final = ("config.json", "preprocessor_config.json", "generation_config.json")
"""Of a model's folder, whatever a description reads."""
_LIBRARIES: Final = ("torch", "transformers", "peft", "numpy")
_UNREADABLE: Final = (AutoPeftError, OSError, ValueError, KeyError, TypeError, AttributeError)


@final
class EstimateCache:
    """Answers about the model in `model`, in `folder`; holds nothing where `model` is no folder.

    Safe with several writers (files are put in place whole, and equal names hold equal answers), and with files that
    are damaged or cannot be written, which are as good as none.
    """

    def __init__(self, folder: Path, *, model: str) -> None:
        path = Path(model).expanduser()
        self._folder = folder
        self._model = _digest_of(path) if path.is_dir() else None

    def shape(
        self, question: object, find: Callable[[], tuple[ModelShape, int | None]]
    ) -> tuple[ModelShape, int | None]:
        """A model's shape and how many tokens it takes; found by `find` where they are not known."""
        key = ["shape", question]
        with suppress(*_UNREADABLE):
            known = self._read(key)
            return ModelShape.from_json(known["shape"]), known["most_tokens"]
        shape, most_tokens = find()
        self._write(key, {"shape": shape.to_json(), "most_tokens": most_tokens})
        return shape, most_tokens

    def memory(self, question: object, find: Callable[[], MemoryBreakdown]) -> MemoryBreakdown:
        """A peak; found by `find` where it is not known."""
        key = ["memory", question]
        with suppress(*_UNREADABLE):
            return MemoryBreakdown(**self._read(key))
        found = find()
        self._write(key, asdict(found))
        return found

    def _file(self, key: object) -> Path:
        name = json.dumps([self._model, _versions(), key], sort_keys=True, default=str)
        return self._folder / f"{sha256(name.encode()).hexdigest()}.json"

    def _read(self, key: object) -> dict[str, Any]:
        if self._model is None:
            raise KeyError(self._model)
        entry = json.loads(self._file(key).read_text(encoding="utf-8"))
        if entry["checksum"] != _checksum(entry["answer"]):
            raise ValueError("damaged")
        return entry["answer"]

    def _write(self, key: object, answer: dict[str, object]) -> None:
        if self._model is None:
            return
        file, temporary = self._file(key), ""
        text = json.dumps({"checksum": _checksum(answer), "answer": answer})
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self._folder, prefix=".", suffix=".part")
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            os.replace(temporary, file)
        except OSError:  # the answer is there all the same; the next question takes its time again
            if temporary:
                Path(temporary).unlink(missing_ok=True)


def _checksum(answer: object) -> str:
    return sha256(json.dumps(answer, sort_keys=True).encode()).hexdigest()


def _digest_of(folder: Path) -> str | None:
    """Of the files of a model that a description reads; None where there is no configuration."""
    found = sha256()
    for name in _FILES:
        file = folder / name
        if file.is_file():
            found.update(f"{name} {file.stat().st_size} ".encode() + file.read_bytes())
        elif name == _FILES[0]:
            return None
    return found.hexdigest()


@cache
def _versions() -> list[str]:
    """What the answers of this installation follow from: libraries and the sources of this package."""
    found: list[str] = []
    for library in _LIBRARIES:
        try:
            found.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            found.append(library)
    package = Path(__file__).parents[1]
    files = sorted((str(path.relative_to(package)), path.stat()) for path in package.rglob("*.py"))
    rows = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in files]
    return [*found, sha256("\n".join(rows).encode()).hexdigest()]
