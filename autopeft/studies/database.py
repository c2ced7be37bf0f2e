"""Opening the database behind a study storage: every way in which a URL can be wrong, said before anything is made."""

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from autopeft.errors import MissingExtraError, NotFoundError, StorageError
from autopeft.search.optuna_log import quiet_optuna

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from sqlalchemy import URL, Engine

BUSY_SECONDS = 60.0
"""How long a reader or writer waits for the other; each holds the file for milliseconds."""
_VERSION = "alembic_version"
_TABLES = frozenset({"studies", "trials", "trial_params", "version_info", _VERSION})
_HEADER = b"SQLite format 3\x00"
_WHY = (
    ("disk is full", "free some space, then run the same command again: finished trials are kept"),
    ("disk I/O error", "check the disk, then run the same command again: finished trials are kept"),
    ("malformed", "restore a backup, or try `sqlite3 FILE .recover`"),
    ("not a database", "restore a backup, or choose another --storage"),
    ("locked", "another program keeps the database busy; close it and run the same command again"),
    ("readonly", "make the file and its folder writable, or choose another --storage"),
    ("unable to open", "check that the folder exists and is writable"),
    ("connect", "check that the server runs and that host, port, user and database are right"),
)


def open_database(url: str, *, create: bool) -> "RDBStorage":
    """The Optuna storage at `url`, its schema checked; made when it is not there and `create` is set.

    Args:
        url: SQLAlchemy URL: `sqlite:///file.db`, `postgresql://user@host/name`.
        create: Open to write, and make what is missing; otherwise nothing is created.

    Raises:
        StorageError: No URL, another program's database, a corrupted or unwritable file, an older or newer schema.
        NotFoundError: Nothing there, and `create` is not set.
        MissingExtraError: The driver of this kind of database is not installed.
    """
    place = parse_url(url)
    name = place.render_as_string(hide_password=True)
    if place.get_backend_name() == "sqlite":
        _check_file(place.database, name, create=create)
    with translated(name):
        fresh = _check_tables(url, name, create=create)
        return _connect(url, fresh=fresh, name=name)


def parse_url(url: str) -> "URL":
    """`url` in its parts.

    Raises:
        StorageError: It is no database URL, or one of a database in memory.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        place = make_url(url)
    except ArgumentError:
        raise StorageError(
            f"storage: got {url!r}; a database URL such as sqlite:///autopeft.db or postgresql://user@host/name",
            hint=f"for a file write sqlite:///{url}",
        ) from None
    if place.get_backend_name() == "sqlite" and place.database in (None, "", ":memory:"):
        raise StorageError(
            f"storage: {url} is a database in memory, which is lost at the end",
            hint="name a file: sqlite:///autopeft.db",
        )
    return place


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Errors of Optuna, SQLAlchemy and SQLite become one StorageError that says what to do."""
    import optuna.exceptions
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError, sqlite3.Error) as error:
        text = str(root_cause(error)).splitlines()[0]
        hint = next((advice for sign, advice in _WHY if sign in text), "run the same command again")
        raise StorageError(f"storage {name}: {text}", hint=hint) from error


def root_cause(error: BaseException) -> BaseException:
    """The first error of the chain that led to `error`."""
    while True:
        below = getattr(error, "orig", None) or error.__cause__
        if below is None:
            return error
        error = below


def swap_study_attr(engine: "Engine", study_id: int, key: str, *, old: object | None, new: object) -> bool:
    """Compare-and-set of one study attribute: atomic on every database, which Optuna's own setter is not.

    Args:
        engine: The database's.
        study_id: Optuna's id of the study.
        key: Full name of the attribute.
        old: The value it must have now; None for an attribute that must not be there.
        new: The value it gets.

    Returns:
        Whether the attribute had the old value and has the new one now.
    """
    from optuna.storages._rdb.models import StudyUserAttributeModel
    from sqlalchemy import insert, select, update
    from sqlalchemy.exc import IntegrityError

    table = StudyUserAttributeModel
    here = (table.study_id == study_id) & (table.key == key)
    text = json.dumps(new)
    with engine.connect() as connection:
        found = connection.execute(select(table.value_json).where(here)).scalar()
    if (None if found is None else json.loads(found)) != old:
        return False
    try:
        with engine.begin() as connection:
            if found is None:
                connection.execute(insert(table).values(study_id=study_id, key=key, value_json=text))
                return True
            return (
                connection.execute(
                    update(table).where(here & (table.value_json == found)).values(value_json=text)
                ).rowcount
                == 1
            )
    except IntegrityError:
        return False


def publish_studies(engine: "Engine", names: Mapping[int, str], *, key: str, value: object) -> None:
    """Rename studies and give each of them an attribute, all in one transaction.

    Args:
        engine: The database's.
        names: New name by Optuna's id of the study.
        key: Full name of the attribute; the studies do not have it yet.
        value: What it becomes, in JSON values.

    Raises:
        StorageError: One of the names is taken; nothing was changed.
    """
    from optuna.storages._rdb.models import StudyModel, StudyUserAttributeModel
    from sqlalchemy import insert, update
    from sqlalchemy.exc import IntegrityError

    try:
        with engine.begin() as connection:
            for study_id, name in names.items():
                connection.execute(update(StudyModel).where(StudyModel.study_id == study_id).values(study_name=name))
                row = {"study_id": study_id, "key": key, "value_json": json.dumps(value)}
                connection.execute(insert(StudyUserAttributeModel).values(**row))
    except IntegrityError:
        taken = ", ".join(repr(name) for name in names.values())
        raise StorageError(f"storage: one of the studies {taken} was made meanwhile", hint="run it again") from None


def _check_file(database: str | None, name: str, *, create: bool) -> None:
    path = Path(database or "")
    if path.is_dir():
        raise StorageError(f"storage {name}: is a folder", hint=f"name a file in it: {name.rstrip('/')}/autopeft.db")
    if not path.parent.is_dir():
        raise StorageError(f"storage {name}: there is no folder {path.parent}", hint=f"mkdir -p {path.parent}")
    if not path.exists() or path.stat().st_size == 0:
        if not create:
            raise NotFoundError(
                f"storage {name}: there is no such file", hint="run `autopeft search` first, or give --storage"
            )
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise StorageError(f"storage {name}: cannot be written", hint="choose another --storage")
        return
    with path.open("rb") as file:
        if file.read(len(_HEADER)) != _HEADER:
            raise StorageError(f"storage {name}: is not an SQLite database", hint="choose another --storage")
    if create and not os.access(path, os.W_OK):
        raise StorageError(f"storage {name}: cannot be written", hint="choose another --storage")


def _check_tables(url: str, name: str, *, create: bool) -> bool:
    """Whether Optuna's tables are still to be made; refuses a database that holds something else."""
    from optuna.storages._rdb.models import BaseModel
    from sqlalchemy import create_engine, inspect

    try:
        engine = create_engine(url)
    except ImportError as error:
        raise MissingExtraError(
            f"storage {name}: the driver {error.name!r} is not installed", hint="pip install 'autopeft[postgresql]'"
        ) from error
    try:
        found = frozenset(inspect(engine).get_table_names())
    finally:
        engine.dispose()
    if found >= _TABLES:
        return False
    # A driver killed while it made the schema leaves a part of the tables: they are completed, not refused.
    if not found <= frozenset(BaseModel.metadata.tables) | {_VERSION}:
        some = ", ".join(sorted(found)[:4]) + (", ..." if len(found) > 4 else "")
        raise StorageError(
            f"storage {name}: is another program's database (its tables: {some})", hint="choose another --storage"
        )
    if not create:
        raise NotFoundError(f"storage {name}: holds no studies", hint="run `autopeft search` first, or give --storage")
    return True


def _connect(url: str, *, fresh: bool, name: str) -> "RDBStorage":
    from optuna.storages import RDBStorage

    is_file = parse_url(url).get_backend_name() == "sqlite"
    # A server that was restarted leaves dead connections in the pool; SQLite only ever needs to wait its turn.
    options = {"connect_args": {"timeout": BUSY_SECONDS}} if is_file else {"pool_pre_ping": True}
    # Optuna fills a template in the URL, so braces of a file name are doubled.
    template = url.replace("{", "{{").replace("}", "}}")
    try:
        with quiet_optuna():
            return RDBStorage(template, engine_kwargs=options, skip_table_creation=not fresh)
    except RuntimeError as error:
        newer = "pip install -U" in str(error)
        hint = "pip install -U optuna" if newer else f"make a copy, then: optuna storage upgrade --storage {name}"
        age = "a newer" if newer else "an older"
        raise StorageError(f"storage {name}: was written by {age} version of Optuna", hint=hint) from error
