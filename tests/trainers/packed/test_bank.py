"""The step of several slots at once against each one's own optimizer."""

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from autopeft.kernels.device import assuming_cuda
from autopeft.kernels.dispatch import Operation
from autopeft.trainers.packed.bank import LEAST_WIDTH, STEPS_OF_WIDTH, Banks, width_of

CLOSE = {"rtol": 1e-5, "atol": 1e-7}


@pytest.fixture(autouse=True)
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a kernel would compute on a CUDA device its twin does."""
    monkeypatch.setattr(Operation, "kernel", lambda operation: operation.twin)
    with assuming_cuda(launches=True):
        yield


class FakeSlot:
    """Of a slot what a bank asks for: an optimizer with two groups, or `n` of them, and its tensors."""

    def __init__(self, seed: int, *sizes: tuple[int, ...], clip: float | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        tensors = [nn.Parameter(torch.randn(size, generator=generator)) for size in sizes]
        groups = [
            {"params": [row], "lr": 0.01 * (index + seed), "weight_decay": 0.1 * index}
            for index, row in enumerate(tensors)
        ]
        self.course = SimpleNamespace(optimizer=torch.optim.AdamW(groups), parameters=tensors)
        self.run = SimpleNamespace(settings=SimpleNamespace(clip_norm=clip))

    def learn(self, gradients: list[torch.Tensor | None]) -> None:
        for row, gradient in zip(self.course.parameters, gradients, strict=True):
            row.grad = None if gradient is None else gradient.clone()

    def step(self) -> None:
        if self.run.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.course.parameters, self.run.settings.clip_norm)
        self.course.optimizer.step()

    def drawn(self, step: int) -> list[torch.Tensor | None]:
        generator = torch.Generator().manual_seed(step)
        return [torch.randn(row.shape, generator=generator) for row in self.course.parameters]


def slots() -> list[FakeSlot]:
    return [
        FakeSlot(1, (3, 4), (5,), clip=0.5),
        FakeSlot(2, (30, 40)),
        FakeSlot(3, (7, 2), (4, 4), (1,), clip=10.0),
    ]


def run_of(banks: Banks, now: list[FakeSlot]) -> Any:
    return banks.step(now)  # type: ignore[arg-type]  # asks no more of a slot


def test_slots_come_and_go_and_each_takes_the_steps_of_its_own_optimizer() -> None:
    banks, mine, other = Banks(), slots(), slots()
    for step in range(8):
        present = [0, 1] if step < 2 else [0, 1, 2] if step < 5 else [1, 2]
        if step == 5:
            banks.leave(mine[0])  # type: ignore[arg-type]
        for index in range(3):
            gradients = mine[index].drawn(step)
            if (step, index) == (6, 2):
                gradients[1] = None
            mine[index].learn(gradients)
            other[index].learn(gradients)
        norms = run_of(banks, [mine[index] for index in present])
        for index in range(3):
            if index in present or step >= 5:
                norm = nn.utils.get_total_norm(
                    [row.grad for row in other[index].course.parameters if row.grad is not None]
                )
                other[index].step()
                if mine[index] in norms:
                    torch.testing.assert_close(norms[mine[index]], norm)
                else:
                    assert index == 0 or (index == 2 and step >= 6), "only who left, or missed a gradient"
                    mine[index].step()
            for row, expected in zip(mine[index].course.parameters, other[index].course.parameters, strict=True):
                torch.testing.assert_close(row, expected, **CLOSE)


def test_what_is_written_of_an_optimizer_is_what_it_would_have_written() -> None:
    banks, mine, other = Banks(), slots(), slots()
    for step in range(3):
        for one, two in zip(mine, other, strict=True):
            one.learn(one.drawn(step))
            two.learn(one.drawn(step))
            two.step()
        run_of(banks, mine)
    for one, two in zip(mine, other, strict=True):
        written, expected = one.course.optimizer.state_dict(), two.course.optimizer.state_dict()
        assert written["param_groups"] == expected["param_groups"]
        for place, state in expected["state"].items():
            for name, tensor in state.items():
                found = written["state"][place][name]
                torch.testing.assert_close(found, tensor, **CLOSE)
                assert found.untyped_storage().nbytes() == tensor.untyped_storage().nbytes(), "no more than its own"
    fresh, steps = slots()[0], Banks()
    fresh.course.optimizer.load_state_dict(copy.deepcopy(mine[0].course.optimizer.state_dict()))
    with torch.no_grad():
        for row, value in zip(fresh.course.parameters, mine[0].course.parameters, strict=True):
            row.copy_(value)
    for one in (fresh, other[0]):
        one.learn(one.drawn(9))
    run_of(steps, [fresh])
    other[0].step()
    for row, expected in zip(fresh.course.parameters, other[0].course.parameters, strict=True):
        torch.testing.assert_close(row, expected, **CLOSE)


def test_a_gradient_that_is_not_finite_is_said_and_moves_nobody() -> None:
    banks, mine = Banks(), slots()
    before = [row.detach().clone() for row in mine[0].course.parameters]
    for one in mine:
        one.learn(one.drawn(0))
    gradient = mine[0].course.parameters[0].grad
    assert gradient is not None
    gradient[0, 0] = torch.inf
    norms = run_of(banks, mine)
    assert [bool(norms[one].isfinite()) for one in mine] == [False, True, True]
    for row, value in zip(mine[0].course.parameters, before, strict=True):
        assert torch.equal(row, value)


@pytest.mark.parametrize("n", [1, 1023, 1024, 1025, 5000, 65_537, 1_000_000])
def test_a_row_is_at_most_a_quarter_wider_than_what_lies_in_it(n: int) -> None:
    assert n <= width_of(n) <= max(LEAST_WIDTH, n * (1 + 1 / STEPS_OF_WIDTH) + 1)
    assert width_of(width_of(n)) == width_of(n)
