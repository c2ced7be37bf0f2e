"""Kernel or twin: a pure function of device, dtype and shape; no setting decides silently.

A row of `OPERATIONS` names an operation's twin and its kernel; the conformance suite runs every row. Kernels are loaded
when first chosen, so nothing here needs Triton.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Final, Literal

import torch

from autopeft.kernels.device import LEAST_CAPABILITY, assumed
from autopeft.kernels.reference import adamw, cross_entropy, low_rank, routing

Backend = Literal["triton", "torch"]

HAS_TRITON: Final = importlib.util.find_spec("triton") is not None
DTYPES: Final = frozenset({torch.bfloat16, torch.float16, torch.float32})
MOST_TARGETS: Final = 4
"""That read the same rows: with more, their masks spill registers."""
MOST_RANKS_FP32: Final = 64
"""Products of fp32 have no tensor cores and hold their operands in registers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation: what defines it, and the kernel that does the same."""

    twin: Callable[..., Any]
    module: str
    """Its file in this package."""
    most_ranks: int = 256
    """Ranks of all targets together, each padded to a power of two, that its registers hold."""

    def kernel(self) -> Callable[..., Any]:
        """The function of the twin's name in `module`."""
        module = importlib.import_module(f"autopeft.kernels.{self.module}")
        return getattr(module, self.twin.__name__)


OPERATIONS: Final[Mapping[str, Operation]] = MappingProxyType(
    {
        "shrink": Operation(twin=low_rank.shrink, module="shrink"),
        "expand_add": Operation(twin=low_rank.expand_add, module="expand"),
        "expand_backward": Operation(twin=low_rank.expand_backward, module="backward_output"),
        "shrink_backward": Operation(twin=low_rank.shrink_backward, module="backward_input"),
        "adamw_step": Operation(twin=adamw.adamw_step, module="adamw"),
        "softmax_cross_entropy": Operation(twin=cross_entropy.softmax_cross_entropy, module="cross_entropy"),
        "route": Operation(twin=routing.route, module="routing"),
        "route_backward": Operation(twin=routing.route_backward, module="routing"),
    }
)


def choose(
    operation: str,
    *,
    device: str,
    dtype: torch.dtype,
    rank: int = 1,
    targets: int = 1,
    capability: tuple[int, int] = LEAST_CAPABILITY,
    has_triton: bool = HAS_TRITON,
) -> Backend:
    """What computes `operation`: the kernel on a CUDA device that has it, for the shapes that its registers hold.

    Args:
        operation: A key of `OPERATIONS`.
        device: A `torch.device.type`.
        dtype: That of the activations.
        rank: Ranks of one target, padded ones too.
        targets: Targets that read the same rows.
        capability: That of the device; kernels are compiled for 8.0 and later.
        has_triton: Whether Triton is installed.
    """
    if device != "cuda" or not has_triton or dtype not in DTYPES or capability < LEAST_CAPABILITY:
        return "torch"
    padded = max(16, 1 << (rank - 1).bit_length())
    most = OPERATIONS[operation].most_ranks
    if dtype == torch.float32:
        most = min(most, MOST_RANKS_FP32)
    return "triton" if targets <= MOST_TARGETS and targets * padded <= most else "torch"


def implementation(operation: str, like: torch.Tensor, *, rank: int = 1, targets: int = 1) -> Callable[..., Any]:
    """The function that computes `operation` for activations as `like`: `choose`, made ready to be called."""
    chosen = _chosen(operation, like, rank=rank, targets=targets)
    return OPERATIONS[operation].kernel() if chosen == "triton" else OPERATIONS[operation].twin


def takes(operations: Sequence[str], like: torch.Tensor, *, rank: int = 1, targets: int = 1) -> bool:
    """Whether kernels compute all of `operations` for activations as `like`."""
    return all(_chosen(one, like, rank=rank, targets=targets) == "triton" for one in operations)


def _chosen(operation: str, like: torch.Tensor, *, rank: int, targets: int) -> Backend:
    """`choose` for the device of `like`, or for the one that is assumed."""
    instead = assumed()
    if instead is not None:
        device, capability, has_triton = "cuda", instead.capability, True
    else:
        device, has_triton = like.device.type, HAS_TRITON
        capability = _capability(like.device) if device == "cuda" else LEAST_CAPABILITY
    return choose(
        operation,
        device=device,
        dtype=like.dtype,
        rank=rank,
        targets=targets,
        capability=capability,
        has_triton=has_triton,
    )


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
