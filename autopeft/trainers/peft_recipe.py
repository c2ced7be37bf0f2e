"""What a configuration is before training in terms of peft: the settings with which peft trains the same adapters."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, cast

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import Configuration, MethodSetting
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.bridged import AbstractBridged, Values
from autopeft.spaces.model_shape import ModelShape, Site
from autopeft.trainers.peft_export import PATTERNS, common_and_pattern

_LORA_PATTERNS: Final = {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}
_WITHOUT: Final = "train it with autopeft train"
_CALLS: Final[Mapping[str, str]] = {
    "ADALORA": "a call after every step",
    "LILY": "targets that the ends of names tell, since it shares among maps whose names end alike",
    "POLY": "task_ids with every batch",
}
"""What some types want beside settings that say which maps they are on."""
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
        kind, rows = "LORA", {path: _lora_fields(values) for path, _, values in _targets(setting, shape)}
    elif isinstance(method, AbstractBridged):
        if method.peft_type in _CALLS:
            raise ConfigurationError(f"{setting.method}: peft's needs {_CALLS[method.peft_type]}", hint=_WITHOUT)
        kind = method.peft_type
        rows = {path: _bridged_fields(method, site, values, path) for path, site, values in _targets(setting, shape)}
    else:
        raise ConfigurationError(f"{setting.method}: peft does not train it", hint=_WITHOUT)
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
    fields = _merged(setting, rows, _LORA_PATTERNS if kind == "LORA" else PATTERNS.get(kind, {}))
    defaults = config_class().to_dict()
    kept = {name: value for name, value in fields.items() if value != defaults.get(name) or name == "target_modules"}
    return Recipe(method=setting.method, class_name=config_class.__name__, fields=kept)


def _targets(setting: MethodSetting, shape: ModelShape) -> Iterator[tuple[str, Site, Values]]:
    """Path from the bare base model on, map and settings of each target."""
    for layer in setting.layers:
        values = setting.at(layer) or {}
        for name in cast("tuple[str, ...]", values["targets"]):
            yield f"{shape.path_of(layer)}.{name}", shape.site(layer, name), values


def _lora_fields(values: Values) -> dict[str, object]:
    return {"r": values["rank"], "lora_alpha": values["alpha"], "lora_dropout": values["dropout"]}


def _bridged_fields(method: AbstractBridged, site: Site, values: Values, path: str) -> dict[str, object]:
    fields = method.peft_config(values, sites=(site,))
    if fields.get("freeze_a"):
        raise ConfigurationError(f"{method.name}.variant: peft has no setting that freezes A", hint=_WITHOUT)
    init = str(fields.get("init_lora_weights"))
    if init in _STEPS:
        raise ConfigurationError(f"{method.name}.init: {_STEPS[init]}", hint=_WITHOUT)
    if "feedforward_modules" in fields:
        fields["feedforward_modules"] = [path] if fields["feedforward_modules"] else []
    return fields


def _merged(
    setting: MethodSetting, rows: Mapping[str, dict[str, object]], patterns: Mapping[str, str]
) -> dict[str, object]:
    """One set of fields for all targets, what differs in its pattern.

    Raises:
        ConfigurationError: A field differs that has none.
    """
    merged: dict[str, object] = {}
    for field, first in next(iter(rows.values())).items():
        if field == "feedforward_modules":
            merged[field] = sorted(name for row in rows.values() for name in cast("list[str]", row[field]))
        elif field in patterns:
            values = {path: row[field] for path, row in rows.items()}
            merged[field], merged[patterns[field]] = common_and_pattern(values)
        elif any(row[field] != first for row in rows.values()):
            raise ConfigurationError(f"{setting.method}: {field} differs by layer, peft has one for all", hint=_WITHOUT)
        else:
            merged[field] = first
    return merged | {"target_modules": list(rows)}
