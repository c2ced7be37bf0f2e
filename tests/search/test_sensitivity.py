import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.objectives.objective import METRICS
from autopeft.search.sensitivity import ABSENT, _explained, _omega_squared, by_part, sensitivity
from autopeft.search.surrogate import condition, fit
from autopeft.search.trial import History
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.space import SearchSpace
from tests.search.test_believed import trial
from tests.spaces.builders import shape

ACCURACY = METRICS["accuracy"]
SPACE = SearchSpace.bind(
    SpaceDefinition.from_mapping(
        {
            "lora": {"rank": "per_layer(choice(0, 2, 4, 8))", "targets": "query-value"},
            "serial_adapter": {"bottleneck": "choice(0, 4, 8)"},
            "learning_rate": "log(1e-4, 1e-2)",
        }
    ),
    shape(3, hidden=48, heads=4),
)


def told(n: int, *, seed: int) -> History:
    """Accuracy depends on the last layer's rank strongly, on the learning rate a little, on nothing else."""
    drawn = list({one.id: one for one in SPACE.sample(np.random.default_rng(seed), n)}.values())
    rows = []
    for number, one in enumerate(drawn):
        spelled = SPACE.spell(one)
        rank, rate = float(spelled.get("lora.rank[2]") or 0), float(spelled["learning_rate"])
        rows.append(trial(number, one, 0.5 + 0.04 * rank - 0.05 * (np.log10(rate) + 3) ** 2))
    return History(trials=tuple(rows))


def test_what_the_objective_depends_on_is_found_and_in_the_right_order() -> None:
    found = sensitivity(SPACE, told(60, seed=0), ACCURACY, seed=0)
    assert found is not None
    names = [effect.dimension for effect in found.effects]
    assert names[0] == "lora.rank[2]"
    shares = {effect.dimension: effect.index for effect in found.effects}
    assert shares["lora.rank[2]"] > 0.5
    assert all(shares[name] < 0.2 for name in ("lora.rank[0]", "lora.rank[1]", "serial_adapter.bottleneck"))
    assert found.explained > 0.8
    means = [group.mean for group in found.effects[0].groups]
    assert means == sorted(means), "more rank is better there, and the marginal says so"
    assert list(by_part(found)["lora.rank"]) == ["0", "1", "2"]


def test_noise_alone_is_not_explained() -> None:
    rng = np.random.default_rng(3)
    drawn = list({one.id: one for one in SPACE.sample(rng, 40)}.values())
    history = History(trials=tuple(trial(n, one, float(rng.normal(0.7, 0.05))) for n, one in enumerate(drawn)))
    found = sensitivity(SPACE, history, ACCURACY, seed=0)
    assert found is not None
    assert found.explained < 0.2


def test_too_few_or_equal_trials_say_nothing() -> None:
    assert sensitivity(SPACE, told(5, seed=0), ACCURACY, seed=0) is None
    drawn = list({one.id: one for one in SPACE.sample(np.random.default_rng(0), 12)}.values())
    equal = History(trials=tuple(trial(n, one, 0.7) for n, one in enumerate(drawn)))
    assert sensitivity(SPACE, equal, ACCURACY, seed=0) is None


def test_a_value_that_is_switched_off_is_a_group_of_its_own() -> None:
    space = SearchSpace.bind(
        SpaceDefinition.from_mapping(
            {
                "lora": {"rank": "choice(0, 4)", "dropout": "choice(0.0, 0.5)"},
                "serial_adapter": {"bottleneck": "choice(0, 4)"},
            }
        ),
        shape(2, hidden=48, heads=4),
    )
    drawn = list(space.configurations())
    history = History(trials=tuple(trial(n, one, 0.5 + 0.01 * n) for n, one in enumerate(drawn * 3)))
    found = sensitivity(space, history, ACCURACY, seed=0)
    assert found is not None
    dropout = next(effect for effect in found.effects if effect.dimension == "lora.dropout")
    assert dropout.groups[0].label == ABSENT
    assert sum(group.share for group in dropout.groups) == pytest.approx(1.0)


@given(st.lists(st.lists(st.floats(-5, 5), min_size=2, max_size=6), min_size=1, max_size=5))
def test_an_index_is_a_share_whatever_the_order(groups: list[list[float]]) -> None:
    rows = [np.array(group) for group in groups]
    index = _omega_squared(rows)
    assert 0.0 <= index <= 1.0
    assert _omega_squared(rows[::-1]) == pytest.approx(index, abs=1e-9)


def test_groups_that_are_constant_and_differ_explain_all() -> None:
    assert _omega_squared([np.zeros(5), np.ones(5)]) == pytest.approx(1.0)
    assert _omega_squared([np.ones(5), np.ones(5)]) == 0.0


def test_what_is_explained_is_what_leaving_one_out_gives() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((14, 2))
    process = fit(x, np.sin(4 * x[:, 0]) + 0.1 * rng.normal(size=14), seed=0)
    z, errors = process.each[0].z, []
    for left in range(14):
        rest = [index for index in range(14) if index != left]
        without = [condition(one.hyperparameters, x[rest], z[rest], location=0.0, scale=1.0) for one in process.each]
        errors.append(z[left] - np.mean([one.posterior(x[[left]])[0][0] for one in without]))
    expected = 1 - np.sum(np.square(errors)) / np.sum((z - z.mean()) ** 2)
    assert _explained(process) == pytest.approx(expected)
