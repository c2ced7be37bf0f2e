"""Training a job's configurations several at once: slots are filled, trained in step, and filled again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, final

from autopeft.errors import DivergedError
from autopeft.objectives.measurement import Measurement
from autopeft.trainers.batches import EncodedSplit
from autopeft.trainers.course import Run
from autopeft.trainers.failures import failure_of
from autopeft.trainers.job import Report
from autopeft.trainers.model import LoadedModel, load_head_state
from autopeft.trainers.packed.pack import Failure, Pack
from autopeft.trainers.packed.slot import Slot
from autopeft.trainers.scores import Scores
from autopeft.trainers.slots import Entries, Entry


class Host(Protocol):
    """The trainer that a pack works for."""

    def begin(self, entry: Entry) -> Run: ...

    def report(self, entry: Entry, run: Run, measurement: Measurement, scored: Scores | None) -> Report: ...

    def alone(self, entry: Entry, entries: Entries) -> Iterator[Report]: ...

    def shares(self, entry: Entry) -> bool: ...

    def tokens(self, split: str) -> EncodedSplit: ...


@final
@dataclass(frozen=True, slots=True)
class _Seat:
    """A slot, and the entry that has it."""

    entry: Entry
    slot: Slot


@final
class Packed:
    """Trains entries, up to `at_once` at a time; one that cannot share the base is trained alone in between.

    Args:
        loaded: The base with its head.
        host: Builds, scores and saves.
        entries: What is to be trained.
        at_once: Slots.
    """

    def __init__(self, loaded: LoadedModel, host: Host, entries: Entries, *, at_once: int) -> None:
        self._loaded = loaded
        self._host = host
        self._entries = entries
        self._at_once = at_once
        self._pack = Pack(loaded)
        self._given = iter(entries.given)
        self._seats: list[_Seat] = []

    def run(self) -> Iterator[Report]:
        """The reports of all entries, as they come."""
        try:
            while True:
                yield from self._fill()
                if not self._seats:
                    return
                yield from self._round()
        finally:
            for seat in list(self._seats):
                self._free(seat)

    def _fill(self) -> Iterator[Report]:
        """Give every free slot to the next entry."""
        while len(self._seats) < self._at_once:
            entry = next(self._given, None) or self._entries.refill()
            if entry is None:
                return
            if not self._host.shares(entry):
                with self._pack.bare():
                    yield from self._host.alone(entry, self._entries)
                continue
            seat = self._seated(entry)
            if isinstance(seat, _Seat):
                yield from self._earlier(seat)
            else:
                yield _failed(entry, seat)

    def _seated(self, entry: Entry) -> _Seat | Failure:
        """An entry in a slot of its own, where its checkpoint left it; or why it could not be had."""
        slot: Slot | None = None
        try:
            slot = self._pack.join(entry.slot, partial(self._host.begin, entry))
            slot.restore()
        except (RuntimeError, MemoryError) as error:
            if slot is not None:
                self._pack.leave(slot)
            failure = failure_of(error)
            if failure is None:
                raise
            return failure
        self._seats.append(_Seat(entry, slot))
        return self._seats[-1]

    def _earlier(self, seat: _Seat) -> Iterator[Report]:
        """What had been measured when the training was broken off; it goes on after that."""
        for measurement in seat.slot.measured:
            yield self._host.report(seat.entry, seat.slot.run, measurement, None)
            if self._entries.stopped(seat.entry.slot):
                self._free(seat)
                return

    def _round(self) -> Iterator[Report]:
        """One step of every slot; or, where epochs have ended, what there is to say of them."""
        for seat in self._seats:
            if seat.slot.begins:
                self._pack.begin_epoch(seat.slot)
            seat.slot.advance()
        ended = [seat for seat in self._seats if seat.slot.ended]
        if ended:
            yield from self._end_epochs(ended)
            return
        failures = self._pack.step([seat.slot for seat in self._seats])
        for seat in list(self._seats):
            if seat.slot in failures:
                yield self._fail(seat, failures[seat.slot])

    def _end_epochs(self, seats: Sequence[_Seat]) -> Iterator[Report]:
        losses: dict[Slot, float] = {}
        for seat in seats:
            seat.slot.ended = False
            try:
                losses[seat.slot] = seat.slot.course.end_epoch()
            except DivergedError as error:
                yield self._fail(seat, (error.kind, str(error)))
        scores = self._pack.scores(list(losses), self._host.tokens("validation"))
        for seat in seats:
            if seat.slot not in losses:
                continue
            report = self._ending(seat, losses[seat.slot], scores[seat.slot])
            if report.done:
                self._free(seat)
            yield report
            if not report.done and self._entries.stopped(seat.entry.slot):
                self._free(seat)

    def _ending(self, seat: _Seat, train_loss: float, found: Scores | Failure) -> Report:
        """What is said of the epoch of one slot."""
        if not isinstance(found, Scores):
            return _failed(seat.entry, found)
        slot, course = seat.slot, seat.slot.course
        peak_bytes = slot.meter.peak_bytes(course.optimizer)
        try:
            measurement = course.measured(
                found.values, train_loss=train_loss, peak_bytes=peak_bytes, extra=slot.meter.extra()
            )
        except DivergedError as error:
            return _failed(seat.entry, (error.kind, str(error)))
        slot.note(measurement)
        test: Scores | None = None
        if course.done:
            load_head_state(self._loaded, slot.head_state())
            if seat.entry.job.evaluate_test:
                scored = self._pack.scores([slot], self._host.tokens("test"))[slot]
                if not isinstance(scored, Scores):
                    return _failed(seat.entry, scored)
                test = scored
        return self._host.report(seat.entry, slot.run, measurement, test)

    def _fail(self, seat: _Seat, failure: Failure) -> Report:
        self._free(seat)
        return _failed(seat.entry, failure)

    def _free(self, seat: _Seat) -> None:
        self._seats.remove(seat)
        self._pack.leave(seat.slot)


def _failed(entry: Entry, failure: Failure) -> Report:
    return Report(slot=entry.slot, measurement=None, failure=failure, done=True)
