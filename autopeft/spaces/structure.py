"""A definition on one model: layers, mask, methods and training cells; from cell levels to a network and back."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import final

from autopeft.errors import ConfigurationError, SpaceError
from autopeft.spaces.bound import BoundField, Read, at_first, bind_field, bind_training
from autopeft.spaces.condition import Condition
from autopeft.spaces.conditions_check import decision_order
from autopeft.spaces.configuration import Configuration, FieldValue, MethodSetting, Scalar
from autopeft.spaces.definition import MethodBlock, SpaceDefinition
from autopeft.spaces.dimension import Cell, Dimension, Level
from autopeft.spaces.domain import Fixed
from autopeft.spaces.masks import AbstractMask, bind_mask, given_layers
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.method import RATE, AbstractMethod
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.spread import Shared
from autopeft.spaces.training import ACTIVE_WITH, TRAINING_FIELDS, is_active

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
    rate: BoundField | None
    """The learning rate; None where the space gives the method none of its own."""
    when: Condition | None

    @property
    def beside_size(self) -> tuple[BoundField, ...]:
        """`others`, and the learning rate where there is one."""
        return self.others if self.rate is None else (*self.others, self.rate)

    def field(self, name: str) -> BoundField:
        return next(field for field in (self.size, *self.beside_size) if field.field.name == name)

    def setting(self, on: Sequence[int], layers: Sequence[int], read: Read) -> MethodSetting | None:
        """The method on the positions `on`, None when it is absent on all of them."""
        sizes = self.size.column(on, read)
        present = [position for position, size in zip(on, sizes, strict=True) if size]
        if not present:
            return None
        columns: dict[str, tuple[FieldValue, ...]] = {self.size.field.name: tuple(size for size in sizes if size)}
        for field in self.others:
            columns[field.field.name] = field.column(present, read)
        rate = None if self.rate is None else self.rate.column(present[:1], read)[0]
        return MethodSetting(
            method=self.name,
            layers=tuple(layers[position] for position in present),
            fields=tuple(sorted(columns.items())),
            learning_rate=rate,  # type: ignore[arg-type]  # the field holds numbers
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """A definition on one model."""

    layers: tuple[int, ...]
    """Those that may be adapted, ascending; a *position* is an index into it."""
    mask: AbstractMask | None
    """Over all positions; None where `layers` are given."""
    methods: tuple[BoundMethod, ...]
    """In an order in which conditions speak of earlier ones only."""
    training: tuple[tuple[str, Cell], ...]
    """By name; those that depend on another one's value are last."""
    cells: tuple[Cell, ...]
    """Of the mask, the methods as written, the training settings."""

    dimensions: tuple[Dimension, ...]
    """Of the cells, in their order."""
    written: str
    """The definition's `layers`."""

    def build(self, on: Sequence[int], read: Read) -> Configuration:
        """The network whose cells hold what `read` says, with the positions `on` unmasked.

        Raises:
            ConfigurationError: Nothing is adapted, or too few or too many layers are.
        """
        training = self.training_levels(read)
        settings: dict[str, MethodSetting | None] = {}
        lookup = self.lookup(settings, training, lambda method: read(method.size.cells[0]))
        for method in self.methods:
            if method.when is None or method.when.holds(lookup):
                settings[method.name] = method.setting(on, self.layers, read)
        present = sorted((setting for setting in settings.values() if setting), key=lambda setting: setting.method)
        self._check_layers(present)
        return Configuration(methods=tuple(present), training=tuple(sorted(training.items())))  # type: ignore[arg-type]  # scalars

    def training_levels(self, read: Read) -> dict[str, Level]:
        """Levels of the training settings that are active, by name."""
        decided = {name for name, _ in self.training}
        levels: dict[str, Level] = {}
        for name, cell in self.training:
            if is_active(name, decided=decided, values=levels):
                levels[name] = read(cell)
        return levels

    def lookup(
        self,
        settings: Mapping[str, MethodSetting | None],
        training: Mapping[str, Level],
        size_of: Callable[[BoundMethod], Level],
    ) -> Lookup:
        """What conditions ask, given the methods decided so far (None: absent; no entry: disabled)."""

        def value(name: str) -> Scalar | None:
            method, _, field = name.partition(".")
            if name in TRAINING_FIELDS:
                return training.get(name)  # type: ignore[return-value]  # a scalar
            if not field:
                return settings.get(name) is not None
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
        self.check_adapted({layer for setting in present for layer in setting.layers})

    def check_adapted(self, layers: Set[int]) -> None:
        """Raise ConfigurationError when `layers`, those that some method adapts, are no set of the mask."""
        if self.mask is None or self.mask.admits(sorted(layers), len(self.layers)):
            return
        shown = ", ".join(map(str, sorted(layers))) or "none"
        raise ConfigurationError(
            f"layers: {len(layers)} are adapted, outside {self.written}", hint=f"adapt others than {shown}"
        )


def bind_structure(definition: SpaceDefinition, shape: ModelShape) -> Structure:
    """`definition` on `shape`; see `SearchSpace.bind` for what it raises."""
    layers = _layers(definition, shape)
    mask = bind_mask(definition.layers, shape.n_layers)
    written = [_bind_method(block, layers=layers, shape=shape) for block in definition.methods]
    order = decision_order({block.name: block.when for block in definition.methods})
    training = [(name, bind_training(TRAINING_FIELDS[name], spread.domain)) for name, spread in definition.training]
    cells = [cell for method in written for field in (method.size, *method.beside_size) for cell in field.cells]
    every = (*(mask.cells if mask else ()), *cells, *(cell for _, cell in training))
    return Structure(
        layers=layers,
        mask=mask,
        methods=tuple(sorted(written, key=lambda method: order.index(method.name))),
        training=tuple(sorted(training, key=lambda row: (row[0] in ACTIVE_WITH, row[0]))),
        cells=every,
        dimensions=tuple(dimension for cell in every for dimension in cell.dimensions),
        written=str(definition.layers),
    )


def _layers(definition: SpaceDefinition, shape: ModelShape) -> tuple[int, ...]:
    every = tuple(range(shape.n_layers))
    if not every:
        raise SpaceError(f"space.layers: this {shape.family} model has no layers", hint="choose another model")
    return given_layers(definition.layers, len(every)) or every


def _bind_method(block: MethodBlock, *, layers: Sequence[int], shape: ModelShape) -> BoundMethod:
    method = METHODS[block.name]
    bound: dict[str, BoundField] = {}
    for field in method.settings:
        spread = block.spread(field.name)
        if spread is None and field is not RATE:
            assert field.default is not None
            spread = Shared(domain=Fixed(value=field.default))
        if spread is not None:
            bound[field.name] = bind_field(block.name, field, spread, layers=layers, shape=shape)
    if method.at_input:
        size_name = method.size_field.name
        bound[size_name] = at_first(bound[size_name], layers)
    size, rate = bound.pop(method.size_field.name), bound.pop(RATE.name, None)
    others = tuple(bound[name] for name in sorted(bound))
    return BoundMethod(name=block.name, method=method, size=size, others=others, rate=rate, when=block.when)
