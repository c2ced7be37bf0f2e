"""One configuration on its way through its epochs: what is the same whether it trains alone or beside others.

A course decides which rows come next, at which rate, and takes the optimizer's step; whoever drives it runs the model.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch
from torch import nn

from autopeft.errors import DeadlineError, DivergedError
from autopeft.kernels.reference.philox import fold_seed
from autopeft.objectives.measurement import Measurement
from autopeft.trainers.allocation import allocation_of
from autopeft.trainers.batches import (
    AnyBatch,
    EncodedSplit,
    IntArray,
    batches_of,
    in_parts,
    largest_batch,
    n_scored,
    training_batches,
)
from autopeft.trainers.inject import AdapterSet
from autopeft.trainers.job import TrainingSettings
from autopeft.trainers.model import LoadedModel
from autopeft.trainers.optimizers import INITIAL, make_optimizer, own_rates, own_ratios
from autopeft.trainers.prefix import FrozenPrefix
from autopeft.trainers.task import Task

CHECK_STEPS: Final = 16
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
    prefix: FrozenPrefix | None = None
    cut: int = 0
    """Rows may enter the model here: nothing below is adapted or looked into."""
    checkpoint: Path | None = None
    """Where the state between two epochs is kept; None keeps none."""

    def entering(self, split: EncodedSplit, rows: IntArray) -> AbstractContextManager[None]:
        """Around a call of the model on the batch of some rows of a split."""
        return nullcontext() if self.prefix is None else self.prefix.entering(self.cut, split, rows)

    @property
    def pad_id(self) -> int:
        return pad_id_of(self.loaded)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows that are run through the model together."""

    rows: IntArray
    """Of the training split."""
    batch: AnyBatch
    share: float
    """Of its step's scored items."""
    key: int
    """Of what kernels drop; torch's own dropout draws from its random state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the optimizer."""

    parts: Sequence[Part]
    largest: bool
    """Whether no step takes more memory: the first epoch's largest."""


@final
class Course:
    """The training of one run's adapters and head: `steps` of an epoch, `finish` after each, `end_epoch`.

    Args:
        run: What is trained, on which rows.
        head: The head's parameters, which are trained beside the adapters.
    """

    def __init__(self, run: Run, head: Mapping[str, nn.Parameter]) -> None:
        self.run = run
        self.head = head
        configuration = run.adapters.configuration
        trained = [*run.adapters.named_parameters(), *head.items()]
        rates, ratios = own_rates(configuration), own_ratios(configuration)
        self.optimizer = make_optimizer(trained, run.settings, rates=rates, ratios=ratios)
        self.parameters: list[nn.Parameter] = [row for group in self.optimizer.param_groups for row in group["params"]]
        self.n_steps = math.ceil(len(run.train.widths) / run.settings.batch_size)
        self._allocation = allocation_of(run.adapters, n_steps=run.epochs * self.n_steps)
        self._began = time.perf_counter()
        self.epoch = 0
        """Epochs that have ended."""
        self.train_seconds, self.evaluation_seconds = run.prepared_seconds, 0.0
        self._index = 0
        self._loss_sum = torch.zeros(())

    @property
    def done(self) -> bool:
        """Whether all epochs have ended."""
        return self.epoch == self.run.epochs

    @property
    def chance(self) -> int:
        """Seed of torch's chance in the epoch at hand."""
        return int(np.random.default_rng([self.run.seed, self.epoch, 1]).integers(2**63))

    def steps(self) -> Iterator[Step]:
        """The steps of the next epoch; the learning rate of each is set when it comes."""
        run, settings = self.run, self.run.settings
        self._loss_sum = torch.zeros((), dtype=torch.float32, device=run.loaded.model.device)
        batches = training_batches(run.train.widths, settings.batch_size, seed=run.seed, epoch=self.epoch)
        largest = largest_batch(run.train.widths, batches) if self.epoch == 0 else None
        cut = [in_parts(rows, settings.accumulation) for rows in batches]
        collated = batches_of(run.train, [part for parts in cut for part in parts], pad_id=run.pad_id)
        n_parts = sum(len(parts) for parts in cut)
        keys = iter(fold_seed(torch.full((n_parts,), self.chance), torch.arange(n_parts)).tolist())
        for index, parts in enumerate(cut):
            self._index = index
            self._set_rate()
            batch_of_part = list(islice(collated, len(parts)))
            items = [n_scored(batch) for batch in batch_of_part]
            shares = [1.0] if len(parts) == 1 else [n / sum(items) for n in items]
            rows = zip(parts, batch_of_part, shares, islice(keys, len(parts)), strict=True)
            yield Step(
                parts=[Part(rows=part, batch=batch, share=share, key=key) for part, batch, share, key in rows],
                largest=index == largest,
            )

    def finish(self, loss: torch.Tensor, *, norm: torch.Tensor | None = None) -> None:
        """Take the optimizer's step with the gradients that are there.

        Args:
            loss: The step's.
            norm: Of the gradients where the step has been taken already; what is not finite has moved nothing.

        Raises:
            DivergedError: The loss is NaN or infinite; looked at every `CHECK_STEPS` steps.
        """
        self._loss_sum += loss
        if norm is None:
            if self.run.settings.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.parameters, self.run.settings.clip_norm)
            self.optimizer.step()
        else:
            self._loss_sum += 0.0 * norm
        if self._allocation is not None:
            self._allocation.after_step(self.epoch * self.n_steps + self._index)
        self.optimizer.zero_grad()
        if self._index % CHECK_STEPS == 0:
            self._finite()

    def end_epoch(self) -> float:
        """The mean loss of the epoch, which has ended.

        Raises:
            DivergedError: It is NaN or infinite.
        """
        mean = self._finite() / self.n_steps
        self.epoch += 1
        return mean

    def state(self) -> dict[str, Any]:
        """What the epochs to come depend on beside the trained tensors: tensors, numbers and texts."""
        return {
            "epoch": self.epoch,
            "seconds": [self.train_seconds, self.evaluation_seconds],
            "optimizer": self.optimizer.state_dict(),
            "allocation": None if self._allocation is None else self._allocation.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from where a course of the same run had this `state`."""
        self.epoch = state["epoch"]
        self.train_seconds, self.evaluation_seconds = state["seconds"]
        self.optimizer.load_state_dict(state["optimizer"])
        if self._allocation is not None:
            self._allocation.restore(state["allocation"])

    def check_deadline(self, seconds: float | None = None) -> None:
        """Refuse to go on past the deadline.

        Args:
            seconds: That count; None takes all since the course began.

        Raises:
            DeadlineError: They are more than the run may take.
        """
        deadline = self.run.deadline_seconds
        spent = time.perf_counter() - self._began if seconds is None else seconds
        if deadline is not None and spent > deadline:
            raise DeadlineError(
                f"training ran past its deadline of {deadline:g} s",
                hint="raise the deadline, or lower epochs or max_length",
            )

    def measured(
        self, metrics: Mapping[str, float], *, train_loss: float, peak_bytes: int, extra: Mapping[str, float]
    ) -> Measurement:
        """What there is to say after an epoch."""
        run = self.run
        return Measurement(
            epoch=self.epoch,
            metrics=metrics,
            train_loss=train_loss,
            train_seconds=self.train_seconds,
            evaluation_seconds=self.evaluation_seconds,
            tokens=self.epoch * int(run.train.lengths.sum()),
            peak_bytes=peak_bytes,
            parameters=run.adapters.n_parameters,
            head_parameters=sum(parameter.numel() for parameter in self.head.values()),
            extra=extra,
        )

    def _set_rate(self) -> None:
        settings = self.run.settings
        factor = learning_rate_factor(
            self.epoch * self.n_steps + self._index,
            total=self.run.epochs * self.n_steps,
            warmup_ratio=settings.warmup_ratio,
            schedule=settings.schedule,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = group[INITIAL] * factor

    def _finite(self) -> float:
        value = float(self._loss_sum.item())
        if not math.isfinite(value):
            raise DivergedError(
                f"the training loss became {value} in epoch {self.epoch + 1}", hint="lower the learning rate"
            )
        return value


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


def pad_id_of(loaded: LoadedModel) -> int:
    """Any id would do, the mask hides it; the tokenizer's own keeps a model that looks for it content."""
    pad_id = None if loaded.tokenizer is None else loaded.tokenizer.pad_token_id
    return pad_id if isinstance(pad_id, int) else 0


@contextmanager
def random_state(device: torch.device, seed: int) -> Iterator[None]:
    """Torch's random state at `seed` for the length of a `with` block; put back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
