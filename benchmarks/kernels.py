"""The kernels timed on a GPU: against their twins, the twins compiled, plain torch, and a copy of memory.

    python benchmarks/kernels.py [--device cuda] [--tiny] [--seconds 170] [--slots 8] [--operations NAME ...]

Every operation at the sizes of RoBERTa-base, a Qwen2 of 1.5B and a Llama of 7B (`kernel_cases.py`). Values are checked
before they are timed: a kernel may err twice as much as its twin in the same dtype, both against the twin in float64.
`torch` is what a model would write without kernels, batched over slots of equal lengths and with torch's own dropout;
the twin, slot after slot and with the kernel's random bits, defines the operation and is no fast way to compute it.
Compiling takes longest and comes last; what --seconds leave out is said. Appends to benchmarks/results/kernels.jsonl.

Without a GPU --tiny runs every case small under Triton's interpreter, which proves that the script works; it measures
nothing, and no row is written.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from common import write_rows
from kernel_cases import BASES, TINY, Case, bind, cases, floor_bytes, flops, operands
from torch.nn import functional

from autopeft.kernels.dispatch import OPERATIONS

EXACT: Final = 2e-6
"""Of a result's size: the order of sums in fp32."""
COPIED_BYTES: Final = 1 << 30
LEVELS: Final = (0.2, 0.5, 0.8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Time:
    """Milliseconds at `LEVELS`."""

    low: float
    middle: float
    high: float


def timed(run: Callable[[], Any]) -> Time:
    """Times of `run` on the device, its caches cold."""
    from triton.testing import do_bench

    low, middle, high = do_bench(run, warmup=10, rep=50, quantiles=LEVELS)
    return Time(low=low, middle=middle, high=high)


def copy_bandwidth() -> float:
    """Bytes a second of a copy on the device, read and written."""
    source = torch.empty(COPIED_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2e3 * COPIED_BYTES / timed(lambda: target.copy_(source)).middle


def tensors_of(result: Any) -> tuple[torch.Tensor, ...]:
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def results(case: Case, function: Callable[..., Any], dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """What `function` returns and what it leaves in its operands, in float64."""
    tensors = {
        name: value.to(torch.float64 if dtype == torch.float64 else value.dtype)
        for name, value in operands(case, device).items()
    }
    returned = tensors_of(bind(case, function, tensors, case.table(device))())
    return [value.double() for value in (*returned, *tensors.values())]


def checked(case: Case, device: str) -> float:
    """The kernel's error over its twin's, the worst of its results.

    Raises:
        ValueError: It is more than twice the twin's, or a second run gives other bits.
    """
    row, worst = OPERATIONS[case.operation], 0.0
    truths = results(case, row.twin, torch.float64, device)
    twins, kernels, again = (
        results(case, function, case.dtype, device) for function in (row.twin, row.kernel(), row.kernel())
    )
    if not all(map(torch.equal, kernels, again)):
        raise ValueError(f"{case}: two runs differ")
    for truth, twin, kernel in zip(truths, twins, kernels, strict=True):
        error, allowed = (kernel - truth).norm().item(), (twin - truth).norm().item()
        exact = EXACT * truth.norm().item()
        if not error <= 2 * allowed + exact:
            raise ValueError(f"{case}: errs by {error:.3g} where its twin errs by {allowed:.3g}")
        worst = max(worst, error / max(allowed, exact, 1e-30))
    return worst


def plain(case: Case) -> Callable[..., Any] | None:
    """The operation as a model writes it, all slots in one batched product; None where that is the twin."""
    k, p = case.slots, case.dropout

    def rows(value: torch.Tensor) -> torch.Tensor:
        return value.view(k, case.rows, -1)

    def shrink(x: torch.Tensor, a: torch.Tensor, *_: Any, **__: Any) -> list[torch.Tensor]:
        factors = a.to(x.dtype).unbind(1)
        return [torch.bmm(rows(functional.dropout(x, p)), factor.mT) for factor in factors]

    def shrink_backward(ds: torch.Tensor, x: torch.Tensor, a: torch.Tensor, *_: Any, **kept: Any) -> Any:
        dx, factors, das = kept["dx_ND"], a.to(x.dtype).unbind(1), []
        for own, factor in zip(ds, factors, strict=True):
            das.append(torch.bmm(rows(own).mT, rows(functional.dropout(x, p))))
            dx += functional.dropout(torch.bmm(rows(own), factor), p).view_as(dx)
        return das

    def expand_add(y: torch.Tensor, s: torch.Tensor, b: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return rows(y).baddbmm_(rows(s), b.to(y.dtype).mT, alpha=2.0)

    def expand_backward(dy: torch.Tensor, s: torch.Tensor, b: torch.Tensor, *_: Any, **__: Any) -> Any:
        return torch.bmm(rows(dy), b.to(dy.dtype)) * 2.0, torch.bmm(rows(dy).mT, rows(s)) * 2.0

    def softmax_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        leaf = logits.detach().requires_grad_()
        return torch.autograd.grad(functional.cross_entropy(leaf.float(), labels, reduction="sum"), leaf)[0]

    known = (shrink, shrink_backward, expand_add, expand_backward, softmax_cross_entropy)
    return {function.__name__: function for function in known}.get(case.operation)


def sides(case: Case, device: str, *, compiled: bool) -> Iterator[tuple[str, Callable[..., Any]]]:
    """What is timed: kernel, twin and plain torch; or the compiled twin and compiled plain torch."""
    row, torch_side = OPERATIONS[case.operation], plain(case)
    if not compiled:
        yield "kernel", row.kernel()
        yield "twin", row.twin
    elif device == "cuda":
        torch._dynamo.reset()
        yield "twin compiled", torch.compile(row.twin, dynamic=False)
    if torch_side is not None:
        yield "torch", torch_side


def measured(
    case: Case, side: str, function: Callable[..., Any], bandwidth: float, error: float | None
) -> dict[str, Any]:
    """A row: the side's times, and its bytes and operations a second."""
    time_ms = timed(bind(case, function, operands(case, "cuda"), case.table("cuda")))
    seconds, least = time_ms.middle / 1e3, floor_bytes(case)
    row = {
        "benchmark": "kernels",
        "operation": case.operation,
        "base": case.base,
        "side": side,
        **{name: getattr(case, name) for name in ("slots", "rows", "d_in", "d_out", "rank", "targets", "dropout")},
        "parameters": case.parameters,
        "dtype": str(case.dtype).removeprefix("torch."),
        "milliseconds": [round(value, 5) for value in (time_ms.low, time_ms.middle, time_ms.high)],
        "levels": LEVELS,
        "floor_bytes": least,
        "gb_per_second": round(least / seconds / 1e9, 2),
        "share_of_copy_bandwidth": round(least / seconds / bandwidth, 4),
        "copy_gb_per_second": round(bandwidth / 1e9, 2),
        "tflop_per_second": round(flops(case) / seconds / 1e12, 3),
        "error_over_twins": error,
        "seed": 0,
    }
    show(case, side, row)
    return row


def show(case: Case, side: str, row: dict[str, Any]) -> None:
    print(
        f"{case.base:13} {case.operation:21} D {case.d_in:5} O {case.d_out:6} R {case.rank:2} T {case.targets} "
        f"p {case.dropout} {side:14} {row['milliseconds'][1]:9.4f} ms {row['gb_per_second']:8.1f} GB/s "
        f"{row['share_of_copy_bandwidth']:6.1%} of a copy {row['tflop_per_second']:7.2f} TFLOP/s",
        flush=True,
    )


def on_a_gpu(wanted: list[Case], seconds: float) -> int:
    """Rows of every case, each written as soon as it is there; how many cases failed."""
    began, failed, bandwidth = time.monotonic(), 0, copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}: a copy moves {bandwidth / 1e9:.0f} GB/s", flush=True)
    good: list[Case] = []
    for case in wanted:
        try:
            error = checked(case, "cuda")
            rows = [
                measured(case, side, function, bandwidth, error if side == "kernel" else None)
                for side, function in sides(case, "cuda", compiled=False)
            ]
        except (ValueError, RuntimeError) as problem:
            failed += 1
            print(f"FAILED {case}: {problem}", flush=True)
            continue
        write_rows("kernels", rows)
        good.append(case)
    for index, case in enumerate(good):
        if time.monotonic() - began > seconds:
            print(f"{len(good) - index} of {len(good)} cases were not compared with compiled twins: no time left")
            break
        for side, function in sides(case, "cuda", compiled=True):
            if side != "torch":
                write_rows("kernels", [measured(case, side, function, bandwidth, None)])
    return failed


def in_small(wanted: list[Case]) -> int:
    """Every case and side run once under the interpreter; how many failed."""
    for case in wanted:
        print(
            f"{case.operation:21} rank {case.rank} of {case.targets}: error over the twin's {checked(case, 'cpu'):.2f}"
        )
        for _, function in sides(case, "cpu", compiled=False):
            bind(case, function, operands(case, "cpu"), case.table("cpu"))()
        assert floor_bytes(case) > 0
        assert flops(case) >= 0
    print("every case ran small under the interpreter; nothing was measured and no row was written")
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="small cases under the interpreter: proves, measures nothing"
    )
    parser.add_argument("--seconds", type=float, default=170.0, help="after which no twin is compiled")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--operations", nargs="+", choices=tuple(OPERATIONS), default=tuple(OPERATIONS))
    options = parser.parse_args()
    small = options.tiny or options.device == "cpu"
    if small and os.environ.get("TRITON_INTERPRET") != "1":  # chosen before Triton is imported: begin again
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"TRITON_INTERPRET": "1"})
    bases = {"tiny": TINY} if small else BASES
    wanted = [case for name, base in bases.items() for case in cases(name, base, slots=2 if small else options.slots)]
    wanted = [replace(case, rank=min(case.rank, 20)) if small else case for case in wanted]
    wanted = [case for case in wanted if case.operation in options.operations]
    sys.exit(bool(in_small(wanted) if small else on_a_gpu(wanted, options.seconds)))


if __name__ == "__main__":
    main()
