"""In which number format the frozen base computes; adapters, head and optimizer always keep float32 masters."""

from dataclasses import replace

import torch

from autopeft.errors import SpecError
from autopeft.trainers.job import ModelSpec

PRECISIONS = ("auto", "float32", "bfloat16")

EAGER_LENGTH = 256
"""Up to this many tokens eager attention is the faster one on a CPU in bf16, where torch's fused attention has a slow
backward pass: a MiniLM step of 32 rows takes 262 ms with eager attention and 388 ms without at 32 tokens, 1131 and
1669 ms at 128 (one thread, p20, "bf16 weights" in `benchmarks/results/step_time.jsonl`). Eager attention keeps its
probabilities, quadratic in the length."""


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies matrices faster in bf16 than in float32; emulation is slower.

    The AVX512 instructions make it faster on AMD's processors and slower on Intel's, which have AMX for it; that can be
    hidden, as in some virtual machines. A MiniLM step of 32 rows of 32 tokens takes 0.48 times as long in bf16 (with
    eager attention) as in float32 on an EPYC, 1.6 times on a Xeon without AMX (one thread,
    `benchmarks/results/step_time.jsonl`).
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    found = getattr(torch.cpu, "get_capabilities", dict[str, object])()
    wide = found.get("avx512_bf16") and "Intel" not in str(found.get("cpu_name"))
    return bool(found.get("amx_bf16") or wide or found.get("bf16"))


def base_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Dtype the base's weights are held and multiplied in; None leaves them as the model specification says.

    The weights themselves are bf16, not float32 under autocast: it is as fast, and holds half the bytes.

    Raises:
        SpecError: An unknown precision.
    """
    if precision not in PRECISIONS:
        raise SpecError(
            f"training.precision: got {precision!r}; allowed are {', '.join(PRECISIONS)}", hint="auto suits most"
        )
    if precision == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def fit_model(spec: ModelSpec, precision: str, *, device: torch.device, max_length: int) -> ModelSpec:
    """`spec` with the dtype and attention it leaves open chosen for speed on `device`.

    Raises:
        SpecError: An unknown precision, or one that contradicts the model's own dtype.
    """
    dtype = base_dtype(precision, device)
    if spec.dtype is not None:
        if precision not in ("auto", spec.dtype):
            raise SpecError(
                f"training.precision: got {precision!r}, but model.dtype is {spec.dtype!r}",
                hint="give one of them, or the same to both",
            )
        fitted = spec
    else:
        fitted = replace(spec, dtype=str(dtype).removeprefix("torch."))
    slow_fused = device.type == "cpu" and fitted.dtype == "bfloat16" and max_length <= EAGER_LENGTH
    return replace(fitted, attention="eager") if slow_fused and spec.attention is None else fitted
