"""Methods inside attention, through transformers' attention interface.

While one is attached, the model's configuration names an attention function of ours, which lets the adapters of a
module act around the implementation that the model had. They get queries and keys after position encoding and after the
key/value cache, so positions, masks of other layers and generation are untouched.

Shapes: N batch, H heads, K key/value heads, Q queries, S keys, D head width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, Protocol, final

import torch
from torch import nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from autopeft.errors import ModelError
from autopeft.spaces.methods.rules import OPEN_ATTENTION, check_open_attention
from autopeft.spaces.model_shape import ModelShape
from autopeft.trainers.adapters.adapter import AbstractAdapter, Handle
from autopeft.trainers.adapters.quick_softmax import QUICK, quick
from autopeft.trainers.sites import attention_of, eager_attention, takes_rows

AttentionOutput = tuple[torch.Tensor, torch.Tensor | None]
AttentionFunction = Callable[..., AttentionOutput]
"""(module, query [N, H, Q, D], key [N, K, S, D], value, mask [N, 1, Q, S] or None, **options) to [N, Q, H, D]."""

_NAME: Final = "autopeft_attention_"
_SLOT: Final = "_autopeft_attention"


class AbstractAttentionAdapter(AbstractAdapter, ABC):
    """One method inside the attention of one layer."""

    def __init__(self, shape: ModelShape, *, layer: int, method: str) -> None:
        super().__init__()
        check_open_attention(method, shape, layer=layer)
        self.shape = shape
        self.layer = layer
        self.method = method

    @abstractmethod
    def around(self, attend: AttentionFunction, *, fused: bool) -> AttentionFunction:
        """`attend` with this adapter's part; `fused` when it may be causal without a mask, as SDPA is."""

    def attach(self, model: PreTrainedModel, layer: nn.Module) -> list[Handle]:
        attention = self._attention(model, layer)
        _switch(model)
        attention.__dict__.setdefault(_SLOT, []).append(self)
        return [_AttentionHandle(model, attention, self)]

    def _attention(self, model: PreTrainedModel, layer: nn.Module) -> nn.Module:
        """The layer's attention module, checked to be one that can be acted on."""
        sites, implementation = self.shape.layers[self.layer], str(model.config._attn_implementation or "eager")
        attention = attention_of(layer, sites)
        running = implementation.removeprefix(_NAME).replace(QUICK, "eager")
        if attention is None or not takes_rows(layer, sites, implementation=running):
            raise ModelError(
                f"{self.method}: attention implementation {running!r} of this {self.shape.family} model takes no rows"
                " beside the sequence's",
                hint=f"load the model with attention {' or '.join(OPEN_ATTENTION)}",
            )
        return attention


@final
class _AttentionHandle:
    """Takes one adapter off; with the last one the model's own attention implementation comes back."""

    def __init__(self, model: PreTrainedModel, attention: nn.Module, adapter: AbstractAttentionAdapter) -> None:
        self.model = model
        self.attention = attention
        self.adapter = adapter

    def remove(self) -> None:
        kept = [adapter for adapter in take_out(self.attention) if adapter is not self.adapter]
        put_in(self.model, self.attention, kept)


class Acting(Protocol):
    """What may act around attention."""

    def around(self, attend: AttentionFunction, *, fused: bool) -> AttentionFunction: ...


def take_out(module: nn.Module) -> "list[Acting]":
    """What acts in `module`, which it acts in no longer; the model keeps calling our attention function."""
    return module.__dict__.pop(_SLOT, [])


def put_in(model: PreTrainedModel, module: nn.Module, acting: "Sequence[Acting]") -> None:
    """Let only `acting` act in an attention module; without any in `model`, the model's own function comes back."""
    module.__dict__.pop(_SLOT, None)
    if acting:
        _switch(model)
        module.__dict__[_SLOT] = list(acting)
    if not any(_SLOT in other.__dict__ for other in model.modules()):
        for config in _configs(model):
            name = config._attn_implementation or ""
            if name.startswith(_NAME):
                config._attn_implementation_internal = name.removeprefix(_NAME)


def _configs(model: PreTrainedModel) -> Iterator[PretrainedConfig]:
    """Every distinct configuration object that modules of `model` read their attention implementation from."""
    seen: set[int] = set()
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig) and id(config) not in seen:
            seen.add(id(config))
            yield config


def _switch(model: PreTrainedModel) -> None:
    """Make `model` use our attention function; does nothing when it already does."""
    current = str(model.config._attn_implementation or "eager")
    if current.startswith(_NAME):
        return
    name = _NAME + current
    AttentionInterface.register(name, partial(_attend, current))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[current])
    for config in _configs(model):
        if (config._attn_implementation or "eager") == current:
            config._attn_implementation_internal = name


def _attend(implementation: str, module: nn.Module, *args: torch.Tensor | None, **options: object) -> AttentionOutput:
    """Attention of `module` by `implementation`, its adapters around it; the same call where it has none."""
    fused = implementation == "sdpa"
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"] if fused else eager_attention(module)
    assert attend is not None
    attend = quick(attend) if implementation == QUICK else attend
    for adapter in module.__dict__.get(_SLOT, ()):
        attend = adapter.around(attend, fused=fused)
    return attend(module, *args, **options)
