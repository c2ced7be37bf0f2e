"""One configuration of a pack: its course, what of it acts on the model, and the step that is next."""

from collections.abc import Iterator
from typing import final

import torch
from torch import nn

from autopeft.objectives.measurement import Measurement
from autopeft.trainers.course import Course, Run, Step
from autopeft.trainers.meter import MemoryMeter
from autopeft.trainers.packed.routing import Member
from autopeft.trainers.snapshot import restore_snapshot, save_snapshot


@final
class Slot:
    """A member with a course.

    Args:
        run: What is trained.
        member: Its hooks and its copy of the head.
    """

    def __init__(self, run: Run, member: Member) -> None:
        self.run = run
        self.member = member
        self.head = {
            f"{name}.{inner}": parameter
            for name, module in member.heads.items()
            for inner, parameter in module.named_parameters()
        }
        self.course = Course(run, self.head)
        twins = tuple(member.heads.values())
        self.meter = MemoryMeter(
            device=run.loaded.model.device, modules=(run.loaded.model, run.adapters), twins=twins, beside=True
        )
        self.step: Step | None = None
        """What is to be done next; None when that is not known yet, or the epoch has ended."""
        self.ended = False
        """Whether the epoch has no further step."""
        self.loss = torch.zeros(())
        self.measured: tuple[Measurement, ...] = ()
        """After each epoch that has ended."""
        self._earlier_seconds = 0.0
        self._steps: Iterator[Step] | None = None

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """All that is trained."""
        return (self.run.adapters, *self.member.heads.values())

    @property
    def cells(self) -> int:
        """Cells (rows times longest row) of its step."""
        return 0 if self.step is None else sum(part.batch.mask_BT.size for part in self.step.parts)

    @property
    def seconds(self) -> float:
        """Its share of the time that the pack has taken, its preparation left out, and what was before a restoring."""
        course = self.course
        spent = course.train_seconds - self.run.prepared_seconds + course.evaluation_seconds
        return spent - self._earlier_seconds

    @property
    def begins(self) -> bool:
        """Whether an epoch is to begin."""
        return self._steps is None and not self.ended

    def advance(self) -> None:
        """Find the next step of this epoch, or of the next one, where none waits to be done."""
        if self.step is not None or self.ended:
            return
        if self._steps is None:
            self._steps = self.course.steps()
        self.step = next(self._steps, None)
        if self.step is None:
            self._steps, self.ended = None, True

    def restore(self) -> None:
        """Go on from the checkpoint of the run where one is kept, whoever trained beside it then; `measured` tells."""
        if self.run.checkpoint is not None:
            self.measured = restore_snapshot(self.run.checkpoint, self.course, meter=self.meter)
            self._earlier_seconds = self.seconds

    def note(self, measurement: Measurement) -> None:
        """An epoch has ended; its checkpoint is written where one is kept and another epoch comes."""
        self.measured = (*self.measured, measurement)
        if self.run.checkpoint is not None and not self.course.done:
            save_snapshot(self.run.checkpoint, self.course, measured=self.measured, meter=self.meter)

    def head_state(self) -> dict[str, torch.Tensor]:
        """Its head's tensors by their names in the model."""
        return {name: parameter.detach() for name, parameter in self.head.items()}
