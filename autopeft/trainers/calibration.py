"""Showing training rows to initialisations that need them, before the first step and with nothing attached.

The base model with its fresh head sees up to `ROWS` training rows, never others, drawn by the trial's seed, with all
dropout off. Inputs of maps are gathered row by row, so that no padding is among them; gradients are averaged over
batches. What is gathered is kept in float32 beside the map only until its adapter has started from it: a square of the
input width for CorDA, a copy of the target weights for LoRA-GA. It is not part of the measured peak, which is that of
a training step.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import nn

from autopeft.trainers.adapters.adapter import Handle
from autopeft.trainers.adapters.site_facts import AbstractInputFact, FactKind, finite, gatherer
from autopeft.trainers.adapters.site_updates import AbstractSiteUpdate, SiteUpdates, in_layout
from autopeft.trainers.batches import AnyBatch, EncodedSplit, IntArray, batches_of
from autopeft.trainers.inject import AdapterSet
from autopeft.trainers.model import LoadedModel, head_parameters, set_training
from autopeft.trainers.sites import LinearLike, layers_of
from autopeft.trainers.task import Task

ROWS: Final = 128
"""Training rows that are looked at; LoRA-GA's authors take 128, CorDA's 256 long ones."""
BATCH: Final = 16
"""Rows of a batch whose gradient is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A map whose adapter wants to know something."""

    linear: LinearLike
    update: AbstractSiteUpdate


def calibrate(
    adapters: AdapterSet, *, loaded: LoadedModel, task: Task, train: EncodedSplit, pad_id: int, seed: int
) -> None:
    """Tell every adapter what it needs of the training rows; does nothing where none needs anything.

    Args:
        adapters: Not attached.
        loaded: The base with its head, nothing attached; left as it was.
        task: Says what the loss is.
        train: The training rows.
        pad_id: Of the tokenizer.
        seed: Of the trial; draws the rows.

    Raises:
        DivergedError: An input or a gradient is not finite.
    """
    places = _places(adapters, loaded)
    if not places:
        return
    n = len(train.lengths)
    rows = np.random.default_rng([seed, 3]).permutation(n)[:ROWS]
    set_training(loaded, training=False)
    step = partial(_loss, loaded, task)
    inputs = [one for one in places if _kind(one) is not FactKind.GRADIENT]
    gradients = [one for one in places if _kind(one) is FactKind.GRADIENT]
    if inputs:
        singles = batches_of(train, [rows[[index]] for index in range(len(rows))], pad_id=pad_id)
        _gather_inputs(inputs, singles, step)
    if gradients:
        groups = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        _gather_gradients(gradients, loaded, train, groups, step, pad_id=pad_id)


def _kind(place: _Place) -> FactKind:
    assert place.update.needs is not None
    return place.update.needs.kind


def _places(adapters: AdapterSet, loaded: LoadedModel) -> list[_Place]:
    layers = layers_of(loaded.model.base_model, loaded.shape)
    places: list[_Place] = []
    for _, layer, adapter in adapters.adapters():
        if not isinstance(adapter, SiteUpdates):
            continue
        for target in adapter.targets:
            update, linear = adapter.update(target), layers[layer].get_submodule(target)
            assert isinstance(linear, LinearLike)
            if update.needs is not None:
                places.append(_Place(linear=linear, update=update))
    return places


def _loss(loaded: LoadedModel, task: Task, batch: AnyBatch) -> torch.Tensor:
    return task.loss(*task.outputs(loaded.model, batch, loaded.model.device))


def _gather_inputs(places: Sequence[_Place], batches: Iterator[AnyBatch], step: "partial[torch.Tensor]") -> None:
    gathered: list[AbstractInputFact] = []
    real: dict[str, torch.Tensor] = {}
    handles: list[Handle] = []
    for place in places:
        assert place.update.needs is not None
        fact = gatherer(place.update.needs)
        gathered.append(fact)
        handles.append(_watch(place.linear, fact, real))
    try:
        with torch.inference_mode():
            for batch in batches:
                real["mask"] = torch.from_numpy(batch.mask_BT).bool()
                step(batch)
    finally:
        for handle in handles:
            handle.remove()
    for place, fact in zip(places, gathered, strict=True):
        place.update.tell(fact.result().clone())


def _watch(linear: nn.Module, fact: AbstractInputFact, real: Mapping[str, torch.Tensor]) -> Handle:
    def look(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        x, mask = args[0], real["mask"]
        rows = x[mask.to(x.device)] if x.shape[:-1] == mask.shape else x.reshape(-1, x.shape[-1])
        fact.add(rows.float())

    return linear.register_forward_pre_hook(look)


def _gather_gradients(
    places: Sequence[_Place],
    loaded: LoadedModel,
    train: EncodedSplit,
    groups: Sequence[IntArray],
    step: "partial[torch.Tensor]",
    *,
    pad_id: int,
) -> None:
    sums = [torch.zeros(place.linear.weight.shape, dtype=torch.float32) for place in places]
    with ExitStack() as stack:
        stack.enter_context(_head_frozen(loaded))
        for place, total in zip(places, sums, strict=True):
            stack.enter_context(_taking_gradients(place.linear.weight, total))
        for batch in batches_of(train, groups, pad_id=pad_id):
            step(batch).backward()
    for place, total in zip(places, sums, strict=True):
        place.update.tell(in_layout(place.linear, finite(total / len(groups))))


@contextmanager
def _taking_gradients(weight: torch.Tensor, total: torch.Tensor) -> Iterator[None]:
    """Add the gradients of `weight` to `total`, each freed at once."""

    def take(tensor: torch.Tensor) -> None:
        assert tensor.grad is not None
        total.add_(tensor.grad.to(device=total.device, dtype=torch.float32))
        tensor.grad = None

    weight.requires_grad_(True)
    handle = weight.register_post_accumulate_grad_hook(take)
    try:
        yield
    finally:
        handle.remove()
        weight.requires_grad_(False)


@contextmanager
def _head_frozen(loaded: LoadedModel) -> Iterator[None]:
    """The head has no gradients for the length of a `with` block."""
    head = head_parameters(loaded).values()
    for parameter in head:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in head:
            parameter.requires_grad_(True)
