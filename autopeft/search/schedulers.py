"""The table of schedulers: one file each, one row each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autopeft.errors import SpecError
from autopeft.objectives.objective import Objective
from autopeft.search.learning_curve import LearningCurveRule
from autopeft.search.scheduler import AbstractScheduler, RunAll
from autopeft.search.successive_halving import SuccessiveHalving, rungs_of
from autopeft.spaces.suggest import nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """How far trials are trained before it is decided whether they train on."""

    scheduler: str = "halving"
    reduction: int = 3
    """Of the trials at a rung one in so many goes on, and the next rung is so many times further."""
    minimum: int = 1
    """Epochs at the first rung; no trial is stopped before."""

    def check(self, epochs: int) -> None:
        """Refuse what makes no rungs below `epochs`.

        Raises:
            SpecError: Naming the setting, its value and what to write; places begin with `training.fidelity`.
        """
        place = "training.fidelity"
        if self.scheduler not in SCHEDULERS:
            raise SpecError(
                f"{place}.scheduler: got {self.scheduler!r}; schedulers are {', '.join(SCHEDULERS)}",
                hint=nearest(self.scheduler, SCHEDULERS),
            )
        if self.reduction < 2:
            raise SpecError(f"{place}.reduction: got {self.reduction}; 2 or more", hint="3 keeps one trial in three")
        if self.minimum < 1:
            raise SpecError(f"{place}.minimum: got {self.minimum}; 1 or more", hint="1 is the end of the first epoch")
        if self.minimum >= epochs:
            raise SpecError(
                f"{place}.minimum: got {self.minimum}, and training.epochs is {epochs}; it must be below that",
                hint=f"use {epochs - 1} or less" if epochs > 1 else "raise training.epochs, or leave fidelity out",
            )


Factory = Callable[[Fidelity, Sequence[Objective], int], AbstractScheduler]


def _all(fidelity: Fidelity, objectives: Sequence[Objective], epochs: int) -> AbstractScheduler:
    return RunAll()


def _curves(fidelity: Fidelity, objectives: Sequence[Objective], epochs: int) -> LearningCurveRule:
    return LearningCurveRule(objectives, epochs=epochs, minimum=fidelity.minimum)


def _halving(fidelity: Fidelity, objectives: Sequence[Objective], epochs: int) -> AbstractScheduler:
    rungs = rungs_of(minimum=fidelity.minimum, reduction=fidelity.reduction, epochs=epochs)
    curves = _curves(fidelity, objectives, epochs)
    return SuccessiveHalving(objectives, rungs=rungs, eta=fidelity.reduction, curves=curves)


SCHEDULERS: dict[str, Factory] = {"all": _all, "curves": _curves, "halving": _halving}
"""Every scheduler by the name a study file gives it."""


def make_scheduler(fidelity: Fidelity | None, objectives: Sequence[Objective], *, epochs: int) -> AbstractScheduler:
    """What decides over trials of `epochs` epochs; without a fidelity all are trained to their end.

    Raises:
        SpecError: A setting is out of range, or no such scheduler.
    """
    if fidelity is None:
        return RunAll()
    fidelity.check(epochs)
    return SCHEDULERS[fidelity.scheduler](fidelity, objectives, epochs)
