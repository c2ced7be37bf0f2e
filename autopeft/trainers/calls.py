"""The calls of a model's layers within a step: with what, and which of them a call depends on."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import Node
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from autopeft.trainers.repeated import Repeated
from autopeft.trainers.step import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a layer within a step."""

    layer: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    flowing: tuple[int, ...]
    """Which leaves of (args, kwargs) depend on the input of this or an earlier layer."""
    parents: tuple[tuple[int, ...], ...]
    """For each of `flowing`, the earlier calls that it comes from; none for the embeddings."""
    outputs: tuple[int, ...]
    """Which leaves of the output depend on the input."""

    @property
    def leaves(self) -> list[Any]:
        return tree_leaves((self.args, self.kwargs))


def _from_below(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Before a layer: its input needs a gradient, so that all that depends on a layer's input is seen to."""
    leaves, spec = tree_flatten((args, kwargs))
    first = next(at for at, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point())
    if not leaves[first].requires_grad:
        leaves[first] = leaves[first].detach().requires_grad_(True)
    return tree_unflatten(leaves, spec)


def record_calls(step: Step) -> list[Call]:
    """Every call of a layer in a step without adapters; the first of those that are alike is run, others repeat it."""
    rows: list[tuple[int, tuple[Any, ...], dict[str, Any], Any]] = []
    repeated = Repeated()
    with ExitStack() as stack:
        stack.enter_context(step.running())
        for index, layer in enumerate(step.layers):

            def note(
                _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, index: int = index
            ) -> None:
                rows.append((index, args, kwargs, output))

            stack.enter_context(repeated.standing_in(layer))
            stack.callback(layer.register_forward_pre_hook(_from_below, with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(note, with_kwargs=True).remove)
        step.loss()
    return _linked(rows)


def _linked(rows: Sequence[tuple[int, tuple[Any, ...], dict[str, Any], Any]]) -> list[Call]:
    makers: dict[Node, int] = {}
    calls: list[Call] = []
    for index, (layer, args, kwargs, output) in enumerate(rows):
        leaves = tree_leaves((args, kwargs))
        flowing = tuple(at for at, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor) and leaf.requires_grad)
        parents = tuple(_parents(leaves[at], makers) for at in flowing)
        made = tree_leaves(output)
        outputs = tuple(at for at, leaf in enumerate(made) if isinstance(leaf, torch.Tensor) and leaf.requires_grad)
        makers |= {made[at].grad_fn: index for at in outputs if made[at].grad_fn is not None}
        calls.append(
            Call(
                layer=layer,
                args=args,
                kwargs=kwargs,
                output=output,
                flowing=flowing,
                parents=parents,
                outputs=outputs,
            )
        )
    return [_detached(call) for call in calls]


def _parents(tensor: torch.Tensor, makers: dict[Node, int]) -> tuple[int, ...]:
    """The calls whose outputs `tensor` depends on, without a call between."""
    found: set[int] = set()
    seen: set[Node] = set()
    waiting = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in makers:
            found.add(makers[node])
        else:
            waiting += [following for following, _ in node.next_functions]
    return tuple(sorted(found))


def _detached(call: Call) -> Call:
    """`call` without the graph that it was made in."""

    def detach(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach()

    args, kwargs, output = tree_map_only(torch.Tensor, detach, (call.args, call.kwargs, call.output))
    return Call(
        layer=call.layer,
        args=args,
        kwargs=kwargs,
        output=output,
        flowing=call.flowing,
        parents=call.parents,
        outputs=call.outputs,
    )
