"""Routed experts of several configurations against each of them written out."""

import pytest
import torch

from autopeft.errors import SpecError
from autopeft.kernels.routed import balance_loss, routed_lora
from autopeft.kernels.slots import Slots

LENGTHS, EXPERTS, TOP_K = (4, 0, 6), (3, 1, 2), (2, 1, 1)
SLOTS = Slots.of(LENGTHS, scale=[2.0, 1.0, 0.5], dropout=[0.2, 0.0, 0.4], seed=[1, 2, 3])
REAL = torch.tensor([1, 1, 1, 0, 1, 1, 1, 1, 0, 0], dtype=torch.bool)
COUNTS = {
    "experts_K": torch.tensor(EXPERTS, dtype=torch.int32),
    "top_k_K": torch.tensor(TOP_K, dtype=torch.int32),
    "real_N": REAL,
}


def parts() -> list[torch.Tensor]:
    """x [10, 5], y [10, 6], router [3, 3, 5], a [3, 3, 2, 5], b [3, 6, 3, 2]."""
    torch.manual_seed(1)
    shapes = ((10, 5), (10, 6), (3, 3, 5), (3, 3, 2, 5), (3, 6, 3, 2))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def routed(x: torch.Tensor, y: torch.Tensor, *banks: torch.Tensor, slots: Slots = SLOTS) -> tuple[torch.Tensor, ...]:
    return routed_lora(x, y * 1, *banks, slots, **COUNTS, stream=3)  # pyright: ignore


def test_every_gradient_is_that_of_finite_differences_with_dropout_on() -> None:
    def outputs(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y, choices, probabilities = routed(*tensors)
        return y, balance_loss(choices, probabilities, COUNTS["experts_K"])

    # The balance divides by a sum that is constant for whole probabilities, and so has no gradient.
    assert torch.autograd.gradcheck(outputs, parts())


def test_a_row_goes_through_its_best_experts_weighted_and_padding_is_not_counted() -> None:
    x, y, router, a, b = parts()
    got, choices, probabilities = routed(x, y, router, a, b, slots=SLOTS.evaluating())
    for slot, rows in SLOTS.segments():
        counted = torch.zeros(3, dtype=torch.float64)
        for n in range(rows.start, rows.stop):
            logits = router[slot, : EXPERTS[slot]] @ x[n]
            weights, best = logits.topk(TOP_K[slot])
            update = sum(
                weight * (b[slot, :, e] @ (a[slot, e] @ x[n]))
                for weight, e in zip(weights.softmax(0), best.tolist(), strict=True)
            )
            assert torch.allclose(got[n], y[n] + SLOTS.scale[slot] * update)
            counted[best] += float(REAL[n])
        assert torch.equal(choices[slot], counted)
        real = rows.start + REAL[rows].nonzero().flatten()
        means = (x[real] @ router[slot, : EXPERTS[slot]].t()).softmax(-1).sum(0)
        assert torch.allclose(probabilities[slot, : EXPERTS[slot]], means)


def test_the_balance_is_one_when_even_and_the_number_of_experts_when_not() -> None:
    experts = torch.tensor([4, 4, 2], dtype=torch.int32)
    even, one = torch.ones(4), torch.tensor([3.0, 0.0, 0.0, 0.0])
    counts = torch.stack([even, one, torch.zeros(4)])
    assert balance_loss(counts, counts, experts).tolist() == [1.0, 4.0, 0.0]


def test_banks_that_do_not_fit_are_refused() -> None:
    x, y, router, a, b = parts()
    with pytest.raises(SpecError, match=r"experts: router \(3, 2, 5\)"):
        routed(x, y, router[:, :2], a, b)
