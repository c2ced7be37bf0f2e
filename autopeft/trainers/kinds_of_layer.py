"""Which calls of layers are alike: the same modules, settings and arguments, wherever in the model they are."""

from collections.abc import Hashable, Sequence
from typing import Final

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from autopeft.trainers.step import Call
from autopeft.trainers.storages import storage_key

_INDICES: Final = ("layer_idx", "layer_id", "layer_number", "layer_index", "block_idx")
"""Attributes that say where a module is and change nothing else."""
_PLAIN: Final = (bool, int, float, str, type(None))


def layer_kinds(layers: Sequence[nn.Module], calls: Sequence[Call]) -> list[Hashable]:
    """One mark a call; equal marks for calls that take the same memory with the same adapters."""
    marks: dict[int, Hashable] = {}
    for index in {call.layer for call in calls}:
        marks[index] = module_mark(layers[index])
    return [(marks[call.layer], _arguments_mark(call)) for call in calls]


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


def _arguments_mark(call: Call) -> Hashable:
    leaves, spec = tree_flatten((call.args, call.kwargs))
    rows: list[Hashable] = []
    for at, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor):
            rows.append((tuple(leaf.shape), leaf.dtype, None if at in call.flowing else storage_key(leaf)))
        else:
            rows.append(leaf if isinstance(leaf, _PLAIN) else type(leaf))
    return (str(spec), tuple(rows))
