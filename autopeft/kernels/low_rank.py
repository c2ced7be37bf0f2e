"""The low-rank branch as autograd sees it: each half alone, or whole beside its frozen maps.

`lora_linear` is the one that reaches the floor: it adds to the gradient of X where the base's product left it, which
autograd, that knows the two as separate nodes, would do in a pass of its own.

Shapes: K slots, N rows, T targets that read the same X, R rank, D input width, O output width (each target its own).
"""

from collections.abc import Sequence
from typing import Any, Final, final

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from autopeft.errors import SpecError
from autopeft.kernels.dispatch import implementation
from autopeft.kernels.reference.activations import ACTIVATIONS
from autopeft.kernels.slots import Slots

BRANCH: Final = ("shrink", "expand_add", "expand_backward", "shrink_backward")
"""Operations of the branch, both passes."""


def shrink(x_ND: torch.Tensor, a_KTRD: torch.Tensor, slots: Slots, *, stream: int) -> torch.Tensor:
    """Hidden vectors [T, N, R]: A times the rows, those that dropout leaves; differentiable in both.

    Args:
        x_ND: Rows, slot after slot.
        a_KTRD: Down projections, of any dtype; computed in the rows'.
        slots: Whose rows they are.
        stream: Target t draws its mask from stream + t; maps that shall draw apart have streams apart.

    Raises:
        SpecError: The sizes do not fit the slots or each other.
    """
    _check(x_ND, a_KTRD, slots)
    if a_KTRD.shape[3] != x_ND.shape[1]:
        raise SpecError(f"factor: {a_KTRD.shape[3]} columns for rows of {x_ND.shape[1]}", hint="give equal widths")
    return _Shrink.apply(_rows(x_ND), _bank(a_KTRD), slots, stream)  # pyright: ignore[reportReturnType]


def expand_add(
    y_NO: torch.Tensor, s_NR: torch.Tensor, b_KOR: torch.Tensor, slots: Slots, *, activation: str = "identity"
) -> torch.Tensor:
    """`y_NO`, changed in place: the slot's scale times B act(S) added to its rows; differentiable in all three.

    Raises:
        SpecError: The sizes do not fit the slots or each other, or the activation is not known.
    """
    _check(y_NO, b_KOR, slots)
    _check_activation(activation)
    if s_NR.shape != (len(y_NO), b_KOR.shape[2]):
        raise SpecError(f"hidden: got {tuple(s_NR.shape)}", hint=f"use {(len(y_NO), b_KOR.shape[2])}")
    return _ExpandAdd.apply(y_NO, s_NR, _bank(b_KOR), slots, activation)  # pyright: ignore[reportReturnType]


def lora_linear(
    x_ND: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    a_KTRD: torch.Tensor,
    bs: Sequence[torch.Tensor],
    slots: Slots,
    *,
    stream: int,
    activation: str = "identity",
) -> tuple[torch.Tensor, ...]:
    """Every target's frozen map of the rows, undropped, plus its branch: T tensors [N, O].

    Weights [O, D] and biases [O] get no gradient; X, A and every B [K, O, R] do.

    Raises:
        SpecError: The sizes do not fit, the activation is not known, or the targets are not equally many.
    """
    _check(x_ND, a_KTRD, slots)
    _check_activation(activation)
    n_targets = a_KTRD.shape[1]
    if not n_targets == len(weights) == len(biases) == len(bs):
        raise SpecError(
            f"targets: {n_targets} factors A, {len(bs)} B, {len(weights)} weights, {len(biases)} biases",
            hint="give one of each a target",
        )
    banks = tuple(_bank(b) for b in bs)
    return _LoraLinear.apply(slots, stream, activation, _rows(x_ND), _bank(a_KTRD), *weights, *biases, *banks)  # pyright: ignore[reportReturnType]


@final
class _Shrink(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, a: torch.Tensor, slots: Slots, stream: int) -> torch.Tensor:
        ctx.save_for_backward(x, a)
        ctx.slots, ctx.stream = slots, stream
        return _run("shrink", x, a)(x, a, slots, stream=stream)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        (ds,) = grad_outputs
        x, a = ctx.saved_tensors
        da, dx = _run("shrink_backward", x, a)(ds.contiguous(), x, a, ctx.slots, stream=ctx.stream)
        return dx, da, None, None


@final
class _ExpandAdd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: torch.Tensor, s: torch.Tensor, b: torch.Tensor, slots: Slots, activation: str
    ) -> torch.Tensor:
        ctx.save_for_backward(s, b)
        ctx.slots, ctx.activation = slots, activation
        ctx.mark_dirty(y)
        return _run("expand_add", y, b)(y, s, b, slots, activation=activation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        s, b = ctx.saved_tensors
        dy = grad_outputs[0].contiguous()
        ds, db = _run("expand_backward", dy, b)(dy, s, b, ctx.slots, activation=ctx.activation)
        return dy, ds, db, None, None


@final
class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, slots: Slots, stream: int, activation: str, x: torch.Tensor, a: torch.Tensor, *rest: Any
    ) -> tuple[torch.Tensor, ...]:
        n = a.shape[1]
        weights, biases, bs = rest[:n], rest[n : 2 * n], rest[2 * n :]
        s = _run("shrink", x, a)(x, a, slots, stream=stream)
        ctx.save_for_backward(x, a, s, *weights, *bs)
        ctx.slots, ctx.stream, ctx.activation = slots, stream, activation
        ys = [functional.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
        for target, y in enumerate(ys):
            _run("expand_add", y, bs[target])(y, s[target], bs[target], slots, activation=activation)
        return tuple(ys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        x, a, s, *rest = ctx.saved_tensors
        n = a.shape[1]
        weights, bs = rest[:n], rest[n:]
        dx, ds, dbs = torch.zeros_like(x), torch.empty_like(s), []
        for target, given in enumerate(grad_outputs):
            dy, b = given.contiguous(), bs[target]
            ds[target], db = _run("expand_backward", dy, b)(dy, s[target], b, ctx.slots, activation=ctx.activation)
            dbs.append(db)
            if ctx.needs_input_grad[3]:
                torch.addmm(dx, dy, weights[target], beta=int(target > 0), out=dx)
        da, dx = _run("shrink_backward", x, a)(ds, x, a, ctx.slots, stream=ctx.stream, dx_ND=dx)
        return None, None, None, dx, da, *(None,) * (2 * n), *dbs


def _run(operation: str, like: torch.Tensor, bank: torch.Tensor) -> Any:
    """The implementation for activations as `like` and a bank A [K, T, R, D] or B [K, O, R]."""
    grouped = bank.dim() == 4
    rank, targets = (bank.shape[2], bank.shape[1]) if grouped else (bank.shape[2], 1)
    return implementation(operation, like, rank=rank, targets=targets)


def _rows(x_ND: torch.Tensor) -> torch.Tensor:
    """The same rows, each without gaps, which kernels count on."""
    return x_ND if x_ND.stride(-1) == 1 else x_ND.contiguous()


def _bank(bank: torch.Tensor) -> torch.Tensor:
    """The same bank, each slot's part without gaps; the parts themselves may lie apart, as in one flat bank."""
    return bank if bank[0].is_contiguous() else bank.contiguous()


def _check(rows: torch.Tensor, bank: torch.Tensor, slots: Slots) -> None:
    if rows.dim() != 2 or len(rows) != slots.n_rows:
        raise SpecError(f"rows: got {tuple(rows.shape)} for slots of {slots.n_rows} rows", hint="flatten to [N, width]")
    if len(bank) != len(slots):
        raise SpecError(f"bank: {len(bank)} slots where {len(slots)} have rows", hint="give one a slot")


def _check_activation(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise SpecError(f"activation: got {activation!r}", hint=f"use one of {', '.join(ACTIVATIONS)}")
