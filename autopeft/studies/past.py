"""Studies that a search begins from, carried into its space and onto its model.

They are looked up when a study is begun and kept with it, so that resuming asks its own storage: a source may grow,
change or vanish.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np

from autopeft.errors import NotFoundError, SpecError
from autopeft.objectives.objective import Knowledge, Objective
from autopeft.search.belief import ordered
from autopeft.search.past_study import PastStudy
from autopeft.search.source_model import MIN_ROWS
from autopeft.spaces.canonical import read_configuration
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.space import SearchSpace
from autopeft.spaces.translate import translate
from autopeft.studies.past_sources import PLACE, PastSource, find_sources
from autopeft.studies.spec import StudySpec
from autopeft.studies.storage import StoredStudy, StudyStorage

KEY: Final = "past"
"""Where a study keeps them, and where its definition keeps their names."""
ENGINE: Final = "bayesian"
"""The one engine that learns from other studies."""
_NOTES: Final = 6
"""Guesses that are kept of each source, the commonest ones."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedStudy:
    """A past study in the terms of this one, and how much of that is a guess."""

    past: PastStudy
    trials: int
    """Of the source, finished ones."""
    exact: int
    """Rows of `past` that are the same configurations there and here."""
    guesses: Mapping[str, int]
    """What was changed on the way, the commonest first, by how many rows it concerns."""

    @property
    def name(self) -> str:
        return self.past.name

    def __str__(self) -> str:
        """How much of it there is here, and what of that is a guess."""
        n = len(self.past.configurations)
        text = f"{self.name}, {n} of its {self.trials} trials"
        if self.exact == n:
            return f"{text}, all of them the same configurations"
        guesses = "; ".join(f"{note} ({count})" for note, count in self.guesses.items())
        return f"{text}, {self.exact} the same configurations and {n - self.exact} guesses: {guesses}"

    def to_json(self) -> dict[str, object]:
        """Without its rows."""
        return {
            "study": self.name,
            "trials": self.trials,
            "carried": len(self.past.configurations),
            "exact": self.exact,
            "guesses": dict(self.guesses),
        }

    def _kept(self) -> dict[str, object]:
        past = self.past
        rows = [
            {
                "configuration": one.to_json(),
                "loss": float(loss),
                "costs": [None if np.isnan(cost) else float(cost) for cost in costs],
                "observed": observed,
            }
            for one, loss, costs, observed in zip(
                past.configurations, past.losses, past.costs, past.observed, strict=True
            )
        ]
        return {**self.to_json(), "rows": rows}

    @classmethod
    def _read(cls, data: Mapping[str, Any]) -> "CarriedStudy":
        rows = data["rows"]
        past = PastStudy(
            name=data["study"],
            configurations=tuple(read_configuration(row["configuration"]) for row in rows),
            losses=np.array([row["loss"] for row in rows], dtype=float),
            costs=np.array([row["costs"] for row in rows], dtype=float),
            observed=tuple(row["observed"] for row in rows),
        )
        return cls(past=past, trials=data["trials"], exact=data["exact"], guesses=data["guesses"])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """All that a study begins from."""

    asked: tuple[str, ...] = ()
    """The entries of `search.from`."""
    studies: tuple[CarriedStudy, ...] = ()

    @property
    def rows(self) -> tuple[PastStudy, ...]:
        """What a searcher sees."""
        return tuple(study.past for study in self.studies)

    @property
    def identity(self) -> dict[str, object]:
        """What the study's definition holds of it; nothing where there is none."""
        return {KEY: [study.name for study in self.studies]} if self.studies else {}

    def keep(self, study: StoredStudy) -> None:
        """Write it with `study`, once."""
        if self.studies and study.get_attr(KEY) is None:
            study.set_attr(KEY, {"asked": list(self.asked), "studies": [one._kept() for one in self.studies]})


def find_past(spec: StudySpec, space: SearchSpace, *, storage: str) -> Past:
    """What `spec` asks to begin from: as the study has kept it, else as the sources are now.

    Args:
        spec: The study.
        space: Its space, bound to its model.
        storage: Where this study is, and where sources are looked for.

    Raises:
        SpecError: Another engine than the one that uses them, a source that is not there or not usable, or one that has
            nothing in common with the study.
    """
    asked = spec.search.past
    if not asked:
        return Past()
    if spec.search.engine != ENGINE:
        raise SpecError(
            f"{PLACE}: got engine {spec.search.engine}, which learns nothing from other studies",
            hint=f"use search.engine: {ENGINE}, or leave from out",
        )
    learned, *others = ordered(spec.objectives)
    if learned.knowledge is not Knowledge.LEARNED:
        raise SpecError(
            f"{PLACE}: the objectives of this study are known before training, there is nothing to learn from others",
            hint="leave from out",
        )
    kept = _kept(spec, storage=storage)
    if kept is not None and kept.asked == asked:
        return kept
    sources = find_sources(asked, storage=storage)
    if kept is not None and [study.name for study in kept.studies] == [source.name for source in sources]:
        return kept
    return Past(asked=asked, studies=tuple(_carried(source, space, learned, others) for source in sources))


def _kept(spec: StudySpec, *, storage: str) -> Past | None:
    try:
        with StudyStorage.open(storage) as there:
            if spec.study not in there.names():
                return None
            data = there.study(spec.study).get_attr(KEY)
    except NotFoundError:
        return None
    if not isinstance(data, Mapping):
        return None
    return Past(asked=tuple(data["asked"]), studies=tuple(CarriedStudy._read(row) for row in data["studies"]))


def _carried(source: PastSource, space: SearchSpace, learned: Objective, others: Sequence[Objective]) -> CarriedStudy:
    _check_measured(source, learned)
    found: dict[Configuration, Configuration] = {}
    notes: Counter[str] = Counter()
    lost, exact = "", set[Configuration]()
    for trial in source.history:
        if trial.configuration in found or not trial.state.finished:
            continue
        told = translate(trial.configuration, source=source.shape, target=space)
        if told.configuration is None or not _alike(trial.configuration, told.configuration):
            lost = lost or next(iter(told.notes), "")
            continue
        found[trial.configuration] = told.configuration
        notes.update(dict.fromkeys(told.notes, 1))
        if told.exact:
            exact.add(trial.configuration)
    past = PastStudy.of(source.name, source.history, found, space=space, learned=learned, others=others)
    _check_enough(source, past, lost)
    return CarriedStudy(
        past=past,
        trials=sum(trial.state.finished for trial in source.history),
        exact=sum(one in exact for one in past.configurations),
        guesses=dict(notes.most_common(_NOTES)),
    )


def _alike(there: Configuration, here: Configuration) -> bool:
    """Whether any method of the one is in the other."""
    return bool({setting.method for setting in there} & {setting.method for setting in here})


def _check_measured(source: PastSource, learned: Objective) -> None:
    """Refuse a source that did not measure what this study learns, or the other way round."""
    theirs = {objective.name: objective for objective in source.definition.objectives}
    completed = source.history.completed
    if not completed:
        raise SpecError(
            f"{source.place}: none of the {len(source.history)} trials of study {source.name!r} completed",
            hint="leave it out",
        )
    measured = any(learned.name in trial.final.metrics for trial in completed if trial.final is not None)
    if learned.name not in theirs and not measured:
        raise SpecError(
            f"{source.place}: study {source.name!r} measured {', '.join(theirs)}; this one learns {learned.name}",
            hint="begin from studies of the same metric",
        )
    if learned.name in theirs and theirs[learned.name].direction is not learned.direction:
        raise SpecError(
            f"{source.place}: study {source.name!r} has {learned.name} to {theirs[learned.name].direction.value}, this"
            f" one to {learned.direction.value}"
        )


def _check_enough(source: PastSource, past: PastStudy, lost: str) -> None:
    """Refuse a source of which too little can be had."""
    n = len(past.configurations)
    if not n:
        why = f": {lost}" if lost else ""
        raise SpecError(
            f"{source.place}: nothing of study {source.name!r} can be had in this space{why}",
            hint="begin from studies with a method of this space",
        )
    if n < MIN_ROWS:
        raise SpecError(
            f"{source.place}: {n} trials of study {source.name!r} say something here, {MIN_ROWS} are needed",
            hint="leave it out",
        )
    if len(set(past.configurations)) == 1:
        raise SpecError(
            f"{source.place}: all {n} trials of study {source.name!r} are one configuration here, no dimension is"
            " shared",
            hint="begin from studies that searched a dimension of this space",
        )
