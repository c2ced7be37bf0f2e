"""One axis of a bound space, and the cell of one to sixteen axes that is drawn as a whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import cast, final

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import Scalar
from autopeft.spaces.domain import Choice, Flag, Integer, LogReal, Real, ScalarDomain, Subset, is_number, significant

Level = Scalar | tuple[str, ...]
"""What a cell holds: a scalar, or the words of a set of targets."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """One named axis: `layers[3]`, `lora.rank[3]`, `lora.targets[query]`, `learning_rate`."""

    name: str
    domain: ScalarDomain
    default: Scalar
    """Where `encode` puts it while it is inactive."""
    method: str | None = None
    field: str | None = None
    is_size: bool = False
    """Its 0 means the method is absent there."""

    @property
    def levels(self) -> Sequence[Scalar] | None:
        """Its values in order, None when it is continuous."""
        return self.domain.levels

    @property
    def sizes(self) -> Sequence[int]:
        """The levels of a size: whole numbers, ascending, never none."""
        assert self.is_size
        return cast(Sequence[int], self.domain.levels)

    @property
    def ordinal(self) -> bool:
        return self.domain.ordinal

    @property
    def log(self) -> bool:
        """Whether its scale is logarithmic."""
        return isinstance(self.domain, LogReal) or (isinstance(self.domain, Integer) and self.domain.log)

    @property
    def kind(self) -> str:
        """`flag`, `categorical`, `ordinal` (listed numbers), `integer` or `real` (with `domain.low`, `domain.high`)."""
        if isinstance(self.domain, Choice):
            return "ordinal" if self.domain.ordinal else "categorical"
        return {Flag: "flag", Integer: "integer"}.get(type(self.domain), "real")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One draw: a scalar dimension, a set of flags, or a fixed value (no dimension at all)."""

    name: str
    levels: Sequence[Level] | None
    """None when continuous."""
    default: Level
    dimensions: tuple[Dimension, ...]
    subset: Subset | None = None

    def read(self, values: Mapping[str, object]) -> Level:
        """The level that `values` give.

        Raises:
            ConfigurationError: A dimension is missing, or its value is none of its levels.
        """
        if not self.dimensions:
            return self.default
        if self.subset is None:
            return _level(self.dimensions[0], values)
        words = tuple(
            item for item, flag in zip(self.subset.items, self.dimensions, strict=True) if _level(flag, values)
        )
        if not self.subset.admits(len(words)):
            raise ConfigurationError(
                f"{self.name}: {len(words)} chosen of {', '.join(self.subset.items)}",
                hint=f"choose at least {self.subset.min}"
                + ("" if self.subset.max is None else f" and at most {self.subset.max}"),
            )
        return words

    def write(self, level: Level) -> dict[str, Scalar]:
        """Dimension values that `read` gives back as `level`; not for a fixed cell, which has no dimension."""
        if self.subset is None:
            assert not isinstance(level, tuple)
            return {self.dimensions[0].name: level}
        assert isinstance(level, tuple)
        return {flag.name: item in level for item, flag in zip(self.subset.items, self.dimensions, strict=True)}


def scalar_cell(dimension: Dimension) -> Cell:
    """The cell of one dimension."""
    return Cell(name=dimension.name, levels=dimension.levels, default=dimension.default, dimensions=(dimension,))


def fixed_cell(name: str, value: Level) -> Cell:
    return Cell(name=name, levels=(value,), default=value, dimensions=())


def subset_cell(name: str, subset: Subset, flags: tuple[Dimension, ...]) -> Cell:
    """The cell of a set of items; its levels are all admitted sets, smaller ones first."""
    top = len(subset.items) if subset.max is None else subset.max
    sets = tuple(words for count in range(subset.min, top + 1) for words in combinations(subset.items, count))
    return Cell(name=name, levels=sets, default=sets[0], dimensions=flags, subset=subset)


def _level(dimension: Dimension, values: Mapping[str, object]) -> Scalar:
    if dimension.name not in values:
        raise ConfigurationError(f"{dimension.name}: no value, though it is active", hint="give it one of its values")
    value = values[dimension.name]
    domain = dimension.domain
    if isinstance(domain, (Real, LogReal)) and is_number(value):
        value = significant(float(value))  # type: ignore[arg-type]  # a number
    if not domain.contains(value):
        raise ConfigurationError(f"{dimension.name}: {value!r} is not in {domain}", hint="use one of its values")
    if isinstance(domain, Choice):
        return domain.values[domain.values.index(value)]  # type: ignore[arg-type]  # contained
    return value  # type: ignore[return-value]  # contained
