"""The trainings of a confirmation as the runner and an executor see them: listed beforehand, seeded alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from autopeft.search.searcher import AbstractSearcher
from autopeft.search.trial import History
from autopeft.spaces.canonical import read_configuration
from autopeft.spaces.configuration import Configuration
from autopeft.studies.executor import AbstractTrialSource, Assignment, WorkerLost
from autopeft.studies.storage import StoredStudy
from autopeft.trainers.job import Report

_KEY = "entries"
_STREAM = 0xC0F1
"""Keeps the seeds of confirmations apart from those of trials."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One training of a confirmation; the trial with this entry's place in the list."""

    configuration: Configuration
    seed: int
    """Which of the confirmation's seeds, from 0."""

    def to_json(self) -> dict[str, object]:
        return {"configuration": self.configuration.to_json(), "seed": self.seed}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> "Entry":
        return cls(configuration=read_configuration(data["configuration"]), seed=data["seed"])  # type: ignore[arg-type]  # written by to_json


def seed_of(study_seed: int, index: int) -> int:
    """The seed number `index` of every confirmation of a study: no trial's, and the same for all configurations."""
    return int(np.random.SeedSequence([study_seed, _STREAM], spawn_key=(index,)).generate_state(1)[0])


def read_entries(study: StoredStudy) -> list[Entry]:
    """The trainings listed so far, in the order of their trial numbers."""
    rows = study.get_attr(_KEY)
    return [Entry.from_json(row) for row in rows] if isinstance(rows, list) else []


def extend_entries(study: StoredStudy, configurations: Sequence[Configuration], *, seeds: int) -> list[Entry]:
    """The list with what it lacks of every configuration's seeds; those listed before keep their places.

    Seed by seed, so that what is there after an interruption can be compared.
    """
    entries = read_entries(study)
    known = {(entry.configuration.id, entry.seed) for entry in entries}
    for seed in range(seeds):
        for one in configurations:
            if (one.id, seed) not in known:
                known.add((one.id, seed))
                entries.append(Entry(configuration=one, seed=seed))
    study.set_attr(_KEY, [entry.to_json() for entry in entries])
    return entries


@final
class ListedSearcher(AbstractSearcher):
    """Proposes what is listed, one entry a trial; unlike a search it may propose a configuration again."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = tuple(entries)

    def ask(self, history: History, n: int) -> Sequence[Configuration]:
        """The next entries; none after the last."""
        return [entry.configuration for entry in self._entries[len(history) : len(history) + n]]


@final
class HeldOutSource(AbstractTrialSource):
    """A runner whose jobs take the confirmation's seeds, score the held-out split and keep no adapters."""

    def __init__(self, runner: AbstractTrialSource, entries: Sequence[Entry], *, study_seed: int) -> None:
        self._runner, self._entries, self._seed = runner, tuple(entries), study_seed
        self._given: dict[int, tuple[Assignment, Assignment]] = {}

    def propose(self, n: int, *, beside: Sequence[Assignment] = (), more: int = 0) -> list[Assignment]:
        """The runner's proposals as a confirmation trains them."""
        handed: list[Assignment] = []
        for assignment in self._runner.propose(n, beside=beside, more=more):
            seeds = tuple(seed_of(self._seed, self._entries[number].seed) for number in assignment.numbers)
            job = replace(assignment.job, seeds=seeds, evaluate_test=True, output_dirs=())
            ours = replace(assignment, job=job)
            self._given |= dict.fromkeys(assignment.numbers, (ours, assignment))
            handed.append(ours)
        return handed

    def record(self, assignment: Assignment, event: Report | WorkerLost) -> bool:
        """Tell the runner, which knows its own proposal; one that was replaced since is nobody's."""
        ours, theirs = self._given[assignment.numbers[0]]
        return self._runner.record(theirs, event) if ours is assignment else False
