"""Trials of packs that are broken off between two epochs, and go on in any slot of any pack, or alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autopeft.spaces.configuration import Configuration
from autopeft.trainers import snapshot
from autopeft.trainers.job import Report, TrainJob
from autopeft.trainers.packed.slot import Slot
from autopeft.trainers.trainer import Trainer
from tests.configurations import configuration, setting
from tests.models import MODELS
from tests.trainers.packed.support import HEAD, IA3, LORA, MOLA, PREFIX, SERIAL, by_slot, job, same
from tests.trainers.packed.test_drive import Script
from tests.trainers.test_allocation import adalora

EPOCHS = 3
DROPPED = configuration(
    setting("lora", (0, 1, 2), rank=4, targets=MODELS["bert"].query_value, dropout=0.3), learning_rate=5e-3
)
PROMPT = configuration(setting("prompt_tuning", (0,), length=3))
SOME = (LORA, DROPPED, PREFIX, MOLA, IA3, adalora(warmup_share=0.1, final_share=0.1), HEAD, PROMPT)
"""Dropout, optimizers with states of their own, ranks that move, a head alone, and one that never shares the base."""


pytestmark = pytest.mark.usefixtures("together")


@pytest.fixture(scope="module")
def whole(trainer: Trainer) -> dict[int, list[Report]]:
    """What each of `SOME` reports alone, undisturbed."""
    return by_slot(trainer.run(job(SOME, epochs=EPOCHS)))


def files(folder: Path) -> tuple[Path, ...]:
    return tuple(folder / f"state-{slot}.pt" for slot in range(len(SOME)))


def broken_off(trainer: Trainer, what: TrainJob, *, after: int) -> None:
    """Train until every slot has reported that epoch; then the worker is gone."""
    reports, waiting = trainer.run(what), set(range(len(what.configurations)))
    for report in reports:
        assert report.measurement is not None
        waiting -= {report.slot} if report.measurement.epoch == after else set()
        if not waiting:
            break
    reports.close()  # type: ignore[attr-defined]  # a generator


def turned(what: TrainJob, order: Sequence[int], *, at_once: int) -> TrainJob:
    """Some of a job's trials in another order: the slots are others."""
    return replace(
        what,
        configurations=tuple(what.configurations[slot] for slot in order),
        seeds=tuple(what.seeds[slot] for slot in order),
        checkpoints=tuple(what.checkpoints[slot] for slot in order),
        at_once=at_once,
    )


@pytest.mark.parametrize("after", [1, 2])
def test_what_goes_on_in_another_slot_ends_as_if_it_had_never_stopped(
    after: int, trainer: Trainer, whole: dict[int, list[Report]], tmp_path: Path
) -> None:
    what = job(SOME, at_once=len(SOME), epochs=EPOCHS, checkpoints=files(tmp_path))
    broken_off(trainer, what, after=after)
    order = [6, 2, 0, 5, 1, 3, 7, 4]
    reports = by_slot(trainer.run(turned(what, order, at_once=4)))
    for slot, number in enumerate(order):
        same(reports[slot], whole[number])


def test_what_began_in_a_pack_goes_on_alone_and_the_other_way_round(
    trainer: Trainer, whole: dict[int, list[Report]], tmp_path: Path
) -> None:
    for folder, first, then in ((tmp_path / "one", len(SOME), 1), (tmp_path / "other", 1, len(SOME))):
        what = job(SOME, at_once=first, epochs=EPOCHS, checkpoints=files(folder))
        if first == 1:
            for slot in range(len(SOME)):
                broken_off(trainer, turned(what, [slot], at_once=1), after=1)
        else:
            broken_off(trainer, what, after=1)
        for slot, own in by_slot(trainer.run(replace(what, at_once=then))).items():
            same(own, whole[slot])


def test_a_promoted_trial_takes_a_slot_that_is_free_and_epochs_are_not_trained_again(
    trainer: Trainer, whole: dict[int, list[Report]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = job((LORA, DROPPED), at_once=2, epochs=EPOCHS, checkpoints=files(tmp_path)[:2])
    stopped = by_slot(trainer.run(what, Script(stops=(1,))))
    assert [len(stopped[slot]) for slot in (0, 1)] == [EPOCHS, 1]
    begun: list[tuple[object, int]] = []
    advance = Slot.advance

    def watched(slot: Slot) -> None:
        if slot.begins:
            begun.append((slot.run.checkpoint, slot.course.epoch + 1))
        advance(slot)

    monkeypatch.setattr(Slot, "advance", watched)
    going_on = turned(what, [1], at_once=1)
    reports = by_slot(trainer.run(job((SERIAL,), at_once=2, epochs=EPOCHS), Script(more=[going_on])))
    same(reports[1], whole[1])
    assert [epoch for path, epoch in begun if path == what.checkpoints[1]] == [2, 3]


def test_one_that_is_stopped_by_what_it_reports_again_frees_its_slot(trainer: Trainer, tmp_path: Path) -> None:
    what = job((LORA, DROPPED), at_once=2, epochs=EPOCHS, checkpoints=files(tmp_path)[:2])
    broken_off(trainer, what, after=2)
    reports = by_slot(trainer.run(what, Script(stops=(0,))))
    assert [len(reports[slot]) for slot in (0, 1)] == [1, EPOCHS]


def test_a_deadline_does_not_count_what_was_before(trainer: Trainer, tmp_path: Path) -> None:
    what = job((LORA,), at_once=2, epochs=EPOCHS, checkpoints=files(tmp_path)[:1])
    broken_off(trainer, what, after=1)
    state = snapshot._read(what.checkpoints[0], device=trainer.loaded.model.device)
    assert state is not None
    torch.save({**state, "course": {**state["course"], "seconds": [1e6, 1e6]}}, what.checkpoints[0])
    reports = list(trainer.run(replace(what, settings={"deadline_seconds": 1e4})))
    assert [report.failure for report in reports] == [None] * EPOCHS


def test_one_whose_state_does_not_fit_fails_by_itself(
    trainer: Trainer, whole: dict[int, list[Report]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restore = Slot.restore

    def greedy(slot: Slot) -> None:
        if slot.member.key == 1:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
        restore(slot)

    monkeypatch.setattr(Slot, "restore", greedy)
    reports = by_slot(trainer.run(job(SOME[:3], at_once=3, epochs=EPOCHS, checkpoints=files(tmp_path)[:3])))
    assert reports[1][0].failure is not None
    assert reports[1][0].failure[0] == "oom"
    for slot in (0, 2):
        same(reports[slot], whole[slot])


def test_a_configuration_is_what_makes_two_trials_differ(trainer: Trainer, tmp_path: Path) -> None:
    """A checkpoint of another configuration is passed over in a pack as it is alone."""
    (path,) = files(tmp_path)[:1]

    def with_path(one: Configuration) -> TrainJob:
        return job((one,), at_once=2, epochs=EPOCHS, checkpoints=(path,))

    broken_off(trainer, with_path(DROPPED), after=2)
    same(list(trainer.run(with_path(LORA))), list(trainer.run(job((LORA,), epochs=EPOCHS))))
