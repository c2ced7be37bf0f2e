"""How far a space's features have to change before the task metric does: what a surrogate should expect beforehand.

Training answers to the learning rate by factors, whatever range a study searches: half or twice the best rate costs
something, a tenth or ten times it nearly everything. It also answers to how much is trained, in orders of magnitude.
Which layers, sizes and kinds matter beyond that is open, and the more of them there are, the less each one can.
`benchmarks/surrogate.py` says what this is worth on real trainings.
"""

import math

import numpy as np
from numpy.typing import NDArray

from autopeft.spaces.dimension import Dimension

LEARNING_RATE = "learning_rate"

_RATE_NATS = 1.0
"""Of a learning rate: a factor of e."""
_PARAMETERS_NATS = 4.0
"""Of the number of trainable parameters: a factor of 55."""
_OTHER = 1.5
"""Of any other feature, which is in [0, 1], when there is one; it grows with the root of their number."""
_SHORTEST, _LONGEST = 0.05, 10.0


def typical_scales(rows: list[tuple[Dimension, int]], parameters: tuple[float, float]) -> NDArray[np.float64]:
    """`[f]` length-scales to expect, in units of the features.

    Args:
        rows: Every dimension that is a feature, and as how many features.
        parameters: Logarithms of the bounds of trainable parameters; the last feature is scaled by them.
    """
    others = sum(width for row, width in rows if _range(row) is None)
    scales: list[float] = []
    for row, width in rows:
        nats = _range(row)
        scales += [_OTHER * math.sqrt(others)] * width if nats is None else [_clipped(_RATE_NATS / nats)] * width
    low, high = parameters
    return np.array([*scales, _clipped(_PARAMETERS_NATS / max(high - low, 1e-9))])


def _range(row: Dimension) -> float | None:
    """Logarithm of the largest over the smallest learning rate; None for what is no rate, or has no such range."""
    if row.field != LEARNING_RATE and row.name != LEARNING_RATE:
        return None
    if not row.ordinal:
        return None
    low, high = float(row.domain.from_unit(0.0)), float(row.domain.from_unit(1.0))
    return math.log(high / low) if 0 < low < high else None


def _clipped(scale: float) -> float:
    return min(max(scale, _SHORTEST), _LONGEST)
