"""Configurations from hand-written mappings, in the one spelling that equal networks share."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from autopeft.errors import ConfigurationError, InputError
from autopeft.spaces.configuration import (
    LEARNING_RATE,
    Configuration,
    FieldValue,
    MethodSetting,
    Scalar,
    read_columns,
)
from autopeft.spaces.fields import fit_value
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.method import RATE, AbstractMethod, Field, FieldKind
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.suggest import nearest
from autopeft.spaces.targets import resolve
from autopeft.spaces.training import ACTIVE_WITH, TRAINING_FIELDS, is_active
from autopeft.spaces.validity_rules import check_rules


def configuration(source: Mapping[str, object], shape: ModelShape) -> Configuration:
    """The configuration that `source` means on the model of `shape`; the exact inverse of `Configuration.to_json`.

    Args:
        source: Methods by name, each with `layers` (a list, default all) and fields: one value, or a list with one for
            each of `layers` (0 for a size: absent there). Targets are words. Fields left out take their default.
            `learning_rate` is one value for the method.
            Beside the methods, training settings by name.
        shape: The base model.

    Raises:
        ConfigurationError: An unknown name, a wrong value, something the model cannot have, nothing adapted, or a rule
            between dimensions that is broken (`validity_rules`).
    """
    known = (*METHODS, *TRAINING_FIELDS)
    settings: list[MethodSetting] = []
    training: dict[str, Scalar] = {}
    for name, value in source.items():
        if name in METHODS:
            setting = _setting(METHODS[name], value, shape)
            settings += [setting] if setting else []
        elif name in TRAINING_FIELDS:
            training[name] = _value(name, TRAINING_FIELDS[name], value)
        else:
            raise _unknown("configuration", str(name), known)
    _check_active(training)
    if not settings:
        raise ConfigurationError("configuration: nothing is adapted", hint='write for instance {"lora": {"rank": 8}}')
    built = Configuration(
        methods=tuple(sorted(settings, key=lambda setting: setting.method)), training=tuple(sorted(training.items()))
    )
    check_rules(built)
    return built


def _check_active(training: Mapping[str, Scalar]) -> None:
    """Refuse a setting beside a value of another with which it means nothing."""
    for name in training:
        if not is_active(name, decided=training, values=training):
            other, values = ACTIVE_WITH[name]
            raise ConfigurationError(
                f"{name}: means something only with {other} {' or '.join(map(str, values))}, not {training[other]}",
                hint=f"leave {name} out",
            )


def read_configuration(data: Mapping[str, object]) -> Configuration:
    """The configuration that `Configuration.to_json` wrote, whatever model it is for, an empty one among them.

    Raises:
        ConfigurationError: It holds a method that this version does not have.
    """
    methods: list[MethodSetting] = []
    training: list[tuple[str, Scalar]] = []
    for name, value in sorted(data.items()):
        if isinstance(value, (bool, int, float, str)):
            training.append((name, value))
        elif name in METHODS and isinstance(value, Mapping):
            sets = [field.name for field in METHODS[name].fields if field.kind is FieldKind.TARGETS]
            methods.append(_completed(read_columns({**value, "method": name}, set_fields=sets)))
        else:
            raise ConfigurationError(
                f"configuration: unknown method {name!r}; this version has {', '.join(sorted(METHODS))}",
                hint="pip install -U autopeft",
            )
    return Configuration(methods=tuple(methods), training=tuple(training))


def _completed(setting: MethodSetting) -> MethodSetting:
    """`setting` with the defaults of fields that its writer's version did not have."""
    known = {name for name, _ in setting.fields}
    absent = [
        (field.name, (field.default,) * len(setting.layers))
        for field in METHODS[setting.method].fields
        if field.default is not None and field.kind is not FieldKind.TARGETS and field.name not in known
    ]
    return replace(setting, fields=tuple(sorted((*setting.fields, *absent)))) if absent else setting


def _unknown(place: str, name: str, known: Sequence[str]) -> ConfigurationError:
    hint = nearest(name, known) or "leave it out"
    return ConfigurationError(f"{place}: unknown key {name!r}; known are {', '.join(sorted(known))}", hint=hint)


def _setting(method: AbstractMethod, value: object, shape: ModelShape) -> MethodSetting | None:
    place = method.name
    size = method.size_field.name
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{place}: got {value!r}, not a mapping", hint=f"write {place}: {{{size}: 8}}")
    row = cast(Mapping[str, object], value)
    names = [field.name for field in method.settings]
    for key in row:
        if key != "layers" and key not in names:
            raise _unknown(place, str(key), ["layers", *names])
    if size not in row:
        raise ConfigurationError(f"{place}.{size}: the size is missing", hint=f"write {size}: 8")
    layers = (0,) if method.at_input and "layers" not in row else _layers(place, row.get("layers"), shape)
    columns = {field.name: _column(place, field, row, layers, shape) for field in method.fields}
    rate = _rate(f"{place}.{LEARNING_RATE}", row.get(LEARNING_RATE))
    kept = sorted((layer, index) for index, layer in enumerate(layers) if columns[size][index] != 0)
    for layer, index in kept:
        method.check(shape, layer=layer, values={name: column[index] for name, column in columns.items()})
    if not kept:
        return None
    fields = tuple((name, tuple(columns[name][index] for _, index in kept)) for name in sorted(columns))
    return MethodSetting(
        method=method.name, layers=tuple(layer for layer, _ in kept), fields=fields, learning_rate=rate
    )


def _rate(place: str, value: object) -> float | None:
    if isinstance(value, (list, tuple)):
        raise ConfigurationError(f"{place}: got {list(value)}", hint="a method has one rate on all its layers")
    return None if value is None else float(_value(place, RATE, value))


def _layers(place: str, value: object, shape: ModelShape) -> tuple[int, ...]:
    if value is None or value == "all":
        return tuple(range(shape.n_layers))
    rows = value if isinstance(value, (list, tuple)) else [value]
    for layer in rows:
        if not isinstance(layer, int) or isinstance(layer, bool) or not 0 <= layer < shape.n_layers:
            raise ConfigurationError(
                f"{place}.layers: {layer!r} is no layer of this model", hint=f"layers are 0 to {shape.n_layers - 1}"
            )
    if not rows or len(set(rows)) < len(rows):
        raise ConfigurationError(
            f"{place}.layers: {list(rows)} is empty or names a layer twice", hint="each layer once"
        )
    return tuple(cast(Sequence[int], rows))


def _column(
    method: str, field: Field, row: Mapping[str, object], layers: Sequence[int], shape: ModelShape
) -> list[FieldValue]:
    place = f"{method}.{field.name}"
    value = row.get(field.name, field.default)
    values = _spread_out(place, field, value, len(layers))
    if field.kind is FieldKind.TARGETS:
        return [_sites(place, words, layer, shape) for words, layer in zip(values, layers, strict=True)]
    return [_value(place, field, item) for item in values]


def _spread_out(place: str, field: Field, value: object, n: int) -> Sequence[object]:
    """One entry a layer. A flat list of words is one set of targets."""
    if not isinstance(value, (list, tuple)):
        return [value] * n
    rows = cast(Sequence[object], value)
    if field.kind is FieldKind.TARGETS and all(isinstance(item, str) for item in rows):
        return [rows] * n
    if len(rows) != n:
        raise ConfigurationError(
            f"{place}: a list of {len(rows)} for {n} layers", hint="give one value, or one for each layer"
        )
    return rows


def _value(place: str, field: Field, value: object) -> Scalar:
    if not isinstance(value, (bool, int, float, str)):
        raise ConfigurationError(f"{place}: got {value!r}", hint="write one plain value")
    try:
        return fit_value(field, value)
    except InputError as error:
        searched = isinstance(value, str) and "(" in value
        hint = "a configuration has values, not domains: write one value, or a list with one a layer"
        raise ConfigurationError(f"{place}: {error.message}", hint=hint if searched else error.hint) from None


def _sites(place: str, value: object, layer: int, shape: ModelShape) -> tuple[str, ...]:
    words = (value,) if isinstance(value, str) else value
    if not isinstance(words, (list, tuple)) or not words or not all(isinstance(word, str) for word in words):
        raise ConfigurationError(f"{place}: got {value!r}", hint="write targets as words: [query, value]")
    try:
        return resolve(cast(Sequence[str], words), shape, layer)
    except InputError as error:
        raise ConfigurationError(f"{place}: {error.message}", hint=error.hint) from None
