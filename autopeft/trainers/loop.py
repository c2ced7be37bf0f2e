"""Trains and scores one configuration: one flat loop, no callbacks."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import nn

from autopeft.errors import ConfigurationError, DeadlineError, DivergedError, SpecError
from autopeft.objectives.measurement import Measurement
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.training import LAYER_SAMPLING, OPTIMIZERS
from autopeft.spaces.virtual_tokens import virtual_tokens
from autopeft.trainers.allocation import RankAllocation, allocation_of
from autopeft.trainers.batches import (
    AnyBatch,
    EncodedSplit,
    batches_of,
    evaluation_batches,
    in_parts,
    largest_batch,
    n_scored,
    training_batches,
)
from autopeft.trainers.checkpointing import CheckpointedLayers
from autopeft.trainers.inject import AdapterSet
from autopeft.trainers.job import TrainingSettings
from autopeft.trainers.layer_sampling import LayerSampler
from autopeft.trainers.meter import MemoryMeter
from autopeft.trainers.model import LoadedModel, head_parameters, set_training
from autopeft.trainers.optimizers import INITIAL, make_optimizer, own_rates, own_ratios
from autopeft.trainers.regularizers import DensityMeter, Regularizers
from autopeft.trainers.rows import LabelKind
from autopeft.trainers.scores import Scores
from autopeft.trainers.sites import layers_of
from autopeft.trainers.task import Task

WEIGHTS = ("ba_consistency", "ba_diversity", "ba_spectrum", "density", "ggpo_sigma", "ggpo_beta")
"""Settings that weigh a term of the loss."""
WHOLE = (
    *("accumulation", "batch_size", "evaluation_batch_size", "epochs", "galore_rank", "max_length"),
    "sampling_interval",
)
"""Settings that are whole numbers."""
SCHEDULES = ("linear", "cosine", "constant")

CHECK_STEPS = 16
"""Steps between two looks at the running loss: each look waits for the device, and NaN stays NaN in a sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything one training run needs; the adapters are attached already."""

    loaded: LoadedModel
    adapters: AdapterSet
    task: Task
    metrics: tuple[str, ...]
    train: EncodedSplit
    validation: EncodedSplit
    settings: TrainingSettings
    """With the configuration's own entries applied."""
    epochs: int
    seed: int
    """Of data order and dropout."""
    deadline_seconds: float | None = None
    """Wall-clock limit from the start of training, evaluation included."""
    prepared_seconds: float = 0.0
    """Spent on initialising the adapters; counted as training."""


def settings_of(settings: TrainingSettings, configuration: Configuration) -> TrainingSettings:
    """`settings` with the training entries of `configuration` in their place.

    Raises:
        ConfigurationError: An entry that is no training setting.
        SpecError: A setting out of its range.
    """
    known = {field.name for field in fields(TrainingSettings)} - {"seed"}
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


def learning_rate_factor(step: int, *, total: int, warmup_ratio: float, schedule: str) -> float:
    """Share of the peak learning rate at `step` (from 0) of `total`: up in a line, then down as `schedule` says.

    The first step of a warm-up of w steps has 1 / w, the last 1; a linear or cosine end would be 0 at step `total`.
    """
    warmup = math.ceil(warmup_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    shapes = {"linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)), "constant": 1.0}
    return shapes[schedule]


def train(run: Run) -> Iterator[Measurement]:
    """Train, yielding what was measured at the end of every epoch.

    Deterministic in (run, device, number of threads); the process's random state is the same before and after each
    epoch. Memory is measured on the first epoch's largest step (see `autopeft.trainers.meter`), and on every step where
    layers are sampled, for then it differs from step to step. Without anything to train (no adapter, no head) the
    model is only scored.

    Raises:
        ConfigurationError: Layers are to be sampled by importance, and a method does not allow it.
        DivergedError: The loss, or a validation prediction, is NaN or infinite.
        DeadlineError: `run.deadline_seconds` have passed.
    """
    head = head_parameters(run.loaded)
    rates, ratios = own_rates(run.adapters.configuration), own_ratios(run.adapters.configuration)
    trained = [*run.adapters.named_parameters(), *head.items()]
    optimizer = make_optimizer(trained, run.settings, rates=rates, ratios=ratios)
    sampler = _sampler(run)
    checkpoints = _checkpoints(run)
    meter = MemoryMeter(
        device=run.loaded.model.device, modules=(run.loaded.model, run.adapters), checkpoints=checkpoints
    )
    meter.start()
    try:
        yield from _epochs(run, optimizer, meter, sampler)
    finally:
        if checkpoints is not None:
            checkpoints.remove()


def _epochs(
    run: Run, optimizer: torch.optim.Optimizer, meter: MemoryMeter, sampler: LayerSampler | None
) -> Iterator[Measurement]:
    head = head_parameters(run.loaded)
    allocation = allocation_of(run.adapters, n_steps=run.epochs * _n_batches(run))
    train_seconds, evaluation_seconds = run.prepared_seconds, 0.0
    began = time.perf_counter()
    for epoch in range(run.epochs):
        epoch_began = time.perf_counter()
        train_loss = _train_epoch(run, optimizer, meter, sampler, allocation, epoch=epoch, began=began)
        train_seconds += time.perf_counter() - epoch_began
        evaluation_began = time.perf_counter()
        metrics = evaluate(run, run.validation)
        evaluation_seconds += time.perf_counter() - evaluation_began
        peak_bytes = meter.peak_bytes(optimizer)
        yield Measurement(
            epoch=epoch + 1,
            metrics=metrics,
            train_loss=train_loss,
            train_seconds=train_seconds,
            evaluation_seconds=evaluation_seconds,
            tokens=(epoch + 1) * int(run.train.lengths.sum()),
            peak_bytes=peak_bytes,
            parameters=sum(parameter.numel() for parameter in run.adapters.parameters()),
            head_parameters=sum(parameter.numel() for parameter in head.values()),
            extra=meter.extra() | ({} if sampler is None else sampler.extra()),
        )


def _n_batches(run: Run) -> int:
    return math.ceil(len(run.train.widths) / run.settings.batch_size)


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
        batch = next(batches_of(run.train, [rows], pad_id=_pad_id(run)))
        loss = run.task.loss(*run.task.outputs(run.loaded.model, batch, run.loaded.model.device))
    _set_mode(run, training=True)
    return float(loss)


def _train_epoch(
    run: Run,
    optimizer: torch.optim.Optimizer,
    meter: MemoryMeter,
    sampler: LayerSampler | None,
    allocation: RankAllocation | None,
    *,
    epoch: int,
    began: float,
) -> float:
    """One pass over the training rows; its mean loss. The last look at the loss waits for the device."""
    device, settings = run.loaded.model.device, run.settings
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    batches = training_batches(run.train.widths, settings.batch_size, seed=run.seed, epoch=epoch)
    largest = largest_batch(run.train.widths, batches) if epoch == 0 else None
    loss_sum = torch.zeros((), dtype=torch.float32, device=device)
    regression = run.task.label is LabelKind.NUMBER
    regularizers = Regularizers(run.loaded, run.adapters, settings, regression=regression)
    parts = [part for rows in batches for part in in_parts(rows, settings.accumulation)]
    _set_mode(run, training=True)
    with _random_state(device, seed=run.seed, epoch=epoch):
        collated = batches_of(run.train, parts, pad_id=_pad_id(run))
        for index, rows in enumerate(batches):
            micro = list(islice(collated, len(in_parts(rows, settings.accumulation))))
            factor = learning_rate_factor(
                epoch * len(batches) + index,
                total=run.epochs * len(batches),
                warmup_ratio=settings.warmup_ratio,
                schedule=settings.schedule,
            )
            for group in optimizer.param_groups:
                group["lr"] = group[INITIAL] * factor
            if sampler is not None:
                sampler.begin_step(partial(_probe_loss, run))
            with meter.step(optimizer) if index == largest or sampler is not None else nullcontext():
                loss_sum += _backward(run, regularizers, micro, trained=bool(parameters))
            if settings.clip_norm is not None:
                nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
            optimizer.step()
            if allocation is not None:
                allocation.after_step(epoch * len(batches) + index)
            optimizer.zero_grad()
            if index % CHECK_STEPS == 0:
                _check_finite(loss_sum, epoch=epoch)
            _check_deadline(run, began)
    if sampler is not None:
        sampler.release()
    return _check_finite(loss_sum, epoch=epoch) / len(batches)


def _backward(run: Run, regularizers: Regularizers, micro: Sequence[AnyBatch], *, trained: bool) -> torch.Tensor:
    """The loss of one batch that is run in parts, and its gradients; each part weighs as many items as it has.

    Terms beside the task's loss are averaged over the parts in the same way, so those that look at all rows of a batch
    together see a part's.
    """
    model, device = run.loaded.model, run.loaded.model.device
    items = [n_scored(batch) for batch in micro]
    total = torch.zeros((), dtype=torch.float32, device=device)
    for batch, n in zip(micro, items, strict=True):
        ask = partial(run.task.outputs, model, batch, device)
        loss = run.task.loss(*regularizers.outputs(ask, batch))
        extra = [term for term in (run.adapters.penalty(), regularizers.penalty()) if term is not None]
        share = n / sum(items)
        if trained:
            whole = sum(extra, start=loss)
            (whole if len(micro) == 1 else share * whole).backward()
        total += loss.detach() if len(micro) == 1 else share * loss.detach()
    if trained:
        regularizers.observe()
    return total


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
    statistics: list[torch.Tensor] = []
    targets: list[torch.Tensor] = []
    virtual = virtual_tokens(run.adapters.configuration)
    rows: list[np.ndarray] = []
    meter = DensityMeter(run.loaded, virtual=virtual) if run.settings.measure_density else None
    _set_mode(run, training=False)
    with torch.inference_mode():
        for index, batch in zip(batches, batches_of(split, batches, pad_id=_pad_id(run)), strict=True):
            with nullcontext() if meter is None else meter.watch(batch):
                outputs, target_N = run.task.outputs(model, batch, device)
            statistics.append(run.task.statistics(outputs, target_N))
            targets.append(target_N)
            rows.append(np.repeat(index, batch.items))
        scored = torch.cat(statistics).cpu().numpy().astype(np.float64)
        expected = torch.cat(targets).cpu().numpy().astype(np.float64)
    return Scores(
        task=run.task,
        metrics=run.metrics,
        statistics=scored,
        targets=expected,
        rows=np.concatenate(rows),
        extra={} if meter is None else meter.values(),
    )


def _set_mode(run: Run, *, training: bool) -> None:
    """Dropout of adapters and head on or off; the frozen base never drops anything."""
    set_training(run.loaded, training=training)
    run.adapters.train(training)


def _pad_id(run: Run) -> int:
    return pad_id_of(run.loaded)


def pad_id_of(loaded: LoadedModel) -> int:
    """Any id would do, the mask hides it; the tokenizer's own keeps a model that looks for it content."""
    pad_id = None if loaded.tokenizer is None else loaded.tokenizer.pad_token_id
    return pad_id if isinstance(pad_id, int) else 0


def _check_finite(loss_sum: torch.Tensor, *, epoch: int) -> float:
    value = float(loss_sum.item())
    if not math.isfinite(value):
        raise DivergedError(f"the training loss became {value} in epoch {epoch + 1}", hint="lower the learning rate")
    return value


def _check_deadline(run: Run, began: float) -> None:
    if run.deadline_seconds is not None and time.perf_counter() - began > run.deadline_seconds:
        raise DeadlineError(
            f"training ran past its deadline of {run.deadline_seconds:g} s",
            hint="raise the deadline, or lower epochs or max_length",
        )


@contextmanager
def _random_state(device: torch.device, *, seed: int, epoch: int) -> Iterator[None]:
    """Torch's random state for dropout, a function of (seed, epoch); put back afterwards."""
    state = int(np.random.default_rng([seed, epoch, 1]).integers(2**63))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(state)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(state)
        yield
