"""The slots' language-model losses against those of whole logits."""

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from autopeft.errors import SpecError
from autopeft.kernels import loss
from autopeft.kernels.loss import chunk_rows, linear_cross_entropy
from autopeft.kernels.slots import Slots

SLOTS = Slots.of([5, 0, 9, 3])


def parts(vocabulary: int = 31) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(vocabulary, (17,))
    labels[[1, 7]] = -100
    labels[14:] = -100  # the last slot has rows, but none that counts
    hidden = torch.randn(17, 8, dtype=torch.float64, requires_grad=True)
    return hidden, torch.randn(vocabulary, 8, dtype=torch.float64), labels


@pytest.mark.parametrize("rows", [2, 64])
def test_losses_and_gradients_are_those_of_whole_logits(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(loss, "chunk_rows", lambda *_: rows)
    hidden, weight, labels = parts()
    bias, upstream = torch.randn(31, dtype=torch.float64), torch.tensor([1.0, 5.0, 0.5, 3.0], dtype=torch.float64)
    got = linear_cross_entropy(hidden, weight, labels, SLOTS, bias_V=bias)
    (got_gradient,) = torch.autograd.grad((got * upstream).sum(), hidden)
    logits = hidden @ weight.t() + bias
    whole = {slot: functional.cross_entropy(logits[rows], labels[rows]) for slot, rows in SLOTS.segments() if slot != 3}
    expected = torch.stack([whole.get(slot, torch.zeros((), dtype=torch.float64)) for slot in range(4)])
    (gradient,) = torch.autograd.grad((expected * upstream).sum(), hidden)
    assert torch.allclose(got, expected)
    assert torch.allclose(got_gradient, gradient)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_the_logits_of_all_rows_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "chunk_rows", lambda *_: 3)
    hidden, weight, labels = parts(vocabulary=500)
    saved: list[int] = []
    with (
        Largest() as seen,
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t),
    ):
        linear_cross_entropy(hidden, weight, labels, SLOTS).sum().backward()
    assert seen.numel <= 8 * 500  # the head itself; logits of all 17 rows would be 8,500
    assert max(saved) <= hidden.numel()


def test_a_chunk_is_whole_tiles_and_within_its_bytes() -> None:
    assert chunk_rows(152_064, 2) == 192
    assert chunk_rows(10_000_000, 2) == 64


def test_what_cannot_be_shared_or_does_not_fit_is_refused() -> None:
    hidden, weight, labels = parts()
    with pytest.raises(SpecError, match="head: it is trainable"):
        linear_cross_entropy(hidden, weight.requires_grad_(), labels, SLOTS)
    with pytest.raises(SpecError, match=r"rows: got \(17, 8\) and 16 labels for slots of 17 rows"):
        linear_cross_entropy(hidden, weight.detach(), labels[1:], SLOTS)
