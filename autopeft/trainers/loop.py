"""Trains and scores one configuration: one flat loop, no callbacks."""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial

import numpy as np
import torch

from autopeft.errors import ConfigurationError, SpecError
from autopeft.objectives.measurement import Measurement
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.training import LAYER_SAMPLING, OPTIMIZERS
from autopeft.spaces.virtual_tokens import virtual_tokens
from autopeft.trainers.batches import AnyBatch, EncodedSplit, batches_of, evaluation_batches
from autopeft.trainers.checkpointing import CheckpointedLayers
from autopeft.trainers.course import Course, Run, Step, random_state
from autopeft.trainers.job import TrainingSettings
from autopeft.trainers.layer_sampling import LayerSampler
from autopeft.trainers.meter import MemoryMeter
from autopeft.trainers.model import head_parameters, set_training
from autopeft.trainers.regularizers import DensityMeter, Regularizers
from autopeft.trainers.rows import LabelKind
from autopeft.trainers.scores import Collector, Scores
from autopeft.trainers.sites import layers_of
from autopeft.trainers.snapshot import restore_snapshot, save_snapshot
from autopeft.trainers.training_loss import AbstractLoss, OfOutputs, training_loss

WEIGHTS = ("ba_consistency", "ba_diversity", "ba_spectrum", "density", "ggpo_sigma", "ggpo_beta")
"""Settings that weigh a term of the loss."""
WHOLE = (
    *("accumulation", "batch_size", "evaluation_batch_size", "epochs", "galore_rank", "max_length"),
    "sampling_interval",
)
"""Settings that are whole numbers."""
SCHEDULES = ("linear", "cosine", "constant")


def settings_of(settings: TrainingSettings, configuration: Configuration) -> TrainingSettings:
    """`settings` with the training entries of `configuration` in their place.

    Raises:
        ConfigurationError: An entry that is no training setting.
        SpecError: A setting out of its range.
    """
    known = {field.name for field in fields(TrainingSettings)} - {"prefix_bytes", "seed"}
    entries = dict(configuration.training)
    unknown = sorted(set(entries) - known)
    if unknown:
        raise ConfigurationError(
            f"training setting {unknown[0]!r} is unknown; a configuration may set {', '.join(sorted(known))}"
        )
    for name in WHOLE:
        if name in entries:
            entries[name] = int(entries[name])
    merged = replace(settings, **entries)  # type: ignore[arg-type]  # names checked above, values by check_settings
    check_settings(merged)
    return merged


def check_settings(settings: TrainingSettings) -> None:
    """Raise SpecError, naming the setting, its value and what is allowed, when one is out of range."""
    rules = {
        "epochs": (settings.epochs >= 1, "1 or more"),
        "batch_size": (settings.batch_size >= 1, "1 or more"),
        "accumulation": (settings.accumulation >= 1, "1 or more"),
        "checkpointing": (
            not (settings.checkpointing and (settings.density or settings.ggpo_sigma or settings.ggpo_beta)),
            "false beside density and ggpo, which look into the layers' first pass",
        ),
        "evaluation_batch_size": (settings.evaluation_batch_size >= 1, "1 or more"),
        "max_length": (settings.max_length >= 2, "2 or more"),
        "prefix_bytes": (settings.prefix_bytes >= 0, "0 or more"),
        "learning_rate": (0.0 < settings.learning_rate < math.inf, "a number above 0"),
        "weight_decay": (0.0 <= settings.weight_decay < math.inf, "0 or more"),
        "warmup_ratio": (0.0 <= settings.warmup_ratio <= 1.0, "from 0 to 1"),
        "clip_norm": (settings.clip_norm is None or settings.clip_norm > 0.0, "a number above 0, or nothing"),
        "density_epsilon": (0.0 < settings.density_epsilon < math.inf, "a number above 0"),
        **{name: (0.0 <= getattr(settings, name) < math.inf, "0 or more") for name in WEIGHTS},
        "optimizer": (settings.optimizer in OPTIMIZERS, ", ".join(OPTIMIZERS)),
        "lora_plus_ratio": (0.0 < settings.lora_plus_ratio < math.inf, "a number above 0"),
        "weight_decay_b": (
            settings.weight_decay_b is None or 0.0 <= settings.weight_decay_b < math.inf,
            "0 or more, or nothing",
        ),
        "galore_rank": (settings.galore_rank >= 1, "1 or more"),
        "layer_sampling": (settings.layer_sampling in LAYER_SAMPLING, ", ".join(LAYER_SAMPLING)),
        "layers_kept": (0.0 < settings.layers_kept <= 1.0, "above 0, up to 1"),
        "sampling_interval": (settings.sampling_interval >= 1, "1 or more"),
        "suppression": (0.0 <= settings.suppression <= 1.0, "from 0 to 1"),
        "schedule": (settings.schedule in SCHEDULES, ", ".join(SCHEDULES)),
    }
    for name, (valid, allowed) in rules.items():
        if not valid:
            raise SpecError(f"training.{name}: got {getattr(settings, name)!r}; allowed: {allowed}")


def train(run: Run) -> Iterator[Measurement]:
    """Train, yielding what was measured at the end of every epoch.

    Deterministic in (run, device, number of threads); the process's random state is the same before and after each
    epoch. Memory is measured on the first epoch's largest step (see `autopeft.trainers.meter`), and on every step where
    layers are sampled, for then it differs from step to step. Without anything to train (no adapter, no head) the
    model is only scored.

    With `run.checkpoint` the state is kept after every epoch but the last. Where there is one, what was measured until
    then comes first, and the training goes on after it, to the same end.

    Raises:
        ConfigurationError: Layers are to be sampled by importance, and a method does not allow it.
        DivergedError: The loss, or a validation prediction, is NaN or infinite.
        DeadlineError: `run.deadline_seconds` have passed.
    """
    course = Course(run, head_parameters(run.loaded))
    sampler = _sampler(run)
    checkpoints = _checkpoints(run)
    meter = MemoryMeter(
        device=run.loaded.model.device,
        modules=(run.loaded.model, run.adapters),
        checkpoints=checkpoints,
        apart_bytes=0 if run.prefix is None else run.prefix.n_bytes,
    )
    meter.start()
    try:
        earlier: tuple[Measurement, ...] = ()
        if run.checkpoint is not None:
            earlier = restore_snapshot(run.checkpoint, course, meter=meter, sampler=sampler)
        yield from earlier
        yield from _epochs(course, meter, sampler, earlier)
    finally:
        if checkpoints is not None:
            checkpoints.remove()


def _epochs(
    course: Course, meter: MemoryMeter, sampler: LayerSampler | None, earlier: tuple[Measurement, ...]
) -> Iterator[Measurement]:
    run, measured = course.run, earlier
    while not course.done:
        began = time.perf_counter()
        train_loss = _train_epoch(course, meter, sampler)
        course.train_seconds += time.perf_counter() - began
        began = time.perf_counter()
        metrics = evaluate(run, run.validation)
        course.evaluation_seconds += time.perf_counter() - began
        found = course.measured(
            metrics,
            train_loss=train_loss,
            peak_bytes=meter.peak_bytes(course.optimizer),
            extra=meter.extra() | ({} if sampler is None else sampler.extra()),
        )
        measured = (*measured, found)
        if run.checkpoint is not None and not course.done:
            save_snapshot(run.checkpoint, course, measured=measured, meter=meter, sampler=sampler)
        yield found


def _checkpoints(run: Run) -> CheckpointedLayers | None:
    if not run.settings.checkpointing:
        return None
    return CheckpointedLayers(list(layers_of(run.loaded.model.base_model, run.loaded.shape)))


def _sampler(run: Run) -> LayerSampler | None:
    if run.settings.layer_sampling == "none" or not any(run.adapters.adapters()):
        return None
    layers = layers_of(run.loaded.model.base_model, run.loaded.shape)
    return LayerSampler(run.adapters, layers, run.settings, n_rows=len(run.train.lengths), seed=run.seed)


def _probe_loss(run: Run, rows: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> float:
    """The loss of training rows with nothing dropped and nothing kept for backward; training mode afterwards."""
    _set_mode(run, training=False)
    with torch.inference_mode():
        batch = next(batches_of(run.train, [rows], pad_id=run.pad_id))
        loss = run.task.loss(*run.task.outputs(run.loaded.model, batch, run.loaded.model.device))
    _set_mode(run, training=True)
    return float(loss)


def _train_epoch(course: Course, meter: MemoryMeter, sampler: LayerSampler | None) -> float:
    """One pass over the training rows; its mean loss. The last look at the loss waits for the device."""
    run, device = course.run, course.run.loaded.model.device
    regression = run.task.label is LabelKind.NUMBER
    regularizers = Regularizers(run.loaded, run.adapters, run.settings, regression=regression)
    _set_mode(run, training=True)
    with random_state(device, course.chance):
        for step in course.steps():
            if sampler is not None:
                sampler.begin_step(partial(_probe_loss, run))
            with meter.step(course.optimizer) if step.largest or sampler is not None else nullcontext():
                loss = _backward(run, regularizers, step, trained=bool(course.parameters))
            course.finish(loss)
            course.check_deadline()
    if sampler is not None:
        sampler.release()
    return course.end_epoch()


def _backward(run: Run, regularizers: Regularizers, step: Step, *, trained: bool) -> torch.Tensor:
    """The loss of one batch that is run in parts, and its gradients; each part weighs as many items as it has.

    Terms beside the task's loss are averaged over the parts in the same way, so those that look at all rows of a batch
    together see a part's.
    """
    model, device = run.loaded.model, run.loaded.model.device
    way = OfOutputs(run.task, model) if regularizers.read_outputs else training_loss(run.task, model)
    total = torch.zeros((), dtype=torch.float32, device=device)
    for part in step.parts:
        run.adapters.passing.begin(part.key)
        with run.entering(run.train, part.rows):
            loss = _loss(way, regularizers, part.batch, device)
        extra = [term for term in (run.adapters.penalty(), regularizers.penalty()) if term is not None]
        whole = sum(extra, start=loss)
        if trained and whole.requires_grad:  # which it does not where every adapter happened to be left out of the step
            (whole if part.share == 1.0 else part.share * whole).backward()
        total += loss.detach() if part.share == 1.0 else part.share * loss.detach()
    if trained:
        regularizers.observe()
    return total


def _loss(way: AbstractLoss, regularizers: Regularizers, batch: AnyBatch, device: torch.device) -> torch.Tensor:
    """The task's loss of a batch, watched by every regularizer; what it was computed from is let go of."""
    outputs, targets = regularizers.outputs(partial(way.outputs, batch, device), batch)
    (loss,) = way.losses(outputs, targets, [len(targets)])
    return loss


def evaluate(run: Run, split: EncodedSplit) -> dict[str, float]:
    """The run's metrics and `loss` on `split`.

    Raises:
        DivergedError: A prediction is NaN or infinite.
    """
    return predict(run, split).values


def predict(run: Run, split: EncodedSplit) -> Scores:
    """What the run's model says of every row of `split`."""
    model, device = run.loaded.model, run.loaded.model.device
    batches = evaluation_batches(split.widths, run.settings.evaluation_batch_size)
    collector = Collector(run.task, run.metrics)
    virtual = virtual_tokens(run.adapters.configuration)
    meter = DensityMeter(run.loaded, virtual=virtual) if run.settings.measure_density else None
    _set_mode(run, training=False)
    with torch.inference_mode():
        for index, batch in zip(batches, batches_of(split, batches, pad_id=run.pad_id), strict=True):
            with run.entering(split, index), nullcontext() if meter is None else meter.watch(batch):
                outputs, target_N = run.task.outputs(model, batch, device)
            collector.add(outputs, target_N, np.repeat(index, batch.items))
    return collector.scores({} if meter is None else meter.values())


def _set_mode(run: Run, *, training: bool) -> None:
    """Dropout of adapters and head on or off; the frozen base never drops anything."""
    set_training(run.loaded, training=training)
    run.adapters.train(training)
