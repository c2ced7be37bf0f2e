"""A space of Optuna's distributions, as the search for a candidate sees one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from autopeft.objectives.pareto import Array
from autopeft.spaces.configuration import Scalar
from autopeft.spaces.domain import MAX_LEVELS, Choice, Integer, LogReal, Real, ScalarDomain

Point = tuple[Scalar, ...]
"""A value of every axis, in its domain."""
Admits = Callable[[Mapping[str, Any]], bool]

REJECTIONS = 200
"""Uniform draws in a row that a constraint may refuse."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One parameter: a domain of plain values, and what they are to Optuna."""

    name: str
    domain: ScalarDomain
    outside: Callable[[Scalar], Any]
    """Optuna's value of a value of the domain."""
    inside: Callable[[Any], Scalar]
    width: int = 1
    """Features: one for an ordered parameter, one a choice for a categorical one."""
    whole: bool = False
    """A real domain stands for too many whole numbers to be listed."""

    def at(self, unit: float) -> Scalar:
        """The value at `unit` in [0, 1] of the scale."""
        return self._whole(self.domain.from_unit(unit))

    def steps(self, value: Scalar) -> list[Scalar]:
        """Values near to it, other than it."""
        return [step for step in map(self._whole, self.domain.steps(value)) if step != value]

    def _whole(self, value: Scalar) -> Scalar:
        return round(float(value)) if self.whole else value

    def features(self, value: Scalar) -> list[float]:
        if self.width == 1:
            return [self.domain.to_unit(value)]
        return [float(index == int(str(value))) for index in range(self.width)]


@final
class ParameterSpace:
    """Optuna's search space: points are tuples of plain values, sorted by the parameters' names.

    Args:
        distributions: By name; each has at least two values.
        admits: Whether a full set of parameters may be proposed; None admits all.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution], *, admits: Admits | None = None) -> None:
        self.axes = tuple(_axis(name, distributions[name]) for name in sorted(distributions))
        self._admits = admits

    def parameters(self, point: Point) -> dict[str, Any]:
        """`point` as Optuna's parameters."""
        return {axis.name: axis.outside(value) for axis, value in zip(self.axes, point, strict=True)}

    def point(self, parameters: Mapping[str, Any]) -> Point:
        """Optuna's parameters, of which there may be more, as a point."""
        return tuple(axis.inside(parameters[axis.name]) for axis in self.axes)

    def sample(self, rng: np.random.Generator, n: int) -> list[Point]:
        """`n` draws, each dimension uniform on its scale; fewer where the constraint refuses nearly everything."""
        drawn: list[Point] = []
        refused = 0
        while len(drawn) < n and refused < REJECTIONS:
            point = self.decode(rng.random(len(self.axes)))
            if self.admits(point):
                drawn.append(point)
                refused = 0
            else:
                refused += 1
        return drawn

    def encode(self, point: Point, /) -> Array:
        return np.array([axis.domain.to_unit(value) for axis, value in zip(self.axes, point, strict=True)])

    def decode(self, vector: Array, /) -> Point:
        return tuple(axis.at(float(unit)) for axis, unit in zip(self.axes, vector, strict=True))

    def admits(self, point: Point, /) -> bool:
        return self._admits is None or bool(self._admits(self.parameters(point)))

    def neighbours(self, point: Point, /) -> Sequence[Point]:
        """Points that differ in one parameter by a step: an adjacent value, another category, a stride of a range."""
        near = (
            (*point[:at], step, *point[at + 1 :]) for at, axis in enumerate(self.axes) for step in axis.steps(point[at])
        )
        return [one for one in near if self.admits(one)]

    def around(self, point: Point, rng: np.random.Generator, n: int, *, spread: float) -> list[Point]:
        """Up to `n` admitted points near `point`: normal steps of deviation `spread` in [0, 1] along its real axes.

        Each of them moves along half of the axes, drawn anew. None where no axis is real.
        """
        real = np.array([isinstance(axis.domain, (Real, LogReal)) for axis in self.axes])
        if not real.any():
            return []
        moved = real & (rng.random((n, len(real))) < 0.5)
        vectors = np.clip(self.encode(point) + spread * moved * rng.standard_normal(moved.shape), 0.0, 1.0)
        return [
            one
            for vector in vectors
            if self.admits(
                one := tuple(
                    axis.at(float(unit)) if free else value
                    for axis, unit, value, free in zip(self.axes, vector, point, real, strict=True)
                )
            )
        ]

    def features(self, points: Sequence[Point]) -> Array:
        """`[n, f]` in [0, 1]: what the surrogate sees."""
        rows = [
            [number for axis, value in zip(self.axes, point, strict=True) for number in axis.features(value)]
            for point in points
        ]
        return np.array(rows, dtype=np.float64).reshape(len(points), sum(axis.width for axis in self.axes))


def _axis(name: str, distribution: BaseDistribution) -> Axis:
    match distribution:
        case CategoricalDistribution():
            return _categorical(name, distribution)
        case IntDistribution():
            return _integer(name, distribution)
        case FloatDistribution():
            return _real(name, distribution)
        case _:
            raise TypeError(f"{name}: {type(distribution).__name__} is no distribution that this sampler knows")


def _categorical(name: str, distribution: CategoricalDistribution) -> Axis:
    choices = distribution.choices
    return Axis(
        name=name,
        domain=Choice(values=tuple(str(index) for index in range(len(choices)))),
        outside=lambda value: choices[int(value)],
        inside=lambda value: str(int(distribution.to_internal_repr(value))),
        width=len(choices),
    )


def _integer(name: str, distribution: IntDistribution) -> Axis:
    low, high, step = distribution.low, distribution.high, distribution.step
    if step != 1:
        return _stepped(name, low, high, step=step)
    if high - low < MAX_LEVELS:
        return Axis(name=name, domain=Integer(low=low, high=high, log=distribution.log), outside=int, inside=int)
    domain = LogReal(low=low, high=high) if distribution.log else Real(low=low, high=high)
    return Axis(name=name, domain=domain, outside=int, inside=int, whole=True)


def _real(name: str, distribution: FloatDistribution) -> Axis:
    low, high, step = distribution.low, distribution.high, distribution.step
    if step is not None:
        return _stepped(name, low, high, step=step)
    domain = LogReal(low=low, high=high) if distribution.log else Real(low=low, high=high)
    return Axis(name=name, domain=domain, outside=float, inside=float)


def _stepped(name: str, low: float, high: float, *, step: float) -> Axis:
    """Values from `low` to `high`, `step` apart, by their number; whole where `step` is."""
    kind = int if isinstance(step, int) else float
    return Axis(
        name=name,
        domain=Integer(low=0, high=round((high - low) / step)),
        outside=lambda value: kind(min(low + int(value) * step, high)),
        inside=lambda value: round((value - low) / step),
    )
