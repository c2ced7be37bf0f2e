"""The slots of a pack on one base: a step of all of them, and a score of some.

Losses, gradients, clipping, optimizers and random states are each slot's own. A slot that diverges changes nothing for
its neighbours: no operation of the base mixes rows.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch

from autopeft.errors import TrialError
from autopeft.trainers.batches import AnyBatch, EncodedSplit, IntArray, batches_of, evaluation_batches, merged, n_scored
from autopeft.trainers.course import Part, Run
from autopeft.trainers.failures import failure_of
from autopeft.trainers.model import LoadedModel, set_training
from autopeft.trainers.packed.bank import Banks
from autopeft.trainers.packed.chance import Chances
from autopeft.trainers.packed.groups import Size, grouped
from autopeft.trainers.packed.layout import Layout
from autopeft.trainers.packed.routing import Member, Router
from autopeft.trainers.packed.slot import Slot
from autopeft.trainers.scores import Collector, Scores
from autopeft.trainers.training_loss import OfOutputs, training_loss

Failure = tuple[str, str]
"""(kind, message)."""
Failures = Mapping[Slot, Failure]


@final
class Pack:
    """The slots on one base model.

    Args:
        loaded: The base with its head; its own head is not trained here, every slot has a copy.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._device = loaded.model.device
        self._chances = Chances(self._device)
        self._router = Router(loaded, self._chances)
        self._banks = Banks()
        self._training: bool | None = None
        self._most_slots = 1 << 16

    def join(self, key: int, begin: Callable[[], Run]) -> Slot:
        """A slot for what `begin` attaches to the bare model, with a copy of the head as it then is."""
        member = Member(key)
        with self._router.joining(member):
            run = begin()
            for name in self._loaded.head_names:
                member.heads[name] = copy.deepcopy(self._loaded.model.get_submodule(name))
        self._training = None
        return Slot(run, member)

    def leave(self, slot: Slot) -> None:
        """Take a slot out; the others are left as they are."""
        self._banks.leave(slot)
        self._router.leave(slot.member)
        self._chances.end(slot.member.key)
        slot.run.adapters.remove()

    def bare(self) -> Any:
        """A context in which the model has nothing of the pack on it."""
        self._training = None
        return self._router.bare()

    def step(self, slots: Sequence[Slot]) -> Failures:
        """One step of every slot, whose `step` says which; those that failed, and why.

        What runs out of memory together is run in smaller groups; a slot that does alone has failed.
        """
        began = time.perf_counter()
        self._set_mode(slots, training=True)
        failures: dict[Slot, Failure] = {}
        while True:
            left = [slot for slot in slots if slot not in failures]
            kept = self._chances.kept()
            try:
                self._gradients(left)
                break
            except _OutOfMemoryError as error:
                self._chances.put_back(kept)
                self._forget(left)
                if len(error.slots) == 1:
                    failures[error.slots[0]] = error.failure
                else:
                    self._most_slots = max(1, len(error.slots) // 2)
        norms = self._banks.step(left)
        for slot in left:
            try:
                slot.course.finish(slot.loss, norm=norms.get(slot))
                slot.course.check_deadline(slot.seconds)
            except TrialError as error:
                failures[slot] = error.kind, str(error)
        cells = sum(slot.cells for slot in slots)
        for slot in slots:
            slot.course.train_seconds += (time.perf_counter() - began) * slot.cells / cells
            slot.step = None
        return failures

    def begin_epoch(self, slot: Slot) -> None:
        """Start the slot's chance of its next epoch."""
        self._chances.start(slot.member.key, slot.course.chance)

    def scores(self, slots: Sequence[Slot], split: EncodedSplit) -> dict[Slot, Scores | Failure]:
        """What each slot says of every row of `split`; all of them read a batch at once."""
        self._set_mode(slots, training=False)
        found: dict[Slot, Scores | Failure] = {}
        waiting = [list(slots)]
        while waiting:
            group = waiting.pop()
            try:
                found |= self._scored(group, split)
            except (RuntimeError, MemoryError) as error:
                failure = failure_of(error)
                if failure is None:
                    raise
                if len(group) == 1:
                    found[group[0]] = failure
                else:
                    waiting += [group[len(group) // 2 :], group[: len(group) // 2]]
        return found

    def _scored(self, slots: Sequence[Slot], split: EncodedSplit) -> dict[Slot, Scores]:
        collectors = {slot: Collector(slot.run.task, slot.run.metrics) for slot in slots}
        for size in sorted({slot.run.settings.evaluation_batch_size for slot in slots}):
            same = [slot for slot in slots if slot.run.settings.evaluation_batch_size == size]
            batches = evaluation_batches(split.widths, size)
            for rows, batch in zip(batches, batches_of(split, batches, pad_id=slots[0].run.pad_id), strict=True):
                for group in self._grouped(same, [batch] * len(same)):
                    members = [same[index] for index in group]
                    began = time.perf_counter()
                    with torch.inference_mode():
                        ask = OfOutputs(members[0].run.task, self._loaded.model).outputs
                        own_batches, own_rows = [batch] * len(members), [rows] * len(members)
                        outputs, targets, sizes = self._outputs(members, own_batches, split, own_rows, ask)
                    for slot, output, target in zip(members, outputs.split(sizes), targets.split(sizes), strict=True):
                        collectors[slot].add(output, target, np.repeat(rows, batch.items))
                        slot.course.evaluation_seconds += (time.perf_counter() - began) / len(members)
        return {slot: collector.scores() for slot, collector in collectors.items()}

    def _gradients(self, slots: Sequence[Slot]) -> None:
        """Losses and gradients of every slot's step."""
        for slot in slots:
            slot.loss = torch.zeros((), dtype=torch.float32, device=self._device)
        measured = [slot for slot in slots if slot.step is not None and slot.step.largest]
        for slot in measured:
            with slot.meter.step(slot.course.optimizer):
                self._run_parts([slot])
        self._run_parts([slot for slot in slots if slot not in measured])

    def _run_parts(self, slots: Sequence[Slot]) -> None:
        parts = {slot: slot.step.parts for slot in slots if slot.step is not None}
        for index in range(max((len(row) for row in parts.values()), default=0)):
            now = [(slot, row[index]) for slot, row in parts.items() if index < len(row)]
            for group in self._grouped([slot for slot, _ in now], [part.batch for _, part in now]):
                self._pass([now[index] for index in group])

    def _grouped(self, slots: Sequence[Slot], batches: Sequence[AnyBatch]) -> list[list[int]]:
        n_layers = self._loaded.shape.n_layers
        sizes = [Size(batch.mask_BT.shape, slot.run.cut / n_layers) for slot, batch in zip(slots, batches, strict=True)]
        return grouped(sizes, device=self._device.type, most_slots=self._most_slots)

    def _pass(self, rows: Sequence[tuple[Slot, Part]]) -> None:
        """Forward and backward of some slots' rows together."""
        slots = [slot for slot, _ in rows]
        try:
            with self._chances.drawing():
                parts = [part for _, part in rows]
                for slot, part in rows:
                    slot.run.adapters.passing.begin(part.key)
                batches, split = [part.batch for part in parts], slots[0].run.train
                way = training_loss(slots[0].run.task, self._loaded.model)
                losses = way.losses(*self._outputs(slots, batches, split, [part.rows for part in parts], way.outputs))
                whole = [self._whole(*row, loss) for row, loss in zip(rows, losses, strict=True)]
            trained = [loss for loss in whole if loss is not None]
            if trained:
                torch.stack(trained).sum().backward()
        except (RuntimeError, MemoryError) as error:
            failure = failure_of(error)
            if failure is None:
                raise
            raise _OutOfMemoryError(slots, failure) from None

    def _whole(self, slot: Slot, part: Part, loss: torch.Tensor) -> torch.Tensor | None:
        """What `loss` is of the slot's step, in what is to be differentiated; None where this step trains nothing."""
        penalty = slot.run.adapters.penalty()
        slot.loss = slot.loss + part.share * loss.detach()
        if not slot.course.parameters:
            return None
        whole = part.share * (loss if penalty is None else loss + penalty)
        return whole if whole.requires_grad else None

    def _outputs(
        self,
        slots: Sequence[Slot],
        batches: Sequence[AnyBatch],
        split: EncodedSplit,
        rows: Sequence[IntArray],
        ask: Callable[[AnyBatch, torch.device], tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """What `ask` gives for all slots' items, their targets, and how many each slot has.

        Their rows go through the base together, from where any slot adapts it.
        """
        run = min((slot.run for slot in slots), key=lambda run: run.cut)
        layout = Layout(*zip(*(batch.mask_BT.shape for batch in batches), strict=True))
        members = [slot.member for slot in slots]
        with run.entering(split, np.concatenate(rows)), self._router.running(members, layout):
            outputs, targets = ask(merged(batches, pad_id=run.pad_id), self._device)
        return outputs, targets, [n_scored(batch) for batch in batches]

    def _set_mode(self, slots: Sequence[Slot], *, training: bool) -> None:
        """Dropout of adapters and heads on or off."""
        if self._training is not training:
            set_training(self._loaded, training=training)
            self._training = training
        for slot in slots:
            if slot.run.adapters.training is not training:
                for module in slot.modules:
                    module.train(training)

    def _forget(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            slot.course.optimizer.zero_grad()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


class _OutOfMemoryError(Exception):
    """Some slots together, or one, took more memory than there is."""

    def __init__(self, slots: Sequence[Slot], failure: Failure) -> None:
        super().__init__(failure[1])
        self.slots, self.failure = slots, failure
