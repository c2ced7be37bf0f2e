"""What a slot's adapters do to a model, taken off it and called on the slot's rows alone.

Adapters are attached as they are when they train alone; the hooks that this leaves on the model are then the slot's.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

from torch import nn
from transformers import PreTrainedModel

from autopeft.trainers.adapters.attention import Acting, take_out
from autopeft.trainers.adapters.own_forward import remove_all
from autopeft.trainers.inject import unmark

Hook = tuple[Any, bool]
"""A hook, and whether it takes keyword arguments."""
_Keys = dict[nn.Module, tuple[set[int], set[int]]]


@final
@dataclass(frozen=True, slots=True)
class SlotHooks:
    """The hooks of one slot by module, in the order in which they act."""

    before: dict[nn.Module, list[Hook]] = field(default_factory=dict)
    after: dict[nn.Module, list[Hook]] = field(default_factory=dict)
    attention: dict[nn.Module, list[Acting]] = field(default_factory=dict)


@contextmanager
def taken(model: PreTrainedModel, hooks: SlotHooks) -> Iterator[None]:
    """Every hook that is put on `model` inside the `with` block, and still there at its end, goes to `hooks`."""
    known = _keys(model)
    yield
    for module, (before, after) in known.items():
        for key in [key for key in module._forward_pre_hooks if key not in before]:
            own = module._forward_pre_hooks.pop(key), bool(module._forward_pre_hooks_with_kwargs.pop(key, False))
            hooks.before.setdefault(module, []).append(own)
        for key in [key for key in module._forward_hooks if key not in after]:
            own = module._forward_hooks.pop(key), bool(module._forward_hooks_with_kwargs.pop(key, False))
            hooks.after.setdefault(module, []).append(own)
        if acting := take_out(module):
            hooks.attention[module] = acting
    remove_all(model)
    unmark(model)


def run_before(hooks: Sequence[Hook], module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any, bool]:
    """Arguments of `module` as the pre-hooks make them, and whether any did."""
    changed = False
    for hook, with_kwargs in hooks:
        result = hook(module, args, kwargs) if with_kwargs else hook(module, args)
        if result is None:
            continue
        changed = True
        if with_kwargs:
            args, kwargs = result
        else:
            args = result if isinstance(result, tuple) else (result,)
    return args, kwargs, changed


def run_after(hooks: Sequence[Hook], module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    """Output of `module` as the hooks make it."""
    for hook, with_kwargs in hooks:
        result = hook(module, args, kwargs, output) if with_kwargs else hook(module, args, output)
        output = output if result is None else result
    return output


def _keys(model: nn.Module) -> _Keys:
    return {module: (set(module._forward_pre_hooks), set(module._forward_hooks)) for module in model.modules()}
