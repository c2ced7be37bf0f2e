import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from autopeft.search.parameter_space import ParameterSpace

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "category": CategoricalDistribution(("a", None, 3, 2.5)),
    "flag": CategoricalDistribution((False, True)),
    "rank": IntDistribution(2, 64),
    "wide": IntDistribution(1, 10**9, log=True),
    "huge": IntDistribution(-(10**9), 10**9),
    "stepped": IntDistribution(4, 20, step=4),
    "alpha": IntDistribution(1, 64, log=True),
    "rate": FloatDistribution(1e-5, 1e-1, log=True),
    "share": FloatDistribution(-0.3, 0.7),
    "dropout": FloatDistribution(0.0, 0.3, step=0.1),
}
SPACE = ParameterSpace(DISTRIBUTIONS)


def test_every_draw_and_neighbour_is_in_its_distributions_and_comes_back_the_same() -> None:
    for point in SPACE.sample(np.random.default_rng(0), 30):
        for one in (point, *SPACE.neighbours(point)):
            parameters = SPACE.parameters(one)
            for name, distribution in DISTRIBUTIONS.items():
                assert distribution._contains(distribution.to_internal_repr(parameters[name])), (name, parameters[name])
            assert SPACE.point(parameters) == one


def test_a_neighbour_differs_in_one_parameter() -> None:
    (point,) = SPACE.sample(np.random.default_rng(1), 1)
    near = SPACE.neighbours(point)
    assert {sum(a != b for a, b in zip(one, point, strict=True)) for one in near} == {1}
    assert {
        name for one in near for name, a in SPACE.parameters(one).items() if a != SPACE.parameters(point)[name]
    } == (set(DISTRIBUTIONS))


@given(st.lists(st.floats(0, 1), min_size=len(DISTRIBUTIONS), max_size=len(DISTRIBUTIONS)))
def test_encoding_is_a_fixed_point(units: list[float]) -> None:
    point = SPACE.decode(np.array(units))
    assert SPACE.decode(SPACE.encode(point)) == point


def test_a_category_is_a_feature_a_choice_and_an_ordered_parameter_one() -> None:
    points = SPACE.sample(np.random.default_rng(2), 5)
    features = SPACE.features(points)
    assert features.shape == (5, 4 + 2 + 8)
    assert features.min() >= 0
    assert features.max() <= 1
    at = 1  # alpha comes first
    assert (features[:, at : at + 4].sum(axis=1) == 1).all()


def test_what_is_not_admitted_is_never_drawn_nor_a_neighbour() -> None:
    space = ParameterSpace(DISTRIBUTIONS, admits=lambda parameters: parameters["rank"] <= 8)
    points = space.sample(np.random.default_rng(0), 20)
    assert len(points) == 20
    everyone = [one for point in points for one in (point, *space.neighbours(point))]
    assert max(space.parameters(one)["rank"] for one in everyone) <= 8


def test_a_constraint_that_admits_nothing_ends_the_draw() -> None:
    assert ParameterSpace(DISTRIBUTIONS, admits=lambda _: False).sample(np.random.default_rng(0), 3) == []


def test_an_unknown_distribution_is_named() -> None:
    kept = {name: lambda *_: None for name in ("_contains", "single", "to_internal_repr")}
    other = type("Other", (BaseDistribution,), kept)
    with pytest.raises(TypeError, match="x: Other is no distribution"):
        ParameterSpace({"x": other()})


def test_around_a_point_only_real_parameters_move_and_by_about_the_spread() -> None:
    point = SPACE.decode(np.full(len(DISTRIBUTIONS), 0.5))
    near = SPACE.around(point, np.random.default_rng(0), 400, spread=0.02)
    moved = np.array([SPACE.encode(one) - SPACE.encode(point) for one in near])
    real = np.array([axis.name in ("huge", "rate", "share", "wide") for axis in SPACE.axes])
    assert len(near) == 400
    assert not moved[:, ~real].any()
    assert (np.abs(moved[:, real]) > 0).mean(axis=0) == pytest.approx(0.5, abs=0.1)
    assert moved[:, real].std(axis=0) == pytest.approx(0.02 * 0.5**0.5, rel=0.2)
    for one in near[:20]:
        for name, value in SPACE.parameters(one).items():
            assert DISTRIBUTIONS[name]._contains(DISTRIBUTIONS[name].to_internal_repr(value)), (name, value)


def test_around_a_corner_nothing_leaves_the_space_and_nothing_refused_is_drawn() -> None:
    space = ParameterSpace({"rate": DISTRIBUTIONS["rate"]}, admits=lambda one: one["rate"] > 2e-5)
    (corner,) = (space.point({"rate": 2.1e-5}),)
    near = space.around(corner, np.random.default_rng(0), 50, spread=0.1)
    assert 5 < len(near) < 50
    assert all(2e-5 < space.parameters(one)["rate"] <= 1e-1 for one in near)


def test_without_real_parameters_there_is_nothing_around() -> None:
    space = ParameterSpace({"category": DISTRIBUTIONS["category"], "rank": DISTRIBUTIONS["rank"]})
    assert space.around(space.decode(np.full(2, 0.5)), np.random.default_rng(0), 10, spread=0.1) == []
