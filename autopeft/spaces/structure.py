"""A definition on one model: layers, mask, methods and training cells; from cell levels to a network and back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from autopeft.errors import ConfigurationError, SpaceError
from autopeft.spaces.bound import BoundField, Read, bind_field, bind_training
from autopeft.spaces.condition import Condition
from autopeft.spaces.conditions_check import decision_order
from autopeft.spaces.configuration import Configuration, FieldValue, MethodSetting, Scalar
from autopeft.spaces.definition import MethodBlock, SpaceDefinition
from autopeft.spaces.dimension import Cell, Dimension, Level, scalar_cell
from autopeft.spaces.domain import Fixed, Flag, Subset
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.method import AbstractMethod
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.spread import Shared
from autopeft.spaces.training import TRAINING_FIELDS

Lookup = Callable[[str], Scalar | None]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BoundMethod:
    """One method block on the model's layers."""

    name: str
    method: AbstractMethod
    size: BoundField
    others: tuple[BoundField, ...]
    """Every field but the size, by name."""
    when: Condition | None

    def field(self, name: str) -> BoundField:
        return next(field for field in (self.size, *self.others) if field.field.name == name)

    def setting(self, on: Sequence[int], layers: Sequence[int], read: Read) -> MethodSetting | None:
        """The method on the positions `on`, None when it is absent on all of them."""
        sizes = self.size.column(on, read)
        present = [position for position, size in zip(on, sizes, strict=True) if size]
        if not present:
            return None
        columns: dict[str, tuple[FieldValue, ...]] = {self.size.field.name: tuple(size for size in sizes if size)}
        for field in self.others:
            columns[field.field.name] = field.column(present, read)
        return MethodSetting(
            method=self.name,
            layers=tuple(layers[position] for position in present),
            fields=tuple(sorted(columns.items())),
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """A definition on one model."""

    layers: tuple[int, ...]
    """Those that may be adapted, ascending; a *position* is an index into it."""
    mask: Subset | None
    mask_cells: tuple[Cell, ...]
    """One flag a position, none without a mask."""
    methods: tuple[BoundMethod, ...]
    """In an order in which conditions speak of earlier ones only."""
    training: tuple[tuple[str, Cell], ...]
    """By name."""
    cells: tuple[Cell, ...]
    """Of the mask, the methods as written, the training settings."""

    dimensions: tuple[Dimension, ...]
    """Of the cells, in their order."""

    def build(self, on: Sequence[int], read: Read) -> Configuration:
        """The network whose cells hold what `read` says, with the positions `on` unmasked.

        Raises:
            ConfigurationError: Nothing is adapted, or too few or too many layers are.
        """
        training = {name: read(cell) for name, cell in self.training}
        settings: dict[str, MethodSetting | None] = {}
        lookup = self.lookup(settings, training, lambda method: read(method.size.cells[0]))
        for method in self.methods:
            if method.when is None or method.when.holds(lookup):
                settings[method.name] = method.setting(on, self.layers, read)
        present = sorted((setting for setting in settings.values() if setting), key=lambda setting: setting.method)
        self._check_layers(present)
        return Configuration(methods=tuple(present), training=tuple(sorted(training.items())))  # type: ignore[arg-type]  # scalars

    def lookup(
        self,
        settings: Mapping[str, MethodSetting | None],
        training: Mapping[str, Level],
        size_of: Callable[[BoundMethod], Level],
    ) -> Lookup:
        """What conditions ask, given the methods decided so far (None: absent; no entry: disabled)."""

        def value(name: str) -> Scalar | None:
            method, _, field = name.partition(".")
            if not field:
                return training[name] if name in training else settings.get(name) is not None  # type: ignore[return-value]  # a scalar
            if method not in settings:
                return None
            setting, bound = settings[method], self.method(method)
            if setting is not None:
                return setting.column(field)[0]  # type: ignore[return-value]  # targets are never compared
            return size_of(bound) if field == bound.size.field.name else None  # type: ignore[return-value]  # a number

        return value

    def method(self, name: str) -> BoundMethod:
        return next(method for method in self.methods if method.name == name)

    def _check_layers(self, present: Sequence[MethodSetting]) -> None:
        if not present:
            raise ConfigurationError(
                "nothing is adapted: every method is absent on every layer", hint="give a method a size on a layer"
            )
        if self.mask is None or (self.mask.min == 1 and self.mask.max is None):
            return
        adapted = len({layer for setting in present for layer in setting.layers})
        if not self.mask.admits(adapted):
            raise ConfigurationError(f"layers: {adapted} are adapted, outside {self.mask}", hint="adapt more or fewer")


def bind_structure(definition: SpaceDefinition, shape: ModelShape) -> Structure:
    """`definition` on `shape`; see `SearchSpace.bind` for what it raises."""
    layers = _layers(definition, shape)
    mask = definition.layers if isinstance(definition.layers, Subset) else None
    flags = tuple(Dimension(name=f"layers[{layer}]", domain=Flag(), default=True) for layer in layers) if mask else ()
    written = [_bind_method(block, layers=layers, shape=shape) for block in definition.methods]
    order = decision_order({block.name: block.when for block in definition.methods})
    training = [(name, bind_training(TRAINING_FIELDS[name], spread.domain)) for name, spread in definition.training]
    cells = [cell for method in written for field in (method.size, *method.others) for cell in field.cells]
    masks = tuple(scalar_cell(flag) for flag in flags)
    every = (*masks, *cells, *(cell for _, cell in training))
    return Structure(
        layers=layers,
        mask=mask,
        mask_cells=masks,
        methods=tuple(sorted(written, key=lambda method: order.index(method.name))),
        training=tuple(sorted(training, key=lambda row: row[0])),
        cells=every,
        dimensions=tuple(dimension for cell in every for dimension in cell.dimensions),
    )


def _layers(definition: SpaceDefinition, shape: ModelShape) -> tuple[int, ...]:
    every = tuple(range(shape.n_layers))
    if not every:
        raise SpaceError(f"space.layers: this {shape.family} model has no layers", hint="choose another model")
    if isinstance(definition.layers, Subset):
        most = definition.layers.max or definition.layers.min
        if max(most, definition.layers.min) > len(every):
            raise SpaceError(
                f"space.layers: {definition.layers} on a model of {len(every)} layers",
                hint=f"min and max are at most {len(every)}",
            )
        return every
    if definition.layers is None:
        return every
    if definition.layers[-1] >= len(every):
        raise SpaceError(
            f"space.layers: layer {definition.layers[-1]} of a model with layers 0 to {len(every) - 1}",
            hint="leave it out; layers count from 0",
        )
    return definition.layers


def _bind_method(block: MethodBlock, *, layers: Sequence[int], shape: ModelShape) -> BoundMethod:
    method = METHODS[block.name]
    bound: dict[str, BoundField] = {}
    for field in method.fields:
        spread = block.spread(field.name)
        if spread is None:
            assert field.default is not None
            spread = Shared(domain=Fixed(value=field.default))
        bound[field.name] = bind_field(block.name, field, spread, layers=layers, shape=shape)
    size = bound.pop(method.size_field.name)
    others = tuple(bound[name] for name in sorted(bound))
    return BoundMethod(name=block.name, method=method, size=size, others=others, when=block.when)
