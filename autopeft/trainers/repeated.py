"""Equal layers that are called with equal arguments, of which one call is computed and the others repeat it."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from autopeft.trainers.kinds_of_layer import arguments_mark, module_mark
from autopeft.trainers.storages import storage_key


@dataclass(frozen=True, slots=True, kw_only=True)
class _Output:
    """What tensors a call gave."""

    spec: TreeSpec
    likes: tuple[torch.Tensor, ...]


@final
class Repeated:
    """Stands in for layers that do what an earlier one did, with tensors without values.

    Only where the output depends on one tensor that comes from below, and is new tensors that all do: so a repeated
    call's output has the shapes, strides and dtypes of the first one's, and depends on the same argument.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, _Output | None] = {}

    @contextmanager
    def standing_in(self, layer: nn.Module) -> Iterator[None]:
        """Inside, `layer` repeats earlier calls where it can, of this layer or of others that are like it."""
        mark, compute = module_mark(layer), layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._called(mark, compute, args, kwargs)

        layer.forward = forward
        try:
            yield
        finally:
            del layer.forward

    def _called(
        self, mark: Hashable, compute: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        leaves = tree_leaves((args, kwargs))
        flowing = [at for at, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
        if len(flowing) != 1:
            return compute(*args, **kwargs)
        source = leaves[flowing[0]]
        key = (mark, arguments_mark(args, kwargs, flowing), source.stride())
        if key not in self._known:
            output = compute(*args, **kwargs)
            self._known[key] = _repeatable(output, leaves)
            return output
        known = self._known[key]
        if known is None:
            return compute(*args, **kwargs)
        return tree_unflatten(list(_Echo.apply(source, known.likes)), known.spec)


def _repeatable(output: Any, arguments: Sequence[Any]) -> _Output | None:
    """None where an output is more, or less, than new tensors that depend on what comes from below."""
    leaves, spec = tree_flatten(output)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    given = {storage_key(leaf) for leaf in arguments if isinstance(leaf, torch.Tensor)}
    storages = {storage_key(tensor) for tensor in tensors}
    if len(tensors) != len(leaves) or len(storages) != len(tensors) or storages & given:
        return None
    return _Output(spec=spec, likes=tuple(tensor.detach() for tensor in tensors))


@final
class _Echo(torch.autograd.Function):
    """New tensors like others, that depend on `source`; what is recorded is not run backwards."""

    @staticmethod
    def forward(ctx: Any, source: torch.Tensor, likes: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(
            torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device) for like in likes
        )
