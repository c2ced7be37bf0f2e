"""Slow truths that the objectives' fast paths are held against, and points to build fronts from."""

from collections.abc import Mapping

import numpy as np

from autopeft.objectives.front import FrontPoint
from autopeft.objectives.measurement import Measurement
from autopeft.objectives.objective import COSTS, METRICS, Objective
from autopeft.objectives.pareto import Array
from autopeft.spaces.configuration import Configuration, MethodSetting

ACCURACY, PARAMETERS, MEMORY = METRICS["accuracy"], COSTS["parameters"], COSTS["memory"]
OBJECTIVES: tuple[Objective, ...] = (ACCURACY, PARAMETERS, MEMORY)


def dominated_slowly(losses: Array) -> list[bool]:
    """Whether each row is dominated by, or equals an earlier one of, the others; by the definition."""
    rows = [tuple(row) for row in losses.tolist()]
    result: list[bool] = []
    for index, row in enumerate(rows):
        others = [
            (other != row and all(a <= b for a, b in zip(other, row, strict=True))) or (other == row and place < index)
            for place, other in enumerate(rows)
            if place != index
        ]
        result.append(any(others))
    return result


def volume_by_grid(losses: Array, reference: Array) -> float:
    """Hypervolume by testing every cell of the grid that the points' own coordinates span."""
    edges = [
        np.unique(np.append(np.minimum(column, bound), bound))
        for column, bound in zip(losses.T, reference, strict=True)
    ]
    total = 0.0
    for cell in np.ndindex(*(len(edge) - 1 for edge in edges)):
        corner = np.array([edge[index] for edge, index in zip(edges, cell, strict=True)])
        size = np.prod([edge[index + 1] - edge[index] for edge, index in zip(edges, cell, strict=True)])
        total += float(size) if (losses <= corner).all(axis=1).any() else 0.0
    return total


def setting(rank: int = 4) -> Configuration:
    """A LoRA configuration on one layer; the rank tells configurations apart."""
    fields = (("alpha", (16.0,)), ("dropout", (0.0,)), ("rank", (rank,)), ("targets", (("query",),)))
    return Configuration(methods=(MethodSetting(method="lora", layers=(0,), fields=fields),), training=())


def measurement(accuracy: float, *, parameters: int, memory: int = 1000, seconds: float = 1.0) -> Measurement:
    return Measurement(
        epoch=1,
        metrics={"accuracy": accuracy, "loss": 1.0 - accuracy},
        train_loss=0.5,
        train_seconds=seconds,
        evaluation_seconds=0.1,
        tokens=100,
        peak_bytes=memory,
        parameters=parameters,
    )


def point(
    trial: int, accuracy: float, *, parameters: int, memory: int = 1000, values: Mapping[str, float] | None = None
) -> FrontPoint:
    """A front point over accuracy, parameters and memory, or over `values` where given."""
    measured = measurement(accuracy, parameters=parameters, memory=memory)
    if values is not None:
        return FrontPoint(trial=trial, values=values, configuration=setting(trial + 1), measurement=measured)
    return FrontPoint.of(trial, setting(trial + 1), measurement=measured, objectives=OBJECTIVES)
