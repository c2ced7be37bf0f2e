"""Every kernel compiled for GPUs that need not be there: registers, spills and shared memory, for sm_80 and sm_90.

    python benchmarks/kernels_aot.py [--targets 80 90] [--operations NAME ...] [--out FILE]

Wrappers run on tensors without memory at the sizes of `kernel_cases.py` and at the largest that the dispatch lets
through, so block sizes, specialisations and options are those of a real call; where a launch would follow, the kernel
is compiled instead. Triton's own ptxas says what it took. Writes benchmarks/results/kernels_aot.jsonl anew.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, final
from unittest import mock

import torch
import triton
from common import RESULTS, environment
from kernel_cases import BASES, Case, bind, cases, operands
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from autopeft.kernels.dispatch import OPERATIONS, choose

CONSTANTS: Final = ("TARGETS", "DROPS", "ADDS", "SHARES", "ACTIVATION", "BLOCK_M", "BLOCK_C", "BLOCK_R", "BLOCK_E")
RANKLESS: Final = ("adamw_step", "softmax_cross_entropy")
SIZES: Final = {
    torch.bfloat16: ((32, 1), (128, 1), (256, 1), (32, 3), (128, 2), (64, 4)),
    torch.float16: ((16, 1), (16, 3)),
    torch.float32: ((16, 1), (64, 1), (32, 2), (16, 4)),
}
"""Ranks of a target, and targets."""


@final
class _Card:
    """In the place of Triton's driver: a card of the given capability, on which nothing is launched."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_device(self) -> int:
        return self._capability  # Triton keeps what it compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)


def compiled(case: Case, capability: int) -> list[tuple[dict[str, Any], Any]]:
    """Arguments and compiled form of every kernel that the operation of `case` would launch on such a card."""
    found: list[tuple[dict[str, Any], Any]] = []
    launch = JITFunction.run

    def compile_only(function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        found.append((kwargs, launch(function, *args, grid=grid, warmup=True, **kwargs)))

    driver.set_active(_Card(capability))
    with mock.patch.object(JITFunction, "run", compile_only):
        bind(case, OPERATIONS[case.operation].kernel(), operands(case, "meta"), case.table("meta"))()
    return found


def usage(kernel: Any, capability: int) -> dict[str, int]:
    """What ptxas, given the options that Triton gives it, says of a kernel: registers, bytes of spills and stack."""
    arch = re.search(r"\.target (sm_\w+)", kernel.asm["ptx"])
    assert arch is not None
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(kernel.asm["ptx"])
        fused = [] if kernel.metadata.enable_fp_fusion else ["--fmad=false"]
        command = [triton.knobs.nvidia.ptxas.path, "-v", *fused, f"--gpu-name={arch[1]}", source, "-o", f"{source}.o"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "registers": _number(r"Used (\d+) registers", told),
        "spill_store_bytes": _number(r"(\d+) bytes spill stores", told),
        "spill_load_bytes": _number(r"(\d+) bytes spill loads", told),
        "stack_bytes": _number(r"(\d+) bytes stack frame", told),
        "shared_bytes": int(kernel.metadata.shared),
    }


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, text
    return int(found[1])


def all_cases() -> Iterator[Case]:
    """Those that are timed, some in other dtypes, and the largest that the dispatch gives to a kernel."""
    for name, base in BASES.items():
        yield from cases(name, base, slots=8)
    first: dict[tuple[str, float], Case] = {}
    for case in cases("roberta-base", BASES["roberta-base"], slots=32):  # rows for the largest blocks
        first.setdefault((case.operation, case.dropout), case)
    for case in first.values():
        yield from _others(case)


def _others(case: Case) -> Iterator[Case]:
    """The same in other dtypes, and with ranks and targets up to the most that the dispatch gives to a kernel."""
    grouped = case.operation.startswith("shrink")
    for dtype, sizes in SIZES.items():
        for rank, targets in sizes if case.operation not in RANKLESS else [(case.rank, 1)]:
            if targets > 1 and not grouped:
                continue
            assert choose(case.operation, device="cuda", dtype=dtype, rank=rank, targets=targets) == "triton"
            yield replace(case, rank=rank, targets=targets, dtype=dtype)


def measured(wanted: Sequence[str], capability: int) -> list[dict[str, Any]]:
    """A row for every kernel with other constants, block sizes or argument types."""
    rows: dict[str, dict[str, Any]] = {}
    for case in all_cases():
        if case.operation not in wanted:
            continue
        for arguments, kernel in compiled(case, capability):
            if kernel.hash in rows:
                rows[kernel.hash]["bases"] = sorted({*rows[kernel.hash]["bases"], case.base})
                continue
            rows[kernel.hash] = {
                "kernel": kernel.metadata.name,
                "operation": case.operation,
                "target": f"sm_{capability}",
                "dtype": str(case.dtype).removeprefix("torch."),
                "bases": [case.base],
                "rank": case.rank,
                "num_warps": kernel.metadata.num_warps,
                "num_stages": kernel.metadata.num_stages,
                "constants": {name: arguments[name] for name in CONSTANTS if name in arguments},
                **usage(kernel, capability),
            }
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=int, nargs="+", default=[80, 90], help="compute capabilities, 80 for 8.0")
    parser.add_argument("--operations", nargs="+", choices=tuple(OPERATIONS), default=tuple(OPERATIONS))
    parser.add_argument("--out", type=Path, default=RESULTS / "kernels_aot.jsonl")
    options = parser.parse_args()
    rows = [row for target in options.targets for row in measured(options.operations, target)]
    show(rows)
    about = {name: value for name, value in environment().items() if name in ("versions", "commit", "dirty", "date")}
    with options.out.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(about | row) + "\n" for row in rows)
    print(f"{len(rows)} kernels, {sum(row['spill_store_bytes'] > 0 for row in rows)} of them spill; {options.out}")


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A line a kernel."""
    for row in rows:
        constants = " ".join(f"{name}={value}" for name, value in row["constants"].items())
        print(
            f"{row['target']} {row['kernel']:24} {row['dtype']:8} {row['registers']:4} registers "
            f"{row['spill_store_bytes']:6} B spilled {row['shared_bytes']:7} B shared  {constants}"
        )


if __name__ == "__main__":
    main()
