"""The table of search engines: one file each, one row each; an engine's libraries load when it is made."""

from collections.abc import Callable

from autopeft.errors import SpecError
from autopeft.search.searcher import AbstractSearcher, SearchProblem
from autopeft.spaces.suggest import nearest

Factory = Callable[[SearchProblem], AbstractSearcher]


def _random(problem: SearchProblem) -> AbstractSearcher:
    from autopeft.search.random_search import RandomSearcher

    return RandomSearcher(problem)


def _sobol(problem: SearchProblem) -> AbstractSearcher:
    from autopeft.search.sobol import SobolSearcher

    return SobolSearcher(problem)


def _nsga2(problem: SearchProblem) -> AbstractSearcher:
    from autopeft.search.optuna_searcher import NSGA2, OptunaSearcher

    return OptunaSearcher(problem, NSGA2)


def _tpe(problem: SearchProblem) -> AbstractSearcher:
    from autopeft.search.optuna_searcher import TPE, OptunaSearcher

    return OptunaSearcher(problem, TPE)


def _gp(problem: SearchProblem) -> AbstractSearcher:
    from autopeft.search.optuna_searcher import GP, OptunaSearcher

    return OptunaSearcher(problem, GP)


def _bayesian(problem: SearchProblem) -> AbstractSearcher:
    from autopeft.search.bayesian import BayesianSearcher

    return BayesianSearcher(problem)


SEARCHERS: dict[str, Factory] = {
    "bayesian": _bayesian,
    "gp": _gp,
    "nsga2": _nsga2,
    "random": _random,
    "sobol": _sobol,
    "tpe": _tpe,
}
"""Every engine by the name a study file gives it."""


def make_searcher(engine: str, problem: SearchProblem) -> AbstractSearcher:
    """The engine of that name, for `problem`.

    Raises:
        SpecError: No such engine.
    """
    if engine not in SEARCHERS:
        raise SpecError(
            f"search.engine: got {engine!r}; engines are {', '.join(SEARCHERS)}", hint=nearest(engine, SEARCHERS)
        )
    return SEARCHERS[engine](problem)
