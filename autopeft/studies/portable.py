"""Studies as one file that another team's storage takes in: a zip of JSON, nothing in it is code.

`studies.json` says what the file is, its version, who wrote it and what else is in it; every study is a member of JSON
lines, its definition first and then a line a trial, sealed by a SHA-256 in `studies.json`. Equal studies give equal
bytes.
"""

import hashlib
import io
import json
import os
import secrets
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from autopeft.errors import StorageError

KIND: Final = "autopeft-studies"
VERSION: Final = 1
"""Of the file; raised when an older AutoPEFT could no longer read it."""
_INDEX: Final = "studies.json"
_PACKAGES: Final = ("autopeft", "torch", "transformers", "peft", "optuna", "botorch")
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""The date of every member: the same study makes the same bytes."""
_MAX_INDEX_BYTES: Final = 2**24

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PortableStudy:
    """One study as the storage keeps it, in JSON values."""

    name: str
    attrs: Json
    """What the storage says of the study: definition, format and what was added since, by name."""
    trials: tuple[Json, ...]
    """By number, from 0 without a gap."""


def write_studies(path: Path, studies: Sequence[PortableStudy]) -> None:
    """Write `studies` to the new file `path`; it is there whole or not at all.

    Raises:
        StorageError: The file exists, or cannot be written.
    """
    if path.exists() or path.is_symlink():
        raise StorageError(f"--out: {path} exists", hint="name a new file, or remove that one")
    if not path.parent.is_dir():
        raise StorageError(f"--out: there is no folder {path.parent}", hint=f"mkdir -p {path.parent}")
    content = _pack(studies)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(f"--out: {path}: {error.strerror}", hint="choose another place for the file") from error


def read_studies(path: Path) -> tuple[PortableStudy, ...]:
    """The studies in the file at `path`, every byte of them checked.

    Raises:
        StorageError: No such file, another kind of file, a truncated or damaged one, or a newer version.
    """
    try:
        return _unpack(path)
    except StorageError:
        raise
    except FileNotFoundError:
        raise StorageError(
            f"{path}: there is no such file", hint="give what `autopeft studies --export` wrote"
        ) from None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}", hint="give what `autopeft studies --export` wrote") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, TypeError, RecursionError):
        raise StorageError(
            f"{path}: is truncated or damaged; nothing was imported", hint="copy it again, or export it again"
        ) from None


def versions() -> dict[str, str]:
    """The packages that had a part in the studies, as installed now."""
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _pack(studies: Sequence[PortableStudy]) -> bytes:
    members = {f"{index}.jsonl": _lines(study) for index, study in enumerate(studies)}
    rows = [
        {"study": study.name, "file": file, "trials": len(study.trials), "sha256": _seal(text)}
        for study, (file, text) in zip(studies, members.items(), strict=True)
    ]
    index = {"kind": KIND, "version": VERSION, "versions": versions(), "studies": rows}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        for name, text in {_INDEX: json.dumps(index, indent=1).encode(), **members}.items():
            archive.writestr(zipfile.ZipInfo(name, date_time=_EPOCH), text, compress_type=zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _lines(study: PortableStudy) -> bytes:
    rows = [study.attrs, *study.trials]
    return "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode()


def _unpack(path: Path) -> tuple[PortableStudy, ...]:
    with path.open("rb") as file:
        start = file.read(4)
        if start != b"PK\x03\x04":
            raise _foreign(path)
        with zipfile.ZipFile(file) as archive:
            if _INDEX not in archive.namelist() or archive.getinfo(_INDEX).file_size > _MAX_INDEX_BYTES:
                raise _foreign(path)
            index = json.loads(archive.read(_INDEX))
            _check_index(path, index)
            return tuple(_read_member(archive, row) for row in index["studies"])


def _check_index(path: Path, index: object) -> None:
    if not isinstance(index, Mapping) or index.get("kind") != KIND:
        raise _foreign(path)
    if not isinstance(index["version"], int) or index["version"] > VERSION:
        writer = index.get("versions", {}).get("autopeft", "")
        raise StorageError(
            f"{path}: was written by a newer AutoPEFT {writer}".rstrip()
            + f" (version {index['version']} of the file, this one reads {VERSION})",
            hint="pip install -U autopeft",
        )


def _read_member(archive: zipfile.ZipFile, row: Json) -> PortableStudy:
    text = archive.read(row["file"])
    if _seal(text) != row["sha256"]:
        raise ValueError(row["file"])
    attrs, *trials = (json.loads(line) for line in text.decode().splitlines())
    if len(trials) != row["trials"] or not isinstance(row["study"], str):
        raise ValueError(row["file"])
    return PortableStudy(name=row["study"], attrs=attrs, trials=tuple(trials))


def _seal(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _foreign(path: Path) -> StorageError:
    return StorageError(
        f"{path}: is not a file of exported studies", hint="give what `autopeft studies --export` wrote"
    )
