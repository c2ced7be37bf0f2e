"""Frames of a frozen weight: W cut into left [O, R], core and right [R, I], from which methods start.

Frames are computed in float64 on the CPU and rounded to float32 once, so that every machine that has the same weight
finds the same frame to the last bits: adapter files hold what was trained, never the frames. They are kept beside the
module they belong to, so that the next adapter on it finds them there.

Shapes: O output width, I input width, R rank, K = min(O, I).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from autopeft.errors import ModelError
from autopeft.trainers.sites import Conv1D, LinearLike, linear_sizes

Cut = Callable[[torch.Tensor, int], "Frame"]

_KEPT: Final = "_autopeft_frames"
_EXACT: Final = torch.finfo(torch.float64).eps


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Left [O, R], core [R] (a diagonal) or [R, R], right [R, I]."""

    left: torch.Tensor
    core: torch.Tensor
    right: torch.Tensor

    def narrow(self, rank: int) -> "Frame":
        """The frame of a smaller rank: every cut here starts with it."""
        core = self.core[:rank] if self.core.dim() == 1 else self.core[:rank, :rank]
        return Frame(left=self.left[:, :rank], core=core, right=self.right[:rank])


def singular_frame(weight: torch.Tensor, rank: int) -> Frame:
    """The `rank` largest singular triples of `weight` [O, I], the largest entry of each left vector positive.

    Raises:
        ModelError: The weight has fewer that are not zero.
    """
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    n_sure = int((s > max(weight.shape) * _EXACT * s[0]).sum())
    if n_sure < rank:
        raise ModelError(
            f"the weight has {n_sure} singular values above rounding, the rank is {rank}",
            hint=f"use a rank up to {n_sure}" if n_sure else "leave this map out of the targets",
        )
    peak = u.abs().argmax(dim=0, keepdim=True)  # [1, K]
    sign = u.gather(0, peak).sign()
    return Frame(left=(u * sign)[:, :rank], core=s[:rank], right=(vt * sign.t())[:rank])


def triangular_frame(weight: torch.Tensor, rank: int) -> Frame:
    """The first `rank` terms of W = P L diag(z) U with L and U of unit diagonal; the rows of L are put in order by
    index, no permutation matrix is made.

    Raises:
        ModelError: A pivot among them is zero.
    """
    packed, pivots, _ = torch.linalg.lu_factor_ex(weight)
    _, lower, upper = torch.lu_unpack(packed, pivots, unpack_pivots=False)
    z = upper.diagonal()[:rank]
    zero = (z.abs() <= max(weight.shape) * _EXACT * weight.abs().max()).nonzero()
    if len(zero):
        n_sure = int(zero[0])
        raise ModelError(
            f"pivot {n_sure + 1} of the weight is zero, the rank is {rank}",
            hint=f"use a rank up to {n_sure}" if n_sure else "leave this map out of the targets",
        )
    left = torch.empty_like(lower[:, :rank])
    left[_rows(pivots, weight.shape[0])] = lower[:, :rank]
    return Frame(left=left, core=z, right=upper[:rank] / z[:, None])


def corner_frame(weight: torch.Tensor, rank: int) -> Frame:
    """The first `rank` columns and rows of `weight` [O, I], and the corner where they meet as the core."""
    return Frame(left=weight[:, :rank], core=weight[:rank, :rank], right=weight[:rank])


def frame_of(linear: LinearLike, cut: Cut, rank: int) -> Frame:
    """The frame of `linear`'s weight as it is now, on its device, in float32.

    A frame up to the next power of two is kept on the CPU beside the module, until its weight changes.

    Raises:
        ModelError: The weight has values that are not finite, or no frame of this rank.
    """
    kept: dict[Cut, tuple[tuple[int, ...], Frame]] = linear.__dict__.setdefault(_KEPT, {})
    version, frame = kept.get(cut, ((), None))
    if frame is None or version != _version(linear) or frame.core.shape[0] < rank:
        frame = _cut(linear, cut, rank)
        kept[cut] = (_version(linear), frame)
    frame, device = frame.narrow(rank), linear.weight.device
    return Frame(left=frame.left.to(device), core=frame.core.to(device), right=frame.right.to(device))


def outline_of(linear: LinearLike, rank: int, *, square_core: bool) -> Frame:
    """A frame of the sizes that `frame_of` gives, for a weight that is only described."""
    d_in, d_out = linear_sizes(linear)
    kept = _kept_rank(rank, d_out, d_in)
    blank = linear.weight.new_empty
    core = blank((kept, kept) if square_core else kept, dtype=torch.float32)
    left, right = blank(d_out, kept, dtype=torch.float32), blank(kept, d_in, dtype=torch.float32)
    return Frame(left=left, core=core, right=right).narrow(rank)


def _kept_rank(rank: int, d_out: int, d_in: int) -> int:
    """The next power of two, as far as the map has it: the next adapter on it may want a little more."""
    return min(1 << (rank - 1).bit_length(), d_out, d_in)


@torch.no_grad()
def _cut(linear: LinearLike, cut: Cut, rank: int) -> Frame:
    weight = matrix_of(linear).to(device="cpu", dtype=torch.float64)
    if not bool(weight.isfinite().all()):
        raise ModelError("the weight has values that are not finite", hint="check the base model's files")
    generous = _kept_rank(rank, *weight.shape)
    try:
        frame = cut(weight, generous)
    except ModelError:
        frame = cut(weight, rank)
    return Frame(left=_plain(frame.left), core=_plain(frame.core), right=_plain(frame.right))


def matrix_of(linear: LinearLike) -> torch.Tensor:
    """The weight as [O, I], whatever the module's layout."""
    weight = linear.weight.detach()
    return weight.t() if isinstance(linear, Conv1D) else weight


def _version(linear: nn.Module) -> tuple[int, ...]:
    weight = linear.get_parameter("weight")
    return weight.data_ptr(), weight._version


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.float32).contiguous()


def _rows(pivots: torch.Tensor, n_rows: int) -> torch.Tensor:
    """Where each row of P^T W lies in W [O], from LAPACK's interchanges (counted from one)."""
    rows = list(range(n_rows))
    for index, pivot in enumerate(pivots.tolist()):
        rows[index], rows[pivot - 1] = rows[pivot - 1], rows[index]
    return torch.tensor(rows)
