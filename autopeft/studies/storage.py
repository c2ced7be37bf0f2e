"""The study storage: an Optuna database that holds everything a study knows. It is the truth; all else can be rebuilt.

A study is an Optuna study and a trial an Optuna trial (parameters: the active dimensions; values: the objectives in
their order), so that Optuna's plots and dashboard work on it unchanged. What Optuna has no place for is JSON in user
attributes whose names start with `autopeft:`. One driver writes a study at a time (see lock.py); anybody may read.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from autopeft.errors import NotFoundError, StorageError
from autopeft.objectives.objective import Objective
from autopeft.search.optuna_log import quiet_optuna
from autopeft.search.trial import History, Trial, TrialState
from autopeft.spaces.space import SearchSpace
from autopeft.studies.database import open_database, parse_url, swap_study_attr, translated
from autopeft.studies.definition import HARMLESS, StudyDefinition
from autopeft.studies.records import RunRecord, TrialRecord, optuna_parameters, plain

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.study import StudyDirection
    from optuna.study._frozen import FrozenStudy
    from optuna.trial import FrozenTrial
    from optuna.trial import TrialState as OptunaState

FORMAT = 1
"""Version of what the attributes hold; raised when an older AutoPEFT could no longer read it."""
PREFIX = "autopeft:"
_TRIAL, _RUN = PREFIX + "trial", PREFIX + "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySummary:
    """One line of `autopeft studies`."""

    name: str
    objectives: tuple[Objective, ...]
    trials: Mapping[TrialState, int]
    """How many in each state; every state has an entry."""


class StudyStorage:
    """The studies of one database. Open with `StudyStorage.open`, close when done (or use as a context manager)."""

    def __init__(self, database: "RDBStorage", *, name: str) -> None:
        self.database = database
        self.name = name
        """The URL, without its password."""

    @classmethod
    def open(cls, url: str, *, create: bool = False) -> "StudyStorage":
        """The storage at `url`; with `create` it is made when it is not there, otherwise nothing is written.

        Raises:
            StorageError: No URL, another program's database, a corrupted or unwritable file, another schema version.
            NotFoundError: Nothing there, and `create` is not set.
            MissingExtraError: The database's driver is not installed.
        """
        name = parse_url(url).render_as_string(hide_password=True)
        return cls(open_database(url, create=create), name=name)

    def close(self) -> None:
        self.database.remove_session()
        self.database.engine.dispose()

    def __enter__(self) -> "StudyStorage":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def studies(self) -> tuple[StudySummary, ...]:
        """Every AutoPEFT study, oldest first; those that only serve another (`NAME/...`) are not among them."""
        with translated(self.name):
            rows = [study for study in self._ours() if "/" not in study.study_name]
            return tuple(self._summary(study) for study in rows)

    def names(self) -> frozenset[str]:
        """Names of all AutoPEFT studies, those that serve another among them."""
        with translated(self.name):
            return frozenset(study.study_name for study in self._ours())

    def _ours(self) -> "list[FrozenStudy]":
        return [study for study in self.database.get_all_studies() if PREFIX + "format" in study.user_attrs]

    def study(self, name: str) -> "StoredStudy":
        """The study called `name`.

        Raises:
            NotFoundError: There is none; names those there are.
            StorageError: It was made by another program, or by a newer version of this one.
        """
        found = self._find(name)
        if found is None or (PREFIX + "format" not in found.user_attrs and not self._has_trials(found)):
            names = [summary.name for summary in self.studies()]
            raise NotFoundError(
                f"storage {self.name}: no study {name!r}; it has {', '.join(names) or 'none'}",
                hint="`autopeft studies` lists them" if names else "run `autopeft search` first",
            )
        self._check_format(found)
        return StoredStudy(
            self, study_id=found._study_id, name=name, definition=StudyDefinition.from_attrs(_ours(found.user_attrs))
        )

    def create(self, name: str, definition: StudyDefinition, *, harmless: Sequence[str] = HARMLESS) -> "StoredStudy":
        """The study called `name`, made if it is not there.

        A study that is there must have this definition, up to the fields `harmless` names (dotted paths), whose new
        values are stored.

        Raises:
            StorageError: The study there has another definition (the differences are listed) or is not ours.
        """
        found = self._find(name)
        with translated(self.name), quiet_optuna():
            if found is None:
                study_id = self.begin(name, definition)
            elif PREFIX + "format" not in found.user_attrs and not self._has_trials(found):
                study_id = found._study_id
            else:
                self._check_format(found)
                self._check_same(name, StudyDefinition.from_attrs(_ours(found.user_attrs)), definition, harmless)
                study_id = found._study_id
            self._write_definition(study_id, definition)
        return StoredStudy(self, study_id=study_id, name=name, definition=definition)

    def begin(self, name: str, definition: StudyDefinition) -> int:
        """Optuna's id of a new study with nothing of ours in it yet; nobody sees it before it has its format."""
        study_id = self.database.create_new_study(_directions(definition.objectives), name)
        names = [objective.name for objective in definition.objectives]
        self.database.set_study_system_attr(study_id, "study:metric_names", names)
        return study_id

    def _find(self, name: str) -> "FrozenStudy | None":
        with translated(self.name):
            return next((study for study in self.database.get_all_studies() if study.study_name == name), None)

    def _has_trials(self, study: "FrozenStudy") -> bool:
        with translated(self.name):
            return self.database.get_n_trials(study._study_id) > 0

    def _summary(self, study: "FrozenStudy") -> StudySummary:
        from optuna.trial import TrialState as OptunaState

        counts = {state: self.database.get_n_trials(study._study_id, _optuna_state(state)) for state in TrialState}
        counts[TrialState.PRUNED] += self.database.get_n_trials(study._study_id, OptunaState.WAITING)
        definition = StudyDefinition.from_attrs(_ours(study.user_attrs))
        return StudySummary(name=study.study_name, objectives=definition.objectives, trials=counts)

    def _check_format(self, study: "FrozenStudy") -> None:
        version = study.user_attrs.get(PREFIX + "format")
        if version is None:
            raise StorageError(
                f"storage {self.name}: study {study.study_name!r} was made by another program with Optuna",
                hint="use another study name or another --storage",
            )
        if version > FORMAT:
            raise StorageError(
                f"storage {self.name}: study {study.study_name!r} was written by a newer AutoPEFT"
                f" (format {version}, this one reads {FORMAT})",
                hint="pip install -U autopeft",
            )

    def _check_same(self, name: str, there: StudyDefinition, here: StudyDefinition, harmless: Sequence[str]) -> None:
        found = there.differences(here, harmless=harmless)
        if found:
            more = f"; and {len(found) - 6} more" if len(found) > 6 else ""
            raise StorageError(
                f"storage {self.name}: study {name!r} exists with a different definition: {'; '.join(found[:6])}{more}",
                hint="give this study another name, or put the old values back to resume that one",
            )

    def _write_definition(self, study_id: int, definition: StudyDefinition) -> None:
        there = self.database.get_study_user_attrs(study_id)
        # The format goes last: a study without it was killed while being made, and is made again.
        for key, value in (definition.to_attrs() | {"format": FORMAT}).items():
            if there.get(PREFIX + key) != plain(value):
                self.database.set_study_user_attr(study_id, PREFIX + key, value)


class StoredStudy:
    """One study in a storage. Trial numbers count from 0; finished trials never change."""

    def __init__(self, storage: StudyStorage, *, study_id: int, name: str, definition: StudyDefinition) -> None:
        self.storage = storage
        self.study_id = study_id
        self.name = name
        self.definition = definition
        self._ids: dict[int, int] = {}

    @property
    def objectives(self) -> tuple[Objective, ...]:
        return self.definition.objectives

    def history(self) -> History:
        """Every trial, by number."""
        rows = [(row, *_records(row)) for row in self._frozen()]
        return History(trials=tuple(to_trial(row.number, _our_state(row, run), of, run) for row, of, run in rows))

    def runs(self) -> dict[int, tuple[TrialRecord, RunRecord]]:
        """What is stored of every trial, by number."""
        return {frozen.number: _records(frozen) for frozen in self._frozen()}

    def start(self, space: SearchSpace, trials: Sequence[TrialRecord]) -> list[int]:
        """Write new running trials, each in one transaction; their numbers, in order."""
        from optuna.trial import FrozenTrial
        from optuna.trial import TrialState as OptunaState

        numbers: list[int] = []
        for record in trials:
            values, distributions = optuna_parameters(space, record.configuration)
            template = FrozenTrial(
                number=-1,
                state=OptunaState.RUNNING,
                value=None,
                datetime_start=datetime.now(),
                datetime_complete=None,
                params=values,
                distributions=distributions,
                user_attrs={_TRIAL: record.to_json(), _RUN: RunRecord(started=time.time()).to_json()},
                system_attrs={},
                intermediate_values={},
                trial_id=-1,
            )
            with translated(self.storage.name):
                trial_id = self._database.create_new_trial(self.study_id, template)
                number = self._database.get_trial_number_from_id(trial_id)
            self._ids[number] = trial_id
            numbers.append(number)
        return numbers

    def save(self, number: int, run: RunRecord) -> None:
        """Replace what is known of a running trial's latest attempt, in one transaction.

        Raises:
            StorageError: The trial is finished.
        """
        with self._writing(number) as trial_id:
            self._database.set_trial_user_attr(trial_id, _RUN, run.to_json())

    def pause(self, number: int, run: RunRecord) -> None:
        """Stop a running trial that may go on; it counts as pruned, and Optuna shows it as waiting.

        Raises:
            StorageError: The trial is finished.
        """
        self._put(number, run, "WAITING")

    def resume(self, number: int, run: RunRecord) -> None:
        """Let a trial that was paused run on.

        Raises:
            StorageError: The trial is finished.
        """
        self._put(number, run, "RUNNING")

    def _put(self, number: int, run: RunRecord, state: str) -> None:
        from optuna.trial import TrialState as OptunaState

        with self._writing(number) as trial_id:
            self._database.set_trial_user_attr(trial_id, _RUN, run.to_json())
            self._database.set_trial_state_values(trial_id, OptunaState[state])

    def finish(self, number: int, state: TrialState, run: RunRecord) -> None:
        """End a running trial: its record, its objective values (when completed) and its state, durable on return.

        Raises:
            StorageError: The trial is finished already.
        """
        values = None
        if state is TrialState.COMPLETED:
            values = [run.measurements[-1].value(objective.name) for objective in self.objectives]
        with self._writing(number) as trial_id:
            self._database.set_trial_user_attr(trial_id, _RUN, run.to_json())
            self._database.set_trial_state_values(trial_id, _optuna_state(state), values)

    def delete(self) -> None:
        """Remove the study and its trials: for one that could not begin."""
        with translated(self.storage.name):
            self._database.delete_study(self.study_id)

    def get_attr(self, key: str) -> object | None:
        """The JSON value kept under `key` for this study, None when there is none."""
        with translated(self.storage.name):
            return self._database.get_study_user_attrs(self.study_id).get(PREFIX + key)

    def set_attr(self, key: str, value: object) -> None:
        """Keep a JSON value under `key` for this study (outbox, run ids, confirmations)."""
        with translated(self.storage.name):
            self._database.set_study_user_attr(self.study_id, PREFIX + key, plain(value))

    def swap_attr(self, key: str, old: object | None, new: object) -> bool:
        """Set `key` to `new` if it still is `old` (None: not there), atomically among all processes; whether it was."""
        with translated(self.storage.name):
            return swap_study_attr(self._database.engine, self.study_id, PREFIX + key, old=old, new=new)

    @property
    def _database(self) -> "RDBStorage":
        return self.storage.database

    def _frozen(self) -> "list[FrozenTrial]":
        with translated(self.storage.name):
            frozen = self._database.get_all_trials(self.study_id, deepcopy=False)
        ours = [trial for trial in frozen if _TRIAL in trial.user_attrs]
        self._ids.update({trial.number: trial._trial_id for trial in ours})
        return sorted(ours, key=lambda trial: trial.number)

    @contextmanager
    def _writing(self, number: int) -> Iterator[int]:
        from optuna.exceptions import UpdateFinishedTrialError

        if number not in self._ids:
            self._frozen()
        if number not in self._ids:
            raise NotFoundError(f"study {self.name}: no trial {number}", hint=f"autopeft trials {self.name}")
        try:
            with translated(self.storage.name):
                yield self._ids[number]
        except UpdateFinishedTrialError as error:
            raise StorageError(
                f"study {self.name}: trial {number} is finished, and finished trials never change",
                hint="is another driver running this study?",
            ) from error


def to_trial(number: int, state: TrialState, record: TrialRecord, run: RunRecord) -> Trial:
    """What a searcher sees of the trial that `record` and `run` describe."""
    return Trial(
        number=number,
        configuration=record.configuration,
        state=state,
        measurements=run.measurements,
        predicted=record.predicted,
        failure=run.failure if state is TrialState.FAILED else None,
        pruning=run.pruning if state is TrialState.PRUNED else None,
        resumed=run.resumed,
        seconds=run.seconds,
    )


def _records(frozen: "FrozenTrial") -> tuple[TrialRecord, RunRecord]:
    return TrialRecord.from_json(frozen.user_attrs[_TRIAL]), RunRecord.from_json(frozen.user_attrs[_RUN])


def _our_state(frozen: "FrozenTrial", run: RunRecord) -> TrialState:
    """A trial that was stopped and may go on waits in Optuna, where finished trials never change."""
    if frozen.state.name in ("RUNNING", "WAITING"):
        return TrialState.RUNNING if run.pruning is None else TrialState.PRUNED
    return TrialState({"COMPLETE": "completed", "FAIL": "failed"}.get(frozen.state.name, frozen.state.name.lower()))


def _optuna_state(state: TrialState) -> "OptunaState":
    from optuna.trial import TrialState as OptunaState

    names = {TrialState.COMPLETED: "COMPLETE", TrialState.FAILED: "FAIL"}
    return OptunaState[names.get(state, state.name)]


def _directions(objectives: Sequence[Objective]) -> "list[StudyDirection]":
    from optuna.study import StudyDirection

    return [StudyDirection[objective.direction.name] for objective in objectives]


def _ours(attrs: Mapping[str, object]) -> dict[str, object]:
    return {key.removeprefix(PREFIX): value for key, value in attrs.items() if key.startswith(PREFIX)}
