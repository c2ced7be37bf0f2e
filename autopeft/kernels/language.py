"""Triton's names for our kernels, untyped: its decorator and its language mean other things than Python's to a checker.

Imported by the kernel files alone, which nothing imports where Triton is missing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    triton: Any = None
    tl: Any = None
    constexpr = Any
else:
    import triton
    from triton import language as tl
    from triton.language import constexpr

__all__ = ["INTERPRETED", "constexpr", "tl", "triton"]

INTERPRETED: Any = tl.constexpr(bool(triton.knobs.runtime.interpret))
