"""Checks and counts that several methods share."""

from collections.abc import Mapping
from typing import Final

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.model_shape import ModelShape, Role, Site

OPEN_ATTENTION: Final = ("sdpa", "eager")
"""Attention implementations that rows can be added to."""


def size_of(method: str, field: str, values: Mapping[str, FieldValue]) -> int:
    """The positive whole number `values[field]`.

    Raises:
        ConfigurationError: When it is anything else.
    """
    size = values[field]
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ConfigurationError(
            f"{method}.{field}: {size!r} is not a whole number from 1", hint="a module that is absent has no size"
        )
    return size


def target_sites(method: str, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> tuple[Site, ...]:
    """The sites named in `values["targets"]` at `layer`.

    Raises:
        ConfigurationError: When there is none, or one that the layer lacks.
    """
    names = values["targets"]
    known = {site.name: site for site in shape.layers[layer]}
    if not isinstance(names, tuple) or not names:
        raise ConfigurationError(f"{method}.targets: {names!r} is no list of sites", hint="name at least one site")
    missing = [name for name in names if name not in known]
    if missing:
        raise ConfigurationError(
            f"{method}.targets: layer {layer} has no {missing[0]!r}; it has {', '.join(known)}",
            hint="name a site of the model",
        )
    return tuple(known[name] for name in names)


def positive(method: str, field: str, values: Mapping[str, FieldValue]) -> int:
    """The whole number from 1 in `values[field]`, a setting beside the size.

    Raises:
        ConfigurationError: When it is anything else.
    """
    value = values[field]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{method}.{field}: {value!r} is not a whole number from 1", hint="write 1 or more")
    return value


def check_rank(method: str, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
    """Raise ConfigurationError when `values["rank"]` is above a width of one of the target sites."""
    rank = positive(method, "rank", values)
    for site in target_sites(method, shape, layer=layer, values=values):
        width = min(site.d_in, site.d_out)
        if rank > width:
            raise ConfigurationError(
                f"{method}.rank: {rank} is above the width {width} of {site.name} in layer {layer}",
                hint=f"use ranks up to {width}, or leave {site.name} out of the targets",
            )


def bottleneck_parameters(shape: ModelShape, values: Mapping[str, FieldValue]) -> int:
    """Down (h by b, with bias) and up (b by h, with bias): 2hb + b + h."""
    bottleneck = size_of("adapter", "bottleneck", values)
    return 2 * shape.hidden_size * bottleneck + bottleneck + shape.hidden_size


def check_bottleneck(method: str, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
    """Raise ConfigurationError when the layer has no feed-forward block, or the size is no positive number."""
    size_of(method, "bottleneck", values)
    roles = {site.role for site in shape.layers[layer]}
    for role in (Role.MLP_UP, Role.MLP_DOWN):
        if role not in roles:
            raise ConfigurationError(
                f"{method}: layer {layer} of this {shape.family} model has no {role} site, so no feed-forward block",
                hint=f"leave {method} out, or list the layers that have one under 'layers'",
            )


def check_open_attention(method: str, shape: ModelShape, *, layer: int) -> None:
    """Raise ConfigurationError when the attention of the layer cannot be given rows beside the sequence's."""
    if shape.attention not in OPEN_ATTENTION:
        raise ConfigurationError(
            f"{method}: attention {shape.attention!r} takes no rows beside the sequence's",
            hint=f"load the model with attention {' or '.join(OPEN_ATTENTION)}",
        )
    hint = f"leave {method} out of the space for this model; the other methods work"
    if layer in shape.closed_attention:
        raise ConfigurationError(
            f"{method}: attention in layer {layer} of this {shape.family} model takes no rows beside the sequence's: it"
            " is computed in a way of its own, or with a bias by position",
            hint=hint,
        )
    widths = {site.role: site.d_out for site in shape.layers[layer]}
    fused = (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim
    expected = {Role.KEY: shape.kv_size, Role.VALUE: shape.kv_size, Role.QUERY_KEY_VALUE: fused}
    for role, width in expected.items():
        if widths.get(role, width) != width:
            raise ConfigurationError(
                f"{method}: layer {layer} has a {role} projection of width {widths[role]}, the model's heads say"
                f" {width}",
                hint=hint,
            )
