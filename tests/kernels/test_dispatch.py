"""Kernel or twin."""

import subprocess
import sys

import pytest
import torch

from autopeft.kernels.dispatch import OPERATIONS, choose, implementation


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_cpu_has_the_twin_and_a_cuda_device_the_kernel(operation: str) -> None:
    assert choose(operation, device="cpu", dtype=torch.bfloat16, has_triton=True) == "torch"
    assert choose(operation, device="cuda", dtype=torch.bfloat16, has_triton=True) == "triton"
    assert implementation(operation, torch.zeros(1)) is OPERATIONS[operation].twin


@pytest.mark.parametrize(
    "given",
    [
        {"has_triton": False},
        {"dtype": torch.float64},
        {"capability": (7, 5)},
        {"rank": 512},
        {"dtype": torch.bfloat16, "rank": 65, "targets": 3},
        {"rank": 65},
        {"rank": 17, "targets": 3},
        {"dtype": torch.bfloat16, "targets": 5},
    ],
)
def test_what_a_kernel_does_not_take_goes_to_the_twin(given: dict[str, object]) -> None:
    usual = {"device": "cuda", "dtype": torch.float32, "has_triton": True}
    assert choose("shrink", **(usual | given)) == "torch"  # pyright: ignore[reportArgumentType]


def test_the_package_runs_where_triton_and_the_studies_libraries_are_missing() -> None:
    code = (
        "import sys\n"
        "for name in ('triton', 'ray', 'optuna', 'mlflow', 'datasets', 'transformers'): sys.modules[name] = None\n"
        "import torch\n"
        "from autopeft.kernels import low_rank, slots\n"
        "print(low_rank.shrink(torch.ones(2, 4), torch.ones(1, 1, 3, 4), slots.Slots.of([2]), stream=0).sum().item())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "24.0"
