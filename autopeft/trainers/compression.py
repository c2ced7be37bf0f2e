"""Trained adapters in a fraction of their bytes: ComPEFT (arXiv 2311.13171) and one bit a weight (arXiv 2307.16867).

Both work on an `AdapterSet` after training. What is packed are its trained tensors; frozen tensors that an adapter
keeps (random projections, what was taken out of a weight) and the task head stay as they are.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from autopeft.spaces.configuration import Configuration
from autopeft.spaces.model_shape import ModelShape
from autopeft.trainers.adapters.binary import Rounded, levels_of
from autopeft.trainers.inject import AdapterSet, build
from autopeft.trainers.job import COMPEFT, ONE_BIT
from autopeft.trainers.packing import (
    PackedPositions,
    pack_numbers,
    pack_positions,
    unpack_numbers,
    unpack_positions,
)

_QUOTIENTS: Final = "compeft.quotients"
_REMAINDERS: Final = "compeft.remainders"
_SIGNS: Final = "compeft.signs"
_MOMENTS: Final = "1bit.moments"
_CODES: Final = "1bit.codes."
_EPSILON: Final = 1e-5
_ZERO: Final = torch.zeros(())


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """An adapter's trained tensors, compressed."""

    tensors: Mapping[str, torch.Tensor]
    """What is written, by name; on the CPU."""
    facts: Mapping[str, Any]
    """JSON values that unpacking needs, `method` among them."""
    names: tuple[str, ...]
    """The tensors of the adapter set that are in here; all its others are to be kept beside."""
    n_numbers: int
    """Numbers in those tensors."""

    @property
    def n_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


def pack_ternary(adapters: AdapterSet, start: Mapping[str, torch.Tensor], *, density: float, alpha: float) -> Packed:
    """ComPEFT: of all trained numbers together the share `density` that moved most, each as plus or minus one value.

    With tau the change since `start` and s its standard deviation over every number of the adapter, a kept entry
    becomes start + alpha s sign(tau), any other its start.

    Args:
        adapters: The trained set; not changed.
        start: Where each tensor began, for those that `constant_start` knows; the others count as begun at zero, for
            what was drawn at random is not stored.
        density: Share of the entries that is kept, in (0, 1].
        alpha: Factor on the standard deviation.
    """
    rows = dict(adapters.named_parameters())
    change = torch.cat([(_plain(tensor) - start.get(name, _ZERO)).flatten() for name, tensor in rows.items()])
    kept = max(1, round(density * change.numel()))
    chosen = torch.argsort(change.abs(), descending=True, stable=True)[:kept].sort().values
    positions = pack_positions(chosen.numpy())
    signs = (change[chosen] > 0).numpy()
    tensors = {
        _QUOTIENTS: torch.from_numpy(positions.quotients),
        _REMAINDERS: torch.from_numpy(positions.remainders),
        _SIGNS: torch.from_numpy(np.packbits(signs)),
    }
    scale = alpha * float(change.std(correction=0))
    facts = {
        "method": COMPEFT,
        "density": density,
        "alpha": alpha,
        "scale": scale,
        "kept": kept,
        "rice": positions.rice,
        "tensors": [[name, list(tensor.shape)] for name, tensor in rows.items()],
        "from_start": sorted(start),
    }
    return Packed(
        tensors=tensors,
        facts=facts,
        names=tuple(rows),
        n_numbers=change.numel(),
    )


def constant_start(shape: ModelShape, configuration: Configuration) -> dict[str, torch.Tensor]:
    """The initial tensors of a configuration's adapters that no chance has a part in (zeros, ones, an identity).

    Two sets are built from two seeds and compared. What is first known with the weights of the model counts as zero.
    """
    one, other = (build(shape, configuration, seed=seed) for seed in (0, 1))
    drawn = dict(other.named_parameters())
    return {
        name: tensor.detach()
        for name, tensor in one.named_parameters()
        if tensor.numel() > 0 and torch.equal(tensor, drawn[name])
    }


def pack_levels(adapters: AdapterSet) -> Packed:
    """Each matrix as its mean, its standard deviation and, for every entry, one of two levels between them.

    Exact for the binary methods, whose forward pass uses nothing else, with as many bits as they were trained with;
    for any other method each matrix is rounded as theirs are. Vectors (biases, scales) are left out.
    """
    tensors: dict[str, torch.Tensor] = {}
    moments: list[list[float]] = []
    rows: list[list[object]] = []
    numbers = 0
    for name, parameter in adapters.named_parameters():
        if parameter.dim() < 2 or parameter.numel() < 2:
            continue
        weight, bits = _plain(parameter), _bits(adapters, name)
        deviation, mean = torch.std_mean(weight)
        codes = _codes(weight, mean, deviation, bits)
        tensors[_CODES + name] = torch.from_numpy(pack_numbers(codes.flatten().numpy(), bits=bits))
        moments.append([float(mean), float(deviation)])
        rows.append([name, list(weight.shape), bits])
        numbers += weight.numel()
    tensors[_MOMENTS] = torch.tensor(moments, dtype=torch.float32).reshape(-1, 2)
    return Packed(
        tensors=tensors,
        facts={"method": ONE_BIT, "tensors": rows},
        names=tuple(str(row[0]) for row in rows),
        n_numbers=numbers,
    )


def start_of(adapters: AdapterSet, facts: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """What a freshly built set holds where packed tensors are changes to it.

    Raises:
        KeyError: It has no such tensor.
    """
    rows = dict(adapters.named_parameters())
    return {name: rows[name].detach().clone() for name in facts.get("from_start", ())}


@torch.no_grad()
def unpack(
    adapters: AdapterSet,
    tensors: Mapping[str, torch.Tensor],
    facts: Mapping[str, Any],
    *,
    start: Mapping[str, torch.Tensor],
) -> None:
    """Put packed tensors into a set of the configuration that they were packed from.

    Args:
        adapters: Where to.
        tensors: `Packed.tensors`.
        facts: `Packed.facts`.
        start: What ternary changes are added to: `constant_start`, or `start_of` a freshly built set.

    Raises:
        KeyError, ValueError, RuntimeError: They are not what was packed, or of another configuration.
    """
    if facts["method"] == COMPEFT:
        _unpack_ternary(adapters, tensors, facts, start)
    else:
        _unpack_levels(adapters, tensors, facts)


def _unpack_ternary(
    adapters: AdapterSet,
    tensors: Mapping[str, torch.Tensor],
    facts: Mapping[str, Any],
    start: Mapping[str, torch.Tensor],
) -> None:
    parameters = dict(adapters.named_parameters())
    sizes = [math.prod(shape) for _, shape in facts["tensors"]]
    positions = PackedPositions(
        quotients=tensors[_QUOTIENTS].numpy(),
        remainders=tensors[_REMAINDERS].numpy(),
        count=facts["kept"],
        rice=facts["rice"],
    )
    signs = np.unpackbits(tensors[_SIGNS].numpy(), count=facts["kept"]).astype(np.float32) * 2.0 - 1.0
    change = np.zeros(sum(sizes), dtype=np.float32)
    change[unpack_positions(positions)] = signs * np.float32(facts["scale"])
    for (name, shape), part in zip(facts["tensors"], torch.from_numpy(change).split(sizes), strict=True):
        parameters[name].copy_(part.reshape(shape) + start.get(name, _ZERO))


def _unpack_levels(adapters: AdapterSet, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    for (name, shape, bits), (mean, deviation) in zip(facts["tensors"], tensors[_MOMENTS], strict=True):
        codes = unpack_numbers(tensors[_CODES + name].numpy(), bits=bits, count=math.prod(shape))
        value = torch.tensor(levels_of(bits))[torch.from_numpy(codes)].reshape(shape) * deviation + mean
        owner, inner = _owner(adapters, name)
        if parametrize.is_parametrized(owner, inner):
            # Rounding again what is rounded would move it: its own mean and deviation are others.
            parametrize.remove_parametrizations(owner, inner, leave_parametrized=True)
        owner.get_parameter(inner).copy_(value)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().float()


def _codes(weight: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor, bits: int) -> torch.Tensor:
    """Which level each entry is nearest to, by the rule of `Rounded`."""
    levels = torch.tensor(levels_of(bits))
    return torch.bucketize((weight - mean) / (deviation + _EPSILON), (levels[1:] + levels[:-1]) / 2)


def _bits(adapters: AdapterSet, name: str) -> int:
    """Bits of a tensor's levels: those that a binary method trained it with, else one."""
    owner, inner = _owner(adapters, name)
    if not parametrize.is_parametrized(owner, inner):
        return 1
    rounding = next(m for m in owner.get_submodule(f"parametrizations.{inner}").children() if isinstance(m, Rounded))
    return len(rounding.levels).bit_length() - 1


def _owner(adapters: AdapterSet, name: str) -> tuple[nn.Module, str]:
    """The module that a parameter belongs to, and its plain name there."""
    path = name.removesuffix(".original").replace("parametrizations.", "")
    owner, _, inner = path.rpartition(".")
    return adapters.get_submodule(owner), inner
