"""One concrete point of a search space, in the one spelling that all equal networks share."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

Scalar = bool | int | float | str
FieldValue = Scalar | tuple[str, ...]
"""What one field holds at one layer; a tuple is a set of site names, sorted in module order."""
LEARNING_RATE: Final = "learning_rate"
"""Name of the training setting, and of the rate that a method may have of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSetting:
    """One method as applied to the layers it is present on.

    `layers` is ascending and never empty; every column of `fields` has one value for each of them. Fields are
    sorted by name. Sizes are positive: a size of zero means the layer is not in `layers`.
    """

    method: str
    layers: tuple[int, ...]
    fields: tuple[tuple[str, tuple[FieldValue, ...]], ...]
    learning_rate: float | None = None
    """Peak rate of this method's tensors on all its layers; None takes that of the whole configuration."""

    def column(self, field: str) -> tuple[FieldValue, ...]:
        """Values of `field`, one for each of `layers`; KeyError when the method has no such field."""
        if field == LEARNING_RATE and self.learning_rate is not None:
            return (self.learning_rate,) * len(self.layers)
        return dict(self.fields)[field]

    def at(self, layer: int) -> dict[str, FieldValue] | None:
        """The field values at `layer`, None where the method is absent."""
        if layer not in self.layers:
            return None
        index = self.layers.index(layer)
        return {name: column[index] for name, column in self.fields}

    def to_json(self) -> dict[str, object]:
        """`layers` and each field: one value where it is the same on all of them, else a list aligned to `layers`."""
        row: dict[str, object] = {"layers": list(self.layers)}
        for name, column in self.fields:
            values = [list(value) if isinstance(value, tuple) else value for value in column]
            uniform = all(value == column[0] for value in column)
            row[name] = values[0] if uniform else values
        return row if self.learning_rate is None else row | {LEARNING_RATE: self.learning_rate}


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """Which methods, on which layers and sites, with which sizes and training settings.

    Build one with `autopeft.spaces.canonical.configuration` (or a `SearchSpace`), which checks and canonicalises;
    the constructor trusts its input. Hashable and ordered by nothing; `id` is stable across processes and versions.
    """

    methods: tuple[MethodSetting, ...]
    """Present methods only, sorted by name."""
    training: tuple[tuple[str, Scalar], ...]
    """Training settings the space decides (e.g. `learning_rate`), sorted by name."""

    def __iter__(self) -> Iterator[MethodSetting]:
        return iter(self.methods)

    def method(self, name: str) -> MethodSetting | None:
        return next((setting for setting in self.methods if setting.method == name), None)

    @property
    def adapted_layers(self) -> tuple[int, ...]:
        """Layers on which at least one method is present, ascending."""
        return tuple(sorted({layer for setting in self.methods for layer in setting.layers}))

    def to_json(self) -> dict[str, object]:
        """Canonical nested mapping: methods by name, then training settings by name."""
        rows: dict[str, object] = {setting.method: setting.to_json() for setting in self.methods}
        return rows | dict(self.training)

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the canonical JSON."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_columns(row: Mapping[str, object], *, set_fields: Sequence[str]) -> MethodSetting:
    """The `MethodSetting` that `MethodSetting.to_json` wrote (with its `method` added under the key `method`).

    Args:
        row: What `to_json` gave, plus `method`.
        set_fields: Names of fields whose single value is itself a list (site names).
    """
    layers = tuple(row["layers"])  # type: ignore[arg-type]  # written by to_json
    columns: list[tuple[str, tuple[FieldValue, ...]]] = []
    for name in sorted(set(row) - {"layers", "method", LEARNING_RATE}):
        columns.append((name, _column(row[name], n=len(layers), is_set=name in set_fields)))
    rate: float | None = row.get(LEARNING_RATE)  # type: ignore[assignment]  # written by to_json
    return MethodSetting(method=str(row["method"]), layers=layers, fields=tuple(columns), learning_rate=rate)


def _column(value: object, *, n: int, is_set: bool) -> tuple[FieldValue, ...]:
    if not isinstance(value, list):
        return (value,) * n  # type: ignore[return-value]  # a scalar by construction
    if not is_set:
        return tuple(value)
    if value and isinstance(value[0], list):
        return tuple(tuple(item) for item in value)
    return (tuple(value),) * n
