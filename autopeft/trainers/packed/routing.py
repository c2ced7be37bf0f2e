"""Calling every slot's adapters and head on its own rows, while the frozen base runs once over the rows of all."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, final

import torch
from torch import nn

from autopeft.trainers.adapters.adapter import Handle
from autopeft.trainers.adapters.attention import AttentionFunction, AttentionOutput, put_in
from autopeft.trainers.adapters.own_forward import OwnForward
from autopeft.trainers.model import LoadedModel
from autopeft.trainers.packed import low_rank
from autopeft.trainers.packed.chance import Chances
from autopeft.trainers.packed.hooks import SlotHooks, run_after, run_before, taken
from autopeft.trainers.packed.layout import Layout
from autopeft.trainers.sites import LinearLike

_CALL: Final = "_call_impl"
"""What calling a module runs; one in the instance goes before the class's."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """What of a slot acts on the model."""

    key: Hashable
    hooks: SlotHooks = field(default_factory=SlotHooks)
    heads: dict[str, nn.Module] = field(default_factory=dict)
    """Its own copies of the head's modules, by name."""


@final
class Router:
    """The members of a pack on one model; outside `running` the model is bare.

    Args:
        loaded: The base with its head.
        chances: Of the members, by key.
    """

    def __init__(self, loaded: LoadedModel, chances: Chances) -> None:
        self._loaded = loaded
        self._chances = chances
        self._members: list[Member] = []
        self._handles: list[Handle] = []
        self._layout: Layout | None = None
        self._running: Sequence[Member] = ()
        self._summed: nn.Module | None = None
        """The map whose output has its pairs' updates in it."""

    @contextmanager
    def joining(self, member: Member) -> Iterator[None]:
        """Adapters that are attached to the model inside the `with` block act for `member` from then on."""
        with self.bare():
            with taken(self._loaded.model, member.hooks):
                yield
            self._members.append(member)

    def leave(self, member: Member) -> None:
        """Let a member act no more."""
        with self.bare():
            self._members.remove(member)

    @contextmanager
    def bare(self) -> Iterator[None]:
        """The model without anything of the pack for the length of a `with` block."""
        for handle in reversed(self._handles):
            handle.remove()
        self._handles = []
        try:
            yield
        finally:
            self._handles = list(self._installed())

    @contextmanager
    def running(self, members: Sequence[Member], layout: Layout) -> Iterator[None]:
        """Around a call of the model on rows that belong to `members`, in that order."""
        self._layout, self._running = layout, members
        try:
            yield
        finally:
            self._layout, self._running = None, ()
            layout.forget()

    def _installed(self) -> Iterator[Handle]:
        hooks = [member.hooks for member in self._members]
        for module in dict.fromkeys(module for row in hooks for module in row.before):
            yield module.register_forward_pre_hook(self._before, with_kwargs=True)
        for module in dict.fromkeys(module for row in hooks for module in row.after):
            yield module.register_forward_hook(self._after, with_kwargs=True)
            if isinstance(module, LinearLike):
                yield OwnForward(module, partial(self._sum, module))
        for module in dict.fromkeys(module for row in hooks for module in row.attention):
            yield _Attending(self, self._loaded, module)
        if self._members:
            yield from self._installed_heads()

    def _installed_heads(self) -> Iterator[Handle]:
        """The head's modules, and what stands beside the base without parameters: dropout before the head."""
        model = self._loaded.model
        for name in self._loaded.head_names:
            module = model.get_submodule(name)
            yield _Called(module, partial(self._call_head, name))
        beside = [(name, child) for name, child in model.named_children() if name != model.base_model_prefix]
        for name, child in beside if self._loaded.head_names else []:
            if name not in self._loaded.head_names and next(child.parameters(), None) is None:
                yield _Called(child, self._call_each)

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        layout = self._layout
        if layout is None or not any(module in member.hooks.before for member in self._running):
            return None
        if layout.alone:
            args, kwargs, changed = self._run_before(self._running[0], module, args, kwargs)
            return (args, kwargs) if changed else None
        trees = layout.split_tree((args, kwargs), read=True)
        any_changed = False
        for index, member in enumerate(self._running):
            own_args, own_kwargs, changed = self._run_before(member, module, *trees[index])
            if changed:
                trees[index], any_changed = (own_args, own_kwargs), True
        return layout.join_trees(trees) if any_changed else None

    def _run_before(self, member: Member, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any, bool]:
        hooks = member.hooks.before.get(module, ())
        if hooks:
            self._chances.enter(member.key)
        return run_before(hooks, module, args, kwargs)

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        layout = self._layout
        if layout is None or not any(module in member.hooks.after for member in self._running):
            return None
        if self._summed is module:
            self._summed = None
            return None
        if layout.alone:
            return self._run_after(self._running[0], module, args, kwargs, output)
        given = layout.split_tree((args, kwargs), read=True)
        outputs = layout.split_tree(output)
        changed = [
            self._run_after(member, module, own_args, own_kwargs, own)
            for member, (own_args, own_kwargs), own in zip(self._running, given, outputs, strict=True)
        ]
        return layout.join_trees(changed)

    def _sum(self, module: LinearLike, x: torch.Tensor) -> torch.Tensor | None:
        """The map of `x` with every slot's pair in it; None where no kernel takes them, or more acts there."""
        self._summed, layout = None, self._layout
        if layout is None:
            return None
        hooks = [member.hooks.after.get(module, ()) for member in self._running]
        pairs = low_rank.pairs_of(hooks, module, x, layout)
        if pairs is None:
            return None
        self._summed = module
        return low_rank.summed(pairs, module, x, layout)

    def _run_after(self, member: Member, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        hooks = member.hooks.after.get(module, ())
        if hooks:
            self._chances.enter(member.key)
        return run_after(hooks, module, args, kwargs, output)

    def _call_head(self, name: str, own: Any, *args: Any, **kwargs: Any) -> Any:
        return self._called([member.heads[name] for member in self._running], own, args, kwargs)

    def _call_each(self, own: Any, *args: Any, **kwargs: Any) -> Any:
        return self._called([own] * len(self._running), own, args, kwargs)

    def _called(self, calls: Sequence[Any], own: Any, args: Any, kwargs: Any) -> Any:
        layout = self._layout
        if layout is None:
            return own(*args, **kwargs)
        trees = [(args, kwargs)] if layout.alone else layout.split_tree((args, kwargs))
        outputs: list[Any] = []
        for member, call, (own_args, own_kwargs) in zip(self._running, calls, trees, strict=True):
            self._chances.enter(member.key)
            outputs.append(call(*own_args, **own_kwargs))
        return outputs[0] if layout.alone else layout.join_trees(outputs)

    def attend(self, module: nn.Module, attend: AttentionFunction, *, fused: bool) -> AttentionFunction:
        """`attend` with what each member does around it in `module`, on its rows; other rows are run together."""

        def attended(
            called: nn.Module,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            mask: torch.Tensor | None,
            **options: object,
        ) -> AttentionOutput:
            runs = self._runs(module, attend, fused=fused)
            if len(runs) == 1:
                return runs[0][0](called, query, key, value, mask, **options)
            sizes = [size for _, size in runs]
            if mask is None or len(mask) == 1:
                masks = [mask] * len(runs)
            else:
                masks = list(torch.unsafe_split_with_sizes(mask, sizes))
            rows = zip(
                runs, *(torch.unsafe_split_with_sizes(x, sizes) for x in (query, key, value)), masks, strict=True
            )
            outputs = [call(called, q, k, v, own, **options)[0] for (call, _), q, k, v, own in rows]
            return torch.cat(outputs), None

        return attended

    def _runs(
        self, module: nn.Module, attend: AttentionFunction, *, fused: bool
    ) -> list[tuple[AttentionFunction, int]]:
        """What is called one after the other, and on how many rows: neighbours without adapters here in one call."""
        if self._layout is None:
            return [(attend, 0)]
        runs: list[tuple[AttentionFunction, int]] = []
        for member, count in zip(self._running, self._layout.counts, strict=True):
            acting = member.hooks.attention.get(module)
            if not acting and runs and runs[-1][0] is attend:
                runs[-1] = attend, runs[-1][1] + count
                continue
            call = attend
            for adapter in acting or ():
                call = adapter.around(call, fused=fused)
            runs.append((call, count))
        return runs


@final
class _Attending:
    """The router in one attention module."""

    def __init__(self, router: Router, loaded: LoadedModel, module: nn.Module) -> None:
        self._router, self._loaded, self._module = router, loaded, module
        put_in(loaded.model, module, [self])

    def around(self, attend: AttentionFunction, *, fused: bool) -> AttentionFunction:
        return self._router.attend(self._module, attend, fused=fused)

    def remove(self) -> None:
        put_in(self._loaded.model, self._module, [])


@final
class _Called:
    """Another call in the place of a module's own, which it is given first; `remove` puts it back."""

    def __init__(self, module: nn.Module, call: Any) -> None:
        self._module = module
        module.__dict__[_CALL] = partial(call, getattr(module, _CALL))

    def remove(self) -> None:
        self._module.__dict__.pop(_CALL, None)
