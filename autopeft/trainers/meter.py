"""Measured peak training memory.

On CUDA it is the allocator's own peak. On a CPU, where nothing counts allocations, it is defined as

    bytes of parameters + gradients + optimizer state + the most that was saved for backward at one time,

parameters being all of the base model, the adapters and the task head. Storages shared by several tensors count once;
tensors saved for backward that live in a parameter's or buffer's storage are not counted again. Temporary results that
nothing saves are left out, so that the number depends on neither threads nor libraries and can be predicted
(`autopeft.objectives.memory`).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import final

import torch
from torch import nn


@final
class SavedTensorMeter:
    """Inside `with`, follows the bytes saved for backward; `peak_bytes` is the most at one time.

    A storage counts from the moment autograd saves a tensor in it until the last such tensor is released, which
    backward does as it goes. Costs a Python call for every saved tensor, so it is meant for one step in many.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.peak_bytes = 0
        self._current_bytes = 0
        self._users: dict[int, int] = {}
        self._permanent = {_key(tensor) for tensor in distinct_tensors(modules)}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)

    def __enter__(self) -> "SavedTensorMeter":
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    def _pack(self, tensor: torch.Tensor) -> "_Saved":
        key = _key(tensor)
        if key in self._permanent:
            return _Saved(tensor, None)
        if key not in self._users:
            self._current_bytes += _bytes(tensor)
            self.peak_bytes = max(self.peak_bytes, self._current_bytes)
        self._users[key] = self._users.get(key, 0) + 1
        return _Saved(tensor, self)

    def release(self, tensor: torch.Tensor) -> None:
        """One saved tensor is gone; its storage counts no more when it was the last there."""
        key = _key(tensor)
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
            self._current_bytes -= _bytes(tensor)


@final
class _Saved:
    """Keeps a saved tensor, so that its storage cannot be reused, and reports its release."""

    __slots__ = ("meter", "tensor")

    def __init__(self, tensor: torch.Tensor, meter: SavedTensorMeter | None) -> None:
        self.tensor = tensor
        self.meter = meter

    def __del__(self) -> None:
        if self.meter is not None:
            self.meter.release(self.tensor)


def _unpack(saved: _Saved) -> torch.Tensor:
    return saved.tensor


def _key(tensor: torch.Tensor) -> int:
    """Identity of a tensor's storage (of a sparse one's values) while something holds it."""
    dense = tensor._values() if tensor.is_sparse else tensor
    return dense.untyped_storage()._cdata


def _bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's storage; of a sparse one's values and indices."""
    if tensor.is_sparse:
        return _bytes(tensor._values()) + _bytes(tensor._indices())
    return tensor.untyped_storage().nbytes()


def distinct_tensors(modules: Iterable[nn.Module]) -> Iterator[torch.Tensor]:
    """Parameters and buffers of `modules`, one for each storage."""
    seen: set[int] = set()
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if _key(tensor) not in seen:
                seen.add(_key(tensor))
                yield tensor


def parameter_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of the parameters of `modules`, each storage once; buffers are left out."""
    storages = [tensor for tensor in distinct_tensors(modules) if isinstance(tensor, nn.Parameter)]
    return sum(tensor.untyped_storage().nbytes() for tensor in storages)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the tensors an optimizer keeps."""
    return sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )


@dataclass(slots=True, kw_only=True)
class MemoryMeter:
    """Peak training memory of one trial: `start` it, wrap its largest step in `step`, then read `peak_bytes`."""

    device: torch.device
    modules: tuple[nn.Module, ...]
    """Base model with its head, and the adapters."""
    _peak_bytes: int = field(default=0, init=False)

    def start(self) -> None:
        """Begin a trial."""
        self._peak_bytes = 0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    @contextmanager
    def step(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Around forward and backward of one step; gradients must still be there at the end."""
        if self.device.type == "cuda":
            yield
            return
        with SavedTensorMeter(self.modules) as saved:
            yield
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = sum(parameter.grad.nbytes for parameter in held if parameter.grad is not None)
        self._peak_bytes = max(self._peak_bytes, parameter_bytes(self.modules) + gradients + saved.peak_bytes)

    def peak_bytes(self, optimizer: torch.optim.Optimizer) -> int:
        """Peak bytes so far; on a CPU 0 while no step was wrapped."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return self._peak_bytes + state_bytes(optimizer) if self._peak_bytes else 0
