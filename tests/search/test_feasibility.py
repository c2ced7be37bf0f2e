import numpy as np
import optuna
import pytest

from autopeft.search.feasibility import LEAST, Feasibility
from autopeft.search.parameter_space import ParameterSpace

SPACE = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}
LINE = np.linspace(0.05, 0.95, 7)[:, None]


def trial(x: float, *, failed: bool = False, value: float = 0.0, **constraints: float) -> optuna.trial.FrozenTrial:
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.FAIL if failed else optuna.trial.TrialState.COMPLETE,
        value=None if failed else value,
        params={"x": x},
        distributions=dict(SPACE),
        constraints=constraints,
    )


def chances(trials: list[optuna.trial.FrozenTrial]) -> np.ndarray:
    return Feasibility.of(ParameterSpace(SPACE), trials, seed=0).chance(LINE)


@pytest.mark.parametrize("steep", [1.0, 1e6], ids=["of ones", "of millions"])
def test_a_constraint_is_kept_where_its_value_is_not_above_0(steep: float) -> None:
    found = chances([trial(x, c=steep * (x - 0.5)) for x in np.linspace(0, 1, 9)])
    assert (found[:3] > 0.9).all()
    assert (found[-3:] < 0.1).all()


def test_constraints_count_together() -> None:
    both = chances([trial(x, a=x - 0.8, b=0.2 - x) for x in np.linspace(0, 1, 9)])
    assert both[3] > 0.9
    assert max(both[0], both[-1]) < 0.1


def test_a_constraint_that_few_set_is_learned_from_those() -> None:
    found = chances([trial(x, **({"c": x - 0.5} if x > 0.3 else {})) for x in np.linspace(0, 1, 11)])
    assert found[2] > 0.9 > 0.1 > found[-1]
    assert (chances([trial(0.1, c=1.0), trial(0.5), trial(0.9)]) == 1.0).all()


def test_endless_values_do_not_set_the_scale() -> None:
    found = chances([trial(x, c=float("inf") if x > 0.9 else x - 0.5) for x in np.linspace(0, 1, 11)])
    assert found[1] > 0.9 > 0.1 > found[-1]


def test_failing_is_learned_and_never_certain() -> None:
    found = chances([trial(x, failed=x > 0.5) for x in np.linspace(0, 1, 11)])
    assert (found[:3] > 0.9).all()
    assert (found[-2:] < 0.2).all()
    assert found.min() >= LEAST


def test_a_value_that_is_not_finite_is_a_failure() -> None:
    ends = [trial(x, value=float("inf") if x > 0.5 else x) for x in np.linspace(0, 1, 11)]
    assert chances(ends)[-1] < 0.2


def test_failing_anywhere_alike_prefers_nothing() -> None:
    rng = np.random.default_rng(0)
    found = chances([trial(x, failed=bool(rng.random() < 0.3)) for x in np.linspace(0, 1, 40)])
    assert found.max() / found.min() < 2.0


def test_without_constraints_and_failures_all_is_feasible() -> None:
    assert (chances([trial(x) for x in (0.1, 0.5, 0.9)]) == 1.0).all()
    assert (chances([trial(x, failed=True) for x in (0.1, 0.5, 0.9)]) == 1.0).all()
    assert (chances([]) == 1.0).all()


def test_trials_at_a_place_make_its_neighbourhood_surer() -> None:
    space = ParameterSpace(SPACE)
    one = Feasibility.of(space, [trial(0.0, c=-1.0), trial(0.2, c=-0.3), trial(0.4, c=-0.6)], seed=0)
    assert one.fantasise(np.array([[0.95]])).chance(LINE)[-1] > one.chance(LINE)[-1]
