"""The configuration that an `adapter_config.json` of Hugging Face PEFT means, where one of ours is exactly that.

A candidate is found by reading its fields off the file, and accepted when writing it as peft would gives the file's
settings again, field by field with peft's defaults; otherwise the field that differs is named.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Final, cast

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType

from autopeft.errors import ConfigurationError
from autopeft.spaces.canonical import configuration
from autopeft.spaces.configuration import Configuration, FieldValue
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.bridged import AbstractBridged
from autopeft.spaces.methods.method import FieldKind
from autopeft.spaces.methods.peft_table import OUTSIDE, OWN
from autopeft.spaces.model_shape import ModelShape, Role, Site
from autopeft.spaces.peft_config import config_at
from autopeft.spaces.peft_targets import Module, pattern_value, saved_modules, targeted
from autopeft.trainers.adapters.peft_bridge import SEEDED
from autopeft.trainers.peft_export import PATTERNS

Json = Mapping[str, object]

_IGNORED: Final = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision"),
        *("exclude_modules", "layers_pattern", "layers_to_transform", "modules_to_save", "target_modules", "task_type"),
        *("fan_in_fan_out", "feedforward_modules", "megatron_core", "runtime_config", "save_projection"),
        *SEEDED.values(),
    }
)
"""Fields that say where, not what, or which are looked at by themselves."""
_LORA_PATTERNS: Final[Mapping[str, str]] = {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}
_SHOWN: Final = 60


def read_peft_config(config: Json, shape: ModelShape) -> Configuration:
    """The configuration that `config`, what an `adapter_config.json` holds, means on the model of `shape`.

    Raises:
        ConfigurationError: No or an unknown type, one that no method here is, a target that is no linear map of a
            layer, a setting that differs within a layer, or a field that has no equal here.
    """
    kind = str(config.get("peft_type") or "").rpartition(".")[2].upper()
    if kind not in PeftType.__members__:
        raise ConfigurationError(
            f"peft_type: {config.get('peft_type')!r} is not known", hint="give an adapter_config.json that peft wrote"
        )
    candidates = [m for m in METHODS.values() if isinstance(m, AbstractBridged) and m.peft_type == kind]
    if not candidates:
        reason = OUTSIDE.get(kind) or (OWN[kind][1] if kind in OWN else "no method here computes it")
        raise ConfigurationError(
            f"peft_type {kind} has no equal configuration here: {reason}",
            hint="`autopeft methods` lists what there is; `autopeft estimate` counts it all the same",
        )
    defaults = _plain(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]().to_dict())
    given = defaults | _plain(config)
    by_layer = _targets(given, shape)
    if kind == "LILY":
        _check_shared(given, by_layer)
    if kind == "LORA" and (found := _as_lora(given, defaults, by_layer)) is not None:
        return configuration({"lora": found}, shape)
    nearest: list[str] | None = None
    for method in candidates:
        for choices in _choices(method):
            rows = {
                layer: _values(method, _at(kind, given, modules), choices) | dict(_read(method, given, modules))
                for layer, modules in by_layer.items()
            }
            wrong = _differences(method, given, defaults, rows, by_layer)
            if not wrong:
                return configuration({method.name: _source(rows, by_layer)}, shape)
            nearest = wrong if nearest is None or len(wrong) < len(nearest) else nearest
    assert nearest is not None
    field = nearest[0]
    raise ConfigurationError(
        f"{field}: got {str(given.get(field))[:_SHOWN]!r}, which has no equal here",
        hint=f"`autopeft methods {candidates[0].name}` shows the fields there are",
    )


def _targets(config: Json, shape: ModelShape) -> dict[int, list[Module]]:
    """The targeted linear maps by layer."""
    saved = saved_modules(config, shape)
    if saved:
        raise ConfigurationError(
            f"modules_to_save: {saved[0].name} is part of the base model, which stays frozen here",
            hint="only the task's own head can be trained beside an adapter",
        )
    places = {f"{shape.path_of(layer)}.{site.name}": layer for layer, row in enumerate(shape.layers) for site in row}
    by_layer: dict[int, list[Module]] = {}
    for module in targeted(config, shape):
        if module.bare not in places:
            raise ConfigurationError(
                f"target_modules: {module.name} is no linear map of a layer", hint="leave it out of the targets"
            )
        by_layer.setdefault(places[module.bare], []).append(module)
    return by_layer


def _check_shared(config: Json, by_layer: Mapping[int, list[Module]]) -> None:
    """Refuse targets of LILY whose words bring sites of different names together, which share nothing here."""
    targets = config.get("target_modules")
    words = [targets] if isinstance(targets, str) else cast("list[str]", targets or [])
    for word in words:
        found = {
            module.name.rpartition(f".{layer}.")[2]
            for layer, modules in by_layer.items()
            for module in modules
            if module.name.endswith(word) or isinstance(targets, str)
        }
        if len(found) > 1:
            raise ConfigurationError(
                f"target_modules: {word!r} shares factors among {' and '.join(sorted(found))}; here sites share with"
                " those of their own name",
                hint="name each site by as much of its path as tells it from others",
            )


def _at(kind: str, config: Json, modules: list[Module]) -> dict[str, object]:
    """`config` with the patterns applied that hold for all of a layer's targets.

    Raises:
        ConfigurationError: They differ among them.
    """
    fields = dict(config)
    if kind == "OSF":  # which leaves no one value, but what `_read` reads
        return fields
    for field, pattern in (_LORA_PATTERNS if kind == "LORA" else PATTERNS.get(kind, {})).items():
        found = {
            str(value): value for m in modules if (value := pattern_value(config.get(pattern), m.names, config[field]))
        }
        if len(found) > 1:
            raise ConfigurationError(
                f"{pattern}: {', '.join(sorted(found))} within the layer of {modules[0].name}; a method has one value"
                " for each layer here",
                hint="give the targets of a layer the same value",
            )
        fields[field] = next(iter(found.values()))
    return fields


def _as_lora(given: Json, defaults: Json, by_layer: Mapping[int, list[Module]]) -> dict[str, object] | None:
    """The fields of `lora`; None for a variant of it."""
    own = {"r", "lora_alpha", "lora_dropout", "use_rslora", *_LORA_PATTERNS.values()}
    if any(given[name] != defaults.get(name) for name in given if name not in _IGNORED | own):
        return None
    rows: dict[int, dict[str, FieldValue]] = {}
    for layer, modules in by_layer.items():
        fields = _at("LORA", given, modules)
        rank, alpha = int(str(fields["r"])), float(str(fields["lora_alpha"]))
        scaled = alpha * math.sqrt(rank) if fields["use_rslora"] else alpha
        rows[layer] = {"rank": rank, "alpha": scaled, "dropout": float(str(fields["lora_dropout"]))}
    return _source(rows, by_layer)


def _choices(method: AbstractBridged) -> Iterator[dict[str, FieldValue]]:
    """Every combination of the categories and switches that are no field of peft's by themselves."""
    free = [
        (field.name, field.choices if field.kind is FieldKind.CATEGORY else (False, True))
        for field in method.fields
        if field.name not in method.columns and field.kind in (FieldKind.CATEGORY, FieldKind.BOOL)
    ]
    for combination in product(*(choices for _, choices in free)):
        yield dict(zip((name for name, _ in free), combination, strict=True))


def _values(method: AbstractBridged, fields: Json, choices: Mapping[str, FieldValue]) -> dict[str, FieldValue]:
    """The method's fields at one layer, without targets."""
    values: dict[str, FieldValue] = {}
    for field in method.fields:
        if field.name in method.columns:
            values[field.name] = cast(FieldValue, fields[method.columns[field.name]])
        elif field.name in choices:
            values[field.name] = choices[field.name]
        elif field.kind is FieldKind.SIZE:
            values[field.name] = 1
        elif field.kind is not FieldKind.TARGETS:
            assert field.default is not None
            values[field.name] = field.default
    return values


def _read(method: AbstractBridged, config: Json, modules: list[Module]) -> Mapping[str, FieldValue]:
    """The fields that peft says of each map otherwise than we do.

    Raises:
        ConfigurationError: They differ among the targets of a layer.
    """
    kind = method.peft_type
    found = [method.read_site(config_at(kind, config, m), cast(Site, m.linear)) for m in modules]  # type: ignore[call-arg]  # a static method held in a class variable
    if any(row != found[0] for row in found):
        raise ConfigurationError(
            f"{method.name}: the targets in the layer of {modules[0].name} come to {found[0]} and others; a method has"
            " one value for each layer here",
            hint="give it targets of one width",
        )
    return found[0]


def _differences(
    method: AbstractBridged,
    given: Json,
    defaults: Json,
    rows: Mapping[int, Mapping[str, FieldValue]],
    by_layer: Mapping[int, list[Module]],
) -> list[str]:
    """The fields in which what we would write differs from what is given."""
    patterns = _LORA_PATTERNS if method.peft_type == "LORA" else PATTERNS.get(method.peft_type, {})
    skipped = _IGNORED | set(patterns.values()) | set(patterns)
    wrong: dict[str, None] = {}
    for layer, values in rows.items():
        sites = tuple(cast(Site, module.linear) for module in by_layer[layer])
        expected = {**defaults, **_plain(method.peft_config(values, sites=sites))}
        names = sorted(given, key=lambda name: (given[name] == defaults.get(name), name))
        names += sorted(set(expected) - set(given))
        wrong |= {name: None for name in names if name not in skipped and given.get(name) != expected.get(name)}
        if method.peft_type == "IA3" and not _same_feedforward(given, by_layer[layer]):
            wrong["feedforward_modules"] = None
    return list(wrong)


def _same_feedforward(given: Json, modules: list[Module]) -> bool:
    """Whether IA3 scales the inputs of just those maps whose inputs we scale: the last of each MLP."""
    words = cast("list[str]", given.get("feedforward_modules") or [])
    return all(
        any(module.name.endswith(word) for word in words) == (cast(Site, module.linear).role is Role.MLP_DOWN)
        for module in modules
    )


def _source(rows: Mapping[int, Mapping[str, FieldValue]], by_layer: Mapping[int, list[Module]]) -> dict[str, object]:
    """A method's fields as `canonical.configuration` takes them."""
    layers = sorted(rows)
    source: dict[str, object] = {name: [rows[layer][name] for layer in layers] for name in rows[layers[0]]}
    targets = [[module.name.rpartition(f".{layer}.")[2] for module in by_layer[layer]] for layer in layers]
    return source | {"layers": layers, "targets": targets}


def _plain(config: Json) -> dict[str, object]:
    """Comparable values: enumerations by their value, sets and tuples as lists, whole floats as they come."""
    return {name: _comparable(value) for name, value in config.items()}


def _comparable(value: object) -> object:
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, tuple):
        return list(value)
    return getattr(value, "value", value)
