"""A search space as written: layers, method blocks, training dimensions. Not yet bound to a model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self, cast, final

from autopeft.errors import SpaceError
from autopeft.spaces.condition import And, Comparison, Condition, Membership, Not, Or, Present, parse_condition
from autopeft.spaces.conditions_check import check_conditions
from autopeft.spaces.configuration import LEARNING_RATE
from autopeft.spaces.domain import LogReal, Subset
from autopeft.spaces.expression import CALL_HINT
from autopeft.spaces.fields import TARGETS_HINT, fit_spread
from autopeft.spaces.language import LAYERS_HINT, read_layers, read_spread, to_plain
from autopeft.spaces.layer_sets import LayerRange, LayerSet, LayersFrom, TopLayers
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.method import RATE, AbstractMethod, Field, FieldKind
from autopeft.spaces.presets import load_preset
from autopeft.spaces.spread import Shared, Spread
from autopeft.spaces.suggest import nearest
from autopeft.spaces.training import TRAINING_FIELDS

PLACE = "space"
AUTO = "auto"
"""Written for a learning rate: the range recommended for the method."""
_CONDITIONS = (Present, Comparison, Membership, Not, And, Or)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MethodBlock:
    """What the space says of one method."""

    name: str
    fields: tuple[tuple[str, Spread], ...]
    """Those written, in the method's order; the others take their defaults."""
    when: Condition | None = None

    def spread(self, field: str) -> Spread | None:
        return dict(self.fields).get(field)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceDefinition:
    """A search space as written; equal definitions are the same space on every model.

    `from_mapping` puts methods and training settings in alphabetical order, so that the order of a file's keys means
    nothing: not to equality, not to the order of dimensions, not to what a seed draws.
    """

    methods: tuple[MethodBlock, ...]
    layers: LayerSet | tuple[int, ...] | None = None
    """Sets of the model's layers to choose from, a fixed list of them, or None for all."""
    training: tuple[tuple[str, Spread], ...] = ()

    def __post_init__(self) -> None:
        if not self.methods:
            raise SpaceError(
                f"{PLACE}: no method is named, nothing can be adapted", hint=f"add one of {_names(METHODS)}"
            )
        check_conditions(
            {block.name: block.when for block in self.methods},
            {f"{block.name}.{name}": spread for block in self.methods for name, spread in block.fields}
            | dict(self.training),
        )

    @classmethod
    def from_mapping(cls, source: str | Mapping[str, object]) -> Self:
        """The definition that a preset's name, a mapping with `preset:`, or a plain mapping means.

        Values are text of the language, plain values, or objects of `autopeft.spaces`.

        Raises:
            SpaceError: Anything malformed, named by its place.
        """
        if isinstance(source, str):
            source = {"preset": source}
        if not isinstance(source, Mapping):
            raise SpaceError(f"{PLACE}: got {source!r}", hint="write a preset's name, or a mapping of methods")
        mapping = _with_preset(source)
        _check_keys(PLACE, mapping, ("layers", *METHODS, *TRAINING_FIELDS))
        if mapping.get(LEARNING_RATE) == AUTO:
            mapping = _with_own_rates(mapping)
        blocks = [_block(name, mapping[name]) for name in sorted(mapping) if name in METHODS]
        training = [(name, _training(name, mapping[name])) for name in sorted(mapping) if name in TRAINING_FIELDS]
        return cls(methods=tuple(blocks), layers=_layers(mapping.get("layers")), training=tuple(training))

    def to_mapping(self) -> dict[str, object]:
        """Plain values that JSON and YAML hold; `from_mapping` reads them back as an equal definition."""
        mapping: dict[str, object] = {}
        if self.layers is not None:
            mapping["layers"] = list(self.layers) if isinstance(self.layers, tuple) else str(self.layers)
        for block in self.methods:
            row: dict[str, object] = {} if block.when is None else {"when": str(block.when)}
            mapping[block.name] = row | {name: to_plain(spread) for name, spread in block.fields}
        return mapping | {name: to_plain(spread) for name, spread in self.training}

    def differences(self, other: "SpaceDefinition") -> list[str]:
        """One line for each entry that is not the same in both; empty when they define one space."""
        mine, theirs = _flat(self), _flat(other)
        lines: list[str] = []
        for name in sorted(mine.keys() | theirs.keys()):
            if mine.get(name) != theirs.get(name):
                lines.append(f"{name}: {mine.get(name, 'not there')} against {theirs.get(name, 'not there')}")
        return lines


def _names(known: Iterable[str]) -> str:
    return ", ".join(sorted(known))


def _flat(definition: SpaceDefinition) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in definition.to_mapping().items():
        rows = cast(Mapping[str, object], value) if isinstance(value, dict) else None
        flat |= {name: str(value)} if rows is None else {f"{name}.{key}": str(item) for key, item in rows.items()}
    return flat


def _with_preset(source: Mapping[str, object]) -> dict[str, object]:
    """`source` laid over its preset: blocks field by field, everything else whole; null takes an entry away."""
    if "preset" not in source:
        return dict(source)
    merged = load_preset(source["preset"])
    for name, value in source.items():
        base = merged.get(name)
        if name == "preset":
            continue
        if value is None:
            merged.pop(name, None)
        elif isinstance(base, dict) and isinstance(value, Mapping):
            merged[name] = {key: item for key, item in (base | dict(value)).items() if item is not None}
        else:
            merged[name] = value
    return merged


def _with_own_rates(mapping: Mapping[str, object]) -> dict[str, object]:
    """`mapping` with `learning_rate: auto` taken from the top and given to every method that has no rate of its own."""
    rows = {name: value for name, value in mapping.items() if name != LEARNING_RATE}
    blocks = {name: value for name, value in rows.items() if name in METHODS and isinstance(value, Mapping)}
    return rows | {name: {LEARNING_RATE: AUTO} | dict(value) for name, value in blocks.items()}


def _check_keys(place: str, mapping: Mapping[str, object], known: Iterable[str]) -> None:
    names = list(known)
    for key in mapping:
        if isinstance(key, str) and key in names:
            continue
        if str(key).rstrip().endswith(")"):
            raise SpaceError(
                f"{place}: the key {str(key)!r} is the end of a call that YAML cut in two",
                hint='inside YAML braces a call must be quoted: {rank: "choice(2, 8)"}',
            )
        hint = nearest(str(key), names) or "remove it"
        raise SpaceError(f"{place}: unknown key {str(key)!r}; known are {_names(names)}", hint=hint)


def _block(name: str, value: object) -> MethodBlock:
    place = f"{PLACE}.{name}"
    method = METHODS[name]
    size = method.size_field.name
    if not isinstance(value, Mapping):
        raise SpaceError(f"{place}: got {value!r}, not a mapping", hint=f'write {name}: {{{size}: "choice(0, 8)"}}')
    rows = cast(Mapping[str, object], value)
    own = [field.name for field in method.fields]
    _check_keys(place, rows, ("when", *own, LEARNING_RATE))
    if size not in rows:
        raise SpaceError(f"{place}.{size}: the size is missing", hint=f'write {size}: "choice(0, 8)", 0 being absent')
    fields = [(key, _spread(f"{place}.{key}", method.field(key), rows[key])) for key in own if key in rows]
    if LEARNING_RATE in rows:
        fields.append((LEARNING_RATE, _rate(f"{place}.{LEARNING_RATE}", method, rows[LEARNING_RATE])))
    return MethodBlock(name=name, fields=tuple(fields), when=_when(f"{place}.when", rows.get("when")))


def _spread(place: str, field: Field, value: object) -> Spread:
    try:
        return fit_spread(field, read_spread(value))
    except SpaceError as error:
        if field.kind is FieldKind.TARGETS and error.hint == CALL_HINT:
            error = SpaceError(error.message, hint=TARGETS_HINT)
        raise error.at(place) from None


def _rate(place: str, method: AbstractMethod, value: object) -> Spread:
    """The learning rate of one method, the same on all its layers."""
    if value == AUTO:
        return Shared(domain=LogReal(low=method.learning_rates.low, high=method.learning_rates.high))
    spread = _spread(place, RATE, value)
    if not isinstance(spread, Shared):
        raise SpaceError(
            f"{place}: got {spread}", hint=f"a method has one rate on all its layers: write {spread.domain}"
        )
    return spread


def _training(name: str, value: object) -> Spread:
    spread = _spread(f"{PLACE}.{name}", TRAINING_FIELDS[name], value)
    if not isinstance(spread, Shared):
        raise SpaceError(f"{PLACE}.{name}: got {spread}", hint=f"training has no layers: write {spread.domain}")
    return spread


def _when(place: str, value: object) -> Condition | None:
    if value is None or isinstance(value, _CONDITIONS):
        return value
    if not isinstance(value, str):
        raise SpaceError(f"{place}: got {value!r}", hint="write a condition such as lora.rank > 4")
    try:
        return parse_condition(value)
    except SpaceError as error:
        raise error.at(place) from None


def _layers(value: object) -> LayerSet | tuple[int, ...] | None:
    place = f"{PLACE}.layers"
    if value is None or value == "all":
        return None
    if isinstance(value, (list, tuple)):
        return _layer_list(place, value)
    try:
        layers = read_layers(value) if isinstance(value, str) else value
    except SpaceError as error:
        raise error.at(place) from None
    if isinstance(layers, (LayerRange, TopLayers, LayersFrom)) or (isinstance(layers, Subset) and not layers.items):
        return layers
    raise SpaceError(f"{place}: got {value}", hint=LAYERS_HINT)


def _layer_list(place: str, value: list[object] | tuple[object, ...]) -> tuple[int, ...]:
    layers: list[int] = []
    for item in value:
        if not isinstance(item, int) or isinstance(item, bool) or item < 0:
            raise SpaceError(f"{place}: {item!r} is no layer", hint="layers are whole numbers from 0")
        layers.append(item)
    if not layers or len(set(layers)) < len(layers):
        raise SpaceError(
            f"{place}: got {list(value)}; at least one layer, each once", hint="write a list such as [0, 3]"
        )
    return tuple(sorted(layers))
