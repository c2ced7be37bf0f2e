"""What every kernel must do, whatever it computes.

Kernels run on a CUDA device or, on small shapes, under Triton's interpreter, which has to be chosen before Triton is
imported: without a device the first test runs this file again in a process that has chosen it.
"""

import importlib
import importlib.util
import os
import re
import subprocess
import sys

import pytest
import torch

from autopeft.kernels import dispatch, low_rank
from autopeft.kernels.dispatch import OPERATIONS
from autopeft.kernels.reference.philox import keep_mask
from tests.kernels.cases import CALLS, CASES, Case, error, outputs
from tests.kernels.test_adamw import rule

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
runs_kernels = pytest.mark.skipif(
    not HAS_TRITON or (DEVICE == "cpu" and not INTERPRETED),
    reason="no CUDA device; the interpreter has its own process",
)
EXACT = 2e-6  # of a result's size: the order of sums in fp32


@pytest.mark.skipif(not HAS_TRITON or INTERPRETED, reason="Triton is not installed, or interprets already")
def test_the_interpreter_runs_every_kernel() -> None:
    command = [sys.executable, "-m", "pytest", "-o", "addopts=-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    ran = re.search(r"(\d+) passed", done.stdout)
    assert ran, done.stdout[-2000:]
    assert int(ran[1]) > len(OPERATIONS) * len(CASES), "the table of cases, and what has tests of its own"


def test_every_kernel_has_cases() -> None:
    assert set(CALLS) == set(OPERATIONS)


@runs_kernels
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_kernel_errs_at_most_twice_as_much_as_its_twin_in_bf16(operation: str, case: Case) -> None:
    truths = outputs(operation, case, dtype=torch.float64)
    twins = outputs(operation, case, dtype=torch.bfloat16)
    kernels = outputs(operation, case, dtype=torch.bfloat16, device=DEVICE, kernel=True)
    again = outputs(operation, case, dtype=torch.bfloat16, device=DEVICE, kernel=True)
    for truth, twin, kernel, repeated in zip(truths, twins, kernels, again, strict=True):
        assert kernel.shape == twin.shape
        assert kernel.dtype == twin.dtype
        assert error(kernel, truth) <= 2 * error(twin, truth) + EXACT * truth.double().norm().item()
        assert torch.equal(kernel, repeated)


@runs_kernels
def test_a_bank_too_large_for_one_launch_takes_two_and_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = importlib.import_module("autopeft.kernels.adamw")
    case = next(case for case in CASES if case.name == "empty slots")
    once = outputs("adamw_step", case, dtype=torch.float32, device=DEVICE, kernel=True)
    monkeypatch.setattr(kernel, "ONE_LAUNCH", 1)
    twice = outputs("adamw_step", case, dtype=torch.float32, device=DEVICE, kernel=True)
    for one, two in zip(once, twice, strict=True):
        assert torch.allclose(one, two, rtol=1e-5)


@runs_kernels
@pytest.mark.parametrize("launch", [1, 1 << 20])
def test_a_gradient_that_is_not_finite_changes_nothing(monkeypatch: pytest.MonkeyPatch, launch: int) -> None:
    kernel = importlib.import_module("autopeft.kernels.adamw")
    monkeypatch.setattr(kernel, "ONE_LAUNCH", launch)
    p, g, m, v = (torch.full((2, 7), value, device=DEVICE) for value in (1.0, 1.0, 0.5, 0.5))
    g[0, 3] = torch.nan
    steps = torch.zeros(2, dtype=torch.int32, device=DEVICE)
    norms = kernel.adamw_step(p, g, m, v, steps, rule(2, DEVICE))
    assert norms.isfinite().tolist() == [False, True]
    assert steps.tolist() == [0, 1]
    for tensor, value in ((p, 1.0), (m, 0.5), (v, 0.5)):
        assert torch.equal(tensor[0], torch.full((7,), value, device=DEVICE))
        assert not torch.equal(tensor[1], tensor[0])


@runs_kernels
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_kernel_is_exact_in_fp32_but_for_the_order_of_sums(operation: str) -> None:
    case = next(case for case in CASES if case.name == "odd widths")
    truths = outputs(operation, case, dtype=torch.float64)
    kernels = outputs(operation, case, dtype=torch.float32, device=DEVICE, kernel=True)
    for truth, kernel in zip(truths, kernels, strict=True):
        assert error(kernel, truth) <= EXACT * truth.double().norm().item()


@runs_kernels
@pytest.mark.parametrize("columns", [8, 73])
def test_both_passes_drop_the_elements_that_the_twin_drops(columns: int) -> None:
    case = Case(name="", lengths=(3, 21), rank=1, targets=2, dropout=(0.2, 0.6), tokens=5)
    slots = case.slots(DEVICE)
    eye = torch.eye(columns, device=DEVICE).repeat(2, 2, 1, 1)  # A is the identity: S is what dropout leaves of X
    ones = torch.ones(24, columns, device=DEVICE)
    s = OPERATIONS["shrink"].kernel()(ones, eye, slots, stream=4)
    ds = torch.ones(2, 24, columns, device=DEVICE)
    _, dx = OPERATIONS["shrink_backward"].kernel()(ds, ones, eye, slots, stream=4)
    for slot, rows in slots.segments():
        masks = [
            keep_mask(
                slots.seed[slot],
                slots.dropout[slot],
                rows=len(ones[rows]),
                columns=columns,
                stream=4 + target,
                tokens=5,
            )
            for target in range(2)
        ]
        for target, mask in enumerate(masks):
            assert torch.equal(s[target, rows] != 0, mask)
        counted = masks[0].float() + masks[1].float()
        assert torch.equal(dx[rows].div(s.max() if slot else s[0, rows].max()).round(), counted)


@runs_kernels
def test_a_slot_computes_the_same_alone_and_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "choose", lambda *_, **__: "triton")
    torch.manual_seed(0)
    case = Case(name="", lengths=(6, 20, 9), dropout=(0.1, 0.3, 0.5), targets=2)
    slots = case.slots(DEVICE)
    tensors = [
        torch.randn(shape, device=DEVICE).requires_grad_()
        for shape in ((35, 24), (3, 2, 4, 24), (3, 24, 4), (3, 10, 4))
    ]
    weights = [torch.randn(width, 24, device=DEVICE) for width in (24, 10)]
    together = branch(tensors, weights, slots)
    for slot, rows in slots.segments():
        alone = type(slots).of(
            [slots.lengths[slot]],
            scale=[float(slots.scale[slot])],
            dropout=[float(slots.dropout[slot])],
            seed=[int(slots.seed[slot])],
            device=DEVICE,
        )
        x, *banks = (tensor.detach() for tensor in tensors)
        parts = [part.clone().requires_grad_() for part in (x[rows], *(bank[slot : slot + 1] for bank in banks))]
        single = branch(parts, weights, alone)
        whole = [*(row[rows] for row in together[:3]), *(grad[slot : slot + 1] for grad in together[3:])]
        for got, expected in zip(whole, single, strict=True):
            assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)


def branch(tensors: list[torch.Tensor], weights: list[torch.Tensor], slots: dispatch.Any) -> list[torch.Tensor]:
    """Both targets' outputs, and the gradients of X, A and both B."""
    x, a, *bs = tensors
    ys = low_rank.lora_linear(x, weights, [None, None], a, bs, slots, stream=2, activation="silu")
    grads = torch.autograd.grad(sum(y.pow(2).sum() for y in ys), tensors)
    return [*ys, *grads]


@runs_kernels
def test_a_label_beyond_the_logits_gives_nan_and_reads_nothing_else() -> None:
    logits_MV = torch.randn(3, 5, device=DEVICE)
    labels_M = torch.tensor([4, 5, -1], device=DEVICE)
    losses_M = OPERATIONS["softmax_cross_entropy"].kernel()(logits_MV, labels_M)
    assert torch.isfinite(losses_M).tolist() == [True, False, False]
