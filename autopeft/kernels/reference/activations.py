"""What a branch may apply between its two projections, with its slope; all are zero at zero, so padding stays zero."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch
from torch.nn import functional


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """A function of each element, and its derivative at the same element."""

    value: Callable[[torch.Tensor], torch.Tensor]
    slope: Callable[[torch.Tensor], torch.Tensor]


def _gelu_slope(s: torch.Tensor) -> torch.Tensor:
    density = torch.exp(-0.5 * s * s) / math.sqrt(2.0 * math.pi)
    return 0.5 * (1.0 + torch.erf(s / math.sqrt(2.0))) + s * density


def _silu_slope(s: torch.Tensor) -> torch.Tensor:
    gate = torch.sigmoid(s)
    return gate * (1.0 + s * (1.0 - gate))


ACTIVATIONS: Final[Mapping[str, Activation]] = MappingProxyType(
    {
        "identity": Activation(value=lambda s: s, slope=torch.ones_like),
        "gelu": Activation(value=functional.gelu, slope=_gelu_slope),
        "relu": Activation(value=torch.relu, slope=lambda s: (s > 0).to(s.dtype)),
        "silu": Activation(value=functional.silu, slope=_silu_slope),
        "tanh": Activation(value=torch.tanh, slope=lambda s: 1.0 - torch.tanh(s) ** 2),
    }
)
