"""Reads a local file of rows into columns; nothing is interpreted here."""

import csv
import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from autopeft.errors import DataError, MissingExtraError
from autopeft.spaces.suggest import nearest

_FIELD_LIMIT = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of one source, column by column, cells as the source has them; row 1 is the first row of data."""

    place: str
    """File or folder path, or `hub id [split]`."""
    columns: Mapping[str, Sequence[object]]
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names behind the integers of label columns, where the source knows them."""
    folder: Path | None = None
    """Of a local file: where paths in its cells start."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def column(self, name: str, *, setting: str) -> Sequence[object]:
        """The cells of column `name`.

        Raises:
            DataError: There is no such column; names `setting`, the columns and the nearest one.
        """
        if name in self.columns:
            return self.columns[name]
        known = list(self.columns)
        raise DataError(
            f"{self.place}: no column {name!r} ({setting}); the columns are {', '.join(map(repr, known)) or 'none'}",
            hint=nearest(name, known) or f"set {setting} to one of them",
        )


def read_table(path: str | Path) -> Table:
    """The rows of a local csv, tsv, json, jsonl or parquet file.

    Json is a list of objects or one object a line; a key that an object lacks is None. A tsv is read with the quoting
    of csv, and as plain text between tabs where that gives no table but plain reading does (GLUE's own files).

    Raises:
        DataError: No such file (with the nearest names beside it), an unknown format, rows of unequal length, no
            header, text that is not UTF-8.
        MissingExtraError: A parquet file without pyarrow.
    """
    file = Path(path)
    _check_file(file)
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise DataError(
            f"{file}: got the file type {file.suffix or 'none'!r}; allowed are {', '.join(sorted(_READERS))}",
            hint="convert the file, or rename it to say what it is",
        )
    try:
        columns = reader(file)
    except UnicodeDecodeError as error:
        hint = "save the file as UTF-8"
        raise DataError(f"{file}: byte {error.start} is not UTF-8 ({error.reason})", hint=hint) from error
    return Table(place=str(file), columns=columns, folder=file.parent)


def _check_file(file: Path) -> None:
    if file.is_file():
        return
    if file.is_dir():
        raise DataError(f"{file}: is a folder; a data file is needed", hint="name the file inside it")
    folder = file.parent
    if not folder.is_dir():
        raise DataError(f"{file}: no such file, and no folder {folder}", hint=f"the working folder is {Path.cwd()}")
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in _READERS)
    near = difflib.get_close_matches(file.name, names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"data files there: {', '.join(names[:8]) or 'none'}"
    raise DataError(f"{file}: no such file", hint=hint)


def _read_csv(file: Path) -> dict[str, list[object]]:
    return _columns(file, _records(file, delimiter=",", quoting=csv.QUOTE_MINIMAL))


def _read_tsv(file: Path) -> dict[str, list[object]]:
    quoted = _records(file, delimiter="\t", quoting=csv.QUOTE_MINIMAL)
    if _is_ragged(quoted) or any("\n" in cell or "\t" in cell for record in quoted for cell in record):
        plain = _records(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        if not _is_ragged(plain):
            return _columns(file, plain)
    return _columns(file, quoted)


def _records(file: Path, *, delimiter: str, quoting: Literal[0, 3]) -> list[list[str]]:
    """Every non-blank record; the process-wide field size limit is put back afterwards."""
    limit = csv.field_size_limit(_FIELD_LIMIT)
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            return [record for record in csv.reader(stream, delimiter=delimiter, quoting=quoting) if record]
    except csv.Error as error:
        raise DataError(f"{file}: {error}", hint="check the quotes and line ends of the file") from error
    finally:
        csv.field_size_limit(limit)


def _is_ragged(records: Sequence[Sequence[str]]) -> bool:
    return len({len(record) for record in records}) > 1


def _columns(file: Path, records: Sequence[Sequence[str]]) -> dict[str, list[object]]:
    if not records:
        raise DataError(f"{file}: is empty; the first line must name the columns")
    header, rows = records[0], records[1:]
    if len(set(header)) < len(header) or not all(header):
        raise DataError(
            f"{file}: header {list(header)}: every column needs a name of its own",
            hint="the first line must name the columns",
        )
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise DataError(
                f"{file} row {number}: got {len(row)} cells; the header has {len(header)} columns",
                hint="put cells that hold the delimiter or a quote in quotes",
            )
    return {name: [row[index] for row in rows] for index, name in enumerate(header)}


def _read_json(file: Path) -> dict[str, list[object]]:
    text = file.read_text(encoding="utf-8-sig")
    objects = _json_list(file, text) if text.lstrip().startswith("[") else _json_lines(file, text)
    names: dict[str, None] = {}
    for number, row in enumerate(objects, start=1):
        if not isinstance(row, dict):
            raise DataError(
                f"{file} row {number}: got {type(row).__name__}; every row must be an object",
                hint='write a list of objects, or one a line: {"text": "...", "label": "..."}',
            )
        names.update(dict.fromkeys(map(str, row)))
    if not names:
        raise DataError(f"{file}: is empty; it must hold one object a row")
    return {name: [row.get(name) for row in objects if isinstance(row, dict)] for name in names}


def _json_list(file: Path, text: str) -> list[object]:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{file}: is not JSON: {error}") from error


def _json_lines(file: Path, text: str) -> list[object]:
    rows: list[object] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (json.JSONDecodeError, RecursionError) as error:
                hint = "the file must be a list of objects, or one object a line"
                raise DataError(f"{file} line {number}: is not JSON: {error}", hint=hint) from error
    return rows


def _read_parquet(file: Path) -> dict[str, list[object]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(f"{file}: reading parquet needs pyarrow", hint="pip install pyarrow") from error
    try:
        table = parquet.read_table(file)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{file}: is not a parquet file: {error}") from error
    return {name: table.column(name).to_pylist() for name in table.column_names}


_READERS: dict[str, Callable[[Path], dict[str, list[object]]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".parquet": _read_parquet,
}
