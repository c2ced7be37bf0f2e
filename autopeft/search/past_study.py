"""What another study measured, in the terms of the study that begins from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from autopeft.objectives.objective import Knowledge, Objective
from autopeft.objectives.pareto import Array
from autopeft.search.observations import outcomes
from autopeft.search.trial import History, Trial
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.space import SearchSpace


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PastStudy:
    """Trials of another study as rows of this one. Only the learned loss is believed; costs are those of this model."""

    name: str
    configurations: tuple[Configuration, ...]
    """`n` of this study's space, oldest first; two of the source may have become one."""
    losses: Array
    """`[n]` of the objective that this study learns, as measured there."""
    costs: Array
    """`[n, k]` losses of this study's other objectives: of its own model where it knows them, else as measured there,
    NaN where they were not."""
    observed: tuple[bool, ...]
    """Whether each is of a trial that completed; the others stopped early, or failed and count as the worst."""

    @classmethod
    def of(
        cls,
        name: str,
        history: History,
        carried: Mapping[Configuration, Configuration],
        *,
        space: SearchSpace,
        learned: Objective,
        others: Sequence[Objective],
    ) -> "PastStudy":
        """The trials of `history` whose configurations were `carried` into `space`; perhaps none.

        Args:
            name: Of the source.
            history: All its trials.
            carried: By configuration of the source, what it is in `space`.
            space: That of this study, bound to its model.
            learned: The objective that this study learns.
            others: Its other objectives.
        """
        found = outcomes(history, learned)
        rows = [index for index, one in enumerate(found.configurations) if one in carried]
        known = {trial.configuration: trial for trial in history}
        here = [carried[found.configurations[index]] for index in rows]
        there = [known[found.configurations[index]] for index in rows]
        costs = [[_cost(one, trial, space, row) for row in others] for one, trial in zip(here, there, strict=True)]
        return cls(
            name=name,
            configurations=tuple(here),
            losses=found.losses[rows],
            costs=np.array(costs, dtype=float).reshape(len(rows), len(others)),
            observed=tuple(found.observed[index] for index in rows),
        )


def _cost(configuration: Configuration, trial: Trial, space: SearchSpace, objective: Objective) -> float:
    if objective.knowledge is Knowledge.EXACT:
        return float(space.parameters(configuration))
    foretold = space.predicted(configuration)
    if objective.knowledge is Knowledge.PREDICTED and objective.name in foretold:
        return objective.to_loss(foretold[objective.name])
    try:
        return objective.to_loss(trial.measurements[-1].value(objective.name)) if trial.measurements else float("nan")
    except KeyError:
        return float("nan")
