"""The configurations of a job and those that come later, each with its slot."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from autopeft.spaces.configuration import Configuration
from autopeft.trainers.job import AbstractSlots, TrainJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One configuration that is to be trained."""

    slot: int
    """Its number in reports."""
    job: TrainJob
    """The job that brought it."""
    index: int = 0
    """Its place there."""

    @property
    def configuration(self) -> Configuration:
        return self.job.configurations[self.index]

    @property
    def seed(self) -> int:
        return self.job.seeds[self.index]

    @property
    def folder(self) -> Path | None:
        """Where the trained adapter is to be written."""
        return self.job.output_dirs[self.index] if self.job.output_dirs else None

    @property
    def checkpoint(self) -> Path | None:
        """Where its state between two epochs is kept."""
        return self.job.checkpoints[self.index] if self.job.checkpoints else None


@final
class Entries:
    """Numbers the configurations of a job, and what `slots` gives after them."""

    def __init__(self, job: TrainJob, slots: AbstractSlots | None) -> None:
        _check(job)
        self.given = tuple(Entry(slot=index, job=job, index=index) for index in range(len(job.configurations)))
        self._slots = slots
        self._next = len(self.given)

    def stopped(self, slot: int) -> bool:
        """Whether this configuration is to train no more."""
        return self._slots is not None and self._slots.stopped(slot)

    def refill(self) -> Entry | None:
        """What takes a slot that is free now; None for nothing."""
        job = None if self._slots is None else self._slots.refill()
        if job is None:
            return None
        _check(job)
        assert len(job.configurations) == 1, "a refill is one configuration"
        self._next += 1
        return Entry(slot=self._next - 1, job=job)

    def in_turn(self) -> Iterator[Entry]:
        """One after the other: those of the job, then refills until there is none."""
        yield from self.given
        while (entry := self.refill()) is not None:
            yield entry


def _check(job: TrainJob) -> None:
    assert len(job.seeds) == len(job.configurations), "one seed a configuration"
    assert not job.output_dirs or len(job.output_dirs) == len(job.configurations), "one folder a configuration"
    assert not job.checkpoints or len(job.checkpoints) == len(job.configurations), "one checkpoint a configuration"
