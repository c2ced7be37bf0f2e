"""torch, transformers and PEFT, loaded in about half the time by a process that only asks what a model takes.

Much of what importing transformers' models costs is for other things than models: torch's compiler, tensors that are
sharded over processes, accelerate, SciPy, reading which names each model has twice, and garbage collections over what
has just been made and is there to stay. Here the compiler's marks on functions do nothing, as they do on a function
that is not compiled, no tensor is a sharded one, and transformers is told that the others are absent. Whatever is asked
for after all is loaded then.

For a process that trains nothing: what was loaded this way stays as it is.
"""

import functools
import gc
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, final

_COMPILER: Final = "torch._dynamo"
_SOURCES: Final = "torch._dynamo.source"
"""Where a tensor comes from, in the compiler's terms; asked when a tensor is given to one that has sizes only."""
_SHARDED: Final = "torch.distributed.tensor"
"""PEFT asks whether a weight is of it."""
_ABSENT: Final = ("is_accelerate_available", "is_scipy_available", "is_torch_distributed_available")
"""Questions of transformers that are answered with no while its models are imported."""


def import_lean() -> None:
    """Import transformers' models without what a description does not need; nothing where they are there already."""
    if "transformers.modeling_utils" in sys.modules:
        return
    with _uncollected():
        import torch

        _stand_in(_COMPILER, allow_in_graph=_unmarked, assume_constant_result=_unmarked, disable=_unmarked)
        _stand_in(_SOURCES, ConstantSource=_Source, AttrSource=_attribute, RandomValueSource=_Nothing)
        if torch.distributed.is_available():
            _stand_in(_SHARDED, DTensor=_Nothing)
        with _remembering(), _absent():
            importlib.import_module("transformers.modeling_utils")


class _Nothing:
    """In place of a class that is only asked whether something is of it: nothing is."""


@dataclass(frozen=True)
class _Source:
    """In place of the compiler's mark of where a tensor comes from: its name."""

    name: str


def _attribute(base: _Source, member: str) -> _Source:
    """The mark of what a tensor is a view of."""
    return _Source(f"{base.name}.{member}")


def _stand_in(name: str, **values: object) -> None:
    """Put a stand-in with `values` in the place of a module of torch that is not loaded."""
    if name in sys.modules:
        return
    module = _StandIn(name, values)
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    setattr(sys.modules[parent], last, module)


@final
class _StandIn(ModuleType):
    """In place of a module: it has what it was given, its modules are themselves, else it becomes the real one."""

    def __init__(self, name: str, values: dict[str, object]) -> None:
        super().__init__(name)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        self.__spec__ = spec
        self.__file__ = spec.origin
        if spec.submodule_search_locations is not None:
            self.__path__ = list(spec.submodule_search_locations)
        for key, value in values.items():
            setattr(self, key, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        own = self.__name__
        if "__path__" in vars(self) and importlib.util.find_spec(f"{own}.{name}") is not None:
            return importlib.import_module(f"{own}.{name}")
        if sys.modules.get(own) is self:
            del sys.modules[own]
        return getattr(importlib.import_module(own), name)


def _unmarked(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """What the compiler's decorators give, with and without arguments: the function itself."""
    return function if function is not None else lambda inner: inner


@contextmanager
def _remembering() -> Iterator[None]:
    """Inside, functions that remember 128 results are made to remember all: transformers has more folders of models."""
    known = functools.lru_cache

    def remember(maxsize: Any = 128, typed: bool = False) -> Any:
        return known(None)(maxsize) if callable(maxsize) else known(maxsize, typed)

    functools.lru_cache = remember  # type: ignore[assignment]  # the same but for its default
    try:
        yield
    finally:
        functools.lru_cache = known


@contextmanager
def _absent() -> Iterator[None]:
    """Inside, transformers does without optional libraries."""
    from transformers import utils
    from transformers.utils import import_utils

    homes = (utils, import_utils)
    known = [(home, name, getattr(home, name)) for home in homes for name in _ABSENT if hasattr(home, name)]
    try:
        for home, name, _ in known:
            setattr(home, name, _no)
        yield
    finally:
        for home, name, answer in known:
            setattr(home, name, answer)


def _no(*_: object, **__: object) -> bool:
    return False


@contextmanager
def _uncollected() -> Iterator[None]:
    """Inside, nothing is collected; what is made there is left out of later collections."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collected:
            gc.enable()
