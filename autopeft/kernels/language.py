"""Triton's names for our kernels, untyped: its decorator and its language mean other things to a checker than Python's.

Where Triton is not installed its place is taken by a stand-in, so that every file can be imported; `dispatch` chooses
no kernel there.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, final

from autopeft.kernels.device import assumed

__all__ = ["INTERPRETED", "constexpr", "launched", "tl", "triton"]


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


def launched(*, unspecialized: Sequence[str] = ()) -> "Callable[[Any], _Launched]":
    """Marks a function that is launched as a kernel; those that kernels call are marked `triton.jit`.

    Args:
        unspecialized: Arguments whose values shall not give kernels of their own.
    """
    return lambda function: _Launched(triton.jit(do_not_specialize=list(unspecialized))(function))


@final
class _Launched:
    """A kernel: `kernel[grid](...)` launches it, except where a device is assumed that launches nothing."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]:
        device = assumed()
        return self._kernel[grid] if device is None or device.launches else _nothing


def _nothing(*_: object, **__: object) -> None:
    return None
