"""Bottlenecks in series with linear maps and beside them (LLM-Adapters, Hu et al. 2023, arXiv 2304.01933).

Shapes: I and O the map's input and output width.
"""

import math
from collections.abc import Mapping
from typing import Final, final

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from autopeft.errors import ConfigurationError
from autopeft.spaces.methods.linear_series import INPUT_ROLES, series_width
from autopeft.trainers.adapters.adapter import AbstractAdapter, Handle, Placement
from autopeft.trainers.adapters.bottleneck import ACTIVATIONS

INIT_STD: Final = 0.02


@final
class LinearBottleneck(nn.Module):
    """base + scale * W_up act(W_down dropout(x)), without biases."""

    def __init__(
        self, *, d_in: int, d_out: int, bottleneck: int, activation: str, scale: float, dropout: float
    ) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.zeros(bottleneck, d_in))
        self.up = nn.Parameter(torch.zeros(d_out, bottleneck))
        self.activation = ACTIVATIONS[activation]
        self.scale = scale
        self.dropout = dropout

    def forward(self, x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """`base` [..., O] plus the bottleneck's output for `x` [..., I], in the dtype of `base`.

        The weights are cast to the activations' dtype, so a bf16 base computes in bf16 from fp32 masters.
        """
        dropped = functional.dropout(x, self.dropout, training=self.training) if self.dropout else x
        hidden = self.activation(functional.linear(dropped, self.down.to(x.dtype))).flatten(0, -2).to(base.dtype)
        up = self.up.to(base.dtype).t()
        return torch.addmm(base.flatten(0, -2), hidden, up, alpha=self.scale).view(base.shape)


class _LinearAdapter(AbstractAdapter):
    """One bottleneck on each target site of a layer."""

    def __init__(self, bottlenecks: Mapping[str, LinearBottleneck]) -> None:
        super().__init__()
        self.targets = tuple(bottlenecks)
        for name, bottleneck in bottlenecks.items():
            self.add_module(name.replace(".", "_"), bottleneck)

    def bottleneck(self, target: str) -> LinearBottleneck:
        """The bottleneck at the site called `target`."""
        module = self.get_submodule(target.replace(".", "_"))
        assert isinstance(module, LinearBottleneck)
        return module


@final
class LinearSeriesAdapter(_LinearAdapter):
    """W(x + f(x)) on the sites called `on_input`, Wx + f(Wx) on the other targets."""

    def __init__(self, bottlenecks: Mapping[str, LinearBottleneck], *, on_input: frozenset[str]) -> None:
        super().__init__(bottlenecks)
        self.on_input = on_input

    def attach(self, model: PreTrainedModel, layer: nn.Module) -> list[Handle]:
        handles: list[Handle] = []
        for target in self.targets:
            bottleneck, linear = self.bottleneck(target), layer.get_submodule(target)

            def before(
                _: nn.Module, args: tuple[torch.Tensor, ...], bottleneck: LinearBottleneck = bottleneck
            ) -> tuple[torch.Tensor, ...]:
                return (bottleneck(args[0], args[0]), *args[1:])

            def after(
                _: nn.Module,
                args: tuple[torch.Tensor, ...],
                output: torch.Tensor,
                bottleneck: LinearBottleneck = bottleneck,
            ) -> torch.Tensor:
                return bottleneck(output, output)

            if target in self.on_input:
                handles.append(linear.register_forward_pre_hook(before))
            else:
                handles.append(linear.register_forward_hook(after))
        return handles


@final
class LinearParallelAdapter(_LinearAdapter):
    """Wx + f(x) on every target."""

    def attach(self, model: PreTrainedModel, layer: nn.Module) -> list[Handle]:
        handles: list[Handle] = []
        for target in self.targets:
            bottleneck = self.bottleneck(target)

            def hook(
                _: nn.Module,
                args: tuple[torch.Tensor, ...],
                output: torch.Tensor,
                bottleneck: LinearBottleneck = bottleneck,
            ) -> torch.Tensor:
                return bottleneck(args[0], output)

            handles.append(layer.get_submodule(target).register_forward_hook(hook))
        return handles


def build_linear_series(placement: Placement) -> LinearSeriesAdapter:
    """Each bottleneck as `_initialised` draws it; on gate and up projections the adapter acts on the input.

    Raises:
        ConfigurationError: A target is no linear site of the layer, or an unknown activation or initialisation.
    """
    sites = placement.target_sites()
    bottlenecks = {
        site.name: _initialised(placement, d_in=series_width(site), d_out=series_width(site)) for site in sites
    }
    on_input = frozenset(site.name for site in sites if site.role in INPUT_ROLES)
    return LinearSeriesAdapter(bottlenecks, on_input=on_input)


def build_linear_parallel(placement: Placement) -> LinearParallelAdapter:
    """Each bottleneck as `_initialised` draws it.

    Raises:
        ConfigurationError: A target is no linear site of the layer, or an unknown activation or initialisation.
    """
    sites = placement.target_sites()
    return LinearParallelAdapter(
        {site.name: _initialised(placement, d_in=site.d_in, d_out=site.d_out) for site in sites}
    )


def _initialised(placement: Placement, *, d_in: int, d_out: int) -> LinearBottleneck:
    """`bert`: N(0, 0.02) both ways; `mam`: Kaiming-uniform down (a = sqrt(5)) and zero up, an exact identity."""
    activation, init = str(placement.values["activation"]), str(placement.values["init"])
    if activation not in ACTIVATIONS:
        raise ConfigurationError(
            f"{placement.method}: unknown activation {activation!r}", hint=f"use one of {', '.join(ACTIVATIONS)}"
        )
    if init not in ("bert", "mam"):
        raise ConfigurationError(f"{placement.method}: unknown init {init!r}", hint="use bert or mam")
    module = LinearBottleneck(
        d_in=d_in,
        d_out=d_out,
        bottleneck=placement.size("bottleneck"),
        activation=activation,
        scale=placement.real("scale"),
        dropout=placement.real("dropout"),
    )
    if init == "mam":
        nn.init.kaiming_uniform_(module.down, a=math.sqrt(5), generator=placement.generator)
        return module
    for weight in (module.down, module.up):
        nn.init.normal_(weight, std=INIT_STD, generator=placement.generator)
    return module
