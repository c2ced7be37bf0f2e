"""From a configuration found on one model to the same idea in a space bound to another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np

from autopeft.errors import ConfigurationError
from autopeft.spaces.carry import Wish, carry
from autopeft.spaces.configuration import LEARNING_RATE, Configuration, FieldValue, MethodSetting
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.repair import walk
from autopeft.spaces.snap import nearest_network
from autopeft.spaces.space import SearchSpace

_SHOWN: Final = 4
"""Layers that a note names one by one."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Translated:
    """What became of a configuration."""

    configuration: Configuration | None
    """In the target space; None when nothing of it can be had there."""
    exact: bool
    """Whether every layer, site and value was carried one to one: no notes."""
    notes: tuple[str, ...]
    """One line for each thing that was guessed, changed, added or left out, beginning with its place."""


def translate(configuration: Configuration, *, source: ModelShape, target: SearchSpace) -> Translated:
    """The network of `target` that is nearest to `configuration` of a model of `source`.

    Layers keep their relative depth (encoder and decoder apart), widths such as a rank their share of the hidden size,
    sites their role; counts, such as tokens of a prefix, stay. Each value then takes the nearest one that the target
    space has. Where its rules and constraints refuse the result, it is walked towards them through its neighbours. A
    configuration of a space comes back unchanged when that is the target. Deterministic.

    Args:
        configuration: Of any space on a model of `source`.
        source: The model it was found on.
        target: The space to carry it to, bound to its model.
    """
    wish = carry(configuration, source, target.shape, target.structure.layers)
    try:
        built = nearest_network(target.structure, wish)
    except ConfigurationError as error:
        return Translated(configuration=None, exact=False, notes=(error.message,))
    notes = [*wish.guesses, *_changes(wish, built)]
    if not target.admits(built):
        refused = _refusal(target, built)
        built = walk(target, built, np.random.default_rng(0))
        if not target.admits(built):
            return Translated(
                configuration=None, exact=False, notes=(*notes, f"{refused}; nothing near it is admitted")
            )
        notes.append(f"{refused}: moved through its neighbours until admitted")
    return Translated(configuration=built, exact=not notes, notes=tuple(notes))


def _refusal(space: SearchSpace, configuration: Configuration) -> str:
    try:
        space.check(configuration)
    except ConfigurationError as error:
        return error.message
    raise AssertionError("asked only for what is not admitted")


def _changes(wish: Wish, built: Configuration) -> Iterator[str]:
    """What of `wish` is otherwise in `built`."""
    for name in wish.methods:
        setting = built.method(name)
        if setting is None:
            yield f"{name}: left out, this space does not have it there"
        else:
            yield from _method_changes(wish, setting)
    for setting in built:
        if setting.method not in wish.methods:
            yield f"{setting.method}: added, this space always has it"
    given = dict(built.training)
    for name, value in wish.training.items():
        if name not in given:
            yield f"{name}: {_shown(value)} is left to the study, this space does not decide it"
        elif given[name] != value:
            yield f"{name}: {_shown(value)} became {_shown(given[name])}"
    for name in sorted(given.keys() - wish.training.keys()):
        yield f"{name}: {_shown(given[name])}, which the source left open"


def _method_changes(wish: Wish, setting: MethodSetting) -> Iterator[str]:
    wanted = wish.methods[setting.method]
    if tuple(wanted) != setting.layers:
        yield f"{setting.method}: on layers {_layers(setting.layers)} instead of {_layers(tuple(wanted))}"
    for name, column in setting.fields:
        pairs = [
            (layer, wanted[layer][name], value)
            for layer, value in zip(setting.layers, column, strict=True)
            if layer in wanted and name in wanted[layer]
        ]
        changed = [row for row in pairs if row[1] != row[2]]
        if changed:
            layer, before, after = changed[0]
            more = f" and on {len(changed) - 1} more layers" if len(changed) > 1 else ""
            yield f"{setting.method}.{name}: {_shown(before)} became {_shown(after)} on layer {layer}{more}"
    rate = wish.rates.get(setting.method)
    if rate != setting.learning_rate:
        before = "that of all" if rate is None else _shown(rate)
        after = "that of all" if setting.learning_rate is None else _shown(setting.learning_rate)
        yield f"{setting.method}.{LEARNING_RATE}: {before} became {after}"


def _layers(layers: Sequence[int]) -> str:
    if not layers:
        return "none"
    shown = ", ".join(map(str, layers[:_SHOWN]))
    return f"{shown}, ... ({len(layers)} in all)" if len(layers) > _SHOWN else shown


def _shown(value: FieldValue) -> str:
    if isinstance(value, tuple):
        return "+".join(value) or "nothing"
    return f"{value:g}" if isinstance(value, float) else str(value)
