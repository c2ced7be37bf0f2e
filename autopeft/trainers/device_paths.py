"""The kernels that a CUDA device would choose where its choice decides what is kept for the backward pass.

A trace runs on the CPU's own paths. On CUDA our kernels are taken, here without a launch (`autopeft.kernels.device`),
and two of torch's operations go another way: fused attention, which keeps other tensors and widens its mask, and
dropout, which keeps a mask of bytes in place of one in the activations' dtype. PyTorch takes flash attention without a
mask in half precision, memory-efficient attention otherwise (`sdp_utils.cpp`); cuDNN's, which some cards prefer, keeps
the same.
"""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, final

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from autopeft.kernels.device import assuming_cuda

DEVICES: Final = ("cpu", "cuda")
_FLASH_WIDTH: Final = 256
"""Widest head that flash attention takes."""
_HALF: Final = (torch.bfloat16, torch.float16)


@final
class CudaPaths(TorchFunctionMode):
    """Inside `with`, attention, dropout and what has kernels of our own keep what they keep on CUDA."""

    def __enter__(self) -> "CudaPaths":
        self._assuming = assuming_cuda(launches=False)
        self._assuming.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._assuming.__exit__(kind, error, trace)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        chosen = _PATHS.get(func, func)
        return chosen(*args, **(kwargs or {}))


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`scaled_dot_product_attention` over [..., heads, rows, width]."""
    fused = torch.ops.aten
    if attn_mask is None and query.dtype in _HALF and query.shape[-1] <= _FLASH_WIDTH:
        return fused._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    key, value = (_repeated(rows, query, enable_gqa) for rows in (key, value))
    bias = _bias(attn_mask, query, key)
    return fused._scaled_dot_product_efficient_attention(
        query, key, value, bias, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
    )[0]


def _repeated(rows: torch.Tensor, query: torch.Tensor, enable_gqa: bool) -> torch.Tensor:
    """Key or value heads as many as there are query heads."""
    times = query.shape[-3] // rows.shape[-3] if enable_gqa else 1
    return rows if times == 1 else rows.repeat_interleave(times, -3)


def _bias(mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
    """The mask in the query's dtype, as PyTorch makes it of a boolean one, seen by every head."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), float("-inf"))
    return mask.expand(*query.shape[:-1], key.shape[-2])


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    del inplace
    return torch.native_dropout(input, p, True)[0] if training and p > 0.0 else input


_PATHS: Final[Mapping[Callable[..., Any], Callable[..., Any]]] = {
    functional.scaled_dot_product_attention: _attention,
    functional.dropout: _dropout,
}
