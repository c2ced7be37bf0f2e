"""Putting a configuration's adapters on a frozen model and taking them off again: hooks, never surgery."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self, cast, final

import torch
from torch import nn
from transformers import PreTrainedModel

from autopeft.errors import ConfigurationError, ModelError
from autopeft.spaces.configuration import Configuration, MethodSetting
from autopeft.spaces.model_shape import ModelShape
from autopeft.trainers.adapters import BUILDERS, builder
from autopeft.trainers.adapters.adapter import AbstractAdapter, Handle, Placement
from autopeft.trainers.adapters.passes import OfPass, Pass
from autopeft.trainers.sites import LinearLike, layers_of

_MARK: Final = "_autopeft_adapters"


@final
class AdapterSet(nn.Module):
    """All adapters of one configuration, attached to a model until `remove`.

    Parameters are named by method, layer and place, e.g. `lora.3.attention_self_query.a`. A fresh set is in eval
    mode; `train()` turns its dropout on (and touches nothing of the base model).
    """

    def __init__(self, configuration: Configuration, adapters: dict[str, dict[int, AbstractAdapter]]) -> None:
        super().__init__()
        self.configuration = configuration
        for method, by_layer in adapters.items():
            rows = {str(layer): adapter for layer, adapter in by_layer.items()}
            self.add_module(method, nn.ModuleDict(rows))
        self._handles: list[Handle] = []
        self.passing = Pass()
        """What all of them know of the pass they are in."""
        for module in self.modules():
            if isinstance(module, OfPass):
                module.passing = self.passing
        self.eval()

    def adapters(self) -> Iterator[tuple[str, int, AbstractAdapter]]:
        """(method, layer, adapter), methods in the order in which they act, layers ascending."""
        for method, rows in self.named_children():
            assert isinstance(rows, nn.ModuleDict)
            for layer, adapter in rows.items():
                assert isinstance(adapter, AbstractAdapter)
                yield method, int(layer), adapter

    @property
    def n_parameters(self) -> int:
        """Trainable numbers in all adapters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def penalty(self) -> torch.Tensor | None:
        """The sum of the adapters' own terms of the training loss; None when no adapter has one."""
        terms = [term for _, _, adapter in self.adapters() if (term := adapter.penalty()) is not None]
        return torch.stack([term.float() for term in terms]).sum() if terms else None

    @property
    def attached(self) -> bool:
        return bool(self._handles)

    def attach(self, model: PreTrainedModel, shape: ModelShape) -> None:
        """Make the adapters act on `model`; all or nothing.

        Raises:
            ModelError: The model already carries adapters, or works in a way that a method cannot act on.
        """
        if _MARK in model.__dict__:
            raise ModelError(
                "this model already carries adapters", hint="call .remove() on the earlier AdapterSet first"
            )
        layers = layers_of(model.base_model, shape)
        handles: list[Handle] = [_MarkHandle(model)]
        try:
            for _, layer, adapter in self.adapters():
                handles += adapter.attach(model, layers[layer])
        except BaseException:
            _remove(handles)
            raise
        self._handles = handles

    def remove(self) -> None:
        """Take every adapter off; the model computes exactly what it did before. Safe to call twice."""
        _remove(self._handles)
        self._handles = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def unmark(model: PreTrainedModel) -> None:
    """Let other adapters be attached to `model` too: whoever calls this keeps apart what acts on which rows."""
    model.__dict__.pop(_MARK, None)


@final
class _MarkHandle:
    """Marks a model as carrying adapters."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        model.__dict__[_MARK] = True

    def remove(self) -> None:
        self.model.__dict__.pop(_MARK, None)


def build(shape: ModelShape, configuration: Configuration, *, seed: int) -> AdapterSet:
    """The adapters of `configuration`, on the CPU in fp32, attached to nothing; equal seeds give equal tensors.

    Raises:
        ConfigurationError: An unknown method, a layer the model does not have, or a target that is no site.
    """
    generator = torch.Generator().manual_seed(seed)
    settings = {setting.method: setting for setting in configuration.methods}
    unknown = sorted(set(settings) - set(BUILDERS))
    if unknown:
        raise ConfigurationError(f"unknown method {unknown[0]!r}", hint=f"use one of {', '.join(BUILDERS)}")
    adapters = {
        method: _build_method(shape, settings[method], generator=generator) for method in BUILDERS if method in settings
    }
    return AdapterSet(configuration, adapters)


def inject(
    model: PreTrainedModel,
    shape: ModelShape,
    configuration: Configuration,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    prepare: Callable[[AdapterSet], None] | None = None,
) -> AdapterSet:
    """Build the adapters of `configuration` and attach them to `model`, on its device.

    Args:
        model: A frozen model with or without a task head.
        shape: Of that model.
        configuration: May be empty: then nothing but the head is trained.
        seed: Of the initialisation.
        dtype: Of the adapters' tensors; they are cast to the activations' dtype in use.
        prepare: Called with the adapters before they are attached, to tell them what they need of the training rows.

    Raises:
        ConfigurationError: The configuration does not fit the model.
        ModelError: The model already carries adapters, a method cannot act on its architecture, or an adapter starts
            from training rows and was told nothing of them.
    """
    adapters = build(shape, configuration, seed=seed).to(device=model.device, dtype=dtype)
    if prepare is not None:
        prepare(adapters)
    adapters.attach(model, shape)
    return adapters


def merge(adapters: AdapterSet, model: PreTrainedModel, shape: ModelShape) -> "Merged":
    """Fold adapters into the base weights, so that inference costs nothing extra; `unmerge` restores them bit for bit.

    Several adapters on one map are folded in the order in which they act, in fp32. The original tensors of the adapted
    sites are kept beside the merged ones until `unmerge`.

    Raises:
        ConfigurationError: The configuration has a method that cannot be folded into a weight.
        ModelError: The adapters are not attached (never were, or are merged already).
    """
    check_mergeable(adapters)
    if not adapters.attached:
        raise ModelError("these adapters are not attached to a model", hint="attach them before merging")
    originals: list[tuple[torch.Tensor, torch.Tensor]] = []
    for linear, weight, bias in _folded(adapters, layers_of(model.base_model, shape)):
        for tensor, merged in ((linear.weight, weight), (getattr(linear, "bias", None), bias)):
            if merged is not None and tensor is not None:
                originals.append((tensor, tensor.data))
                tensor.data = merged.to(tensor.dtype)
    adapters.remove()
    return Merged(adapters, model, shape, originals)


def check_mergeable(adapters: AdapterSet) -> None:
    """Refuse what is no change of weights.

    Raises:
        ConfigurationError: A method that cannot be folded into a weight.
    """
    others = sorted({method for method, _, adapter in adapters.adapters() if not adapter.mergeable})
    if others:
        raise ConfigurationError(
            f"{', '.join(others)} cannot be merged into the base weights",
            hint="keep the adapters attached, they work as they are",
        )


def _folded(adapters: AdapterSet, layers: nn.ModuleList) -> list[tuple[LinearLike, torch.Tensor, torch.Tensor | None]]:
    """Every adapted map with its new weight and bias, fp32; nothing is changed yet."""
    rows: dict[tuple[int, str], tuple[LinearLike, torch.Tensor, torch.Tensor | None]] = {}
    for _, layer, adapter in adapters.adapters():
        for target in adapter.mergeable:
            linear = cast(LinearLike, layers[layer].get_submodule(target))  # or a norm, which has the same two tensors
            own = getattr(linear, "bias", None)
            bias = None if own is None else own.data.float()
            _, weight, bias = rows.get((layer, target), (linear, linear.weight.data.float(), bias))
            rows[layer, target] = (linear, *adapter.fold(target, linear, weight, bias))
    return list(rows.values())


@final
class Merged:
    """A model whose weights contain its adapters."""

    def __init__(
        self,
        adapters: AdapterSet,
        model: PreTrainedModel,
        shape: ModelShape,
        originals: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        self._adapters = adapters
        self._model = model
        self._shape = shape
        self._originals = originals

    def unmerge(self) -> AdapterSet:
        """Put the original weights back and the adapters on again."""
        for weight, data in self._originals:
            weight.data = data
        self._originals = []
        if not self._adapters.attached:
            self._adapters.attach(self._model, self._shape)
        return self._adapters


@contextmanager
def without(adapters: AdapterSet, model: PreTrainedModel, shape: ModelShape) -> Iterator[None]:
    """The bare model for the length of a `with` block; the adapters are back afterwards."""
    adapters.remove()
    try:
        yield
    finally:
        adapters.attach(model, shape)


def _build_method(
    shape: ModelShape, setting: MethodSetting, *, generator: torch.Generator
) -> dict[int, AbstractAdapter]:
    build_one = builder(setting.method)
    rows: dict[int, AbstractAdapter] = {}
    shared: dict[Hashable, nn.Module] = {}
    for layer in setting.layers:
        if not 0 <= layer < shape.n_layers:
            raise ConfigurationError(
                f"{setting.method}: layer {layer} does not exist",
                hint=f"the model has layers 0 to {shape.n_layers - 1}",
            )
        values = setting.at(layer)
        assert values is not None
        placement = Placement(
            shape=shape,
            layer=layer,
            method=setting.method,
            values=values,
            generator=generator,
            setting=setting,
            shared=shared,
        )
        rows[layer] = build_one(placement)
    return rows


def _remove(handles: list[Handle]) -> None:
    for handle in reversed(handles):
        handle.remove()
