"""The optimizer's step of all slots of a pack in one launch, where a kernel takes it.

Slots of like size lie in one bank, a row each: copies of parameters and gradients, and the moments themselves. A slot's
optimizer keeps saying what it does, its `state` in places of its row, so that who measures or writes it need not know.
A slot that the kernel does not move (another optimizer, a tensor without a gradient) is left to its own optimizer.

Letters: K rows of a bank, P parameters of the widest, G groups of columns with one rate and one decay.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, final

import numpy as np
import torch
from torch import nn

from autopeft.kernels.dispatch import implementation, takes
from autopeft.kernels.reference.adamw import AdamW
from autopeft.trainers.batches import IntArray
from autopeft.trainers.packed.slot import Slot

STEPS_OF_WIDTH: Final = 4
"""Widths between a power of two and the next: a row is at most a quarter wider than what lies in it."""
LEAST_WIDTH: Final = 1024


@final
class Banks:
    """The banks of one pack."""

    def __init__(self) -> None:
        self._banks: dict[int, _Bank] = {}
        self._rows: dict[Slot, _Row] = {}
        self._apart: set[Slot] = set()

    def step(self, slots: Sequence[Slot]) -> dict[Slot, torch.Tensor]:
        """Move the parameters of those of `slots` that a kernel moves; the norms of their gradients before clipping."""
        moved = {slot: row for slot in slots if (row := self._row(slot)) is not None}
        norms: dict[Slot, torch.Tensor] = {}
        for bank in {id(row.bank): row.bank for row in moved.values()}.values():
            own = {slot: row for slot, row in moved.items() if row.bank is bank}
            norm_K = bank.step(list(own.values()))
            norms |= {slot: norm_K[row.index] for slot, row in own.items()}
        return norms

    def leave(self, slot: Slot) -> None:
        """Give a slot's row back; what its optimizer knows is its own again."""
        self._apart.discard(slot)
        row = self._rows.pop(slot, None)
        if row is not None:
            row.give_back()

    def _row(self, slot: Slot) -> "_Row | None":
        """A slot's row; None where its optimizer moves it: once it has, its tensors may have taken unlike steps."""
        if slot in self._apart:
            return None
        optimizer = slot.course.optimizer
        if not isinstance(optimizer, torch.optim.AdamW) or not _fits(slot, taken=slot in self._rows):
            self.leave(slot)
            self._apart.add(slot)
            return None
        if slot not in self._rows:
            width = width_of(sum(parameter.numel() for parameter in slot.course.parameters))
            bank = self._banks.setdefault(width, _Bank(width, slot.course.parameters[0].device))
            self._rows[slot] = bank.take(optimizer, slot.run.settings.clip_norm)
        return self._rows[slot]


def width_of(n_parameters: int) -> int:
    """The width of the row in which so many parameters lie."""
    least = max(n_parameters, LEAST_WIDTH)
    step = (1 << least.bit_length() - 1) // STEPS_OF_WIDTH
    return -(-least // step) * step


def _fits(slot: Slot, *, taken: bool) -> bool:
    """Whether a kernel takes the slot's step: float32 tensors that all have a gradient and as many steps behind them.

    Args:
        slot: With AdamW.
        taken: Whether it has a row: then its steps are known.
    """
    parameters = slot.course.parameters
    if not parameters:
        return False
    if not taken and len({float(state["step"]) for state in slot.course.optimizer.state.values()}) > 1:
        return False
    if any(row.dtype != torch.float32 or row.grad is None or row.grad.is_sparse for row in parameters):
        return False
    return takes(("adamw_step",), parameters[0])


@final
class _Row:
    """A slot's place in a bank.

    Args:
        bank: Whose row it is.
        index: Which.
        optimizer: Its tensors lie in the row group by group.
        clip_norm: Bound of the gradient's norm; None for none.
    """

    def __init__(self, bank: "_Bank", index: int, optimizer: torch.optim.AdamW, clip_norm: float | None) -> None:
        self.bank, self.index = bank, index
        self.groups: list[dict[str, Any]] = [group for group in optimizer.param_groups if group["params"]]
        self.parameters: list[nn.Parameter] = [row for group in self.groups for row in group["params"]]
        self.max_norm = math.inf if clip_norm is None else clip_norm
        self.steps = 0
        self._optimizer = optimizer
        self.place()
        self._hook = optimizer.register_state_dict_post_hook(self._written)

    @property
    def ends(self) -> list[int]:
        """The column at which each group ends."""
        return np.cumsum([sum(row.numel() for row in group["params"]) for group in self.groups]).tolist()

    def place(self) -> None:
        """Take the moments into the row; what they were before is kept."""
        found = self._optimizer.state
        known = [found[parameter] for parameter in self.parameters if parameter in found]
        if known and not self.steps:
            self.steps = int(known[0]["step"])
        sizes = [parameter.numel() for parameter in self.parameters]
        pieces = [bank[self.index].split([*sizes, self.bank.width - sum(sizes)]) for bank in self.bank.tensors]
        views = [
            [piece.view_as(row) for piece, row in zip(row_pieces, self.parameters, strict=False)]
            for row_pieces in pieces
        ]
        self.values, self.gradients, first, second = views
        for parameter, m, v in zip(self.parameters, first, second, strict=True):
            before = found.get(parameter)
            if before:
                m.copy_(before["exp_avg"])
                v.copy_(before["exp_avg_sq"])
            found[parameter] = {"step": _step(self.steps, parameter), "exp_avg": m, "exp_avg_sq": v}

    def give_back(self) -> None:
        """Leave the row, moments and steps with the optimizer."""
        self._hook.remove()
        for parameter in self.parameters:
            state = self._optimizer.state[parameter]
            self._optimizer.state[parameter] = self._own(state, parameter)
        self.bank.free(self)

    def _written(self, _: torch.optim.Optimizer, written: dict[str, Any]) -> dict[str, Any]:
        """What is to be written of the optimizer, in tensors of its own: a part of a bank brings all of it along."""
        state = {
            place: self._own(state, parameter)
            for (place, state), parameter in zip(sorted(written["state"].items()), self.parameters, strict=True)
        }
        return {**written, "state": state}

    def _own(self, state: dict[str, torch.Tensor], parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        moments = {name: state[name].clone() for name in ("exp_avg", "exp_avg_sq")}
        return {"step": _step(self.steps, parameter), **moments}


def _step(steps: int, parameter: nn.Parameter) -> torch.Tensor:
    return torch.full((), float(steps), dtype=torch.float32, device=parameter.device)


@final
@dataclass(slots=True)
class _Bank:
    """Rows of one width."""

    width: int
    device: torch.device
    rows: list[_Row | None] = field(default_factory=list)
    tensors: tuple[torch.Tensor, ...] = ()
    """Parameters, gradients, first and second moments, each fp32 [K, P]; zero beyond what a row holds."""
    _taken: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    """int32 [K]: steps."""
    _rule: AdamW | None = None
    """Of the rows that are in use; made anew when those change."""
    _places: IntArray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    """[K, G]: the row's own group that a group of columns belongs to."""

    def take(self, optimizer: torch.optim.AdamW, clip_norm: float | None) -> _Row:
        """A row for an optimizer's tensors."""
        if None not in self.rows:
            self._grow(max(1, len(self.rows)))
        index = self.rows.index(None)
        for tensor in self.tensors:
            tensor[index].zero_()
        row = self.rows[index] = _Row(self, index, optimizer, clip_norm)
        self._changed()
        return row

    def free(self, row: _Row) -> None:
        """Let another slot have the row."""
        self.rows[row.index] = None
        self._changed()

    def step(self, rows: Sequence[_Row]) -> torch.Tensor:
        """The step of some rows; the norms of all rows' gradients, fp32 [K]."""
        rule = self._now(rows)
        values = [value for row in rows for value in row.values]
        tensors: list[torch.Tensor] = [parameter for row in rows for parameter in row.parameters]
        with torch.no_grad():
            torch._foreach_copy_(values, tensors)
            torch._foreach_copy_(
                [gradient for row in rows for gradient in row.gradients],
                [tensor.grad for tensor in tensors if tensor.grad is not None],
            )
            norm_K = implementation("adamw_step", self.tensors[0])(*self.tensors, self._taken, rule)
            torch._foreach_copy_(tensors, values)
        for row in rows:
            row.steps += 1
        return norm_K

    def _grow(self, more: int) -> None:
        """Further rows; those that are in use move with what they hold."""
        self.rows += [None] * more
        self.tensors = tuple(
            torch.zeros(len(self.rows), self.width, dtype=torch.float32, device=self.device) for _ in range(4)
        )
        for row in self.rows:
            if row is not None:
                row.place()

    def _changed(self) -> None:
        self._rule = None

    def _now(self, rows: Sequence[_Row]) -> AdamW:
        """The rule of this step: rates change from step to step."""
        if self._rule is None:
            self._rule = self._made()
        rates = np.zeros((2, *self._places.shape), dtype=np.float32)
        for row in rows:
            for which, name in enumerate(("lr", "weight_decay")):
                own = np.array([group[name] for group in row.groups], dtype=np.float32)
                rates[which, row.index] = own[self._places[row.index]]
        sent = self._sent(rates)
        moved = {row.index for row in rows}
        active = self._sent(np.array([index in moved for index in range(len(self.rows))]))
        return replace(self._rule, learning_rate=sent[0], weight_decay=sent[1], active=active)

    def _made(self) -> AdamW:
        """What of the rule stays until rows are taken or freed; columns are cut wherever a row's groups end."""
        used = [row for row in self.rows if row is not None]
        inner = sorted({end for row in used for end in row.ends[:-1]})
        n_groups = 1 << len(inner).bit_length()  # powers of two: fewer kernels are compiled
        ends = np.array([*inner, *[self.width] * (n_groups - len(inner))], dtype=np.int32)
        starts = np.concatenate([[0], ends[:-1]])
        n_rows = len(self.rows)
        self._places = np.zeros((n_rows, n_groups), dtype=np.int64)
        betas, epsilons = np.zeros((n_rows, 2)), np.ones(n_rows, dtype=np.float32)
        norms, steps = np.full(n_rows, np.inf, dtype=np.float32), np.zeros(n_rows, dtype=np.int32)
        for row in used:
            last = len(row.groups) - 1
            self._places[row.index] = np.minimum(np.searchsorted(row.ends, starts, side="right"), last)
            betas[row.index], epsilons[row.index] = row.groups[0]["betas"], row.groups[0]["eps"]
            norms[row.index], steps[row.index] = row.max_norm, row.steps
        self._taken = self._sent(steps)
        none = self._taken.new_zeros(0)
        return AdamW(
            learning_rate=none,
            weight_decay=none,
            ends=self._sent(ends),
            betas=self._sent(betas),
            epsilon=self._sent(epsilons),
            max_norm=self._sent(norms),
            active=none,
        )

    def _sent(self, values: np.ndarray) -> torch.Tensor:
        """`values` on the device, without waiting for what it is doing."""
        return torch.from_numpy(values).to(self.device, non_blocking=True)
