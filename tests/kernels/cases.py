"""Inputs that every kernel is run on, and the measure of its error."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from autopeft.kernels.dispatch import OPERATIONS
from autopeft.kernels.reference.adamw import AdamW
from autopeft.kernels.reference.cross_entropy import IGNORED
from autopeft.kernels.slots import Slots

N_EXPERTS = 4
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Rows of K slots and sizes: R the largest rank, D input and O output width."""

    name: str
    lengths: tuple[int, ...]
    rank: int = 4
    targets: int = 1
    d_in: int = 40
    d_out: int = 48
    dropout: tuple[float, ...] | None = None
    activation: str = "identity"
    tokens: int = 1

    def slots(self, device: str) -> Slots:
        n = len(self.lengths)
        return Slots.of(
            self.lengths,
            scale=[2.0 - 0.3 * k for k in range(n)],
            dropout=self.dropout,
            seed=[(7 << 40) + 5 * k for k in range(n)],
            tokens=self.tokens,
            device=device,
        )


CASES = (
    Case(name="one slot", lengths=(19,)),
    Case(name="a row", lengths=(1,), rank=1, d_in=8, d_out=3),
    Case(name="no rows at all", lengths=(0, 0)),
    Case(name="odd widths", lengths=(5, 17), rank=3, d_in=73, d_out=67, dropout=(0.1, 0.5), tokens=4),
    Case(name="empty slots", lengths=(0, 5, 0, 18, 0), dropout=(0.1, 0.0, 0.2, 0.3, 0.4), activation="relu"),
    Case(name="several targets", lengths=(16, 9), targets=3, dropout=(0.25, 0.0), activation="tanh"),
    Case(name="several blocks of rows", lengths=(70, 2), rank=5, d_in=16, d_out=16, activation="silu"),
    Case(name="a large rank", lengths=(9, 20), rank=40, dropout=(0.0, 0.5), activation="gelu"),
    Case(name="the largest ranks", lengths=(3, 18), rank=130, d_in=73, dropout=(0.3, 0.0), activation="gelu"),
    Case(name="large ranks of several targets", lengths=(17, 4), rank=40, targets=3, d_in=73, dropout=(0.5, 0.1)),
)


def mixed_ranks(bank: torch.Tensor, dim: int) -> torch.Tensor:
    """The bank with slot k's ranks from R - k on zero, as padding has them."""
    for slot in range(len(bank)):
        size = bank.shape[dim]
        bank[slot].narrow(dim - 1, max(size - slot, 1), min(slot, size - 1)).zero_()
    return bank


def operands(case: Case) -> Tensors:
    """Everything the operations take, fp32, of values that bf16 holds exactly."""
    torch.manual_seed(3)
    n, k = sum(case.lengths), len(case.lengths)
    shapes = {
        "x": (n, case.d_in),
        "a": (k, case.targets, case.rank, case.d_in),
        "s": (n, case.rank),
        "ds": (case.targets, n, case.rank),
        "b": (k, case.d_out, case.rank),
        "y": (n, case.d_out),
        "dx": (n, case.d_in),
        "logits": (n, N_EXPERTS),
        "experts": (n, N_EXPERTS, case.rank),
        "dh": (n, N_EXPERTS, case.rank),
        "dp": (k, N_EXPERTS),
        **dict.fromkeys("pgmv", (k, 2 * case.d_in + case.d_out)),
    }
    tensors = {name: torch.randn(shape).bfloat16().float() for name, shape in shapes.items()}
    mixed_ranks(tensors["a"], 2)
    mixed_ranks(tensors["b"], 2)
    return tensors


Call = Callable[[Callable[..., Any], Tensors, Slots, Case], tuple[torch.Tensor, ...]]


def _shrink(function: Callable[..., Any], t: Tensors, slots: Slots, case: Case) -> tuple[torch.Tensor, ...]:
    return (function(t["x"], t["a"], slots, stream=11),)


def _shrink_backward(function: Callable[..., Any], t: Tensors, slots: Slots, case: Case) -> tuple[torch.Tensor, ...]:
    alone = function(t["ds"], t["x"], t["a"], slots, stream=11)
    added = function(t["ds"], t["x"], t["a"], slots, stream=11, dx_ND=t["dx"].clone())
    return (*alone, *added)


def _expand_add(function: Callable[..., Any], t: Tensors, slots: Slots, case: Case) -> tuple[torch.Tensor, ...]:
    return (function(t["y"].clone(), t["s"], t["b"], slots, activation=case.activation),)


def _expand_backward(function: Callable[..., Any], t: Tensors, slots: Slots, case: Case) -> tuple[torch.Tensor, ...]:
    return function(t["y"], t["s"], t["b"], slots, activation=case.activation)


def _adamw_step(function: Callable[..., Any], t: Tensors, slots: Slots, case: Case) -> tuple[torch.Tensor, ...]:
    n, device = len(slots), t["p"].device
    p, m, v, steps = t["p"].clone(), t["m"].clone(), t["v"].square(), torch.arange(n, dtype=torch.int32, device=device)
    rates = torch.linspace(1e-3, 1e-1, 3 * n, device=device).view(n, 3)
    rule = AdamW(
        learning_rate=rates,
        weight_decay=rates.flip(0),
        ends=torch.tensor([case.d_in, 2 * case.d_in, p.shape[1]], dtype=torch.int32, device=device),
        betas=torch.tensor([[0.9, 0.999], [0.8, 0.99]], dtype=torch.float64, device=device).repeat(n, 1)[:n],
        epsilon=torch.full((n,), 1e-8, device=device),
        max_norm=torch.tensor([1.0, torch.inf], device=device).repeat(n)[:n],
        active=torch.arange(n, device=device) != 2,
    )
    norms = function(p, t["g"], m, v, steps, rule)
    return norms, p, m, v, steps


def _cross_entropy(function: Callable[..., Any], t: Tensors, slots: Slots, case: Case) -> tuple[torch.Tensor, ...]:
    logits = t["y"].clone()
    labels = torch.arange(len(logits), device=logits.device) % case.d_out
    labels[::3] = IGNORED
    return function(logits, labels), logits


def _routes(slots: Slots) -> tuple[torch.Tensor, ...]:
    """Experts and choices of each slot, and which rows are real."""
    device = slots.offsets.device
    experts = torch.arange(len(slots), dtype=torch.int32, device=device) % N_EXPERTS + 1
    return experts, experts.clamp(max=2), torch.arange(slots.n_rows, device=device) % 4 != 3


def _route(function: Callable[..., Any], t: Tensors, slots: Slots, case: Case) -> tuple[torch.Tensor, ...]:
    return function(t["logits"], t["experts"], slots, *_routes(slots))


def _route_backward(function: Callable[..., Any], t: Tensors, slots: Slots, case: Case) -> tuple[torch.Tensor, ...]:
    return function(t["dh"], t["dp"], t["logits"], t["experts"], slots, *_routes(slots))


CALLS: Mapping[str, Call] = {
    "shrink": _shrink,
    "shrink_backward": _shrink_backward,
    "expand_add": _expand_add,
    "expand_backward": _expand_backward,
    "adamw_step": _adamw_step,
    "softmax_cross_entropy": _cross_entropy,
    "route": _route,
    "route_backward": _route_backward,
}
MASTERS = frozenset({"a", "b", "p", "g", "m", "v", "dp"})
"""Trainable factors and what belongs to them, which stay fp32 where the activations are bf16."""


def outputs(
    operation: str, case: Case, *, dtype: torch.dtype, device: str = "cpu", kernel: bool = False
) -> tuple[torch.Tensor, ...]:
    """What the twin, or the kernel, of `operation` gives for activations of `dtype`."""
    tensors = {
        name: value.to(device, torch.float32 if name in MASTERS and dtype != torch.float64 else dtype)
        for name, value in operands(case).items()
    }
    row = OPERATIONS[operation]
    return CALLS[operation](row.kernel() if kernel else row.twin, tensors, case.slots(device), case)


def error(got: torch.Tensor, truth: torch.Tensor) -> float:
    return (got.double().cpu() - truth.double().cpu()).norm().item()
