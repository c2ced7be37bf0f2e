"""A map that is called by another function than its own, which may leave the call to it."""

from collections.abc import Callable
from typing import Final, final

import torch
from torch import nn

_FORWARD: Final = "forward"
"""What calling a module runs between its hooks; one in the instance goes before the class's."""


@final
class OwnForward:
    """In the place of a module's forward: `compute`, and where that gives nothing the module's own; `remove` ends it.

    Args:
        module: Called with one tensor.
        compute: Its output for an input; None for what it computes itself.
    """

    def __init__(self, module: nn.Module, compute: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
        self._module, self._compute = module, compute
        self._before = module.__dict__.get(_FORWARD)
        self._own = module.forward
        module.__dict__[_FORWARD] = self

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        computed = self._compute(x)
        return self._own(x) if computed is None else computed

    def remove(self) -> None:
        """Put the module's forward back; nothing where that was done before."""
        if self._module.__dict__.get(_FORWARD) is not self:
            return
        if self._before is None:
            del self._module.__dict__[_FORWARD]
        else:
            self._module.__dict__[_FORWARD] = self._before


def remove_all(model: nn.Module) -> None:
    """Take every `OwnForward` off the modules of `model`."""
    for module in model.modules():
        while isinstance(found := module.__dict__.get(_FORWARD), OwnForward):
            found.remove()
