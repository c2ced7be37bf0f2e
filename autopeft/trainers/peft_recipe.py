"""What a configuration is before training in terms of peft: the settings with which peft trains the same adapters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import Configuration, MethodSetting
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.bridged import AbstractBridged
from autopeft.spaces.model_shape import ModelShape
from autopeft.trainers.peft_export import PATTERNS, PLAIN_LORA, common_and_pattern

_LORA_PATTERNS: Final = {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}
_WITHOUT: Final = "train it with autopeft train"
_STEPS: Final[Mapping[str, str]] = {
    "eva": "peft fills its weights in a step of its own (initialize_lora_eva_weights)",
    "corda": "peft gathers what it starts from in a step of its own (preprocess_corda)",
    "lora_ga": "peft gathers what it starts from in a step of its own (preprocess_loraga)",
}
"""Initialisations that are no setting alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One of peft's configurations."""

    method: str
    """Ours."""
    class_name: str
    """Of peft's configuration, e.g. `LoraConfig`."""
    fields: Mapping[str, object]
    """What differs from peft's defaults; `target_modules` are paths from the bare base model on."""


def recipes(configuration: Configuration, shape: ModelShape) -> tuple[Recipe, ...]:
    """One recipe a method.

    Raises:
        ConfigurationError: A method that peft does not train, or settings that it has no place for.
    """
    return tuple(_recipe(setting, shape) for setting in configuration)


def _recipe(setting: MethodSetting, shape: ModelShape) -> Recipe:
    method = METHODS[setting.method]
    if setting.method == "lora":
        rows = {layer: _lora_fields(setting, layer) for layer in setting.layers}
        kind, patterns = "LORA", _LORA_PATTERNS
    elif isinstance(method, AbstractBridged):
        if method.peft_type == "ADALORA":
            raise ConfigurationError(f"{setting.method}: peft's needs a call after every step", hint=_WITHOUT)
        rows = {layer: _bridged_fields(method, setting, layer, shape) for layer in setting.layers}
        kind = method.peft_type
        patterns = _LORA_PATTERNS if kind in PLAIN_LORA else PATTERNS.get(kind, {})
    else:
        raise ConfigurationError(f"{setting.method}: peft does not train it", hint=_WITHOUT)
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
    fields = _merged(setting, rows, patterns, shape)
    defaults = config_class().to_dict()
    kept = {name: value for name, value in fields.items() if value != defaults.get(name) or name == "target_modules"}
    return Recipe(method=setting.method, class_name=config_class.__name__, fields=kept)


def _lora_fields(setting: MethodSetting, layer: int) -> dict[str, object]:
    values = setting.at(layer) or {}
    return {"r": values["rank"], "lora_alpha": values["alpha"], "lora_dropout": values["dropout"]}


def _bridged_fields(
    method: AbstractBridged, setting: MethodSetting, layer: int, shape: ModelShape
) -> dict[str, object]:
    values = setting.at(layer) or {}
    sites = tuple(shape.site(layer, name) for name in cast("tuple[str, ...]", values["targets"]))
    fields = method.peft_config(values, sites=sites)
    if fields.get("freeze_a"):
        raise ConfigurationError(f"{setting.method}.variant: peft has no setting that freezes A", hint=_WITHOUT)
    init = str(fields.get("init_lora_weights"))
    if init in _STEPS:
        raise ConfigurationError(f"{setting.method}.init: {_STEPS[init]}", hint=_WITHOUT)
    if "feedforward_modules" in fields:
        named = cast("list[str]", fields["feedforward_modules"])
        fields["feedforward_modules"] = [_path(shape, layer, name) for name in named]
    return fields


def _merged(
    setting: MethodSetting, rows: Mapping[int, dict[str, object]], patterns: Mapping[str, str], shape: ModelShape
) -> dict[str, object]:
    """One set of fields for all layers, what differs in its pattern.

    Raises:
        ConfigurationError: A field differs by layer that has none.
    """
    targets = {
        layer: [_path(shape, layer, name) for name in cast("tuple[str, ...]", (setting.at(layer) or {})["targets"])]
        for layer in setting.layers
    }
    merged: dict[str, object] = {}
    for field, first in rows[setting.layers[0]].items():
        if field == "feedforward_modules":
            merged[field] = sorted(name for row in rows.values() for name in cast("list[str]", row[field]))
        elif field in patterns:
            values = {path: row[field] for layer, row in rows.items() for path in targets[layer]}
            merged[field], merged[patterns[field]] = common_and_pattern(values)
        elif any(row[field] != first for row in rows.values()):
            raise ConfigurationError(f"{setting.method}: {field} differs by layer, peft has one for all", hint=_WITHOUT)
        else:
            merged[field] = first
    return merged | {"target_modules": [path for row in targets.values() for path in row]}


def _path(shape: ModelShape, layer: int, name: str) -> str:
    return f"{shape.path_of(layer)}.{name}"
