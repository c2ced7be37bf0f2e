"""Eager attention in bf16 on a CPU with its softmax computed in float32, which is both quicker and closer.

Torch's bf16 softmax is a good deal slower on the rows of a few dozen scores that short sequences have. The model's own
eager function runs as it is; where it asks for a softmax of bf16 scores it is given this one. What is kept for the
backward pass is the same: the probabilities, in bf16.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from autopeft.spaces.model_shape import ModelShape
from autopeft.trainers.sites import attention_of, eager_attention, layers_of, takes_rows

QUICK: Final = "autopeft_quick_eager"
"""What an attention implementation of this kind is called in a model's configuration."""

BLOCK: Final = 1 << 16
"""Scores that are computed in float32 at a time: those of a large evaluation batch in one piece would leave the cache,
and take as long as in bf16."""


class Softmax(torch.autograd.Function):
    """Over the last dimension, of bf16 scores [..., S], in float32 both ways."""

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor) -> torch.Tensor:
        probabilities = torch.empty_like(scores, memory_format=torch.contiguous_format)
        for rows, filled in zip(_in_blocks(scores), _in_blocks(probabilities), strict=True):
            filled.copy_(torch.softmax(rows, -1, dtype=torch.float32))
        ctx.save_for_backward(probabilities)
        return probabilities

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # one output
        (probabilities,) = ctx.saved_tensors
        given = torch.empty_like(probabilities)
        for rows, kept, filled in zip(*map(_in_blocks, (grad, probabilities, given)), strict=True):
            filled.copy_(torch._softmax_backward_data(rows.float(), kept.float(), -1, torch.float32))
        return given


def _in_blocks(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Views `[rows, S]` of a few rows each, of which float32 copies stay in the processor's cache."""
    width = tensor.shape[-1]
    return tensor.reshape(-1, width).split(max(1, BLOCK // max(1, width)))


class _Quick(TorchFunctionMode):
    """Inside, softmaxes over the last dimension of bf16 tensors on a CPU are `Softmax`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func in _SOFTMAXES and _fits(*args, **options):
            return Softmax.apply(args[0])
        return func(*args, **options)


_SOFTMAXES: Final = (functional.softmax, torch.softmax, torch.Tensor.softmax)


def _fits(scores: torch.Tensor, *rest: object, **options: object) -> bool:
    dim = rest[0] if rest else options.get("dim")
    plain = dim in (-1, scores.dim() - 1) and options.get("dtype") is None and len(rest) < 2
    return plain and scores.dtype is torch.bfloat16 and scores.device.type == "cpu"


def quick(attend: Callable[..., Any]) -> Callable[..., Any]:
    """An eager attention function that does the same with the quicker softmax."""

    def attended(*args: Any, **options: Any) -> Any:
        with _Quick():
            return attend(*args, **options)

    return attended


def quicken(model: PreTrainedModel, shape: ModelShape) -> bool:
    """Let a model that attends eagerly, in bf16 and on a CPU, do so quicker; whether it does.

    Models whose layers do not look their attention function up in transformers' table are left as they are.

    Args:
        model: With or without a head, on its device.
        shape: Of its base.
    """
    eager = str(model.config._attn_implementation or "eager") == "eager"
    if not eager or model.dtype is not torch.bfloat16 or model.device.type != "cpu" or shape.decoder_layers:
        return False
    layers = list(layers_of(model.base_model, shape))
    if not all(
        takes_rows(layer, sites, implementation="eager") for layer, sites in zip(layers, shape.layers, strict=True)
    ):
        return False
    AttentionInterface.register(QUICK, _attend)
    AttentionMaskInterface.register(QUICK, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    attentions = [attention_of(layer, sites) for layer, sites in zip(layers, shape.layers, strict=True)]
    for module in (model, model.base_model, *attentions):
        config = getattr(module, "config", None)
        if config is not None and (config._attn_implementation or "eager") == "eager":
            config._attn_implementation_internal = QUICK
    return True


def _attend(module: nn.Module, *args: Any, **options: Any) -> Any:
    own = eager_attention(module)
    assert own is not None, "checked by takes_rows"
    return quick(own)(module, *args, **options)
