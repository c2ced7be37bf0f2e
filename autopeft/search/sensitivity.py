"""Which dimensions of a space mattered, as the surrogate of a study's trials has it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autopeft.objectives.objective import Objective
from autopeft.objectives.pareto import Array
from autopeft.search.observations import outcomes
from autopeft.search.ranking import left_out
from autopeft.search.surrogate import Averaged, SurrogateError, fit, one_thread
from autopeft.search.trial import History
from autopeft.spaces.configuration import Scalar
from autopeft.spaces.space import SearchSpace

MIN_OUTCOMES = 8
"""Outcomes below which nothing is said."""
SAMPLES = 2000
MAX_GROUPS = 8
"""Groups of equal size that a dimension with more levels is cut into."""
ABSENT = "inactive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Configurations that share a value, or a range of values, of one dimension."""

    label: str
    mean: float
    """Of the objective as the surrogate has it, in its own unit."""
    share: float
    """Of the sampled configurations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What one dimension does by itself."""

    dimension: str
    index: float
    """First-order index: share of the variance over the space that this dimension alone explains, in [0, 1]."""
    groups: tuple[Group, ...]
    """By value, ascending; inactive first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What mattered for one objective."""

    objective: Objective
    effects: tuple[Effect, ...]
    """Largest first."""
    explained: float
    """Share of the variance between trials that the surrogate predicts of each trial from the others; at most 1, below
    0 where it predicts worse than their mean does."""
    trials: int

    @property
    def together(self) -> float:
        """Share that several dimensions explain only together, or that first-order effects overlap in: 1 - their sum,
        not below 0.
        """
        return max(0.0, 1.0 - sum(effect.index for effect in self.effects))


def sensitivity(space: SearchSpace, history: History, objective: Objective, *, seed: int) -> Sensitivity | None:
    """First-order effects of every dimension on `objective`; None where there is too little to learn from.

    The posterior mean of the surrogate is evaluated at `SAMPLES` uniform draws of the space. The index of a dimension
    is the correlation ratio of its values: the variance between the means of configurations that share a value, over
    the whole variance, corrected for the number of groups (omega squared). For independent dimensions that is the
    first-order Sobol index; it needs no independence, which dimensions that switch one another off do not have. A
    dimension that is inactive has a value of its own.

    Source: Saltelli et al. 2008, "Global Sensitivity Analysis", section 1.2.15 (given-data estimate of the index).
    Cost: O(SAMPLES n^2) for n trials, and a fit of the surrogate.
    """
    found = outcomes(history, objective)
    if len(found) < MIN_OUTCOMES or float(np.ptp(found.losses)) == 0.0:
        return None
    sample = space.sample(np.random.default_rng([seed, 0x5E75]), SAMPLES)
    try:
        with one_thread():
            x = np.array([space.features(one) for one in found.configurations])
            process = fit(x, found.losses, seed=seed, typical=space.lengthscales)
            losses, _ = process.posterior(np.array([space.features(one) for one in sample]))
    except SurrogateError:
        return None
    values = np.array([objective.from_loss(float(loss)) for loss in losses])
    spelled = [space.spell(one) for one in sample]
    effects = [_effect(row.name, [spelling.get(row.name) for spelling in spelled], values) for row in space.dimensions]
    return Sensitivity(
        objective=objective,
        effects=tuple(sorted(effects, key=lambda effect: (-effect.index, effect.dimension))),
        explained=_explained(process),
        trials=len(found),
    )


def _effect(name: str, column: Sequence[Scalar | None], values: Array) -> Effect:
    labels = _grouped(column)
    order = list(dict.fromkeys(label for _, label in sorted(labels)))
    members = {label: np.array([own == label for _, own in labels]) for label in order}
    groups = tuple(
        Group(label=label, mean=float(values[rows].mean()), share=float(rows.mean())) for label, rows in members.items()
    )
    return Effect(dimension=name, index=_omega_squared([values[rows] for rows in members.values()]), groups=groups)


def _grouped(column: Sequence[Scalar | None]) -> list[tuple[float, str]]:
    """(place in the order of values, label) of every value: itself, or the range it is in where there are many."""
    there = sorted({value for value in column if value is not None}, key=_sorting)
    if len(there) > MAX_GROUPS and all(isinstance(value, (int, float)) for value in there):
        numbers = np.array([np.nan if value is None else float(value) for value in column])
        edges = np.unique(np.nanquantile(numbers, np.linspace(0, 1, MAX_GROUPS + 1)))
        places = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, max(0, len(edges) - 2))
        return [
            (-1.0, ABSENT) if np.isnan(value) else (float(place), f"{edges[place]:.3g} to {edges[place + 1]:.3g}")
            for value, place in zip(numbers, places, strict=True)
        ]
    ranks = {value: float(rank) for rank, value in enumerate(there)}
    return [(-1.0, ABSENT) if value is None else (ranks[value], _label(value)) for value in column]


def _sorting(value: Scalar) -> tuple[bool, float, str]:
    return (isinstance(value, str), 0.0 if isinstance(value, str) else float(value), str(value))


def _label(value: Scalar) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _omega_squared(groups: Sequence[Array]) -> float:
    """Hays' omega squared of one-way groups, in [0, 1]; 0.0 for one group or equal values."""
    everything = np.concatenate(groups)
    total = float(((everything - everything.mean()) ** 2).sum())
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    free = len(everything) - len(groups)
    if len(groups) < 2 or free < 1 or total <= 1e-12 * max(1.0, float((everything**2).sum())):
        return 0.0
    error = within / free
    return float(np.clip((total - within - (len(groups) - 1) * error) / (total + error), 0.0, 1.0))


def _explained(process: Averaged) -> float:
    """1 - squared leave-one-out errors over squared deviations from the mean."""
    first = process.each[0]
    y = first.location + first.scale * first.z
    errors = y - left_out(process.each)[0].mean(axis=0)
    spread = float(((y - y.mean()) ** 2).sum())
    return 1.0 - float((errors**2).sum()) / spread if spread > 0 else 0.0


def by_part(found: Sensitivity) -> Mapping[str, Mapping[str, Effect]]:
    """Effects of dimensions that a field has several of, such as `lora.rank[3]`, by field and what is in brackets."""
    parts: dict[str, dict[str, Effect]] = {}
    for effect in sorted(found.effects, key=lambda effect: _natural(effect.dimension)):
        name, bracket, rest = effect.dimension.partition("[")
        if bracket:
            parts.setdefault(name, {})[rest.removesuffix("]")] = effect
    return {name: rows for name, rows in parts.items() if len(rows) > 1}


def _natural(name: str) -> tuple[tuple[bool, int, str], ...]:
    """Sorts numbers in a name by their value: layer 2 before layer 10."""
    return tuple((part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name))
