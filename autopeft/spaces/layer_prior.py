"""From what layer sampling learnt in one trial to where another study begins: likelier and less likely layers."""

import math
from collections.abc import Mapping

import numpy as np

from autopeft.spaces.carry import relative_layer
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.space import SearchSpace

PREFIX = "importance/"
"""What the names of a layer's importance begin with among a measurement's extra values."""
_POOL = 4
"""Uniform draws for each weighted one."""


def inclusion_weights(extra: Mapping[str, float]) -> dict[int, float]:
    """The chance, in (0, 1), that a first design adapts each layer: sigmoid of its importance.

    Args:
        extra: `Measurement.extra` of a trial that sampled layers by importance; other entries are not looked at.
    """
    found = {int(name.removeprefix(PREFIX)): value for name, value in extra.items() if name.startswith(PREFIX)}
    return {layer: 1.0 / (1.0 + math.exp(-value)) for layer, value in sorted(found.items())}


def onto_depth(weights: Mapping[int, float], n_from: int, n_to: int) -> dict[int, float]:
    """`weights` by layer of a model of `n_from` layers, for one of `n_to`.

    Each layer takes the weight of the layer at the nearest relative depth (first to first, last to last, halves
    upwards), none where that one has none. With equal depths nothing changes.
    """
    nearest = {layer: relative_layer(layer, n_from, n_to) for layer in range(n_to)}
    return {layer: weights[origin] for layer, origin in nearest.items() if origin in weights}


def weighted_sample(
    space: SearchSpace, weights: Mapping[int, float], rng: np.random.Generator, n: int
) -> list[Configuration]:
    """`n` configurations of `space`, more likely those that adapt the layers that `weights` favour.

    Of four times as many uniform draws, `n` without replacement, each weighing the product over the layers of `weights`
    of its weight where it is adapted and of one minus it where it is not. So constraints hold as they do for uniform
    draws, whatever the space calls its layers. Where a space always adapts the same layers the draws are uniform.
    """
    drawn = space.sample(rng, _POOL * n)
    chance = {layer: min(max(weight, 1e-6), 1 - 1e-6) for layer, weight in weights.items()}
    keys = rng.gumbel(size=len(drawn)) + np.array([_log_weight(one, chance) for one in drawn])
    return [drawn[index] for index in np.argsort(-keys, kind="stable")[:n]]


def _log_weight(configuration: Configuration, chance: Mapping[int, float]) -> float:
    adapted = set(configuration.adapted_layers)
    return sum(math.log(share if layer in adapted else 1 - share) for layer, share in chance.items())
