"""Configurations written by hand, without a search space."""

from collections.abc import Sequence

from autopeft.spaces.configuration import Configuration, FieldValue, MethodSetting, Scalar
from autopeft.spaces.methods import METHODS


def setting(method: str, layers: tuple[int, ...], **columns: FieldValue | Sequence[FieldValue]) -> MethodSetting:
    """`method` on `layers`; a list is one value a layer, anything else the same on all; the rest takes its default."""
    known = METHODS[method].fields if method in METHODS else ()
    columns = {field.name: field.default for field in known if field.default is not None} | columns
    fields = {
        name: tuple(value) if isinstance(value, list) else (value,) * len(layers) for name, value in columns.items()
    }
    return MethodSetting(method=method, layers=layers, fields=tuple(sorted(fields.items())))


def configuration(*settings: MethodSetting, **training: Scalar) -> Configuration:
    """The settings in canonical order."""
    methods = tuple(sorted(settings, key=lambda row: row.method))
    return Configuration(methods=methods, training=tuple(sorted(training.items())))
