"""Models and adapters without values: tensors that have a size, a dtype and a device, and take no memory.

Everything runs as it would on the device, operation by operation, and nothing is computed. What asks a tensor for its
value is answered by `Answers`, so that code which looks at numbers goes on.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final, TypeVar, final

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode

M = TypeVar("M", bound=nn.Module)

UNANSWERABLE: Final = (DataDependentOutputException, DynamicOutputShapeException, RuntimeError, ValueError)
"""What is raised where a result depends on values and `Answers` has no reply, or not the right one."""

_ATEN: Final = torch.ops.aten
_LARGE: Final = 1 << 22
"""Numbers beyond which an operation is not computed, whatever it is for: pixels, not masks."""


def has_values(tensor: torch.Tensor) -> bool:
    """Whether there are numbers behind `tensor`; what is derived from a weight's numbers can then be made."""
    return not isinstance(tensor, FakeTensor) and tensor.device.type != "meta"


@final
class Answers(TorchDispatchMode):
    """Replies for tensors without values: a number is zero, two tensors are equal, a mask holds everywhere, and what
    a distribution asks of its parameters is so.

    A single random number is one, so that what is left out by chance is left in: with the mask's it is the reply that
    takes the most memory. Operations on nothing but small tensors with values (a batch's ids and mask) are computed.
    """

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        if _computable(args):
            with unset_fake_temporarily():
                return func(*args, **(kwargs or {}))
        if func is _ATEN.rand.default and list(args[0]) == [1]:
            with unset_fake_temporarily():
                return torch.ones(1)
        tensor: Any = args[0] if args else None
        if func is _ATEN._local_scalar_dense.default:
            return _zero(tensor.dtype)
        if func is _ATEN.equal.default:
            return True
        if func is _ATEN._is_all_true.default:
            with unset_fake_temporarily():
                return torch.ones((), dtype=torch.bool)
        if func is _ATEN.nonzero.default:
            return tensor.new_empty((tensor.numel(), tensor.dim()), dtype=torch.int64)
        if func is _ATEN.masked_select.default:
            return tensor.new_empty((tensor.numel(),))
        if func is _ATEN.index.Tensor and any(index is not None and index.dtype == torch.bool for index in args[1]):
            return func(tensor, _positions(args[1]))
        if func is _ATEN._grouped_mm.default and tensor.dtype != torch.bfloat16:
            return tensor.new_empty(_grouped_size(*args[:3]))
        return func(*args, **(kwargs or {}))


def _computable(args: tuple[Any, ...]) -> bool:
    """Whether there are tensors among the arguments (lists of them included), and all have values and are small."""
    found = False
    for arg in args:
        for one in arg if isinstance(arg, (list, tuple)) else (arg,):
            if isinstance(one, FakeTensor) or (isinstance(one, torch.Tensor) and one.numel() > _LARGE):
                return False
            found = found or isinstance(one, torch.Tensor)
    return found


def _zero(dtype: torch.dtype) -> bool | int | float:
    if dtype == torch.bool:
        return False
    return 0.0 if dtype.is_floating_point else 0


def _positions(indices: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """`indices` with every mask as the positions of all its cells."""
    rows: list[torch.Tensor | None] = []
    for index in indices:
        masked = index is not None and index.dtype == torch.bool
        rows += (
            [index.new_empty(index.numel(), dtype=torch.int64)] * index.dim()
            if masked and index is not None
            else [index]
        )
    return rows


def _grouped_size(a: torch.Tensor, b: torch.Tensor, offsets: torch.Tensor | None = None) -> tuple[int, ...]:
    """Size of a product by groups (a mixture's experts), which torch tells for bfloat16 only.

    Args:
        a: [rows, inner] with the groups' rows one after another, or [groups, rows, inner].
        b: [groups, inner, columns], or [inner, columns] with the groups' columns one after another.
        offsets: [groups], where each group ends.
    """
    rows, columns = a.shape[-2], b.shape[-1]
    if a.dim() != b.dim():
        return rows, columns
    if a.dim() == 3:
        return a.shape[0], rows, columns
    assert offsets is not None
    return offsets.shape[0], rows, columns


@contextmanager
def faking(mode: FakeTensorMode) -> Iterator[None]:
    """Inside, new tensors have no values, and modules may be converted and asked for numbers."""
    with ExitStack() as stack:
        stack.enter_context(_plain_conversion())
        stack.enter_context(mode)
        stack.enter_context(Answers())
        yield


def new_mode() -> FakeTensorMode:
    """A world of tensors without values; tensors of two such worlds do not mix."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def adopt(module: M, mode: FakeTensorMode) -> M:
    """`module` with every parameter and buffer, whatever it was, as one without values on the CPU; shared ones stay
    shared.
    """
    known: dict[int, torch.Tensor] = {}
    kept: list[torch.Tensor] = []
    with mode:
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    if tensor is None or (isinstance(tensor, FakeTensor) and tensor.device.type == "cpu"):
                        continue
                    if id(tensor) not in known:
                        known[id(tensor)] = _blank(tensor)
                        kept.append(tensor)
                    tensors[name] = known[id(tensor)]  # type: ignore[assignment]  # a parameter for a parameter
    return module


def _blank(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_sparse:
        made = torch.sparse_coo_tensor(
            torch.empty(tensor._indices().shape, dtype=torch.int64),
            torch.empty(tensor._values().shape, dtype=tensor.dtype),
            tensor.shape,
            check_invariants=False,
        )
    else:
        made = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(made, requires_grad=tensor.requires_grad)
    return made


@contextmanager
def _plain_conversion() -> Iterator[None]:
    """`Module.to` and its kin replace parameters; torch would swap their insides, which these refuse."""
    original = nn.Module._apply
    nn.Module._apply = _apply  # type: ignore[method-assign]  # put back below
    try:
        yield
    finally:
        nn.Module._apply = original  # type: ignore[method-assign]  # see above


def _apply(self: nn.Module, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
    if recurse:
        for child in self.children():
            _apply(child, fn)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                applied = fn(parameter)
            if applied is not parameter:
                self._parameters[name] = nn.Parameter(applied, parameter.requires_grad)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self
