"""Every engine searches sets of layers, patterns of targets and layer sampling."""

import pytest

from autopeft.search.table import SEARCHERS, make_searcher
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.space import SearchSpace
from tests.search.support import encoder, problem_of, run

SAMPLED = {
    "lora": {"rank": "per_layer(choice(0, 2, 4))", "targets": 'choice("re:.*(query|value)", mlp)'},
    "prefix_tuning": {"length": "choice(0, 4)"},
    "layer_sampling": "choice(none, importance, random)",
    "layers_kept": "real(0.1, 0.6)",
    "sampling_interval": "int(5, 20)",
    "suppression": "real(0, 0.5)",
    "learning_rate": "log(1e-4, 1e-2)",
}


@pytest.mark.parametrize("layers", ["range(min=2)", "top(int(1, 4))", "from(choice(0, 2, 3))"])
@pytest.mark.parametrize("engine", SEARCHERS)
def test_engines_ask_for_new_valid_configurations(engine: str, layers: str) -> None:
    space = SearchSpace.bind(SpaceDefinition.from_mapping(SAMPLED | {"layers": layers}), encoder())
    problem = problem_of(space, ("accuracy", "parameters"), n_trials=14)
    history = run(make_searcher(engine, problem), space, n=10)
    asked = [trial.configuration for trial in history.trials]
    assert len(set(asked)) == 10
    for one in asked:
        space.check(one)
