"""What a configuration of one model asks for on another: layers by depth, widths by size, sites by role."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

from autopeft.spaces.configuration import Configuration, FieldValue, MethodSetting, Scalar
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.method import FieldKind
from autopeft.spaces.model_shape import ModelShape, Role, Site

Values = Mapping[str, FieldValue]
WIDTHS: Final = frozenset(
    {
        "block_size",
        "bottleneck",
        "channels",
        "galore_rank",
        "hybrid_rank",
        "rank",
        "reflections",
        "target_rank",
        "width",
    }
)
"""Fields that are a part of a layer's width, and scale with it; other whole numbers count things."""
_OTHERWISE: Final[Mapping[Role, tuple[Role, ...]]] = {
    Role.QUERY: (Role.QUERY_KEY_VALUE,),
    Role.KEY: (Role.QUERY_KEY_VALUE,),
    Role.VALUE: (Role.QUERY_KEY_VALUE,),
    Role.QUERY_KEY_VALUE: (Role.QUERY, Role.KEY, Role.VALUE),
    Role.MLP_GATE: (Role.MLP_UP,),
}
"""What stands in where a model has no site of a role."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A configuration in the terms of another model, before any space says what may be."""

    methods: Mapping[str, Mapping[int, Values]]
    """By method and layer of the other model, ascending: what each field should be there, sizes positive."""
    rates: Mapping[str, float]
    """Learning rates of methods that have their own."""
    training: Mapping[str, Scalar]
    guesses: tuple[str, ...]
    """What was not carried one to one; empty when all was."""


def relative_layer(layer: int, n_from: int, n_to: int) -> int:
    """The layer of `n_from` at the relative depth that `layer` has among `n_to`.

    First to first, last to last, halves upwards; never decreasing in `layer`.
    """
    span_from, span_to = n_from - 1, max(n_to - 1, 1)
    return (2 * layer * span_from + span_to) // (2 * span_to)


def counterparts(source: ModelShape, target: ModelShape) -> tuple[int, ...]:
    """The layer of `source` that each layer of `target` takes after, encoder by encoder and decoder by decoder.

    Where one of them has only one stack of layers, it stands for both, or the second is not looked at.
    """
    stacks = _stacks(source)
    found: list[int] = []
    for index, (_, n_to) in enumerate(_stacks(target)):
        first, n_from = stacks[min(index, len(stacks) - 1)]
        found += [first + relative_layer(layer, n_from, n_to) for layer in range(n_to)]
    return tuple(found)


def carry(configuration: Configuration, source: ModelShape, target: ModelShape, allowed: Collection[int]) -> Wish:
    """What `configuration` of `source` asks for on the layers `allowed` of `target`."""
    taken = counterparts(source, target)
    guesses: list[str] = []
    if taken != tuple(range(source.n_layers)):
        guesses.append(f"layers: {source.n_layers} carried to {target.n_layers} by relative depth")
    if source.hidden_size != target.hidden_size:
        guesses.append(f"sizes: widths of {source.hidden_size} scaled to {target.hidden_size}")
    methods: dict[str, Mapping[int, Values]] = {}
    for setting in configuration:
        places = _places(setting, taken, allowed, guesses)
        methods[setting.method] = {
            layer: _values(setting, origin, layer, source, target, guesses) for layer, origin in places.items()
        }
    rates = {setting.method: setting.learning_rate for setting in configuration if setting.learning_rate is not None}
    training = {name: _scaled(name, value, source, target) for name, value in configuration.training}
    return Wish(methods=methods, rates=rates, training=training, guesses=tuple(dict.fromkeys(guesses)))


def _stacks(shape: ModelShape) -> list[tuple[int, int]]:
    """First layer and length of the encoder (or the only stack), and of the decoder beside one."""
    n_first = shape.n_layers - shape.decoder_layers
    return [(0, n_first), (n_first, shape.decoder_layers)] if shape.decoder_layers else [(0, n_first)]


def _places(
    setting: MethodSetting, taken: Sequence[int], allowed: Collection[int], guesses: list[str]
) -> dict[int, int]:
    """The layer of the source that each layer takes after on which the method should be."""
    if METHODS[setting.method].at_input:
        return {0: 0} if 0 in allowed else {}
    found = {layer: taken[layer] for layer in sorted(allowed) if taken[layer] in setting.layers}
    if found or not allowed:
        return found
    for origin in setting.layers:  # none of its layers has a counterpart: the nearest ones stand in
        nearest = min(sorted(allowed), key=lambda layer: abs(taken[layer] - origin))
        found.setdefault(nearest, origin)
    guesses.append(f"{setting.method}: put on the nearest layers there are")
    return dict(sorted(found.items()))


def _values(
    setting: MethodSetting, origin: int, layer: int, source: ModelShape, target: ModelShape, guesses: list[str]
) -> Values:
    values: dict[str, FieldValue] = {}
    for name, value in (setting.at(origin) or {}).items():
        if isinstance(value, tuple):
            place = f"{setting.method}.{name}"
            values[name] = _sites(place, value, source.layers[origin], target.layers[layer], guesses)
        else:
            values[name] = _scaled(name, value, source, target)
    for field in METHODS[setting.method].fields:  # written by a version that did not have it
        if field.name not in values and field.default is not None and field.kind is not FieldKind.TARGETS:
            values[field.name] = field.default
    return values


def _scaled(name: str, value: Scalar, source: ModelShape, target: ModelShape) -> Scalar:
    if name not in WIDTHS or source.hidden_size == target.hidden_size:
        return value
    return float(value) * target.hidden_size / source.hidden_size


def _sites(
    place: str, names: Sequence[str], here: Sequence[Site], there: Sequence[Site], guesses: list[str]
) -> tuple[str, ...]:
    """Names, in module order, of the sites of `there` that do what those called `names` do `here`."""
    chosen: set[str] = set()
    for site in here:
        if site.name in names:
            found, certain = _counterpart(site, here, there)
            chosen.update(found)
            if not certain:
                guesses.append(f"{place}: {site.name} carried to {', '.join(found) or 'nothing'}")
    return tuple(site.name for site in there if site.name in chosen)


def _counterpart(site: Site, here: Sequence[Site], there: Sequence[Site]) -> tuple[tuple[str, ...], bool]:
    """The sites that take the place of `site`, and whether that is beyond doubt: same role, and same name or alone."""
    alike = [other.name for other in there if other.role is site.role]
    peers = [other.name for other in here if other.role is site.role]
    if site.name in alike:
        return (site.name,), True
    if site.role is Role.OTHER or not alike:
        roles = _OTHERWISE.get(site.role, ())
        return tuple(other.name for other in there if other.role in roles), False
    return tuple(alike), len(alike) == len(peers) == 1
