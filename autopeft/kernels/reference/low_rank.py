"""The low-rank branch of K slots: S = dropout(X) A^T, Y += scale act(S) B^T, and its gradients.

Everything is computed in the dtype of the activations; the factors, often fp32 masters, are cast to it, and gradients
are cast to the dtype of what they belong to.

Shapes: K slots, N rows of all slots, T targets that read the same X, R rank (the largest of the slots: lower ranks are
padded with zeros, whose gradients are zero), D input width, O output width.
"""

import torch

from autopeft.kernels.reference.activations import ACTIVATIONS
from autopeft.kernels.reference.philox import keep_mask, keep_scale
from autopeft.kernels.slots import Slots


def shrink(x_ND: torch.Tensor, a_KTRD: torch.Tensor, slots: Slots, *, stream: int) -> torch.Tensor:
    """The hidden vectors [T, N, R] of every target: a target's own mask on the same rows, and its own A.

    Args:
        x_ND: Rows, slot after slot.
        a_KTRD: Down projections.
        slots: Whose rows they are.
        stream: Target t draws from stream + t.
    """
    n_targets, rank = a_KTRD.shape[1:3]
    s_TNR = x_ND.new_empty(n_targets, len(x_ND), rank)
    for slot, rows in slots.segments():
        for target in range(n_targets):
            x, factor = _dropped(x_ND[rows], slots, slot, stream + target)
            s_TNR[target, rows] = (x @ a_KTRD[slot, target].to(x.dtype).t()) * factor
    return s_TNR


def shrink_backward(
    ds_TNR: torch.Tensor,
    x_ND: torch.Tensor,
    a_KTRD: torch.Tensor,
    slots: Slots,
    *,
    stream: int,
    dx_ND: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of A [K, T, R, D] and of X [N, D]; the latter is added to `dx_ND` in place where one is given."""
    da_KTRD = torch.zeros_like(a_KTRD)
    out_ND = torch.zeros_like(x_ND) if dx_ND is None else dx_ND
    for slot, rows in slots.segments():
        for target in range(a_KTRD.shape[1]):
            x, factor = _dropped(x_ND[rows], slots, slot, stream + target)
            ds = ds_TNR[target, rows]
            da_KTRD[slot, target] = (ds.t() @ x) * factor
            back = ds @ a_KTRD[slot, target].to(x.dtype) * factor
            out_ND[rows] += _masked(back, slots, slot, stream + target)
    return da_KTRD, out_ND


def expand_add(
    y_NO: torch.Tensor, s_NR: torch.Tensor, b_KOR: torch.Tensor, slots: Slots, *, activation: str = "identity"
) -> torch.Tensor:
    """`y_NO` with every slot's update added in place."""
    act = ACTIVATIONS[activation].value
    for slot, rows in slots.segments():
        hidden = (act(s_NR[rows]) * slots.scale[slot]).to(y_NO.dtype)
        y_NO[rows].addmm_(hidden, b_KOR[slot].to(y_NO.dtype).t())
    return y_NO


def expand_backward(
    dy_NO: torch.Tensor, s_NR: torch.Tensor, b_KOR: torch.Tensor, slots: Slots, *, activation: str = "identity"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of S [N, R] and of B [K, O, R]; that of Y is `dy_NO` itself."""
    act, slope = ACTIVATIONS[activation].value, ACTIVATIONS[activation].slope
    ds_NR, db_KOR = torch.empty_like(s_NR), torch.zeros_like(b_KOR)
    for slot, rows in slots.segments():
        s, dy = s_NR[rows], dy_NO[rows].to(s_NR.dtype)
        ds_NR[rows] = (dy @ b_KOR[slot].to(dy.dtype)) * slope(s) * slots.scale[slot]
        db_KOR[slot] = dy.t() @ (act(s) * slots.scale[slot])
    return ds_NR, db_KOR


def _dropped(x_MD: torch.Tensor, slots: Slots, slot: int, stream: int) -> tuple[torch.Tensor, torch.Tensor | float]:
    """A slot's rows with the dropped elements zero, and the factor that their products still need."""
    if not slots.drops:
        return x_MD, 1.0
    return _masked(x_MD, slots, slot, stream), keep_scale(slots.dropout[slot])


def _masked(x_MD: torch.Tensor, slots: Slots, slot: int, stream: int) -> torch.Tensor:
    """A slot's rows with the dropped elements zero; not scaled."""
    if not slots.drops:
        return x_MD
    n_rows, width = x_MD.shape
    p, seed = slots.dropout[slot], slots.seed[slot]
    return x_MD * keep_mask(seed, p, rows=n_rows, columns=width, stream=stream, tokens=slots.tokens)
