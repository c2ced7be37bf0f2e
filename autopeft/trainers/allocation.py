"""Ranks that move in training: AdaLoRA's budget over all its targets, by peft's own allocator and schedule."""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Final, final

import torch
from peft import AdaLoraConfig
from peft.tuners.adalora import AdaLoraModel, RankAllocator
from torch import nn

from autopeft.spaces.configuration import FieldValue, MethodSetting
from autopeft.trainers.inject import AdapterSet

METHOD: Final = "adalora"
_ADAPTER: Final = "default"
_AVERAGES: Final = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What peft's allocator remembers between two steps."""


@final
class RankAllocation:
    """Moves the ranks of one run's AdaLoRA layers.

    Args:
        layers: The method's adapters, attached.
        setting: Its settings; those of the schedule are the same on all layers.
        n_steps: Steps of the whole run.
    """

    def __init__(self, layers: nn.Module, setting: MethodSetting, *, n_steps: int) -> None:
        first = setting.at(setting.layers[0])
        assert first is not None
        warmup = int(_number(first, "warmup_share") * n_steps)
        final = min(max(1, int(_number(first, "final_share") * n_steps)), n_steps - 1)
        config = AdaLoraConfig(
            target_r=1,
            tinit=min(warmup, n_steps - final - 1),
            tfinal=final,
            deltaT=int(_number(first, "interval")),
            beta1=_number(first, "smoothing"),
            beta2=_number(first, "smoothing"),
            total_step=n_steps,
        )
        self.allocator = RankAllocator(layers, config, _ADAPTER)
        self.allocator.target_bgt = sum(_targets(setting))
        self._peft = SimpleNamespace(
            peft_config={_ADAPTER: config}, trainable_adapter_name=_ADAPTER, rankallocator=self.allocator, model=layers
        )

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """The importances so far."""
        return {name: dict(getattr(self.allocator, name)) for name in _AVERAGES}

    def restore(self, state: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Go on with importances that `state` gave."""
        for name in _AVERAGES:
            setattr(self.allocator, name, dict(state[name]))

    def after_step(self, step: int) -> None:
        """Update importances and ranks, after the optimizer's step number `step` (from 0) and before gradients go."""
        AdaLoraModel.update_and_allocate(self._peft, step)  # type: ignore[arg-type]  # has all that the method reads


def allocation_of(adapters: AdapterSet, *, n_steps: int) -> RankAllocation | None:
    """What moves the ranks of `adapters` in a run of `n_steps`; None where nothing does."""
    setting = adapters.configuration.method(METHOD)
    if setting is None or n_steps < 2:
        return None
    return RankAllocation(adapters.get_submodule(METHOD), setting, n_steps=n_steps)


def _targets(setting: MethodSetting) -> Iterator[int]:
    """The rank that each target is to have at the end, on average over all."""
    for layer in setting.layers:
        values = setting.at(layer) or {}
        names = values["targets"]
        assert isinstance(names, tuple)
        yield len(names) * int(_number(values, "target_rank"))


def _number(values: dict[str, FieldValue], name: str) -> float:
    value = values[name]
    assert isinstance(value, (int, float))
    return float(value)
