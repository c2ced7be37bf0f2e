"""Which device choices are made for: that of the tensors, unless something else is assumed.

A step is traced on tensors without values, or run under Triton's interpreter, and both are on the CPU; what a CUDA
device would compute with kernels shall be computed with them there too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

LEAST_CAPABILITY: Final = (8, 0)
"""Kernels are compiled for it and later ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """A CUDA device that need not be there."""

    capability: tuple[int, int] = LEAST_CAPABILITY
    launches: bool
    """Whether kernels are run; else they take the memory that they take, and what they write is not defined."""


_ASSUMED: ContextVar[Assumed | None] = ContextVar("assumed", default=None)


@contextmanager
def assuming_cuda(*, launches: bool, capability: tuple[int, int] = LEAST_CAPABILITY) -> Iterator[None]:
    """Inside, this thread's choices are those for a CUDA device with Triton, wherever tensors are.

    Args:
        launches: True where Triton can run kernels on the tensors, as its interpreter can; False for a trace.
        capability: Of the device.
    """
    token = _ASSUMED.set(Assumed(capability=capability, launches=launches))
    try:
        yield
    finally:
        _ASSUMED.reset(token)


def assumed() -> Assumed | None:
    """The device that is assumed; None where that of the tensors counts."""
    return _ASSUMED.get()
