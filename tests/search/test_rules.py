"""Whatever proposes configurations, none breaks a rule between dimensions or a condition of its space."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from autopeft.errors import SpaceError
from autopeft.objectives.measurement import Measurement
from autopeft.search.initial_design import initial_design
from autopeft.search.searcher import SearchProblem
from autopeft.search.table import make_searcher
from autopeft.search.trial import History, Trial, TrialState
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.space import SearchSpace
from tests.search.support import encoder, problem_of

LIBERAL = {"deadline": None, "suppress_health_check": list(HealthCheck)}
BLOCKS: dict[str, dict[str, list[object]]] = {
    "lora": {"rank": ["choice(0, 2, 4)", "per_layer(choice(0, 2))", 4], "learning_rate": ["log(1e-4, 1e-3)"]},
    "peft_lora": {
        "rank": ["choice(0, 2, 3)", "choice(2, 3)"],
        "variant": ["choice(plain, kasa, mica, dora)", "per_layer(choice(plain, kasa))"],
        "init": ["choice(kaiming, pissa, orthogonal)"],
    },
    "miss": {"rank": ["choice(0, 3, 4)"], "mode": ["choice(balance, bat)"]},
    "serial_adapter": {"bottleneck": ["choice(0, 4)", "per_layer(choice(0, 4))"], "learning_rate": ["auto"]},
    "mola": {"experts": ["choice(0, 2, 4)", "per_group(2, choice(0, 2))"], "top_k": [1, 2]},
}
SETTINGS: dict[str, list[object]] = {
    "optimizer": ["choice(adamw, lora_fa, galore)", "choice(lora_fa, galore)"],
    "lora_plus_ratio": ["choice(1, 4)", "real(1, 16)"],
    "ggpo_sigma": ["choice(0, 0.03)"],
    "layers": ["subset", "range(min=2)", "top(int(1, 4))"],
}


@st.composite
def ruled(draw: st.DrawFn) -> SearchSpace:
    """A space of several methods and settings that rules tie together."""
    mapping: dict[str, object] = {}
    for name in draw(st.sets(st.sampled_from(sorted(BLOCKS)), min_size=2, max_size=4)):
        fields = {key: draw(st.sampled_from(values)) for key, values in BLOCKS[name].items()}
        mapping[name] = {key: value for key, value in fields.items() if value != "auto" or draw(st.booleans())}
    first, last = min(mapping), max(mapping)
    if draw(st.booleans()):
        mapping[last] |= {"when": f"not {first}"}  # type: ignore[operator]  # a block
    for name in draw(st.sets(st.sampled_from(sorted(SETTINGS)), min_size=1)):
        mapping[name] = draw(st.sampled_from(SETTINGS[name]))
    fixed = {} if "optimizer" in mapping else draw(st.sampled_from([{}, {"optimizer": "lora_fa"}]))
    try:
        space = SearchSpace.bind(SpaceDefinition.from_mapping(mapping), encoder(), settings=fixed)
    except SpaceError as error:
        assert "no configuration that keeps the rule" in str(error)  # noqa: PT017
        assume(False)
        raise
    assume(space.rules)
    return space


def trial(number: int, configuration: Configuration, space: SearchSpace) -> Trial:
    count = space.parameters(configuration)
    accuracy = 0.5 + 0.4 * (1 - np.exp(-count / 500)) + 0.01 * (count % 7)
    measured = Measurement(
        epoch=1,
        metrics={"accuracy": float(accuracy)},
        train_loss=1.0,
        train_seconds=1.0,
        evaluation_seconds=0.1,
        tokens=100,
        peak_bytes=1000,
        parameters=count,
    )
    return Trial(
        number=number,
        configuration=configuration,
        state=TrialState.COMPLETED,
        measurements=(measured,),
        predicted=space.predicted(configuration),
    )


def problem(space: SearchSpace) -> SearchProblem:
    return problem_of(space, ("accuracy", "parameters"), n_trials=16)


def proposals(engine: str, space: SearchSpace, *, n: int) -> History:
    searcher, history = make_searcher(engine, problem(space)), History()
    while len(history) < n and (asked := searcher.ask(history, min(4, n - len(history)))):
        rows = [trial(len(history) + place, one, space) for place, one in enumerate(asked)]
        history = History(trials=(*history.trials, *rows))
    return history


@settings(max_examples=40, **LIBERAL)
@given(ruled(), st.integers(0, 2**32))
def test_draws_and_their_neighbours_keep_the_rules(space: SearchSpace, seed: int) -> None:
    for one in space.sample(np.random.default_rng(seed), 8):
        space.check(one)
        assert space.decode(space.encode(one)) == one
    for other in space.neighbours(one):
        space.check(other)


@settings(max_examples=6, **LIBERAL)
@given(ruled())
def test_the_first_design_keeps_the_rules(space: SearchSpace) -> None:
    for one in initial_design(problem(space)):
        space.check(one)


def keeps_the_rules(engine: str, n: int) -> Callable[[], None]:
    def run(space: SearchSpace) -> None:
        history = proposals(engine, space, n=n)
        assert history.trials
        assert len(history.ids) == len(history)
        for one in history:
            space.check(one.configuration)

    return given(ruled())(run)


@pytest.mark.parametrize(
    ("engine", "examples", "n"),
    [("random", 15, 12), ("sobol", 15, 12), ("nsga2", 4, 14), ("tpe", 4, 14), ("bayesian", 2, 12)],
)
def test_every_engine_keeps_the_rules(engine: str, examples: int, n: int) -> None:
    settings(max_examples=examples, **LIBERAL)(keeps_the_rules(engine, n))()
