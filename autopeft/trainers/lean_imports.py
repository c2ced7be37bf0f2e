"""torch and transformers, loaded in little more than half the time by a process that only asks what a model would take.

Much of what importing transformers' models costs is for other things than models: torch's compiler, tensors that are
sharded over processes, accelerate, SciPy, and garbage collections over what has just been made and is there to stay.
Here the compiler's marks on functions do nothing, as they do on a function that is not compiled, and transformers is
told that the others are absent. Whatever is asked for after all is loaded then.

For a process that trains nothing: what was loaded this way stays as it is.
"""

import gc
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final, final

_COMPILER: Final = "torch._dynamo"
_ABSENT: Final = ("is_accelerate_available", "is_scipy_available", "is_torch_distributed_available")
"""Questions of transformers that are answered with no while its models are imported."""


def import_lean() -> None:
    """Import transformers' models without what a description does not need; nothing where they are there already."""
    if "transformers.modeling_utils" in sys.modules:
        return
    with _uncollected():
        import torch

        if _COMPILER not in sys.modules:
            stand_in = _Compiler()
            sys.modules[_COMPILER] = stand_in
            torch._dynamo = stand_in
        with _absent():
            importlib.import_module("transformers.modeling_utils")


@final
class _Compiler(ModuleType):
    """In place of torch's compiler: its marks do nothing, its modules are themselves, else it becomes the real one."""

    def __init__(self) -> None:
        super().__init__(_COMPILER)
        spec = importlib.util.find_spec(_COMPILER)
        assert spec is not None
        self.__spec__ = spec
        self.__file__ = spec.origin
        self.__path__ = list(spec.submodule_search_locations or ())
        self.allow_in_graph = self.assume_constant_result = self.disable = _unmarked

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if importlib.util.find_spec(f"{_COMPILER}.{name}") is not None:
            return importlib.import_module(f"{_COMPILER}.{name}")
        if sys.modules.get(_COMPILER) is self:
            del sys.modules[_COMPILER]
        return getattr(importlib.import_module(_COMPILER), name)


def _unmarked(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """What the compiler's decorators give, with and without arguments: the function itself."""
    return function if function is not None else lambda inner: inner


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
