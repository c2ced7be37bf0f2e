"""Layers that keep their inputs for the backward pass and compute everything else in them a second time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Final, final

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_CALL: Final = "_call_impl"
"""What calling a module runs, its hooks among it; one in the instance goes before the class's."""

Chain = Callable[[Callable[[torch.Tensor], Any], Callable[[Any], torch.Tensor]], AbstractContextManager[object]]


@final
class CheckpointedLayers:
    """Makes each of `layers` save only its inputs, with all hooks that act in it; `remove` undoes it.

    A layer's adapters and their dropout are computed again as they were. Without gradients nothing is changed.

    Args:
        layers: Layers of a base model.
        same_chance: Put the random state back for the second pass, so that dropout is the same.
        again: What a second pass runs in; a backward pass leaves the modes that replace functions of torch.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        *,
        same_chance: bool = True,
        again: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._layers = list(dict.fromkeys(layers))
        self._same_chance = same_chance
        self._again = again
        self.watched: Chain | None = None
        """Wraps the hooks under which a second pass saves its tensors, for one who counts them."""
        for layer in self._layers:
            layer.__dict__[_CALL] = partial(self._call, getattr(layer, _CALL))

    def remove(self) -> None:
        """Put the layers' own calls back."""
        for layer in self._layers:
            layer.__dict__.pop(_CALL, None)

    def _call(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return own(*args, **kwargs)
        return checkpoint(
            own,
            *args,
            use_reentrant=False,
            preserve_rng_state=self._same_chance,
            context_fn=lambda: (nullcontext(), self._second_pass()),
            **kwargs,
        )

    @contextmanager
    def _second_pass(self) -> Iterator[None]:
        """Inside the second pass; only the innermost hooks see what is saved, so a watcher's go around them."""
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)  # type: ignore[attr-defined]  # untyped
        watch = nullcontext() if self.watched is None or hooks is None else self.watched(*hooks)
        with self._again(), watch:
            yield
