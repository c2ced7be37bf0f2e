"""A small durable queue: what the tracking server has still to be told, and which runs it already has.

One SQLite file beside the study storage. The driver puts notes in (a fraction of a millisecond each); a background
thread takes them out when the server has them. A note has a key, and a newer note under a key replaces the older one,
so the queue never outgrows the study however long the server is away. Everything is on disk before `put` returns to
its caller, as far as a killed process goes (WAL, synchronous NORMAL: a power cut may lose the last notes, which
`autopeft sync` restores from the study storage).
"""

import fcntl
import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autopeft.errors import StorageError, TrackingError

Json = Mapping[str, object]

_APPLICATION_ID = 0x41504F42
_SCHEMA = """
CREATE TABLE IF NOT EXISTS pending (
    target TEXT NOT NULL, study TEXT NOT NULL, key TEXT NOT NULL, note TEXT NOT NULL, digest TEXT NOT NULL,
    sequence INTEGER NOT NULL, PRIMARY KEY (target, study, key));
CREATE TABLE IF NOT EXISTS delivered (
    target TEXT NOT NULL, study TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL,
    PRIMARY KEY (target, study, key));
CREATE TABLE IF NOT EXISTS runs (
    target TEXT NOT NULL, study TEXT NOT NULL, key TEXT NOT NULL, run_id TEXT NOT NULL,
    started_ms INTEGER NOT NULL, PRIMARY KEY (target, study, key));
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One thing the server should know, whole in itself: delivering it twice changes nothing."""

    key: str
    """What it is about, e.g. `trial/7`."""
    content: Json
    digest: str
    sequence: int
    """Position in the queue; a key that is put again moves to the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRun:
    """A run on the server."""

    run_id: str
    started_ms: int
    """When it began, milliseconds since 1970 as the server has it; metric times are counted from here, so that a
    value sent twice is the same value."""


def outbox_path(storage: str, *, folder: Path) -> Path:
    """The outbox file for a study storage: beside a SQLite file, else in `folder`."""
    prefix = "sqlite:///"
    if storage.startswith(prefix) and storage != prefix:
        database = Path(storage.removeprefix(prefix))
        return database.with_name(f"{database.stem}.outbox.db")
    return folder / "autopeft.outbox.db"


class Outbox:
    """The queue of one (tracking target, study); several may share a file, threads may share an instance.

    Args:
        path: The SQLite file; made when absent.
        target: The tracking URI the notes are for.
        study: The study's name.

    Raises:
        StorageError: `path` cannot be opened, or is another program's file.
    """

    def __init__(self, path: Path, *, target: str, study: str) -> None:
        self._where = (target, study)
        self._path = path
        self._lock = threading.Lock()
        try:
            self._database = sqlite3.connect(path, timeout=10.0, check_same_thread=False, isolation_level=None)
            self._prepare(path)
        except sqlite3.Error as error:
            raise StorageError(
                f"tracking outbox {path}: {error}", hint="move that file away; `autopeft sync` mirrors the study again"
            ) from error

    def _prepare(self, path: Path) -> None:
        owner = self._database.execute("PRAGMA application_id").fetchone()[0]
        tables = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and owner != _APPLICATION_ID:
            self._database.close()
            raise StorageError(
                f"tracking outbox {path}: this is another program's database", hint="move it or rename the storage"
            )
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.execute(f"PRAGMA application_id={_APPLICATION_ID}")
        self._database.executescript(_SCHEMA)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """One at a time, all or nothing; a full disk or a broken file is a TrackingError."""
        with self._lock:
            try:
                with self._database:
                    self._database.execute("BEGIN IMMEDIATE")
                    yield
            except sqlite3.Error as error:
                raise TrackingError(
                    f"tracking outbox {self._path}: {error}", hint="`autopeft sync` mirrors the study afterwards"
                ) from error

    def put(self, notes: Iterable[tuple[str, Json]]) -> int:
        """Queue notes, each replacing an older one of its key; those the server already has are left out.

        Returns:
            How many were queued.
        """
        rows = [(key, text, _digest(text)) for key, text in ((key, _dump(content)) for key, content in notes)]
        queued = 0
        with self._transaction():
            for key, text, digest in rows:
                if self._delivered(key) == digest:
                    self._database.execute(
                        "DELETE FROM pending WHERE target=? AND study=? AND key=?", (*self._where, key)
                    )
                    continue
                self._database.execute(
                    "INSERT OR REPLACE INTO pending VALUES (?, ?, ?, ?, ?, "
                    "(SELECT coalesce(max(sequence), 0) + 1 FROM pending))",
                    (*self._where, key, text, digest),
                )
                queued += 1
        return queued

    def _delivered(self, key: str) -> str | None:
        row = self._database.execute(
            "SELECT digest FROM delivered WHERE target=? AND study=? AND key=?", (*self._where, key)
        ).fetchone()
        return row[0] if row else None

    def pending(self, limit: int = 100) -> list[Note]:
        """The oldest notes that wait, first in first out."""
        with self._transaction():
            rows = self._database.execute(
                "SELECT key, note, digest, sequence FROM pending WHERE target=? AND study=? ORDER BY sequence LIMIT ?",
                (*self._where, limit),
            ).fetchall()
        return [Note(key=key, content=json.loads(text), digest=digest, sequence=n) for key, text, digest, n in rows]

    def count(self) -> int:
        """How many notes wait."""
        with self._transaction():
            row = self._database.execute("SELECT count(*) FROM pending WHERE target=? AND study=?", self._where)
            return int(row.fetchone()[0])

    def settle(self, notes: Sequence[Note]) -> None:
        """The server has these: forget them, unless a newer note came under the key meanwhile."""
        with self._transaction():
            for note in notes:
                self._database.execute(
                    "DELETE FROM pending WHERE target=? AND study=? AND key=? AND digest=?",
                    (*self._where, note.key, note.digest),
                )
                self._database.execute(
                    "INSERT OR REPLACE INTO delivered VALUES (?, ?, ?, ?)", (*self._where, note.key, note.digest)
                )

    def runs(self) -> dict[str, KnownRun]:
        """The runs the server made, by key."""
        with self._transaction():
            rows = self._database.execute(
                "SELECT key, run_id, started_ms FROM runs WHERE target=? AND study=?", self._where
            ).fetchall()
        return {key: KnownRun(run_id=run_id, started_ms=started_ms) for key, run_id, started_ms in rows}

    def keep_run(self, key: str, run: KnownRun) -> None:
        """Remember the run that stands for `key`."""
        with self._transaction():
            self._database.execute(
                "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?)", (*self._where, key, run.run_id, run.started_ms)
            )

    @contextmanager
    def making(self) -> Iterator[None]:
        """Alone among all that send from this outbox, in this process and others, while the block runs.

        A search and `autopeft sync` may send at once. Whoever makes something on the server first looks in here
        whether the other made it, keeps it here, and only then leaves. The driver's own writes are not held up.
        """
        with Path(f"{self._path}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def has_delivered(self, key: str) -> bool:
        """Whether the server was ever told about `key`."""
        with self._transaction():
            return self._delivered(key) is not None

    def forget(self, keys: Iterable[str] | None = None) -> None:
        """The server no longer has the runs of `keys` (None: of any key): everything about them is to be sent anew."""
        with self._transaction():
            for table in ("runs", "delivered"):
                if keys is None:
                    self._database.execute(f"DELETE FROM {table} WHERE target=? AND study=?", self._where)
                    continue
                for key in keys:
                    self._database.execute(
                        f"DELETE FROM {table} WHERE target=? AND study=? AND key=?", (*self._where, key)
                    )

    def close(self) -> None:
        with self._lock:
            self._database.close()


def _dump(content: Json) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
