"""Which storages hold bytes while a step runs, operation by operation: how a device's allocator would see it."""

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def storage_key(tensor: torch.Tensor) -> int:
    """Identity of a tensor's storage (of a sparse one's values) while something holds it."""
    return storage_of(tensor)._cdata


def storage_of(tensor: torch.Tensor) -> torch.UntypedStorage:
    """A tensor's storage, of a sparse one that of its values."""
    return (tensor._values() if tensor.is_sparse else tensor).untyped_storage()


def storage_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's storage; of a sparse one's values and indices."""
    if tensor.is_sparse:
        return storage_bytes(tensor._values()) + storage_bytes(tensor._indices())
    return tensor.untyped_storage().nbytes()


@dataclass(slots=True, kw_only=True)
class Life:
    """One storage: when it came and went, as counts of storages that had come before."""

    n_bytes: int
    born: int
    died: int | None = None


@final
class StorageWatch(TorchDispatchMode):
    """Inside `with`, follows every storage that an operation makes until nothing refers to it any more.

    Costs a Python call an operation. What a kernel takes and gives back inside one operation is not seen, nor that an
    allocator hands out whole blocks (of 512 bytes on CUDA).

    Args:
        known: Storages that were there before and are not counted.
    """

    def __init__(self, known: Iterable[int] = ()) -> None:
        super().__init__()
        self.now = 0
        """Bytes of the storages that are there."""
        self.peak = 0
        """The most so far, or since `restart`."""
        self.peak_at = 0
        """The clock when that was reached."""
        self.lives: dict[int, Life] = {}
        """Of the storages that are there, by key."""
        self.past: list[Life] = []
        self.clock = 0
        self._known = set(known)
        self._watched: dict[int, weakref.ref[Any]] = {}

    def restart(self) -> None:
        """Begin a new peak at what is there now."""
        self.peak, self.peak_at = self.now, self.clock

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        for leaf in out if isinstance(out, (list, tuple)) else (out,):
            if isinstance(leaf, torch.Tensor):
                self.note(leaf)
        return out

    def note(self, tensor: torch.Tensor) -> None:
        """Count the tensor's storage, unless it is counted or known."""
        parts = (tensor._values(), tensor._indices()) if tensor.is_sparse else (tensor,)
        for part in parts:
            storage = part.untyped_storage()
            key = storage._cdata
            if key in self._watched or key in self._known:
                continue
            n_bytes = storage.nbytes()
            self.clock += 1
            self.now += n_bytes
            self.lives[key] = Life(n_bytes=n_bytes, born=self.clock)
            self._watched[key] = weakref.ref(storage, _death(self, key))
            if self.now > self.peak:
                self.restart()

    def forget(self, key: int) -> None:
        """The storage is gone."""
        if self._watched.pop(key, None) is not None:
            life = self.lives.pop(key)
            life.died = self.clock
            self.now -= life.n_bytes
            self.past.append(life)


def _death(watch: StorageWatch, key: int) -> Callable[[object], None]:
    def gone(_: object) -> None:
        watch.forget(key)

    return gone
