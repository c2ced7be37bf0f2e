"""A library of studies: finished work leaves one storage as a file and enters another, where searches begin from it."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.errors import InputError, NotFoundError, SpecError, StorageError
from autopeft.search.optuna_log import quiet_optuna
from autopeft.studies.confirmation import SERVED
from autopeft.studies.database import publish_studies, translated
from autopeft.studies.definition import StudyDefinition
from autopeft.studies.load import to_spec
from autopeft.studies.portable import PortableStudy, read_studies, write_studies
from autopeft.studies.records import RunRecord, TrialRecord
from autopeft.studies.storage import FORMAT, PREFIX, StudyStorage
from autopeft.studies.study import DEFAULT_STORAGE
from autopeft.studies.yaml_file import Document

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

LOCAL_ATTRS = ("driver",)
"""What a storage keeps of a study for its own machine alone: who drives it now."""
_FORMAT = "format"


def export_studies(names: Sequence[str], out: str | Path, *, storage: str = DEFAULT_STORAGE) -> Path:
    """Write studies with all they know, confirmations too, into one new file; trained weights stay where they are.

    The address of a tracking server is left out: it may hold a password, and it is nobody else's.

    Args:
        names: Studies of the storage.
        out: The file to make; it appears whole or not at all.
        storage: Where the studies are.

    Returns:
        The file.

    Raises:
        SpecError: No study is named, or one twice.
        NotFoundError: No such study or storage.
        StorageError: The file exists or cannot be written.
    """
    if not names:
        raise SpecError("--export: no study is named", hint="autopeft studies --export STUDY --out FILE")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise SpecError(f"--export: {', '.join(twice)} is named twice", hint="name each study once")
    with StudyStorage.open(storage) as there:
        found = [_read(there, name) for chosen in names for name in (chosen, *_serving(there, chosen))]
    path = Path(out)
    write_studies(path, found)
    return path


def import_studies(file: str | Path, *, storage: str = DEFAULT_STORAGE) -> tuple[str, ...]:
    """Take every study of a file that `export_studies` wrote into a storage, all of them or none.

    Args:
        file: The file.
        storage: Where they go; made when it is not there.

    Returns:
        The names of the studies.

    Raises:
        StorageError: No such file, not one of ours, truncated or damaged, of a newer version, or with a study whose
            name the storage has; nothing was written.
    """
    path = Path(file)
    studies = read_studies(path)
    for study in studies:
        _check(path, study)
    _check_names(studies, storage)
    with StudyStorage.open(storage, create=True) as there:
        _write(there, studies)
    return tuple(study.name for study in studies if "/" not in study.name)


def _serving(storage: StudyStorage, name: str) -> list[str]:
    """The studies that only serve the one called `name`: its confirmations and baselines."""
    return sorted(other for other in storage.names() if other.startswith(f"{name}/"))


def _read(storage: StudyStorage, name: str) -> PortableStudy:
    stored = storage.study(name)
    with translated(storage.name):
        attrs = storage.database.get_study_user_attrs(stored.study_id)
        frozen = storage.database.get_all_trials(stored.study_id, deepcopy=False)
    ours = {key.removeprefix(PREFIX): value for key, value in attrs.items() if key.startswith(PREFIX)}
    kept = {key: value for key, value in ours.items() if key not in LOCAL_ATTRS}
    kept["spec"] = {**kept["spec"], "tracking": {"mlflow": None}}
    return PortableStudy(name=name, attrs=kept, trials=tuple(_trial_json(trial) for trial in frozen))


def _trial_json(trial: "FrozenTrial") -> dict[str, object]:
    from optuna.distributions import distribution_to_json

    return {
        "state": trial.state.name,
        "values": trial.values,
        "params": trial.params,
        "distributions": {name: distribution_to_json(domain) for name, domain in trial.distributions.items()},
        "attrs": trial.user_attrs,
        "began": trial.datetime_start and trial.datetime_start.timestamp(),
        "ended": trial.datetime_complete and trial.datetime_complete.timestamp(),
    }


def _check(path: Path, study: PortableStudy) -> None:
    """That this version reads all of `study`, before any of it is written.

    Raises:
        StorageError: It is damaged, or written by a newer version.
    """
    place = f"{path}: study {study.name!r}"
    try:
        if study.attrs[_FORMAT] > FORMAT:
            raise StorageError(f"{place} was written by a newer AutoPEFT", hint="pip install -U autopeft")
        definition = StudyDefinition.from_attrs(study.attrs)
        to_spec(Document(data=_as_file(definition), source=place), folder=None)  # type: ignore[arg-type]  # plain JSON
        for row in study.trials:
            _frozen(row)
            if f"{PREFIX}trial" in row["attrs"]:  # Optuna's own tools may have added trials that are not ours
                TrialRecord.from_json(row["attrs"][f"{PREFIX}trial"])
                RunRecord.from_json(row["attrs"][f"{PREFIX}run"])
    except InputError as error:
        hint = error.hint or "pip install -U autopeft"
        raise StorageError(f"{path}: {error.message.removeprefix(f'{path}: ')}", hint=hint) from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise StorageError(f"{place}: is damaged; nothing was imported", hint="export it again") from None


def _as_file(definition: StudyDefinition) -> dict[str, object]:
    """What a study file would say: one that only serves another says which, and has a name that no file may have."""
    data = dict(definition.spec)
    return data | {"study": data.pop(SERVED)} if SERVED in data else data


def _check_names(studies: Sequence[PortableStudy], storage: str) -> None:
    try:
        with StudyStorage.open(storage) as there, translated(there.name):
            known = {study.study_name for study in there.database.get_all_studies()}
            taken = [study.name for study in studies if study.name in known]
            taken = [name for name in taken if "/" not in name] or taken
            if taken:
                raise StorageError(
                    f"storage {there.name}: has a study {', '.join(map(repr, taken))} already; nothing was imported",
                    hint="import into another one: --storage sqlite:///FILE.db",
                )
    except NotFoundError:
        return


def _write(storage: StudyStorage, studies: Sequence[PortableStudy]) -> None:
    """Write under names that nobody sees, then give all of them theirs at once."""
    made: dict[int, str] = {}
    with quiet_optuna(), translated(storage.name), _undone(storage, made):
        for study in studies:
            definition = StudyDefinition.from_attrs(study.attrs)
            hidden = f"{PREFIX}importing:{secrets.token_hex(8)}"
            study_id = storage.begin(hidden, definition)
            made[study_id] = study.name
            for key, value in study.attrs.items():
                if key != _FORMAT:
                    storage.database.set_study_user_attr(study_id, PREFIX + key, value)
            for row in study.trials:
                storage.database.create_new_trial(study_id, _frozen(row))
        publish_studies(storage.database.engine, made, key=PREFIX + _FORMAT, value=FORMAT)


@contextmanager
def _undone(storage: StudyStorage, made: Mapping[int, str]) -> Iterator[None]:
    """Whatever ends the block early takes what was written with it."""
    try:
        yield
    except BaseException:
        for study_id in made:
            storage.database.delete_study(study_id)
        raise


def _frozen(row: Mapping[str, Any]) -> "FrozenTrial":
    from optuna.distributions import json_to_distribution
    from optuna.trial import FrozenTrial
    from optuna.trial import TrialState as OptunaState

    began, ended = (row[key] and datetime.fromtimestamp(row[key]) for key in ("began", "ended"))
    trial = FrozenTrial(
        number=-1,
        state=OptunaState[row["state"]],
        value=None,
        values=row["values"],
        datetime_start=began,
        datetime_complete=ended,
        params=row["params"],
        distributions={name: json_to_distribution(text) for name, text in row["distributions"].items()},
        user_attrs=row["attrs"],
        system_attrs={},
        intermediate_values={},
        trial_id=-1,
    )
    trial._validate()
    return trial
