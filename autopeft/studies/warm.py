"""A search of a new task that began from a finished study: what it found, and what the source was worth to it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

from rich.console import Group, RenderableType
from rich.text import Text

from autopeft.search.belief import Belief
from autopeft.search.initial_design import FROM_SOURCES
from autopeft.search.searcher import SearchProblem
from autopeft.search.source_model import source_models
from autopeft.search.surrogate import SurrogateError, one_thread
from autopeft.search.trial import History
from autopeft.search.warm_design import begun_from
from autopeft.search.warm_start import WarmProcess
from autopeft.spaces.model_shape import ModelShape
from autopeft.studies.charts import Confirmed
from autopeft.studies.past import CarriedStudy
from autopeft.studies.replay_table import cost_line, verdict
from autopeft.studies.tables import front_table
from autopeft.studies.transferred import AbstractTransfer


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WarmSearch(AbstractTransfer):
    """A search begun from another study."""

    MODE = "warm"
    SHARE = "warm"

    past: tuple[CarriedStudy, ...]
    """What it began from, and how much of that is a guess."""
    begun: tuple[int, ...]
    """Its first trials, which are what the sources expected most of."""
    share: float | None
    """Of what it believed in the end, how much knows the sources; None where too few trials completed to tell."""
    confirmed: Confirmed
    """Scores of further seeds on the held-out split, by trial; those that were confirmed after the search."""

    def own_json(self) -> dict[str, object]:
        return {
            "from": [study.to_json() for study in self.past],
            "begun": list(self.begun),
            "share": self.share,
            "confirmed": {str(trial): dict(scores) for trial, scores in self.confirmed.items()},
        }


def worth(problem: SearchProblem, history: History) -> tuple[tuple[int, ...], float | None]:
    """`WarmSearch.begun` and `WarmSearch.share` of a study that was searched for `problem`."""
    with one_thread():
        sources = source_models(problem.past, problem.space, seed=problem.seed)
        chosen = set(begun_from(problem, sources, n=FROM_SOURCES))
        begun = [trial.number for trial in history.trials[:FROM_SOURCES] if trial.configuration in chosen]
        try:
            process = Belief.of(problem, history, sources=sources).process
        except SurrogateError:
            return tuple(begun), None
    return tuple(begun), process.share if isinstance(process, WarmProcess) else 0.0


def warm_table(warm: WarmSearch, *, shape: ModelShape | None = None) -> RenderableType:
    """The front, what the search began from, and what that was worth.

    Args:
        warm: What is shown.
        shape: The new study's model.
    """
    table = front_table(warm.front, warm.history, study=warm.study, shape=shape, confirmed=warm.confirmed)
    return Group(table, *(Text(line) for line in warm_lines(warm)))


def warm_lines(warm: WarmSearch) -> Iterator[str]:
    """What it began from and how much of that is a guess, what that was worth, what it cost, how near it comes."""
    for study in warm.past:
        yield f"began from {study}"
    if warm.begun:
        numbers = ", ".join(map(str, warm.begun))
        yield f"trial{'s' if len(warm.begun) > 1 else ''} {numbers}: what the sources expected most of"
    if warm.share is None:
        yield "believed in the end: nothing, too few trials completed"
    else:
        yield f"believed in the end: {warm.share:.0%} with the sources, {1 - warm.share:.0%} as if it had begun cold"
    yield cost_line(warm.history)
    found = warm.reachable
    yield f"reachable: {f'unknown; {warm.unknown}' if found is None else verdict(found, what='warm search')}"


def named_past(first: str, others: Sequence[str]) -> tuple[str, ...]:
    """Entries of `search.from`, `first` before all others and once."""
    return (first, *(entry for entry in others if entry != first))
