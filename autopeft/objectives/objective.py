"""What is measured, in which unit, which way is better; the only place where a sign is flipped."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from autopeft.errors import SpecError


class Direction(StrEnum):
    MINIMIZE = "minimize"
    MAXIMIZE = "maximize"


class Knowledge(StrEnum):
    """How an objective's value is had before training."""

    EXACT = "exact"
    """Computed, without error: trainable parameters."""
    PREDICTED = "predicted"
    """Computed within a few per cent; the measured value replaces it: peak memory."""
    LEARNED = "learned"
    """Only training tells: the task metric, seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One axis of the Pareto front."""

    name: str
    direction: Direction
    unit: str
    knowledge: Knowledge
    label: str = ""
    """What a plot's axis says."""

    def to_loss(self, value: float) -> float:
        """`value` with the sign that makes smaller better. Inside, everything is minimised."""
        return -value if self.direction is Direction.MAXIMIZE else value

    def from_loss(self, loss: float) -> float:
        return -loss if self.direction is Direction.MAXIMIZE else loss

    def to_json(self) -> dict[str, str]:
        return {"name": self.name, "direction": self.direction.value, "unit": self.unit}


def _metric(name: str, direction: Direction = Direction.MAXIMIZE, label: str = "") -> Objective:
    return Objective(name=name, direction=direction, unit="", knowledge=Knowledge.LEARNED, label=label or name)


METRICS: dict[str, Objective] = {
    "accuracy": _metric("accuracy"),
    "f1": _metric("f1", label="F1 (macro over more than two classes)"),
    "micro_f1": _metric("micro_f1", label="F1 of tagged words"),
    "matthews": _metric("matthews", label="Matthews correlation"),
    "pearson": _metric("pearson", label="Pearson correlation"),
    "spearman": _metric("spearman", label="Spearman correlation"),
    "perplexity": _metric("perplexity", Direction.MINIMIZE),
}
"""Task metrics by name."""

COSTS: dict[str, Objective] = {
    "parameters": Objective(
        name="parameters",
        direction=Direction.MINIMIZE,
        unit="parameters",
        knowledge=Knowledge.EXACT,
        label="trainable parameters",
    ),
    "memory": Objective(
        name="memory",
        direction=Direction.MINIMIZE,
        unit="bytes",
        knowledge=Knowledge.PREDICTED,
        label="peak training memory",
    ),
    "train_seconds": Objective(
        name="train_seconds",
        direction=Direction.MINIMIZE,
        unit="seconds",
        knowledge=Knowledge.LEARNED,
        label="training time",
    ),
    "activation_density": Objective(
        name="activation_density",
        direction=Direction.MINIMIZE,
        unit="",
        knowledge=Knowledge.LEARNED,
        label="active feed-forward activations",
    ),
}
"""Costs by name; all but `activation_density`, which must be asked for, are measured on every trial."""


def resolve_objectives(names: Sequence[str], *, metric: str) -> tuple[Objective, ...]:
    """The objectives called `names`, of which at most one may be a task metric and it must be `metric`.

    Raises:
        SpecError: An unknown name, a duplicate, none at all, or a metric the task does not measure.
    """
    known = COSTS | {metric: METRICS[metric]}
    for name in names:
        if name not in known:
            raise SpecError(
                f"objectives: got {name!r}; this study can measure {', '.join(sorted(known))}",
                hint=f"the task's metric is {metric!r}; change task.metric to use another",
            )
    if not names or len(set(names)) < len(names):
        raise SpecError(f"objectives: got {list(names)}; at least one, each once")
    return tuple(known[name] for name in names)
