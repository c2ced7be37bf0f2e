"""Peak training memory before training: one layer at a time is traced, and kept for every configuration that has it.

A configuration's layers differ in what adapts them; two that are alike in that, and in whether a gradient must flow
through, take the same. So a search over thousands of configurations traces few layers. Sizes are interpolated where
traces show that bytes are a polynomial in them (`autopeft.trainers.interpolation`). What acts outside its layers (a
prompt before the embeddings) is traced in whole steps.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Final, final

import numpy as np
import torch
from torch import nn

from autopeft.objectives.memory import (
    ADAMW_STATES,
    FLOAT32,
    FrameTrace,
    LayerTrace,
    MemoryBreakdown,
    Resident,
    Setup,
    live_peak,
    saved_peak,
)
from autopeft.objectives.parameters import count_parameters
from autopeft.spaces.configuration import Configuration, FieldValue, MethodSetting
from autopeft.spaces.factors import first_factor_parameters
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.method import FieldKind
from autopeft.trainers.calls import Call, record_calls
from autopeft.trainers.described import DescribedModel, describe_model
from autopeft.trainers.example import example_batch
from autopeft.trainers.fake import UNANSWERABLE, adopt, faking
from autopeft.trainers.inject import AdapterSet, build
from autopeft.trainers.interpolation import Point, Surface, Vector
from autopeft.trainers.job import ModelSpec, TaskSpec
from autopeft.trainers.kinds_of_layer import layer_kinds
from autopeft.trainers.meter import buffer_bytes, held_bytes
from autopeft.trainers.model import head_parameters
from autopeft.trainers.optimizers import is_first_factor
from autopeft.trainers.sites import layers_of
from autopeft.trainers.step import Step
from autopeft.trainers.task import resolve_task
from autopeft.trainers.task_kind import Task
from autopeft.trainers.trace import trace_frame, trace_layer, trace_scoring
from autopeft.trainers.whole_step import trace_step

_NUDGE: Final = 0.75


@dataclass(slots=True, kw_only=True)
class _World:
    """The traces of one batch size, length and way to train."""

    step: Step
    calls: list[Call]
    kinds: list[Hashable]
    frozen_a: bool
    layers: dict[Hashable, Surface] = field(default_factory=dict)
    forms: dict[Hashable, tuple[tuple[tuple[int, int], ...], bool]] = field(default_factory=dict)
    """What of a layer's trace is no number: what it keeps of shared tensors, whether its output needs a gradient."""
    frames: dict[Hashable, FrameTrace] = field(default_factory=dict)
    wholes: dict[Hashable, MemoryBreakdown] = field(default_factory=dict)


@final
class MemoryForecast:
    """Predicts the peak memory of training any configuration on one described model and task.

    Args:
        described: The model with its task's head.
        task: How it is learned.
        device: `cpu`: what `autopeft.trainers.meter` measures there. `cuda`: what the allocator sees.
    """

    def __init__(self, described: DescribedModel, task: Task, *, device: str = "cpu") -> None:
        self._described = described
        self._task = task
        self._device = device
        self._worlds: dict[Setup, _World] = {}
        self._within: dict[str, bool] = {}
        self._deciding: dict[tuple[str, str], bool] = {}
        self._image = described.shape.image
        self._scored: dict[tuple[int, int], int] = {}
        self._head = head_parameters(described)
        self._weights = held_bytes([described.model])

    def predict(self, configuration: Configuration, setup: Setup, *, context: int = 0) -> MemoryBreakdown:
        """The peak of training `configuration`.

        Raises:
            ConfigurationError: It does not fit the model.
            ModelError: A method cannot act on the model's architecture.
        """
        setup = setup.of(configuration)
        world = self._world(setup)
        if not all(self._acts_in_layers(setting) for setting in configuration):
            return self._whole(world, configuration, setup, context=context)
        layers, groups = self._layers(world, configuration)
        grads = tuple(layer.output_grad for layer in layers)
        resident = self._resident(configuration, world, layers, groups)
        frame = self._frame(world, grads) if resident.gradients else FrameTrace(saved=0, before=0, peak=0, after=0)
        if self._device == "cpu":
            return saved_peak(resident, frame, layers)
        scoring = self._scoring(setup)
        return live_peak(resident, frame, layers, evaluation=scoring, context=context)

    def _acts_in_layers(self, setting: MethodSetting) -> bool:
        """Whether the method leaves everything outside the layers it is on as it is; seen once by attaching it."""
        if setting.method not in self._within:
            (layer, *_), values = setting.layers, setting.at(setting.layers[0])
            assert values is not None
            inside = set(layers_of(self._described.model.base_model, self._described.shape)[layer].modules())
            outside = [module for module in self._described.model.modules() if module not in inside]
            marks: list[list[int]] = []
            for settings in ((), (_alone(setting.method, layer, values),)):
                adapters = self._built(settings)
                with faking(self._described.mode), adapters:
                    adapters.attach(self._described.model, self._described.shape)
                    marks.append([_attachments(module) for module in outside])
            self._within[setting.method] = marks[0] == marks[1]
        return self._within[setting.method]

    def _whole(self, world: _World, configuration: Configuration, setup: Setup, *, context: int) -> MemoryBreakdown:
        """Traced in a whole step, scoring left out."""
        key = (configuration.methods, context)
        if key not in world.wholes:
            adapters = self._built(configuration.methods, frozen_a=world.frozen_a)
            with faking(self._described.mode):
                adapters.attach(self._described.model, self._described.shape)
            with adapters:
                adapters.train()
                world.wholes[key] = trace_step(
                    world.step,
                    lambda: _with_penalty(world.step.loss(), adapters),
                    modules=[self._described.model, adapters],
                    base_bytes=self._weights,
                    context=context,
                )
        return world.wholes[key]

    def _scoring(self, setup: Setup) -> int:
        """The most alive while rows are scored, besides what is resident."""
        if setup.evaluation_batch_size is None:
            return 0
        rows = setup.sequences * setup.evaluation_batch_size
        if (rows, setup.length) not in self._scored:
            batch = example_batch(
                self._task, rows=rows, sequences=setup.sequences, length=setup.length, image=self._image
            )
            step = Step(described=self._described, task=self._task, batch=batch, device=self._device)
            self._scored[rows, setup.length] = trace_scoring(step)
        return self._scored[rows, setup.length]

    def _world(self, setup: Setup) -> _World:
        key = replace(setup, batch_size=setup.rows, sequences=1, accumulation=1, evaluation_batch_size=None)
        if key not in self._worlds:
            step = Step(
                described=self._described,
                task=self._task,
                batch=example_batch(
                    self._task,
                    rows=setup.rows,
                    sequences=setup.sequences,
                    length=setup.length,
                    image=self._image,
                ),
                device=self._device,
                checkpointing=setup.checkpointing,
            )
            calls = record_calls(step)
            kinds = layer_kinds(step.layers, calls)
            self._worlds[key] = _World(step=step, calls=calls, kinds=kinds, frozen_a=setup.optimizer == "lora_fa")
        return self._worlds[key]

    def _resident(
        self, configuration: Configuration, world: _World, layers: Sequence[LayerTrace], groups: Sequence[Hashable]
    ) -> Resident:
        shape = self._described.shape
        adapters = count_parameters(configuration, shape).total
        head = sum(parameter.numel() for parameter in self._head.values())
        trained = adapters + head - (first_factor_parameters(configuration, shape) if world.frozen_a else 0)
        once = {call.layer: layer for call, layer in zip(world.calls, layers, strict=True)}.values()
        tensors = len(self._head) + sum(layer.tensors for layer in once)
        shared = {group: layer.frozen_once for group, layer in zip(groups, layers, strict=True)}
        frozen = sum(layer.frozen for layer in once) + sum(shared.values())
        return Resident(
            weights=self._weights,
            adapters=FLOAT32 * adapters + frozen,
            gradients=FLOAT32 * trained,
            optimizer=FLOAT32 * (ADAMW_STATES * trained + tensors) if trained else 0,
        )

    def _frame(self, world: _World, grads: tuple[bool, ...]) -> FrameTrace:
        if grads not in world.frames:
            world.frames[grads] = trace_frame(world.step, world.calls, grads=grads)
        return world.frames[grads]

    def _layers(self, world: _World, configuration: Configuration) -> tuple[list[LayerTrace], list[Hashable]]:
        """One trace a call, in order; and marks that are equal where layers share what is frozen."""
        found: list[LayerTrace] = []
        groups: list[Hashable] = []
        last = {call.layer: index for index, call in enumerate(world.calls)}
        for index, call in enumerate(world.calls):
            flags = tuple(any(found[parent].output_grad for parent in parents) for parents in call.parents)
            settings = tuple(setting for setting in configuration if call.layer in setting.layers)
            form, sizes = self._form(world, call, settings)
            key = (world.kinds[index], form, flags, last[call.layer] == index)
            found.append(self._layer(world, call, settings, key=key, sizes=sizes, flags=flags))
            groups.append((form, sizes))
        return found, groups

    def _layer(
        self,
        world: _World,
        call: Call,
        settings: tuple[MethodSetting, ...],
        *,
        key: tuple[Hashable, ...],
        sizes: Point,
        flags: tuple[bool, ...],
    ) -> LayerTrace:
        if key not in world.layers:
            *_, last = key

            def compute(point: Point) -> Vector:
                trace = self._traced(world, call, _resized(settings, call.layer, point), flags, penalty=bool(last))
                world.forms[key] = (trace.shared, trace.output_grad)
                return np.array([getattr(trace, name) for name in _NUMBERS], dtype=np.float64)

            world.layers[key] = Surface(compute)
        numbers = world.layers[key](sizes)
        shared, output_grad = world.forms[key]
        values = {name: int(number) for name, number in zip(_NUMBERS, numbers, strict=True)}
        return LayerTrace(**values, shared=shared, output_grad=output_grad)

    def _form(self, world: _World, call: Call, settings: Sequence[MethodSetting]) -> tuple[Hashable, Point]:
        """What decides a layer's trace besides sizes, and the sizes."""
        form: list[Hashable] = []
        sizes: list[int] = []
        for setting in settings:
            form.append(setting.method)
            values = setting.at(call.layer)
            assert values is not None
            for name, value in values.items():
                if _is_size(setting.method, name):
                    assert isinstance(value, int)
                    sizes.append(value)
                elif isinstance(value, float) and value and not self._decides(world, call, setting, name):
                    form.append(name)
                else:
                    form.append((name, value))
        return tuple(form), tuple(sizes)

    def _decides(self, world: _World, call: Call, setting: MethodSetting, field: str) -> bool:
        """Whether another value of a real number changes the trace (a scale does not); tried once."""
        key = (setting.method, field)
        if key not in self._deciding:
            values = setting.at(call.layer)
            assert values is not None
            value = values[field]
            assert isinstance(value, float)
            flags = (True,) * len(call.flowing)
            pair = [
                self._traced(world, call, (_alone(setting.method, call.layer, values | {field: one}),), flags)
                for one in (value, _NUDGE * value)
            ]
            self._deciding[key] = pair[0] != pair[1]
        return self._deciding[key]

    def _traced(
        self,
        world: _World,
        call: Call,
        settings: tuple[MethodSetting, ...],
        flags: tuple[bool, ...],
        *,
        penalty: bool = True,
    ) -> LayerTrace:
        adapters = self._built(settings, frozen_a=world.frozen_a)
        with faking(self._described.mode):
            adapters.attach(self._described.model, self._described.shape)
        try:
            trace = trace_layer(world.step, call, adapters, flags=flags, penalty=penalty)
        finally:
            adapters.remove()
        alone, rows = trace.frozen, self._described.shape.layers
        beside = next((at for at, row in enumerate(rows) if at != call.layer and row == rows[call.layer]), None)
        if not alone or beside is None:
            return trace
        own = min(self._frozen(tuple(_on_both(setting, beside) for setting in settings)) - alone, alone)
        return replace(trace, frozen=own, frozen_once=alone - own)

    def _frozen(self, settings: tuple[MethodSetting, ...]) -> int:
        """Bytes of the frozen tensors that adapters hold once they are attached."""
        adapters = self._built(settings)
        with faking(self._described.mode):
            adapters.attach(self._described.model, self._described.shape)
        adapters.remove()
        return buffer_bytes([adapters])

    def _built(self, settings: tuple[MethodSetting, ...], *, frozen_a: bool = False) -> AdapterSet:
        """The adapters without values; those that need values to be made are made with them."""
        configuration = Configuration(methods=settings, training=())
        try:
            with faking(self._described.mode):
                adapters = build(self._described.shape, configuration, seed=0)
        except UNANSWERABLE:
            adapters = adopt(build(self._described.shape, configuration, seed=0), self._described.mode)
        for name, parameter in adapters.named_parameters():
            if frozen_a and is_first_factor(name):
                parameter.requires_grad_(False)
        return adapters


@cache
def forecast_for(spec: ModelSpec, task: TaskSpec, *, n_labels: int | None, device: str) -> MemoryForecast:
    """The forecast of a model and task, made once in a process so that its traces are kept.

    Raises:
        ModelError: The model cannot be described.
        SpecError: As `autopeft.trainers.task.resolve_task`.
    """
    described = describe_model(spec, kind=task.kind, n_labels=n_labels)
    return MemoryForecast(described, resolve_task(task), device=device)


_NUMBERS: Final = tuple(item.name for item in fields(LayerTrace) if item.name not in ("shared", "output_grad"))


def _is_size(method: str, field: str) -> bool:
    return METHODS[method].field(field).kind in (FieldKind.SIZE, FieldKind.INTEGER)


def _alone(method: str, layer: int, values: Mapping[str, FieldValue]) -> MethodSetting:
    """`method` on one layer."""
    return MethodSetting(
        method=method, layers=(layer,), fields=tuple((name, (value,)) for name, value in values.items())
    )


def _resized(settings: Sequence[MethodSetting], layer: int, sizes: Point) -> tuple[MethodSetting, ...]:
    """`settings` on `layer` alone, with `sizes` in the order of `_form`."""
    rest = iter(sizes)
    rows: list[MethodSetting] = []
    for setting in settings:
        values = setting.at(layer)
        assert values is not None
        sized = {name: next(rest) if _is_size(setting.method, name) else value for name, value in values.items()}
        rows.append(_alone(setting.method, layer, sized))
    return tuple(rows)


def _attachments(module: nn.Module) -> int:
    """How much hangs on a module besides its own parts."""
    return len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module.__dict__)


def _with_penalty(loss: torch.Tensor, adapters: AdapterSet) -> torch.Tensor:
    penalty = adapters.penalty()
    return loss if penalty is None else loss + penalty


def _on_both(setting: MethodSetting, other: int) -> MethodSetting:
    """`setting` of one layer on that and the layer `other`."""
    columns = tuple((name, column * 2) for name, column in setting.fields)
    return MethodSetting(method=setting.method, layers=tuple(sorted((*setting.layers, other))), fields=columns)
