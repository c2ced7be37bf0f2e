"""Which optimizer moves the trained tensors, and with which decay."""

from collections.abc import Sequence

import torch
from torch import nn

from autopeft.trainers.job import TrainingSettings


def make_optimizer(trained: Sequence[tuple[str, nn.Parameter]], settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW over `trained` (name, parameter); biases and other vectors are not decayed."""
    plain = [parameter for name, parameter in trained if parameter.dim() < 2 or name.endswith("bias")]
    chosen = {id(parameter) for parameter in plain}
    decayed = [parameter for _, parameter in trained if id(parameter) not in chosen]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type in ("cpu", "cuda") for _, parameter in trained)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=fused)
