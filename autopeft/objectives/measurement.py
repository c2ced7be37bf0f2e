"""Raw facts of one (partial) training run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What was measured when training reached the end of an epoch; cumulative since the trial began."""

    epoch: int
    """Epochs finished, from 1."""
    metrics: Mapping[str, float]
    """Validation metrics by name, e.g. `{"accuracy": 0.9, "loss": 0.3}`; finite."""
    train_loss: float
    """Mean training loss of this epoch."""
    train_seconds: float
    """Seconds spent training (evaluation left out)."""
    evaluation_seconds: float
    tokens: int
    """Real (not padding) tokens trained on."""
    peak_bytes: int
    """Peak training memory, measured (trainers/meter.py says how)."""
    parameters: int
    """Trainable adapter parameters, counted on the built tensors; the task head is not among them."""
    head_parameters: int = 0
    """Trainable parameters of the task head, the same for every trial of a study."""
    extra: Mapping[str, float] = field(default_factory=dict)

    def value(self, objective: str) -> float:
        """This run's value of the objective of that name; KeyError when it was not measured."""
        costs = {
            "parameters": float(self.parameters),
            "memory": float(self.peak_bytes),
            "train_seconds": self.train_seconds,
        }
        return costs[objective] if objective in costs else float(self.metrics[objective])

    def to_json(self) -> dict[str, object]:
        fields: dict[str, object] = asdict(self)
        return {**fields, "metrics": dict(self.metrics), "extra": dict(self.extra)}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> "Measurement":
        return cls(**data)  # type: ignore[arg-type]  # written by to_json
