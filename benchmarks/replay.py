"""A search replayed on measured trainings: what an engine asks for is answered by a row of the table.

**The answer.** Engines that can look at given configurations choose among the rows that this search has not used. What
others ask for is answered by the nearest of these: the smallest sum of absolute differences over the space's dimensions
in [0, 1] (`SearchSpace.encode`: a layer's bit counts 1, sizes by their level, absent below the smallest, the learning
rate by its logarithm); of equally near ones the first drawn. The history tells the engine the configuration of that
row, its exact parameters and what was measured of it, so that every value an engine sees is of a real training of what
the engine is told was trained. What an engine sees is one seed's training, drawn by the search's seed; what is counted
is the mean over the seeds there are.

**Whom this favours.** The table is all there is: nobody reaches what is not in it. Engines that are answered by the
nearest row get something else than they chose (two proposals that differ in one size may be answered by rows that
differ in three), which takes the edge off exact choices and helps coarse ones. `random` does not ask: it draws rows
uniformly, which is what uniform draws of the space would be answered by if the table were dense. Its curve reaches the
volume of the whole table when the table is used up, so that a small table flatters every engine late in a search.

**Cost** is counted in epochs trained; every epoch of a task has the same tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, final

import numpy as np
from measured_table import MeasuredTable
from numpy.typing import NDArray

from autopeft.objectives.hypervolume import hypervolume
from autopeft.objectives.measurement import Measurement
from autopeft.objectives.objective import Objective, resolve_objectives
from autopeft.objectives.pareto import Array, non_dominated
from autopeft.objectives.reference import reference_point
from autopeft.search.scheduler import AbstractScheduler
from autopeft.search.searcher import AbstractSearcher
from autopeft.search.trial import Failure, FailureKind, History, Trial, TrialState
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.space import SearchSpace


class Answers(Protocol):
    """What a search is run on."""

    @property
    def epochs(self) -> int:
        """Of a whole training."""
        ...

    def answer(self, asked: Configuration) -> tuple[Configuration, Sequence[Measurement]] | None:
        """What is trained in place of `asked`, and its epochs (fewer than all where it fails); None: nothing is left.

        Never the same configuration twice.
        """
        ...


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """One task of a table: its configurations and what they are worth."""

    name: str
    table: MeasuredTable
    space: SearchSpace
    objectives: tuple[Objective, ...]
    configurations: tuple[Configuration, ...]
    rows: tuple[tuple[int, ...], ...]
    """Of each configuration, its trainings in the table, one a seed."""

    @classmethod
    def of(
        cls, table: MeasuredTable, task: str, *, space: SearchSpace | None = None, first: int | None = None
    ) -> "Problem":
        """The configurations that were trained on `task`; with `first` only so many, as when the table was smaller."""
        place, space = table.tasks.index(task), space or table.space()
        rows: dict[int, list[int]] = {}
        for row in np.flatnonzero((table.task == place) & (table.index < (first or len(table.values)))):
            rows.setdefault(int(table.index[row]), []).append(int(row))
        metric = table.about["metrics"][task]
        return cls(
            name=task,
            table=table,
            space=space,
            objectives=resolve_objectives((metric, "parameters"), metric=metric),
            configurations=tuple(space.assemble(table.values[index]) for index in rows),
            rows=tuple(tuple(found) for found in rows.values()),
        )

    @classmethod
    def all_of(
        cls, path: Path, tasks: Sequence[str] | None = None, *, first: int | None = None
    ) -> "dict[str, Problem]":
        """The tasks of the table at `path`, or those of `tasks`, by name; `first` as in `of`."""
        table = MeasuredTable.read(path)
        space = table.space()
        return {task: cls.of(table, task, space=space, first=first) for task in tasks or table.tasks}

    @property
    def epochs(self) -> int:
        return int(self.table.epochs.shape[1])

    @cached_property
    def points(self) -> Array:
        """`[n, d]` the configurations in the space's dimensions."""
        return np.array([self.space.encode(one) for one in self.configurations])

    @cached_property
    def losses(self) -> Array:
        """`[n, 2]` mean loss over the seeds that came to their end, and parameters; NaN where none did."""
        metric = self.objectives[0]
        ends = [self.table.epochs[list(rows), -1, 0] for rows in self.rows]
        means = [float(np.mean(end[np.isfinite(end)])) if np.isfinite(end).any() else np.nan for end in ends]
        costs = [float(self.space.parameters(one)) for one in self.configurations]
        return np.array([[metric.to_loss(mean), cost] for mean, cost in zip(means, costs, strict=True)])

    @cached_property
    def reference(self) -> Array:
        """`[2]` the reference point of a study that has the whole table."""
        whole = self.losses[np.isfinite(self.losses).all(axis=1)]
        return reference_point(whole, self.objectives)

    @cached_property
    def best(self) -> float:
        """Hypervolume of the whole table."""
        return hypervolume(self.losses, self.reference)

    def volume(self, chosen: Sequence[Configuration]) -> float:
        """Hypervolume of some configurations as a share of the whole table's."""
        places = [self._place[one] for one in chosen]
        return hypervolume(self.losses[places].reshape(-1, 2), self.reference) / self.best

    @cached_property
    def _place(self) -> dict[Configuration, int]:
        return {one: place for place, one in enumerate(self.configurations)}

    def answers(self, seed: int) -> "TableAnswers":
        return TableAnswers(self, seed)

    def order(self, seed: int) -> NDArray[np.int64]:
        """`[n]` all rows in the order in which `random` draws them."""
        return np.random.default_rng([seed, 0x0DE]).permutation(len(self.configurations))

    def drawn(self, seed: int) -> "Curves":
        """What a search comes to that takes all rows in that order: what `search` would, without its histories."""
        by_trial, by_epoch, reached = list[float](), list[float](), 0.0
        front = np.empty((0, 2))
        for place in self.order(seed):
            measured = len(self.seen(int(place), seed))
            by_epoch += [reached] * (min(measured + 1, self.epochs) - 1)
            if measured == self.epochs:
                front = np.vstack([front, self.losses[place]])
                front = front[non_dominated(front)]
                reached = hypervolume(front, self.reference) / self.best
            by_epoch.append(reached)
            by_trial.append(reached)
        return Curves(by_trial=np.array(by_trial), by_epoch=np.array(by_epoch))

    def seen(self, place: int, seed: int) -> tuple[Measurement, ...]:
        """The training of a configuration that the search of that seed sees."""
        rows = self.rows[place]
        return self.table.measurements(rows[int(np.random.default_rng([seed, place]).integers(len(rows)))])

    def study(self, n: int, seed: int) -> History:
        """A finished study of `n` uniform draws."""
        places = [int(place) for place in self.order(seed)[:n]]
        return History(trials=tuple(self._trial(number, place, seed) for number, place in enumerate(places)))

    def _trial(self, number: int, place: int, seed: int) -> Trial:
        begun = begin(number, self.configurations[place], self.space)
        return ended(begun, self.seen(place, seed), self.epochs)


@final
class TableAnswers:
    """The answers of one search: each configuration of the problem once."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self._problem, self._seed = problem, seed
        self._left = np.ones(len(problem.configurations), dtype=bool)

    @property
    def epochs(self) -> int:
        return self._problem.epochs

    @property
    def left(self) -> tuple[Configuration, ...]:
        """Configurations that were not used."""
        return tuple(self._problem.configurations[place] for place in np.flatnonzero(self._left))

    def answer(self, asked: Configuration) -> tuple[Configuration, Sequence[Measurement]] | None:
        """See `Answers.answer`."""
        if not self._left.any():
            return None
        distances = np.abs(self._problem.points - self._problem.space.encode(asked)).sum(axis=1)
        place = int(np.argmin(np.where(self._left, distances, np.inf)))
        self._left[place] = False
        return self._problem.configurations[place], self._problem.seen(place, self._seed)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """After an epoch that was paid for."""

    begun: int
    """Trials so far."""
    done: tuple[Configuration, ...]
    """Configurations that were trained to their end."""


def search(
    searcher: AbstractSearcher, scheduler: AbstractScheduler, answers: Answers, space: SearchSpace, *, n_trials: int
) -> Iterator[Step]:
    """Run a search, a step for every epoch, until `n_trials` are begun and none is to go on, or nothing is left."""
    trials: dict[int, Trial] = {}
    measured: dict[int, Sequence[Measurement]] = {}
    while True:
        again = scheduler.resumable(_history(trials))
        number = again[0] if again else len(trials)
        if again:
            trials[number] = replace(trials[number], state=TrialState.RUNNING, pruning=None)
        else:
            if len(trials) == n_trials or not (asked := searcher.ask(_history(trials), 1)):
                return
            answer = answers.answer(asked[0])
            if answer is None:
                return
            configuration, measured[number] = answer
            trials[number] = begin(number, configuration, space)
        while trials[number].state is TrialState.RUNNING:
            trials[number] = _after_epoch(trials, number, measured[number], scheduler, epochs=answers.epochs)
            finished = (trial.configuration for trial in trials.values() if trial.state is TrialState.COMPLETED)
            yield Step(begun=len(trials), done=tuple(finished))


def _after_epoch(
    trials: dict[int, Trial],
    number: int,
    measured: Sequence[Measurement],
    scheduler: AbstractScheduler,
    *,
    epochs: int,
) -> Trial:
    trial = trials[number]
    epoch = len(trial.measurements) + 1
    if epoch > len(measured) or epoch == epochs:
        return ended(trial, measured, epochs)
    pruning = scheduler.judge(_history(trials), number, measured[epoch - 1])
    state = TrialState.PRUNED if pruning else TrialState.RUNNING
    return replace(trial, measurements=tuple(measured[:epoch]), state=state, pruning=pruning)


def begin(number: int, configuration: Configuration, space: SearchSpace) -> Trial:
    predicted = space.predicted(configuration)
    return Trial(number=number, configuration=configuration, state=TrialState.RUNNING, predicted=predicted)


def ended(trial: Trial, measured: Sequence[Measurement], epochs: int) -> Trial:
    """The trial with all that was measured of it: completed, or failed where an epoch is missing."""
    if len(measured) == epochs:
        return replace(trial, measurements=tuple(measured), state=TrialState.COMPLETED)
    failure = Failure(kind=FailureKind.DIVERGED, message="the training did not come to its end")
    return replace(trial, measurements=tuple(measured), state=TrialState.FAILED, failure=failure)


def _history(trials: dict[int, Trial]) -> History:
    return History(trials=tuple(trials[number] for number in sorted(trials)))


Volume = Callable[[Sequence[Configuration]], float]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """One search's hypervolume."""

    by_trial: Array
    """`[n_trials]` after every trial that was begun."""
    by_epoch: Array
    """`[e]` after every epoch that was paid for."""


def curves(steps: Iterator[Step], volume: Volume) -> Curves:
    """What `steps` came to; a trial counts from the epoch that ends it."""
    by_trial: list[float] = []
    by_epoch: list[float] = []
    ended, reached = 0, 0.0
    for step in steps:
        if len(step.done) > ended:
            ended, reached = len(step.done), volume(step.done)
        by_epoch.append(reached)
        by_trial += [0.0] * (step.begun - len(by_trial))
        by_trial[-1] = by_epoch[-1]
    return Curves(by_trial=np.array(by_trial), by_epoch=np.array(by_epoch))
