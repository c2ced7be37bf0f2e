"""The low-rank branch against what a model writes without it."""

import pytest
import torch
from torch.nn import functional

from autopeft.errors import SpecError
from autopeft.kernels import low_rank
from autopeft.kernels.reference.activations import ACTIVATIONS
from autopeft.kernels.reference.philox import keep_mask
from autopeft.kernels.slots import Slots

LENGTHS = (3, 0, 4)


def slots(*, dropout: float = 0.0) -> Slots:
    return Slots.of(LENGTHS, scale=[2.0, 1.0, 0.5], dropout=[dropout] * 3, seed=[1, 2, 3])


def parts() -> list[torch.Tensor]:
    """x [7, 9], a [3, 2, 2, 9], b [3, 5, 2] and b [3, 6, 2]."""
    torch.manual_seed(0)
    shapes = ((7, 9), (3, 2, 2, 9), (3, 5, 2), (3, 6, 2))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


WEIGHTS = [torch.linspace(-1, 1, 9 * width, dtype=torch.float64).view(width, 9) for width in (5, 6)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_gradient_is_that_of_finite_differences_with_dropout_on(activation: str) -> None:
    def both(x: torch.Tensor, a: torch.Tensor, *bs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return low_rank.lora_linear(
            x, WEIGHTS, [None, None], a, bs, slots(dropout=0.3), stream=5, activation=activation
        )

    assert torch.autograd.gradcheck(both, parts())


def test_the_halves_have_the_gradients_of_finite_differences() -> None:
    x, a, b, _ = parts()
    y, s = (torch.randn(7, width, dtype=torch.float64, requires_grad=True) for width in (5, 2))
    assert torch.autograd.gradcheck(lambda x, a: low_rank.shrink(x, a, slots(dropout=0.3), stream=1), (x, a))
    assert torch.autograd.gradcheck(lambda y, s, b: low_rank.expand_add(y * 1, s, b, slots()), (y, s, b))


def test_the_base_sees_all_of_x_and_the_branch_what_dropout_leaves() -> None:
    x, a, *bs = parts()
    table = slots(dropout=0.4)
    got = low_rank.lora_linear(x, WEIGHTS, [None, torch.ones(6, dtype=torch.float64)], a, bs, table, stream=5)
    for slot, rows in table.segments():
        for target, bias in enumerate((0.0, 1.0)):
            mask = keep_mask(table.seed[slot], table.dropout[slot], rows=LENGTHS[slot], columns=9, stream=5 + target)
            dropped = x[rows] * mask / (1 - round(0.4 * 65536) / 65536)
            branch = table.scale[slot] * (dropped @ a[slot, target].t() @ bs[target][slot].t())
            assert torch.allclose(got[target][rows], functional.linear(x[rows], WEIGHTS[target]) + bias + branch)


def test_fp32_factors_do_not_widen_bf16_activations_and_keep_fp32_gradients() -> None:
    x, a, b, _ = (tensor.detach() for tensor in parts())
    a, b = a[:, :1].float().requires_grad_(), b.float().requires_grad_()
    (y,) = low_rank.lora_linear(x.bfloat16(), [WEIGHTS[0].bfloat16()], [None], a, [b], slots(), stream=0)
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert a.grad is not None
    assert a.grad.dtype == torch.float32


def test_evaluation_drops_nothing() -> None:
    x, a, *_ = parts()
    assert torch.equal(
        low_rank.shrink(x, a, slots(dropout=0.5).evaluating(), stream=0), low_rank.shrink(x, a, slots(), stream=0)
    )


def test_a_changed_output_cannot_be_used_for_an_earlier_gradient() -> None:
    x, _, b, _ = parts()
    y = torch.randn(7, 5, dtype=torch.float64, requires_grad=True).exp()  # exp keeps its result for its gradient
    out = low_rank.expand_add(y, x[:, :2].detach(), b, slots())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_slot_of_a_flat_bank_may_lie_apart_from_the_next() -> None:
    x, a, *_ = parts()
    flat = torch.zeros(3, 50, dtype=torch.float64)
    view = flat[:, 7 : 7 + 36].view(3, 2, 2, 9)
    view.copy_(a.detach())
    assert torch.equal(low_rank.shrink(x, view, slots(), stream=0), low_rank.shrink(x, a, slots(), stream=0))


def test_sizes_that_do_not_fit_are_refused() -> None:
    x, a, b, _ = parts()
    y, s = x.new_zeros(7, 5), x.new_zeros(7, 2)
    with pytest.raises(SpecError, match=r"rows: got \(6, 9\) for slots of 7 rows"):
        low_rank.shrink(x[:6], a, slots(), stream=0)
    with pytest.raises(SpecError, match="bank: 2 slots where 3 have rows"):
        low_rank.shrink(x, a[:2], slots(), stream=0)
    with pytest.raises(SpecError, match="factor: 8 columns for rows of 9"):
        low_rank.shrink(x, a[..., :8], slots(), stream=0)
    with pytest.raises(SpecError, match=r"hidden: got \(7, 1\)"):
        low_rank.expand_add(y, s[:, :1], b, slots())
    with pytest.raises(SpecError, match=r"activation: got 'swish'.*identity, gelu"):
        low_rank.expand_add(y, s, b, slots(), activation="swish")
    with pytest.raises(SpecError, match="targets: 2 factors A, 1 B, 2 weights, 2 biases"):
        low_rank.lora_linear(x, WEIGHTS, [None, None], a, [b], slots(), stream=0)
