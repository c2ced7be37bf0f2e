"""The two halves of a bottleneck adapter, shared by the serial and the parallel placement.

Shapes: H hidden width.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, final

import torch
from torch import nn
from torch.nn import functional

from autopeft.errors import ConfigurationError
from autopeft.trainers.adapters.adapter import Placement

ACTIVATIONS: Final[Mapping[str, Callable[[torch.Tensor], torch.Tensor]]] = MappingProxyType(
    {"gelu": functional.gelu, "relu": functional.relu, "silu": functional.silu, "tanh": torch.tanh}
)


@final
class Bottleneck(nn.Module):
    """y + scale * (W_up act(W_down x + b_down) + b_up).

    The weights come undrawn (and without touching torch's global random state): a builder initialises them.
    """

    def __init__(self, *, d_in: int, d_out: int, bottleneck: int, activation: str, scale: float) -> None:
        super().__init__()
        self.down: nn.Linear = nn.Linear(d_in, bottleneck, device="meta").to_empty(device="cpu")
        self.up: nn.Linear = nn.Linear(bottleneck, d_out, device="meta").to_empty(device="cpu")
        self.activation = ACTIVATIONS[activation]
        self.scale = scale

    def forward(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """`output` [..., H] plus the adapter's output for `x`, in the output's dtype.

        The weights are cast to the activations' dtype, so a bf16 base computes in bf16 from fp32 masters.
        """
        hidden = functional.linear(x, self.down.weight.to(x.dtype), self.down.bias.to(x.dtype))
        hidden = self.activation(hidden).to(output.dtype)
        added = functional.linear(hidden, self.up.weight.to(output.dtype), self.up.bias.to(output.dtype))
        return torch.add(output, added, alpha=self.scale)


def empty_bottleneck(placement: Placement, *, d_in: int, d_out: int) -> Bottleneck:
    """A bottleneck of the size, activation and scale that `placement` asks for, biases zero, weights not yet drawn.

    Raises:
        ConfigurationError: The activation is not known.
    """
    activation = str(placement.values["activation"])
    if activation not in ACTIVATIONS:
        raise ConfigurationError(
            f"{placement.method}: unknown activation {activation!r}", hint=f"use one of {', '.join(ACTIVATIONS)}"
        )
    module = Bottleneck(
        d_in=d_in,
        d_out=d_out,
        bottleneck=placement.size("bottleneck"),
        activation=activation,
        scale=placement.real("scale"),
    )
    nn.init.zeros_(module.down.bias)
    nn.init.zeros_(module.up.bias)
    return module
