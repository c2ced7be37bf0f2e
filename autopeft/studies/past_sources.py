"""Where the studies are that a search begins from: in its own storage, or in files that were exported."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from autopeft.errors import NotFoundError, SpecError, StorageError
from autopeft.search.trial import History, Trial, TrialState
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.suggest import nearest
from autopeft.studies.definition import StudyDefinition
from autopeft.studies.portable import PortableStudy, read_studies
from autopeft.studies.records import RunRecord, TrialRecord
from autopeft.studies.storage import FORMAT, PREFIX, StudyStorage, to_trial

PLACE: Final = "search.from"
_STATES: Final = {"COMPLETE": TrialState.COMPLETED, "PRUNED": TrialState.PRUNED, "FAIL": TrialState.FAILED}


@dataclass(frozen=True, slots=True, kw_only=True)
class PastSource:
    """A study that another one begins from, as it is where it lies."""

    place: str
    """Of the entry that names it: `search.from[0]`."""
    name: str
    definition: StudyDefinition
    history: History

    @property
    def shape(self) -> ModelShape:
        """Its base model.

        Raises:
            SpecError: The storage or file does not say.
        """
        shape = self.definition.space.get("shape")
        if not isinstance(shape, Mapping):
            raise SpecError(f"{self.place}: study {self.name!r} does not say what model it was bound to")
        return ModelShape.from_json(shape)


def find_sources(entries: Sequence[str], *, storage: str) -> tuple[PastSource, ...]:
    """The studies that `entries` of `search.from` name, in order: every study of a file, else the study of the storage.

    Raises:
        SpecError: An entry is neither, its file is not usable, or a study is named twice.
    """
    found: list[PastSource] = []
    with _opened(storage) as there:
        known = [summary.name for summary in there.studies()] if there else []
        for index, entry in enumerate(entries):
            place = f"{PLACE}[{index}]"
            if Path(entry).is_file():
                found += _from_file(place, Path(entry))
            elif there and entry in known:
                stored = there.study(entry)
                found.append(
                    PastSource(place=place, name=entry, definition=stored.definition, history=stored.history())
                )
            else:
                where = there.name if there else storage
                raise SpecError(
                    f"{place}: no study {entry!r} in {where}, and no file of that name; it has"
                    f" {', '.join(known) or 'none'}",
                    hint=nearest(entry, known) or "name a study of the storage, or what `studies --export` wrote",
                )
    names = [source.name for source in found]
    for index, source in enumerate(found):
        if source.name in names[:index]:
            raise SpecError(f"{source.place}: study {source.name!r} is named twice", hint="name each study once")
    return tuple(found)


@contextmanager
def _opened(storage: str) -> Iterator[StudyStorage | None]:
    """The storage; None where there is none yet, which a search that begins from files needs not have."""
    try:
        there = StudyStorage.open(storage)
    except NotFoundError:
        yield None
        return
    with there:
        yield there


def _from_file(place: str, path: Path) -> list[PastSource]:
    """The studies in a file; those that only serve another (its confirmations) are left out."""
    try:
        studies = [study for study in read_studies(path) if "/" not in study.name]
        if not studies:
            raise SpecError(f"{place}: {path} holds no study")
        return [_source(place, path, study) for study in studies]
    except StorageError as error:
        message = error.message.replace("; nothing was imported", "")
        raise SpecError(f"{place}: {message}", hint=error.hint) from None


def _source(place: str, path: Path, study: PortableStudy) -> PastSource:
    try:
        if study.attrs["format"] > FORMAT:
            raise StorageError(
                f"{path}: study {study.name!r} was written by a newer AutoPEFT", hint="pip install -U autopeft"
            )
        definition = StudyDefinition.from_attrs(study.attrs)
        trials = tuple(_trials(study))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{path}: study {study.name!r} is damaged", hint="export it again") from None
    return PastSource(place=place, name=study.name, definition=definition, history=History(trials=trials))


def _trials(study: PortableStudy) -> Iterator[Trial]:
    for number, row in enumerate(study.trials):
        if f"{PREFIX}trial" in row["attrs"]:
            record = TrialRecord.from_json(row["attrs"][f"{PREFIX}trial"])
            run = RunRecord.from_json(row["attrs"][f"{PREFIX}run"])
            yield to_trial(number, _STATES.get(row["state"], TrialState.RUNNING), record, run)
