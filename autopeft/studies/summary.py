"""What `autopeft check` says of a study whose file, data and model fit together."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from autopeft.spaces.configuration import Configuration
from autopeft.spaces.layer_prior import LayerScores
from autopeft.spaces.space import SearchSpace
from autopeft.studies.bind import BoundStudy
from autopeft.studies.layer_prior import LayerPrior
from autopeft.studies.past import CarriedStudy
from autopeft.studies.tables import CheckSummary

N_SAMPLES = 256
"""Configurations looked at for the predicted ranges."""


def summarise(
    bound: BoundStudy, prior: LayerPrior | LayerScores | None = None, *, past: Sequence[CarriedStudy] = ()
) -> CheckSummary:
    """Size and predicted ranges of a bound study, and what it begins from."""
    spec, space = bound.spec, bound.space
    size = space.size()
    parameters, memory = _range(space, "parameters"), _range(space, "memory")
    return CheckSummary(
        study=spec.study,
        model=spec.model.name,
        n_layers=space.shape.n_layers,
        objectives=spec.objectives,
        dimensions=tuple(_rows(space.definition.to_mapping())),
        configurations=size.configurations,
        continuous=size.continuous,
        parameters=(int(parameters[0]), int(parameters[1])),
        base_parameters=space.shape.base_parameters,
        memory=memory,
        n_trials=spec.search.trials,
        engine=spec.search.engine,
        epochs=spec.training.epochs,
        fidelity=spec.fidelity,
        rules=size.rules,
        layer_prior=prior,
        layer_score=spec.search.layers_from if isinstance(spec.search.layers_from, str) else None,
        past=tuple(past),
    )


def _range(space: SearchSpace, quantity: str) -> tuple[float, float]:
    """Least and most of a quantity over the valid configurations: the extremes of a sample, followed downhill."""
    sample = space.sample(np.random.default_rng(0), N_SAMPLES)
    ends = [
        _descend(space, sample, lambda row, sign=sign: sign * space.quantity(quantity, row)) for sign in (1.0, -1.0)
    ]
    return space.quantity(quantity, ends[0]), space.quantity(quantity, ends[1])


def _descend(
    space: SearchSpace, sample: Sequence[Configuration], loss: Callable[[Configuration], float]
) -> Configuration:
    here = min(sample, key=loss)
    while True:
        best = min(space.neighbours(here), key=loss, default=here)
        if loss(best) >= loss(here):
            return here
        here = best


def _rows(space: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, domain as written) of everything a space says."""
    for name, value in space.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)
