"""A field of a method on the layers of one model: its cells, and its values from layer to layer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast, final

from autopeft.errors import ConfigurationError, SpaceError
from autopeft.spaces.configuration import FieldValue, Scalar
from autopeft.spaces.dimension import Cell, Dimension, Level, fixed_cell, scalar_cell, subset_cell
from autopeft.spaces.domain import Choice, Domain, Fixed, Flag, Halvings, ScalarDomain, Subset
from autopeft.spaces.methods.method import Field, FieldKind
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.spread import Groups, Ramp, Shared, Spread, ramp_level
from autopeft.spaces.targets import resolve

Read = Callable[[Cell], Level]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BoundField:
    """One field over the positions 0 ... n-1 of the layers that may be adapted."""

    place: str
    """`method.field`."""
    field: Field
    cells: tuple[Cell, ...]
    """One a scope; first and last for a ramp."""
    scope_of: tuple[int, ...]
    """Index of the cell that each position reads; zeros for a ramp."""
    ramp: tuple[tuple[int, ...], ...] | None
    """For a ramp on m levels: level index at each position for each pair (first * m + last)."""
    sites: tuple[Mapping[Level, tuple[str, ...]], ...] | None
    """For targets: the site names of each level, by position."""
    words: tuple[Mapping[FieldValue, Level], ...] = ()
    """For targets: the level of each tuple of site names, by position."""

    @property
    def levels(self) -> Sequence[Level] | None:
        """Of every cell; given values by group have one level a cell, each its own."""
        return self.cells[0].levels

    def cell_at(self, position: int) -> Cell:
        """The cell that `position` reads; the first of the two for a ramp."""
        return self.cells[self.scope_of[position]]

    def column(self, positions: Sequence[int], read: Read) -> tuple[FieldValue, ...]:
        """Values at `positions` when the cells hold what `read` says; reads only the cells it needs."""
        if not positions:
            return ()
        levels = self._levels_at(positions, read)
        if self.sites is None:
            return levels
        return tuple(self.sites[position][level] for position, level in zip(positions, levels, strict=True))

    def _levels_at(self, positions: Sequence[int], read: Read) -> tuple[Level, ...]:
        if self.ramp is not None:
            assert self.levels is not None
            first, last = (self.levels.index(read(cell)) for cell in self.cells)
            pair = first * len(self.levels) + last
            return tuple(self.levels[self.ramp[position][pair]] for position in positions)
        if len(self.cells) == 1:
            return (read(self.cells[0]),) * len(positions)
        drawn: dict[int, Level] = {}
        for position in positions:
            scope = self.scope_of[position]
            if scope not in drawn:
                drawn[scope] = read(self.cells[scope])
        return tuple(drawn[self.scope_of[position]] for position in positions)

    def spell(self, positions: Sequence[int], column: tuple[FieldValue, ...]) -> dict[str, Level]:
        """Cell levels, by cell name, that give `column` at `positions`; the first pair of ends for a ramp.

        Raises:
            ConfigurationError: A value that the field cannot have there, or that its spread does not allow.
        """
        first = self.cells[0]
        if self.sites is None and column and len(self.cells) == 1 and column.count(column[0]) == len(column):
            return {first.name: self.level_of(column[0], positions[0])}
        levels = [self.level_of(value, position) for value, position in zip(column, positions, strict=True)]
        if self.ramp is not None:
            return self.spell_ramp(positions, levels)
        found: dict[str, Level] = {}
        for position, level in zip(positions, levels, strict=True):
            cell = self.cell_at(position)
            if found.setdefault(cell.name, level) != level:
                raise ConfigurationError(
                    f"{cell.name}: {found[cell.name]!r} on one layer, {level!r} on another",
                    hint="one value serves all layers here; use per_layer(...) in the space for more",
                )
        return found

    def spell_ramp(self, positions: Sequence[int], levels: Sequence[Level]) -> dict[str, Level]:
        """The first pair of ends whose ramp has `levels` at `positions`."""
        assert self.ramp is not None
        assert self.levels is not None
        rows = [
            (self.ramp[position], self.levels.index(level)) for position, level in zip(positions, levels, strict=True)
        ]
        n = len(self.levels)
        for pair in range(n * n):
            if all(row[pair] == index for row, index in rows):
                first, last = divmod(pair, n)
                return {self.cells[0].name: self.levels[first], self.cells[1].name: self.levels[last]}
        raise ConfigurationError(
            f"{self.place}: {list(levels)} lie on no ramp of {', '.join(map(str, self.levels))}",
            hint="change the values, or use per_layer(...) in the space",
        )

    def level_of(self, value: FieldValue, position: int) -> Level:
        """The level whose value at `position` is `value`."""
        if self.sites is not None:
            if value in self.words[position]:
                return self.words[position][value]
        elif isinstance(value, (bool, int, float, str)) and _holds(self.cell_at(position), value):
            return value
        shown = list(value) if isinstance(value, tuple) else value
        raise ConfigurationError(
            f"{self.place}: {shown!r} is not in this space", hint=f"it has {_describe(self.cell_at(position))}"
        )


def _holds(cell: Cell, value: Scalar) -> bool:
    return cell.dimensions[0].domain.contains(value) if cell.dimensions else cell.default == value


def _describe(cell: Cell) -> str:
    return str(cell.subset or cell.dimensions[0].domain) if cell.dimensions else f"only {cell.default!r}"


def bind_field(method: str, field: Field, spread: Spread, *, layers: Sequence[int], shape: ModelShape) -> BoundField:
    """`field` spread over `layers` of `shape`.

    Raises:
        SpaceError: More groups than layers, an unknown target, or two levels that name the same sites.
    """
    place = f"{method}.{field.name}"
    try:
        scope_of = spread.scopes(len(layers))
        domains = _domains(spread, shape)
        by_position = [domains[scope if len(domains) > 1 else 0] for scope in scope_of]
        sites = _site_table(by_position, layers, shape) if field.kind is FieldKind.TARGETS else None
    except SpaceError as error:
        raise error.at(f"space.{place}") from None
    labels = _labels(spread, scope_of, layers)
    every = domains if len(domains) > 1 else domains * len(labels)
    cells = tuple(_cell(method, field, domain, label) for domain, label in zip(every, labels, strict=True))
    ramp = _ramp_table(len(cells[0].levels or ()), len(layers)) if isinstance(spread, Ramp) else None
    words = tuple(_reversed(sites)) if sites else ()
    return BoundField(place=place, field=field, cells=cells, scope_of=scope_of, ramp=ramp, sites=sites, words=words)


def at_first(size: BoundField, layers: Sequence[int]) -> BoundField:
    """The size of a method that acts at the input: as `size` on layer 0, absent on all others.

    Raises:
        SpaceError: It is spread over layers, or layer 0 is not among `layers`.
    """
    if len(size.cells) > 1 or size.ramp is not None:
        raise SpaceError(
            f"space.{size.place}: acts once, at the input", hint="give it one value, not one for each layer"
        )
    if 0 not in layers:
        raise SpaceError(
            f"space.{size.place}: acts at the input, a part of layer 0; layers has {', '.join(map(str, layers))}",
            hint="put 0 among the layers, or leave the method out",
        )
    here = next(iter(size.cells))
    absent = fixed_cell(f"{here.name}[elsewhere]", 0)
    return replace(size, cells=(here, absent), scope_of=tuple(int(layer != 0) for layer in layers))


def _reversed(sites: Sequence[Mapping[Level, tuple[str, ...]]]) -> Iterator[Mapping[FieldValue, Level]]:
    """Each table turned round; equal layers share one."""
    turned: dict[int, Mapping[FieldValue, Level]] = {}
    for table in sites:
        if id(table) not in turned:
            turned[id(table)] = {names: level for level, names in table.items()}
        yield turned[id(table)]


def bind_training(field: Field, domain: Domain) -> Cell:
    """The cell of a training setting."""
    domain = _single(_sorted(domain))
    if isinstance(domain, Fixed):
        return fixed_cell(field.name, domain.value)
    return scalar_cell(_dimension(field.name, None, field, cast(ScalarDomain, domain)))


def _sorted(domain: Domain) -> Domain:
    if isinstance(domain, Choice) and domain.ordinal:
        return Choice(values=tuple(sorted(domain.values)))  # type: ignore[type-var]  # numbers
    return domain


def _ordered(domain: Domain, shape: ModelShape) -> Domain:
    return _single(domain.resolve(shape.hidden_size) if isinstance(domain, Halvings) else _sorted(domain))


def _single(domain: Domain) -> Domain:
    """A choice of one value is that value: no dimension."""
    return Fixed(value=domain.values[0]) if isinstance(domain, Choice) and len(domain.values) == 1 else domain


def _domains(spread: Spread, shape: ModelShape) -> tuple[Domain, ...]:
    """One domain for all cells, or one for each group of given values."""
    if isinstance(spread, Groups):
        return tuple(Fixed(value=value) for value in spread.values)
    return (_ordered(spread.domain, shape),)


def _labels(spread: Spread, scope_of: Sequence[int], layers: Sequence[int]) -> list[str]:
    if isinstance(spread, Shared):
        return [""]
    if isinstance(spread, Ramp):
        return ["[first]", "[last]"]
    labels: list[str] = []
    for scope in range(max(scope_of) + 1):
        group = [layer for layer, index in zip(layers, scope_of, strict=True) if index == scope]
        labels.append(f"[{group[0]}]" if len(group) == 1 else f"[{group[0]}-{group[-1]}]")
    return labels


def _cell(method: str, field: Field, domain: Domain, label: str) -> Cell:
    name = f"{method}.{field.name}{label}"
    if isinstance(domain, Fixed):
        return fixed_cell(name, domain.value)
    if isinstance(domain, Subset):
        flags = tuple(
            Dimension(
                name=f"{method}.{field.name}[{item}]{label}",
                domain=Flag(),
                default=index < domain.min,
                method=method,
                field=field.name,
            )
            for index, item in enumerate(domain.items)
        )
        return subset_cell(name, domain, flags)
    return scalar_cell(_dimension(name, method, field, cast(ScalarDomain, domain)))


def _dimension(name: str, method: str | None, field: Field, domain: ScalarDomain) -> Dimension:
    default = field.default
    if isinstance(default, tuple) or default is None or not domain.contains(default):
        default = domain.from_unit(0.5) if domain.levels is None else domain.levels[0]
    return Dimension(
        name=name,
        domain=domain,
        default=default,
        method=method,
        field=field.name,
        is_size=field.kind is FieldKind.SIZE,
    )


def _ramp_table(n_levels: int, n: int) -> tuple[tuple[int, ...], ...]:
    ends = [(first, last) for first in range(n_levels) for last in range(n_levels)]
    return tuple(tuple(ramp_level(first, last, position, n) for first, last in ends) for position in range(n))


def _site_table(
    domains: Sequence[Domain], layers: Sequence[int], shape: ModelShape
) -> tuple[Mapping[Level, tuple[str, ...]], ...]:
    tables: dict[tuple[object, ...], Mapping[Level, tuple[str, ...]]] = {}
    rows: list[Mapping[Level, tuple[str, ...]]] = []
    for domain, layer in zip(domains, layers, strict=True):
        key = (domain, shape.layers[layer])
        if key not in tables:
            tables[key] = _layer_sites(domain, layer, shape)
        rows.append(tables[key])
    return tuple(rows)


def _layer_sites(domain: Domain, layer: int, shape: ModelShape) -> dict[Level, tuple[str, ...]]:
    levels: Sequence[Level]
    if isinstance(domain, Subset):
        _check_disjoint(domain, layer, shape)
        levels = subset_cell("", domain, ()).levels or ()
    else:
        levels = (domain.value,) if isinstance(domain, Fixed) else cast(Choice, domain).values
    table: dict[Level, tuple[str, ...]] = {}
    for level in levels:
        words = level if isinstance(level, tuple) else (str(level),)
        sites = resolve(words, shape, layer)
        same = [other for other, names in table.items() if names == sites]
        if same:
            raise SpaceError(
                f"{level!r} and {same[0]!r} are the same sites ({', '.join(sites)})", hint="leave one of them out"
            )
        table[level] = sites
    return table


def _check_disjoint(domain: Subset, layer: int, shape: ModelShape) -> None:
    seen: dict[str, str] = {}
    for item in domain.items:
        for site in resolve((item,), shape, layer):
            if site in seen:
                raise SpaceError(
                    f"{domain}: {item!r} and {seen[site]!r} both hold {site}",
                    hint="the items of a subset have no site in common; use choice(...) for nested groups",
                )
            seen[site] = item
