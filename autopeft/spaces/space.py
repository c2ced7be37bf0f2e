"""The search space of one model: dimensions, exact size, uniform sampling, encodings, neighbours, constraints."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import numpy as np
from numpy.typing import NDArray

from autopeft.errors import ConfigurationError, InfeasibleError, SpaceError
from autopeft.spaces.configuration import Configuration, Scalar
from autopeft.spaces.constraints import Constraint, parse_constraint
from autopeft.spaces.counting import Counter, Draw, below
from autopeft.spaces.counts import ParameterCounter
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.dimension import Cell, Dimension, Level
from autopeft.spaces.encoding import Featurizer, decode, encode
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.neighbours import neighbours
from autopeft.spaces.repair import closest, repaired
from autopeft.spaces.spelling import assemble, build_from, spell
from autopeft.spaces.structure import bind_structure
from autopeft.spaces.validity import check_structure
from autopeft.spaces.validity_rules import check_rules, relevant

Quantity = Callable[[Configuration], float]
Vector = NDArray[np.float64]
_REJECTIONS = 200
"""Uniform draws in a row that the constraints may refuse before repair takes over."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceSize:
    """How large a space is, before constraints."""

    configurations: int
    """Distinct networks and discrete training settings."""
    continuous: tuple[str, ...]
    """Dimensions that are not counted."""
    rules: tuple[str, ...] = ()
    """Names of rules between dimensions that may refuse some of the counted configurations, as constraints do."""


@final
class SearchSpace:
    """A definition bound to a model. Immutable; picklable when its quantities are; make one with `bind`."""

    def __init__(
        self,
        definition: SpaceDefinition,
        shape: ModelShape,
        *,
        constraints: tuple[str, ...],
        quantities: Mapping[str, Quantity],
        settings: Mapping[str, Scalar],
    ) -> None:
        self.definition = definition
        self.shape = shape
        self.structure = bind_structure(definition, shape)
        self.dimensions: tuple[Dimension, ...] = self.structure.dimensions
        self.parameters: Callable[[Configuration], int] = ParameterCounter(shape)
        self._quantities = dict(quantities)
        known = {"parameters", *quantities}
        self.constraints = tuple(parse_constraint(text, quantities=known, shape=shape) for text in constraints)
        decided = {name for name, _ in definition.training}
        self._settings = {name: value for name, value in settings.items() if name not in decided}
        names = {block.name for block in definition.methods} | decided | self._settings.keys()
        self.rules = relevant(names, shape, check_structure(self.structure, shape))

    @classmethod
    def bind(
        cls,
        definition: SpaceDefinition,
        shape: ModelShape,
        *,
        constraints: Sequence[str] = (),
        quantities: Mapping[str, Quantity] | None = None,
        settings: Mapping[str, Scalar] | None = None,
    ) -> "SearchSpace":
        """`definition` on the model of `shape`.

        Args:
            definition: The space as written.
            shape: The base model.
            constraints: Limits such as `parameters <= 2%`; every sample and neighbour satisfies them.
            quantities: What beside `parameters` is known before training, by name, e.g. `memory` in bytes.
            settings: Training settings that hold for every configuration; the rules see those that the space leaves
                open.

        Raises:
            SpaceError: A layer, group or target that the model does not have, a size above a width, a constraint that
                is malformed or leaves nothing.
        """
        space = cls(
            definition, shape, constraints=tuple(constraints), quantities=quantities or {}, settings=settings or {}
        )
        space._check_feasible()
        return space

    def __reduce__(self) -> tuple[object, ...]:
        texts = tuple(constraint.text for constraint in self.constraints)
        return _rebuild, (self.definition, self.shape, texts, self._quantities, self._settings)

    def fingerprint(self) -> str:
        """JSON of definition, shape and constraints: equal exactly for equal spaces."""
        content = {
            "constraints": [constraint.text for constraint in self.constraints],
            "definition": self.definition.to_mapping(),
            "shape": self.shape.to_json(),
        }
        return json.dumps(content, sort_keys=True)

    @cached_property
    def _counter(self) -> Counter:
        return Counter(self.structure)

    @cached_property
    def _featurizer(self) -> Featurizer:
        assert isinstance(self.parameters, ParameterCounter)
        return Featurizer(self.structure, self.parameters)

    def size(self) -> SpaceSize:
        """Exactly how many distinct configurations there are, constraints and rules aside (see `acceptance`)."""
        continuous = tuple(row.name for row in self.dimensions if row.levels is None)
        rules = tuple(rule.name for rule in self.rules)
        return SpaceSize(configurations=self._counter.total, continuous=continuous, rules=rules)

    def configurations(self) -> Iterator[Configuration]:
        """Every configuration that the constraints admit, once, in a fixed order.

        Raises:
            SpaceError: The space has continuous dimensions.
        """
        if self.size().continuous:
            raise SpaceError(
                f"space: {self.size().continuous[0]} is continuous, so its configurations cannot be listed",
                hint="make it a choice(...)",
            )
        built = (self._build(self._counter.network(number)) for number in range(self._counter.total))
        return (configuration for configuration in built if self.admits(configuration))

    def sample(self, rng: np.random.Generator, n: int) -> list[Configuration]:
        """`n` independent draws, uniform over the distinct configurations that the constraints admit.

        Continuous dimensions are uniform on their own scale. Draws come by rejection; where the constraints refuse 200
        in a row, the last one is walked downhill through its neighbours until it is admitted, which is no longer
        uniform.
        """
        return [self._draw(rng) for _ in range(n)]

    def _draw(self, rng: np.random.Generator) -> Configuration:
        configuration = self._uniform(rng)
        for _ in range(_REJECTIONS):
            if self.admits(configuration):
                return configuration
            configuration = self._uniform(rng)
        return repaired(self, configuration, rng)

    def _uniform(self, rng: np.random.Generator) -> Configuration:
        return self._build(self._counter.draw(rng), rng)

    def _build(self, draw: Draw, rng: np.random.Generator | None = None) -> Configuration:
        levels = draw.levels

        def read(cell: Cell) -> Level:
            if cell.name not in levels:
                dimension = cell.dimensions[0] if cell.dimensions else None
                levels[cell.name] = (
                    cell.default if rng is None or dimension is None else dimension.domain.from_unit(rng.random())
                )
            return levels[cell.name]

        return self.structure.build(draw.on, read)

    def acceptance(self, rng: np.random.Generator, n: int) -> float:
        """Share of `n` uniform draws that the constraints admit."""
        return sum(self.admits(self._uniform(rng)) for _ in range(n)) / n

    def contains(self, configuration: Configuration) -> bool:
        """Whether `check` passes."""
        try:
            self.check(configuration)
        except ConfigurationError:
            return False
        return True

    def check(self, configuration: Configuration) -> None:
        """Raise ConfigurationError when `configuration` is not in this space, or a rule or constraint refuses it."""
        built = build_from(self.structure, spell(self.structure, configuration))
        if built != configuration:
            raise ConfigurationError(
                f"no network of this space: its dimensions spell {built.to_json()}, not {configuration.to_json()}",
                hint="build it with autopeft.spaces.canonical.configuration",
            )
        check_rules(self._whole(configuration), self.rules)
        for constraint in self.constraints:
            value = self.quantity(constraint.quantity, configuration)
            if not constraint.holds(value):
                raise ConfigurationError(
                    f"{constraint.quantity} is {value:.6g}, against {constraint.text}", hint="use smaller sizes"
                )

    def spell(self, configuration: Configuration) -> dict[str, Scalar]:
        """Values of the active dimensions, in their order.

        Raises:
            ConfigurationError: `configuration` is not in this space (constraints aside).
        """
        return spell(self.structure, configuration)

    def assemble(self, values: Mapping[str, object]) -> Configuration:
        """The configuration that `values` spell; inactive dimensions are not looked at.

        Raises:
            ConfigurationError: A missing, unknown or wrong value, or no network.
        """
        return assemble(self.structure, values)

    def encode(self, configuration: Configuration) -> Vector:
        """[d] in [0, 1], one entry a dimension, inactive ones at a fixed default."""
        return encode(self.dimensions, self.spell(configuration))

    def decode(self, vector: Vector) -> Configuration:
        """The configuration nearest to `vector` [d]; clipped to [0, 1], constraints not asked.

        Raises:
            ConfigurationError: A vector of another length, or no network (nothing adapted, too many layers).
        """
        if np.shape(vector) != (len(self.dimensions),):
            raise ConfigurationError(
                f"a vector of shape {np.shape(vector)} for {len(self.dimensions)} dimensions",
                hint="one number a dimension",
            )
        return build_from(self.structure, decode(self.dimensions, vector))

    @property
    def feature_names(self) -> tuple[str, ...]:
        return self._featurizer.names

    @property
    def parameter_bounds(self) -> tuple[int, int]:
        """Trainable parameters that no configuration is below or above; between them the last feature is scaled."""
        return self._featurizer.parameter_bounds

    @property
    def lengthscales(self) -> Vector:
        """[f] length-scales to be expected of the features, see `typical_scales`."""
        return self._featurizer.lengthscales

    def features(self, configuration: Configuration) -> Vector:
        """[f] in [0, 1]: the encoding for surrogate models, see `encoding.Featurizer`."""
        return self._featurizer(configuration, self.spell(configuration))

    def neighbours(self, configuration: Configuration) -> list[Configuration]:
        """The admitted configurations one exchange away, distinct, in a fixed order; see `neighbours.neighbours`."""
        return [other for other in neighbours(self.structure, configuration) if self.admits(other)]

    def admits(self, configuration: Configuration) -> bool:
        """Whether every rule and every constraint holds."""
        whole = self._whole(configuration)
        return all(rule.holds(whole) for rule in self.rules) and all(
            row.holds(self.quantity(row.quantity, configuration)) for row in self.constraints
        )

    def quantity(self, name: str, configuration: Configuration) -> float:
        """A quantity known before training."""
        return self.parameters(configuration) if name == "parameters" else self._quantities[name](configuration)

    def excess(self, configuration: Configuration) -> float:
        """How far beyond the constraints it is, relative to the limits and summed over them, plus the number of broken
        rules; 0 when admitted.
        """
        whole = self._whole(configuration)
        broken = sum(not rule.holds(whole) for rule in self.rules)
        return broken + sum(row.excess(self.quantity(row.quantity, configuration)) for row in self.constraints)

    def _whole(self, configuration: Configuration) -> Configuration:
        """`configuration` with the settings that hold for all, as rules see it."""
        if not self._settings:
            return configuration
        training = self._settings | dict(configuration.training)
        return replace(configuration, training=tuple(sorted(training.items())))

    def predicted(self, configuration: Configuration) -> dict[str, float]:
        """`parameters` and every given quantity."""
        return {name: self.quantity(name, configuration) for name in ("parameters", *self._quantities)}

    def _check_feasible(self) -> None:
        if not self._counter.total:
            raise SpaceError(
                "space: holds no network at all: every choice of it leaves every method absent",
                hint="give a method a size above 0",
            )
        if not self.constraints and not self.rules:
            return
        best = closest(self)
        whole = self._whole(best)
        for rule in self.rules:
            if not rule.holds(whole):
                raise SpaceError(
                    f"space: no configuration that keeps the rule {rule.name} was found; the closest has "
                    f"{rule.problem(whole)}",
                    hint=rule.hint,
                )
        broken = [row for row in self.constraints if not row.holds(self.quantity(row.quantity, best))]
        if broken:
            value = self.quantity(broken[0].quantity, best)
            raise InfeasibleError(
                f"constraints: no configuration with {broken[0].text} was found; the closest has {value:.6g} "
                f"against {broken[0].limit:.6g}",
                hint="loosen the constraint, or give the space smaller sizes",
                constraint=broken[0].text,
                closest=value,
            )


def _rebuild(
    definition: SpaceDefinition,
    shape: ModelShape,
    constraints: tuple[str, ...],
    quantities: Mapping[str, Quantity],
    settings: Mapping[str, Scalar],
) -> SearchSpace:
    return SearchSpace(definition, shape, constraints=constraints, quantities=quantities, settings=settings)


__all__ = ["Constraint", "Quantity", "SearchSpace", "SpaceSize", "below"]
