"""Measured peak training memory.

On CUDA it is the allocator's own peak. On a CPU, where nothing counts allocations, it is defined as

    bytes of parameters and buffers + gradients + optimizer state + the most that was saved for backward at one time,

of all of the base model, the adapters and the task head. Storages shared by several tensors count once; tensors saved
for backward that live in a parameter's or buffer's storage are not counted again. Temporary results that nothing saves
are left out, so that the number depends on neither threads nor libraries (`autopeft.trainers.forecast` predicts both).
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, final

import torch
from torch import nn

from autopeft.trainers.checkpointing import CheckpointedLayers
from autopeft.trainers.storages import storage_bytes, storage_key, storage_of


@final
class SavedTensorMeter:
    """Inside `with`, follows the bytes saved for backward; `peak_bytes` is the most at one time.

    A storage counts from the moment autograd saves a tensor in it until the last such tensor is released, which
    backward does as it goes. Costs a Python call for every saved tensor, so it is meant for one step in many.

    Args:
        modules: Their parameters and buffers are there anyway and not counted.
        noted: Told of every tensor that is saved.
    """

    def __init__(self, modules: Iterable[nn.Module], *, noted: Callable[[torch.Tensor], None] | None = None) -> None:
        self.peak_bytes = 0
        self._noted = noted
        self._current_bytes = 0
        self._users: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._permanent = {storage_key(tensor) for tensor in distinct_tensors(modules)}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)

    def __enter__(self) -> "SavedTensorMeter":
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    @contextmanager
    def around(self, pack: Callable[[torch.Tensor], object], unpack: Callable[[Any], torch.Tensor]) -> Iterator[None]:
        """Inside, count what is saved, and hand it on to hooks that would hide it from this meter.

        Such a tensor counts until its storage is gone.
        """

        def count(tensor: torch.Tensor) -> object:
            key = storage_key(tensor)
            if key not in self._permanent and key not in self._users:
                self._users[key] = 1
                n_bytes = self._sizes[key] = storage_bytes(tensor)
                self._grow(n_bytes)
                weakref.finalize(storage_of(tensor), self._forget, key, n_bytes)
            return pack(tensor)

        with torch.autograd.graph.saved_tensors_hooks(count, unpack):
            yield

    def ignore(self, keys: Iterable[int]) -> None:
        """Do not count these storages from now on: they are counted elsewhere."""
        self._permanent |= set(keys)

    def _grow(self, n_bytes: int) -> None:
        self._current_bytes += n_bytes
        self.peak_bytes = max(self.peak_bytes, self._current_bytes)

    def _forget(self, key: int, n_bytes: int) -> None:
        if self._users.pop(key, None) is not None:
            del self._sizes[key]
            self._current_bytes -= n_bytes

    def saved(self) -> dict[int, int]:
        """Bytes of what is saved now, by storage."""
        return dict(self._sizes)

    def _pack(self, tensor: torch.Tensor) -> "_Saved":
        if self._noted is not None:
            self._noted(tensor)
        key = storage_key(tensor)
        if key in self._permanent:
            return _Saved(tensor, None)
        if key not in self._users:
            self._sizes[key] = storage_bytes(tensor)
            self._grow(self._sizes[key])
        self._users[key] = self._users.get(key, 0) + 1
        return _Saved(tensor, self)

    def release(self, tensor: torch.Tensor) -> None:
        """One saved tensor is gone; its storage counts no more when it was the last there."""
        key = storage_key(tensor)
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
            self._current_bytes -= self._sizes.pop(key)


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


def distinct_tensors(modules: Iterable[nn.Module]) -> Iterator[torch.Tensor]:
    """Parameters and buffers of `modules`, one for each storage."""
    seen: set[int] = set()
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if storage_key(tensor) not in seen:
                seen.add(storage_key(tensor))
                yield tensor


def held_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of the parameters and buffers of `modules`, each storage once."""
    return sum(storage_bytes(tensor) for tensor in distinct_tensors(modules))


def buffer_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of the buffers alone."""
    tensors = distinct_tensors(modules)
    return sum(storage_bytes(tensor) for tensor in tensors if not isinstance(tensor, nn.Parameter))


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
    checkpoints: CheckpointedLayers | None = None
    """Layers that compute their activations a second time: what that saves counts too."""
    apart_bytes: int = 0
    """Held on the device for all trials, and not by this one."""
    twins: tuple[nn.Module, ...] = ()
    """Stand for parts of `modules`, and do not count beside them."""
    beside: bool = False
    """Whether other trials hold memory on the device: then what this one holds, and what its step adds, counts."""
    earlier_bytes: int = field(default=0, init=False)
    """Peak of an earlier part of the same trial, where it goes on from there."""
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
            with self._allocating() if self.beside else nullcontext():
                yield
            return
        with SavedTensorMeter((*self.modules, *self.twins)) as saved:
            if self.checkpoints is not None:
                self.checkpoints.watched = saved.around
            yield
        if self.checkpoints is not None:
            self.checkpoints.watched = None
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = sum(parameter.grad.nbytes for parameter in held if parameter.grad is not None)
        self._peak_bytes = max(self._peak_bytes, held_bytes(self.modules) + gradients + saved.peak_bytes)

    @contextmanager
    def _allocating(self) -> Iterator[None]:
        """Around a step on CUDA: what it allocates at most."""
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        yield
        added = torch.cuda.max_memory_allocated(self.device) - before
        self._peak_bytes = max(self._peak_bytes, held_bytes(self.modules) + added)

    def extra(self) -> dict[str, float]:
        """On CUDA also what the allocator has reserved, which is what other processes cannot have."""
        if self.device.type != "cuda":
            return {}
        return {"reserved_bytes": float(torch.cuda.max_memory_reserved(self.device))}

    def peak_bytes(self, optimizer: torch.optim.Optimizer) -> int:
        """Peak bytes so far; on a CPU 0 while no step was wrapped."""
        if self.device.type == "cuda" and not self.beside:
            return max(torch.cuda.max_memory_allocated(self.device) - self.apart_bytes, self.earlier_bytes)
        own = self._peak_bytes + state_bytes(optimizer) if self._peak_bytes else 0
        return max(own, self.earlier_bytes)
