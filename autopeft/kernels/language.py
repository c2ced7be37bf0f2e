"""Triton's names for our kernels, untyped: its decorator and its language mean other things to a checker than Python's.

Where Triton is not installed its place is taken by a stand-in, so that every file can be imported; `dispatch` chooses
no kernel there.
"""

from typing import TYPE_CHECKING, Any

__all__ = ["INTERPRETED", "constexpr", "tl", "triton"]


class _Absent:
    """Leaves a kernel a plain function that nobody calls."""

    @staticmethod
    def jit(function: Any = None, **_: object) -> Any:
        return function or (lambda decorated: decorated)


if TYPE_CHECKING:
    triton: Any = None
    tl: Any = None
    constexpr = Any
    INTERPRETED: Any = False
else:
    try:
        import triton
        from triton import language as tl
        from triton.language import constexpr

        INTERPRETED = constexpr(bool(triton.knobs.runtime.interpret))
    except ModuleNotFoundError:
        triton, tl, constexpr, INTERPRETED = _Absent, None, bool, False
