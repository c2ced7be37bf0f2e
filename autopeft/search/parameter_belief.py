"""What is believed of an Optuna study's objectives: processes for the uncertain ones, functions for the known ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, final

import numpy as np

from autopeft.errors import SpecError
from autopeft.objectives.objective import Direction, Knowledge, Objective
from autopeft.objectives.pareto import Array
from autopeft.objectives.reference import outlier_limit, reference_point
from autopeft.search.hamiltonian import OF_ANYTHING
from autopeft.search.parameter_space import ParameterSpace, Point
from autopeft.search.surrogate import Averaged, fit

Known = Callable[[Mapping[str, Any]], float]
"""An objective's value, computed from a trial's parameters."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterBelief:
    """Losses as believed: u uncertain objectives first, then k known ones; the best measured is 0, the reference 1."""

    space: ParameterSpace
    processes: tuple[Averaged, ...]
    """u of them."""
    known: tuple[Known, ...]
    """Losses of the k others."""
    origin: Array
    """`[u + k]` best measured losses."""
    scale: Array
    """`[u + k]` reference less `origin`."""
    points: tuple[Point, ...]
    """Evaluated and pending ones."""
    losses: Array
    """`[n, u + k]` of `points`, the uncertain ones at their posterior means."""

    @classmethod
    def of(
        cls,
        space: ParameterSpace,
        points: Sequence[Point],
        values: Array,
        *,
        known: Mapping[int, Known],
        directions: Sequence[Direction],
        seed: int,
        stopped: Mapping[Point, float] = MappingProxyType({}),
    ) -> "ParameterBelief":
        """The belief after `points` had `values` `[n, u + k]`, finite, in the study's order.

        Of a study with one objective, uncertain, it also learns from points that were `stopped` early, with the values
        that are expected of them; they are no part of the front.

        Raises:
            SurrogateError: A process could not be fitted.
        """
        objectives = [_objective(at, direction, known=at in known) for at, direction in enumerate(directions)]
        order = sorted(range(len(objectives)), key=lambda at: at in known)
        measured = np.column_stack([_losses(objectives[at], values[:, at]) for at in order])
        origin = measured.min(axis=0)
        u = len(order) - len(known)
        x = space.features([*points, *stopped])
        learned = measured
        if stopped:
            expected = _losses(objectives[0], np.array([*stopped.values()]))
            learned = np.vstack([measured, expected[:, None]])
        belief = cls(
            space=space,
            processes=tuple(fit(x, learned[:, at], seed=seed, prior=OF_ANYTHING) for at in range(u)),
            known=tuple(_loss(objectives[at], known[at]) for at in order[u:]),
            origin=origin,
            scale=reference_point(measured, [objectives[at] for at in order]) - origin,
            points=tuple(points),
            losses=np.empty((0, len(order))),
        )
        means, _, _ = belief.predict(points)
        known_losses = ((measured - origin) / belief.scale)[:, u:]
        return replace(belief, losses=np.column_stack([means.mean(axis=0), known_losses]))

    def fantasise(self, pending: Sequence[Point]) -> "ParameterBelief":
        """The belief had `pending` come out as expected.

        Raises:
            SurrogateError: A kernel matrix became singular.
        """
        if not pending:
            return self
        means, _, costs = self.predict(pending)
        x = self.space.features(pending)
        return replace(
            self,
            processes=tuple(process.fantasise(x) for process in self.processes),
            points=(*self.points, *pending),
            losses=np.vstack([self.losses, np.column_stack([means.mean(axis=0), costs])]),
        )

    def predict(self, points: Sequence[Point]) -> tuple[Array, Array, Array]:
        """Scaled: `[s, n, u]` means and deviations of the uncertain objectives by each of s draws of the hyper-
        parameters (s = 1 where u = 0), and `[n, k]` costs.

        Raises:
            SpecError: A known objective asks for a parameter that not all trials have.
        """
        x, n, u = self.space.features(points), len(points), len(self.processes)
        found = [process.posteriors(x) for process in self.processes]
        nothing = np.empty((1, n, 0))
        means = np.stack([one for one, _ in found], axis=2) if found else nothing
        deviations = np.stack([one for _, one in found], axis=2) if found else nothing
        parameters = [self.space.parameters(point) for point in points] if self.known else []
        costs = np.array([[loss(one) for loss in self.known] for one in parameters]).reshape(n, len(self.known))
        origin, scale = self.origin, self.scale
        return (means - origin[:u]) / scale[:u], deviations / scale[:u], (costs - origin[u:]) / scale[u:]


def _objective(place: int, direction: Direction, *, known: bool) -> Objective:
    knowledge = Knowledge.EXACT if known else Knowledge.LEARNED
    return Objective(name=f"values[{place}]", direction=direction, unit="", knowledge=knowledge)


def _losses(objective: Objective, values: Array) -> Array:
    losses = np.array([objective.to_loss(float(value)) for value in values])
    return np.minimum(losses, outlier_limit(losses, objective))


def _loss(objective: Objective, known: Known) -> Known:
    def loss(parameters: Mapping[str, Any]) -> float:
        try:
            return objective.to_loss(float(known(parameters)))
        except KeyError as error:
            raise SpecError(
                f"known: {objective.name} asks for the parameter {error}, which not all completed trials have, or which"
                " has one value",
                hint="compute it from parameters that every trial has and that vary",
            ) from error

    return loss
