"""From what is known of layers before a search to where it begins: likelier and less likely layers.

Known from what layer sampling learnt in a trial of another study, or from scores of the base model's gradients.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from autopeft.spaces.carry import relative_layer
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.space import SearchSpace

PREFIX = "importance/"
"""What the names of a layer's importance begin with among a measurement's extra values."""
LAYER_SCORES: Final[Mapping[str, str]] = {
    "gradient_norm": "norm of the gradient of the layer's linear weights",
    "norm_ratio": "output of one gradient step of the weights over that of the base",
    "saliency": "sum of |gradient times weight|",
    "sensitivity": "share of the hundredth of all weights whose squared gradients are largest",
}
"""Scores of a base model's layers that need no training, by name (`autopeft.trainers.layer_scores` computes them)."""
_POOL = 4
"""Uniform draws for each weighted one."""
_LEAST = 0.1
"""Chance of the layer that a score thinks least of; the best one has one minus it at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerScores:
    """What a score said of a base model's layers on some training rows; larger is more promising."""

    score: str
    """A key of `LAYER_SCORES`."""
    rows: int
    """Training rows that it saw."""
    seed: int
    """Of their order, and of the head."""
    layers: tuple[float, ...]
    sites: tuple[Mapping[str, float], ...]
    """By layer, the scores of its linear sites by name."""

    @property
    def weights(self) -> dict[int, float]:
        """The chance that a first design adapts each layer: its odds are its score over the scores' geometric mean.

        So equal scores give a half, and a layer of twice the usual score two thirds. Within [0.1, 0.9], for no layer is
        to be out of the question; where all scores are 0, or one is not finite, every chance is a half.
        """
        scores = np.array(self.layers, dtype=float)
        if not np.isfinite(scores).all() or not (scores > 0).any():
            return dict.fromkeys(range(len(scores)), 0.5)
        logs = np.log(np.maximum(scores, scores[scores > 0].min() * 1e-3))
        chances = np.clip(1.0 / (1.0 + np.exp(logs.mean() - logs)), _LEAST, 1.0 - _LEAST)
        return {layer: float(chance) for layer, chance in enumerate(chances)}

    def to_json(self) -> dict[str, object]:
        return {
            "score": self.score,
            "rows": self.rows,
            "seed": self.seed,
            "layers": list(self.layers),
            "sites": [dict(row) for row in self.sites],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "LayerScores":
        """What `to_json` wrote."""
        return cls(**{**data, "layers": tuple(data["layers"]), "sites": tuple(data["sites"])})


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
