import pytest

from autopeft.errors import SpecError
from autopeft.search.table import SEARCHERS, make_searcher
from tests.search.support import problem_of, space_of


def test_every_row_makes_an_engine_by_its_name() -> None:
    problem = problem_of(space_of("mixed"))
    kinds = {name: type(make_searcher(name, problem)).__name__ for name in SEARCHERS}
    assert kinds == {
        "bayesian": "BayesianSearcher",
        "gp": "OptunaSearcher",
        "nsga2": "OptunaSearcher",
        "random": "RandomSearcher",
        "sobol": "SobolSearcher",
        "tpe": "OptunaSearcher",
    }


@pytest.mark.parametrize(("name", "hint"), [("bayes", "did you mean 'bayesian'"), ("xyz", "sobol")])
def test_an_unknown_engine_is_named_with_those_there_are(name: str, hint: str) -> None:
    with pytest.raises(SpecError, match=rf"search\.engine: got '{name}'; engines are bayesian, gp, nsga2.*{hint}"):
        make_searcher(name, problem_of(space_of("mixed")))
