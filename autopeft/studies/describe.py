"""How configurations and numbers read to people: one wording for tables, charts, MLflow and the terminal."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from autopeft.objectives.objective import Objective
from autopeft.spaces.configuration import LEARNING_RATE, Configuration, FieldValue, MethodSetting, Scalar
from autopeft.spaces.methods import METHODS
from autopeft.spaces.model_shape import ModelShape, Role

_METHOD_WORDS = {"serial_adapter": "serial", "parallel_adapter": "parallel", "prefix_tuning": "prefix"}
_SIZE_FIELDS = {"experts": "e", "rank": "r", "bottleneck": "", "length": "", "channels": ""}
_PRESENCE = "enabled"
"""Size of methods that have none: 1 wherever they are."""
_TRAINING_WORDS = {
    LEARNING_RATE: "lr",
    "weight_decay": "decay",
    "warmup_ratio": "warm-up",
    "batch_size": "batch",
}
_OFF: dict[str, Scalar] = {
    "accumulation": 1,
    "checkpointing": False,
    "layer_sampling": "none",
    "lora_plus_ratio": 1.0,
    **dict.fromkeys(("ba_consistency", "ba_diversity", "ba_spectrum", "density", "ggpo_beta", "ggpo_sigma"), 0.0),
}
"""Training entries at these values change nothing and go without saying."""
_ROLE_WORDS = {
    Role.QUERY: "q",
    Role.KEY: "k",
    Role.VALUE: "v",
    Role.QUERY_KEY_VALUE: "qkv",
    Role.ATTENTION_OUTPUT: "o",
    Role.MLP_GATE: "gate",
    Role.MLP_UP: "up",
    Role.MLP_DOWN: "down",
}
_SITE_WORDS = {
    "query": "q",
    "key": "k",
    "value": "v",
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "o",
    "qkv_proj": "qkv",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "c_attn": "qkv",
    "attention.output.dense": "o",
    "intermediate.dense": "up",
    "output.dense": "down",
}
_MAX_GROUPS = 3
"""Sizes that change more often than this over depth are listed layer by layer."""


def describe(configuration: Configuration, shape: ModelShape | None = None) -> str:
    """One line a person reads, e.g. `lora r8 q,v on 0-5 · serial 24 on 3,5 · lr 1e-3`.

    Args:
        configuration: What to describe.
        shape: The model it is for; with it, "all layers" is recognised and sites are named by their role.

    Returns:
        The methods, then the training settings that are not off, joined by a middle dot; `no adapter` when there is no
        method. Not lossless: `Configuration.to_json` is.
    """
    parts = [describe_method(setting, shape) for setting in configuration] or ["no adapter"]
    parts += [
        f"{_TRAINING_WORDS.get(name, name)} {number(value)}"
        for name, value in configuration.training
        if name not in _OFF or value != _OFF[name]
    ]
    return " · ".join(parts)


def describe_method(setting: MethodSetting, shape: ModelShape | None = None) -> str:
    """One method of a configuration, e.g. `lora r8 q,v lr 1e-3 on 0-5` or `serial 24 on 0-3, 48 on 7`."""
    columns = dict(setting.fields)
    size = _size_field(setting)
    rest = [
        _describe_field(setting.method, name, column, shape)
        for name, column in columns.items()
        if name not in (size, _PRESENCE)
    ]
    if setting.learning_rate is not None:
        rest.append(f"{_TRAINING_WORDS[LEARNING_RATE]} {number(setting.learning_rate)}")
    middle = "".join(f" {words}" for words in rest if words)
    word = method_word(setting.method)
    if size is None:
        return f"{word}{middle} on {layer_range(setting.layers, shape)}"
    sizes = [number_or_set(value) for value in columns[size]]
    return _describe_sizes(
        word,
        sizes=sizes,
        unit=_SIZE_FIELDS[size],
        layers=setting.layers,
        middle=middle,
        shape=shape,
        at_input=setting.method in METHODS and METHODS[setting.method].at_input,
    )


def _size_field(setting: MethodSetting) -> str | None:
    """The field that says how large the method is, the first known one; None for a method without a size."""
    return next((name for name in _SIZE_FIELDS if name in dict(setting.fields)), None)


def method_word(method: str) -> str:
    """A method's short name, e.g. `serial` for `serial_adapter`."""
    return _METHOD_WORDS.get(method, method)


def _describe_sizes(
    word: str,
    *,
    sizes: Sequence[str],
    unit: str,
    layers: Sequence[int],
    middle: str,
    shape: ModelShape | None,
    at_input: bool,
) -> str:
    distinct = list(dict.fromkeys(sizes))
    if len(distinct) == 1 or len(distinct) > _MAX_GROUPS:
        listed = distinct[0] if len(distinct) == 1 else " ".join(sizes)
        where = "" if at_input else f" on {layer_range(layers, shape)}"
        return f"{word} {unit}{listed}{middle}{where}"
    groups = [(size, [layer for layer, other in zip(layers, sizes, strict=True) if other == size]) for size in distinct]
    return f"{word}{middle} " + ", ".join(f"{unit}{size} on {layer_range(where)}" for size, where in groups)


def _default(method: str, name: str) -> object:
    """What goes without saying: the field's default in the table of methods; None for a method it does not have."""
    if method not in METHODS:
        return None
    return {field.name: field.default for field in METHODS[method].fields}.get(name)


def _describe_field(method: str, name: str, column: Sequence[FieldValue], shape: ModelShape | None) -> str:
    distinct = list(dict.fromkeys(column))
    if isinstance(column[0], tuple):
        texts = list(dict.fromkeys(site_words(value, shape) for value in column if isinstance(value, tuple)))
        return " ".join(texts)
    if distinct == [_default(method, name)]:
        return ""
    return f"{name} " + "/".join(number_or_set(value) for value in (distinct if len(distinct) == 1 else column))


def layer_range(layers: Sequence[int], shape: ModelShape | None = None) -> str:
    """Ascending layer numbers with runs closed up: `0-5`, `3,5`, `0-2,7`; `all` when `shape` has no others."""
    if shape is not None and len(layers) == shape.n_layers:
        return "all"
    runs = [list(run) for _, run in groupby(layers, key=_run_key(layers))]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _run_key(layers: Sequence[int]) -> Callable[[int], int]:
    offsets = {layer: layer - index for index, layer in enumerate(layers)}
    return lambda layer: offsets[layer]


def site_words(names: Sequence[str], shape: ModelShape | None = None) -> str:
    """Site names in short, e.g. `q,v`; names that would collide stay long."""
    roles = {site.name: site.role for row in shape.layers for site in row} if shape is not None else {}
    short = [_site_word(name, roles.get(name)) for name in names]
    return ",".join(names if len(set(short)) < len(short) else short)


def _site_word(name: str, role: Role | None) -> str:
    if role is not None and role in _ROLE_WORDS:
        return _ROLE_WORDS[role]
    last = name.rsplit(".", 1)[-1]
    return _SITE_WORDS.get(name) or _SITE_WORDS.get(last) or last


def number_or_set(value: FieldValue) -> str:
    """A field's value as text; a set of sites joined by `+`."""
    return "+".join(value) if isinstance(value, tuple) else number(value)


def number(value: Scalar) -> str:
    """A setting as text: `1e-3`, `0.25`, `8`, `relu`; floats to three significant digits."""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if value != 0 and (abs(value) < 1e-2 or abs(value) >= 1e6):
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def human_bytes(n_bytes: float) -> str:
    """`n_bytes` with a binary unit and three significant digits, e.g. `412 MiB`, `1.53 GiB`."""
    size, units = float(n_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(size) >= 1000 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.0f} {units[0]}" if units[0] == "B" or abs(size) >= 100 else f"{size:.3g} {units[0]}"


def human_seconds(seconds: float) -> str:
    """A duration, e.g. `8.4 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def human_value(objective: Objective, value: float) -> str:
    """`value` of `objective` as a table shows it: counts with thousands separators, bytes and seconds with units."""
    if not math.isfinite(value):
        return "-"
    if objective.unit == "bytes":
        return human_bytes(value)
    if objective.unit == "seconds":
        return human_seconds(value)
    if objective.unit == "parameters":
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.2f}"


def short_path(path: str) -> str:
    """A file's name; of a folder the last two names, e.g. `pets/train`."""
    parts = [part for part in path.replace("\\", "/").split("/") if part]
    return parts[-1] if "." in parts[-1] else "/".join(parts[-2:])


def layer_sizes(setting: MethodSetting, n_layers: int) -> list[Scalar]:
    """The method's size at each of `n_layers` layers, 0 where it is absent, 1 for a method without a size."""
    size = _size_field(setting)
    column = setting.column(size) if size else (1,) * len(setting.layers)
    sizes: list[Scalar] = [0] * max(n_layers, *(layer + 1 for layer in setting.layers))
    for layer, value in zip(setting.layers, column, strict=True):
        sizes[layer] = value if not isinstance(value, tuple) else len(value)
    return sizes


def depth(configurations: Iterable[Configuration], shape: ModelShape | None = None) -> int:
    """How many layers to draw: the model's, or as many as the deepest of `configurations` adapts."""
    if shape is not None:
        return shape.n_layers
    return max((layer + 1 for one in configurations for layer in one.adapted_layers), default=0)
