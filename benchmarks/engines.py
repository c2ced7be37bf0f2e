"""What is compared in `search_quality.py`: every engine, and ours with rungs and from another task's study."""

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, final

import numpy as np
from replay import Answers, Curves, Problem, curves, search
from synthetic_problem import NOISE, REFERENCE, Truth, bound_space, trial_of, truth_of

from autopeft.errors import MissingExtraError
from autopeft.objectives.hypervolume import hypervolume
from autopeft.objectives.measurement import Measurement
from autopeft.objectives.objective import Objective, resolve_objectives
from autopeft.search.bayesian import BayesianSearcher
from autopeft.search.belief import ordered
from autopeft.search.past_study import PastStudy
from autopeft.search.schedulers import Fidelity, make_scheduler
from autopeft.search.searcher import AbstractSearcher, SearchProblem
from autopeft.search.table import make_searcher
from autopeft.search.trial import History
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.space import SearchSpace

RECIPE, NUTS, RANDOM, BAYESIAN = "recipe", "recipe+nuts", "random", "bayesian"
RUNGS, WARM, NEAREST = "bayesian+rungs", "bayesian+warm", "bayesian+nearest"
ENGINES = (RANDOM, "sobol", "nsga2", "tpe", "gp", BAYESIAN, RUNGS, WARM, NEAREST, RECIPE, NUTS)
FIDELITY = Fidelity(reduction=3, minimum=1)
N_SOURCE = 60
"""Trials of the study of the other task that a warm search begins from."""
SLOW = ("gp", RUNGS, RECIPE, NUTS)
"""Those whose searches take a minute, which get fewer seeds."""


def check_installed(engine: str) -> None:
    """Nothing, if all is there that the engine needs.

    Raises:
        MissingExtraError: A package of the extra `bench` is absent.
    """
    absent = [name for name in ("jax", "numpyro") if importlib.util.find_spec(name) is None]
    if engine == NUTS and absent:
        hint = "pip install --constraint constraints.txt --editable '.[bench]'"
        raise MissingExtraError(f"{engine} needs the extra bench ({' and '.join(absent)})", hint=hint)


class World(Protocol):
    """A problem that searches are run on, each from its seed."""

    @property
    def space(self) -> SearchSpace: ...
    @property
    def objectives(self) -> tuple[Objective, ...]: ...
    @property
    def epochs(self) -> int: ...
    def answers(self, seed: int) -> Answers: ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One search."""

    curves: Curves
    seconds: float
    """Processor seconds a suggestion."""


@final
class Timed(AbstractSearcher):
    """A searcher, with its processor seconds counted."""

    def __init__(self, searcher: AbstractSearcher) -> None:
        self._searcher, self.seconds, self.asked = searcher, 0.0, 0

    def ask(self, history: History, n: int) -> Sequence[Configuration]:
        began = time.process_time()
        try:
            return self._searcher.ask(history, n)
        finally:
            self.seconds += time.process_time() - began
            self.asked += 1


def replayed(engine: str, problem: Problem, *, seed: int, n_trials: int, source: Problem | None = None) -> Outcome:
    """A search of `n_trials` on a task of a table; `random` goes on until the table is used up.

    With rungs three times as many trials are begun, most of which end at the first rung. `bayesian` (with rungs and
    warm too), `recipe` and `recipe+nuts` choose among the rows that are left; what the others ask for, `NEAREST` among
    them, is answered by the nearest one.

    Args:
        engine: One of `ENGINES`.
        problem: The task.
        seed: Of the search.
        n_trials: Whole trainings that it may spend.
        source: The other task that `WARM` begins from; None for the other engines.
    """
    if engine == RANDOM:
        return Outcome(curves=problem.drawn(seed), seconds=0.0)
    answers = problem.answers(seed)
    n = n_trials * (3 if engine == RUNGS else 1)
    asked = SearchProblem(
        space=problem.space,
        objectives=problem.objectives,
        seed=seed,
        n_trials=n_trials,
        past=(past(source, problem, seed=seed),) if engine == WARM and source else (),
    )
    if engine in (RECIPE, NUTS):
        searcher = recipe(asked, lambda history: answers.left, engine=engine)
    elif engine in (BAYESIAN, RUNGS, WARM):
        searcher = BayesianSearcher(asked, among=lambda history: answers.left)
    else:
        searcher = make_searcher(BAYESIAN if engine == NEAREST else engine, asked)
    return _run(searcher, problem, answers, problem.volume, n_trials=n, rungs=engine == RUNGS)


def past(source: Problem, problem: Problem, *, seed: int) -> PastStudy:
    """A finished study of uniform draws of another task, in the terms of this one's."""
    learned, *others = ordered(problem.objectives)
    history = source.study(N_SOURCE, seed)
    carried = {trial.configuration: trial.configuration for trial in history}
    return PastStudy.of(source.name, history, carried, space=problem.space, learned=learned, others=others)


@final
class Synthetic:
    """Made-up problems, one a seed (`synthetic_problem.py`), which are trained in one epoch."""

    def __init__(self) -> None:
        self.space = bound_space()
        self.objectives = resolve_objectives(("accuracy", "parameters"), metric="accuracy")

    @property
    def epochs(self) -> int:
        return 1

    def answers(self, seed: int) -> "SyntheticAnswers":
        return SyntheticAnswers(self.space, seed)

    def search(self, engine: str, *, seed: int, n_trials: int) -> Outcome:
        """A search of a made-up problem, by volume without noise."""
        truth, asked = truth_of(self.space, seed), self._problem(seed, n_trials)
        rng = np.random.default_rng([seed, 5])

        def candidates(history: History) -> list[Configuration]:
            front = sorted(history.completed, key=lambda trial: -trial.measurements[-1].metrics["accuracy"])[:4]
            near = [other for trial in front for other in self.space.neighbours(trial.configuration)]
            found = {one.id: one for one in (*near, *self.space.sample(rng, 128)) if one.id not in history.ids}
            return list(found.values())

        own = engine in (RECIPE, NUTS)
        searcher = recipe(asked, candidates, engine=engine) if own else make_searcher(engine, asked)
        return _run(searcher, self, self.answers(seed), self._volume(truth), n_trials=n_trials, rungs=False)

    def _problem(self, seed: int, n_trials: int) -> SearchProblem:
        return SearchProblem(space=self.space, objectives=self.objectives, seed=seed, n_trials=n_trials)

    def _volume(self, truth: Truth) -> Callable[[Sequence[Configuration]], float]:
        def volume(chosen: Sequence[Configuration]) -> float:
            losses = np.array([[1 - truth(one), self.space.parameters(one)] for one in chosen])
            return hypervolume(losses / REFERENCE, np.ones(2))

        return volume


@final
class SyntheticAnswers:
    """What is asked for is trained, with noise."""

    epochs = 1

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space, self._truth, self._rng = space, truth_of(space, seed), np.random.default_rng([seed, 1])

    def answer(self, asked: Configuration) -> tuple[Configuration, Sequence[Measurement]]:
        value = self._truth(asked) + NOISE * float(self._rng.standard_normal())
        return asked, trial_of(0, asked, value, self._space.parameters(asked)).measurements


def recipe(
    problem: SearchProblem, candidates: Callable[[History], Sequence[Configuration]], *, engine: str = RECIPE
) -> AbstractSearcher:
    """The searcher of `RECIPE` or `NUTS`.

    Raises:
        MissingExtraError: What `NUTS` needs is not installed.
    """
    from recipe import RecipeSearcher, fitted

    check_installed(engine)
    if engine == RECIPE:
        return RecipeSearcher(problem, candidates, fitted)
    from recipe_nuts import sampled

    return RecipeSearcher(problem, candidates, sampled)


def _run(
    searcher: AbstractSearcher,
    world: World,
    answers: Answers,
    volume: Callable[[Sequence[Configuration]], float],
    *,
    n_trials: int,
    rungs: bool,
) -> Outcome:
    timed = Timed(searcher)
    scheduler = make_scheduler(FIDELITY if rungs else None, world.objectives, epochs=world.epochs)
    steps = search(timed, scheduler, answers, world.space, n_trials=n_trials)
    return Outcome(curves=curves(steps, volume), seconds=timed.seconds / max(1, timed.asked))
