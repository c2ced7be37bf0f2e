"""AdamW whose moments live in a low-rank projection of the gradient (Zhao et al. 2024, arXiv 2403.03507, algorithm 2).

Shapes: M and N the matrix, R rank; the shorter side is projected.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, final, overload

import torch
from torch import nn
from torch.optim.optimizer import ParamsT

from autopeft.errors import DivergedError

GAP: Final = 200
"""Steps between two projections, as in the authors' code."""
SCALE: Final = 0.25
"""Factor of a projected update, as in the authors' code."""
_EPSILON: Final = 1e-8
_BETAS: Final = (0.9, 0.999)


@final
class GaLoreAdamW(torch.optim.Optimizer):
    """AdamW that keeps moments [R, max(M, N)] and a projector [min(M, N), R] for a matrix with both sides above `rank`.

    The projector is the gradient's leading singular vectors, taken again every `gap` steps. Every other tensor is
    moved as AdamW moves it.

    Args:
        params: Tensors or groups; a group's `lr`, `weight_decay`, `rank`, `gap` and `scale` go before the arguments.
        lr: Step size.
        weight_decay: Decoupled.
        rank: Directions that a gradient is projected to.
        gap: Steps between two projections.
        scale: Factor of a projected update.
    """

    def __init__(
        self,
        params: ParamsT | Iterable[Mapping[str, object]],
        *,
        lr: float,
        weight_decay: float = 0.0,
        rank: int,
        gap: int = GAP,
        scale: float = SCALE,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "rank": rank, "gap": gap, "scale": scale}
        super().__init__(params, defaults)  # type: ignore[arg-type]  # groups are mappings

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update from the gradients that are there; `closure` computes them and the loss first.

        Raises:
            DivergedError: A gradient that is to be projected anew is not finite.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _move(parameter, parameter.grad, self.state[parameter], group)
        return loss


def _move(parameter: nn.Parameter, grad: torch.Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
    """One step of one tensor."""
    count = state.get("count", 0)
    projected = grad.dim() == 2 and min(grad.shape) > group["rank"]
    if projected and count % group["gap"] == 0:
        state["projector"] = _projector(grad, group["rank"])
    small = _project(grad, state["projector"]) if projected else grad
    if not count:
        state["mean"], state["square"] = torch.zeros_like(small), torch.zeros_like(small)
    state["count"] = count + 1
    state["mean"].lerp_(small, 1 - _BETAS[0])
    state["square"].mul_(_BETAS[1]).addcmul_(small, small, value=1 - _BETAS[1])
    spread = state["square"].sqrt().div_(math.sqrt(1 - _BETAS[1] ** (count + 1))).add_(_EPSILON)
    update = state["mean"].div(spread).div_(1 - _BETAS[0] ** (count + 1))
    if projected:
        update = group["scale"] * _restore(update, state["projector"], grad.shape)
    parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.add_(update, alpha=-group["lr"])


def _projector(grad: torch.Tensor, rank: int) -> torch.Tensor:
    """[min(M, N), R]: leading singular vectors on the shorter side of `grad` [M, N]."""
    if not torch.isfinite(grad).all():
        raise DivergedError("a gradient is not finite", hint="lower the learning rate")
    tall = grad if grad.shape[0] <= grad.shape[1] else grad.t()
    return torch.linalg.svd(tall, full_matrices=False).U[:, :rank].contiguous()


def _project(grad: torch.Tensor, projector: torch.Tensor) -> torch.Tensor:
    """[R, max(M, N)]."""
    return projector.t() @ (grad if grad.shape[0] <= grad.shape[1] else grad.t())


def _restore(small: torch.Tensor, projector: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """[M, N]."""
    full = projector @ small
    return full if shape[0] <= shape[1] else full.t()
