"""Which calls of layers are alike: the same modules, settings and arguments, wherever in the model they are."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, Final, Protocol

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from autopeft.trainers.storages import storage_key

_INDICES: Final = ("layer_idx", "layer_id", "layer_number", "layer_index", "block_idx")
"""Attributes that say where a module is and change nothing else."""
_PLAIN: Final = (bool, int, float, str, type(None))


class LayerCall(Protocol):
    """A call of a layer (`autopeft.trainers.calls.Call`)."""

    @property
    def layer(self) -> int: ...
    @property
    def args(self) -> tuple[Any, ...]: ...
    @property
    def kwargs(self) -> dict[str, Any]: ...
    @property
    def flowing(self) -> tuple[int, ...]: ...


def layer_kinds(layers: Sequence[nn.Module], calls: Sequence[LayerCall]) -> list[Hashable]:
    """One mark a call; equal marks for calls that take the same memory with the same adapters."""
    marks: dict[int, Hashable] = {}
    for index in {call.layer for call in calls}:
        marks[index] = module_mark(layers[index])
    return [(marks[call.layer], arguments_mark(call.args, call.kwargs, call.flowing)) for call in calls]


def module_mark(layer: nn.Module) -> Hashable:
    """Equal for modules with the same parts, settings and sizes."""
    rows: list[Hashable] = []
    for name, module in layer.named_modules():
        plain = [
            (key, value)
            for key, value in sorted(vars(module).items())
            if isinstance(value, _PLAIN) and key not in _INDICES
        ]
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        sizes = [(key, tuple(tensor.shape), tensor.dtype) for key, tensor in tensors]
        rows.append((name, type(module), tuple(plain), tuple(sizes)))
    return tuple(rows)


def arguments_mark(args: tuple[Any, ...], kwargs: Mapping[str, Any], flowing: Collection[int]) -> Hashable:
    """Equal for arguments of the same sizes, of which those not `flowing` from below are the same tensors."""
    leaves, spec = tree_flatten((args, kwargs))
    rows: list[Hashable] = []
    for at, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor):
            rows.append((tuple(leaf.shape), leaf.dtype, None if at in flowing else storage_key(leaf)))
        else:
            rows.append(leaf if isinstance(leaf, _PLAIN) else type(leaf))
    return (str(spec), tuple(rows))
