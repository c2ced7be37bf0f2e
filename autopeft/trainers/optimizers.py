"""Which optimizer moves the trained tensors, how fast, and with which decay."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import torch
from torch import nn

from autopeft.spaces.configuration import Configuration
from autopeft.spaces.training import OPTIMIZERS
from autopeft.trainers.galore import GaLoreAdamW
from autopeft.trainers.job import TrainingSettings

INITIAL = "initial_lr"
"""Key of each group's peak learning rate, by which a schedule moves it."""

NO_RATES: Final[Mapping[str, float]] = MappingProxyType({})
_FIRST, _SECOND = ("a", "lora_A"), ("b", "lora_B")


def own_rates(configuration: Configuration) -> dict[str, float]:
    """Peak learning rates of the methods that have one of their own, by method."""
    return {row.method: row.learning_rate for row in configuration if row.learning_rate is not None}


def own_ratios(configuration: Configuration) -> dict[str, float]:
    """What multiplies the rate of single tensors, by the beginning of their names: DePT's virtual tokens."""
    dept = configuration.method("dept")
    ratio = dept and (dept.at(0) or {}).get("prompt_ratio")
    return {"dept.0.encoder.": float(ratio)} if isinstance(ratio, (int, float)) else {}


def make_optimizer(
    trained: Sequence[tuple[str, nn.Parameter]],
    settings: TrainingSettings,
    *,
    rates: Mapping[str, float] = NO_RATES,
    ratios: Mapping[str, float] = NO_RATES,
) -> torch.optim.Optimizer:
    """The optimizer of `trained` (name, parameter), in groups of one peak learning rate (`initial_lr`) and one decay.

    A tensor's rate is that of its method in `rates`, else the settings'. Biases and other vectors are not decayed. The
    second factor B of a low-rank pair has `lora_plus_ratio` times its rate (Hayou et al. 2024, arXiv 2402.12354) and,
    where it is given, a decay of its own. With `lora_fa` (Zhang et al. 2023, arXiv 2308.03303) every first factor A
    keeps its initial value: it is taken out of the graph here, and has neither gradient nor state. `galore` is
    `autopeft.trainers.galore`.

    Args:
        trained: Tensors of adapters, whose names begin with their method, and of the head.
        settings: Optimizer, rate and decays.
        rates: Peak learning rates by method.
        ratios: What multiplies the rate of tensors whose names begin so.
    """
    assert settings.optimizer in OPTIMIZERS, "checked where settings are read"
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained:
        if settings.optimizer == "lora_fa" and is_first_factor(name):
            parameter.requires_grad_(False)
        else:
            rate = rates.get(name.partition(".")[0], settings.learning_rate)
            rate *= math.prod(ratio for begin, ratio in ratios.items() if name.startswith(begin))
            groups.setdefault(_pace(name, parameter, settings, rate=rate), []).append(parameter)
    rows = [
        {"params": members, "lr": rate, INITIAL: rate, "weight_decay": decay}
        for (rate, decay), members in groups.items()
    ] or [{"params": [], INITIAL: settings.learning_rate}]
    if settings.optimizer == "galore":
        return GaLoreAdamW(rows, lr=settings.learning_rate, rank=settings.galore_rank)
    fused = all(parameter.device.type in ("cpu", "cuda") for _, parameter in trained)
    return torch.optim.AdamW(rows, lr=settings.learning_rate, fused=fused)


def is_first_factor(name: str) -> bool:
    """Whether the parameter called `name` is the A of a low-rank pair B A, which reads the input."""
    return _is_factor(name, _FIRST)


def is_second_factor(name: str) -> bool:
    """Whether the parameter called `name` is the B of a low-rank pair B A, which writes the output."""
    return _is_factor(name, _SECOND)


def _is_factor(name: str, words: tuple[str, str]) -> bool:
    own, peft = words
    parts = name.removesuffix(".original").split(".")
    return parts[-1] == own or peft in parts


def _pace(name: str, parameter: nn.Parameter, settings: TrainingSettings, *, rate: float) -> tuple[float, float]:
    """(peak learning rate, weight decay) of one parameter whose method or head has the peak `rate`."""
    decay = settings.weight_decay
    if is_second_factor(name):
        rate *= settings.lora_plus_ratio
        decay = decay if settings.weight_decay_b is None else settings.weight_decay_b
    return rate, 0.0 if parameter.dim() < 2 or name.endswith("bias") else decay
