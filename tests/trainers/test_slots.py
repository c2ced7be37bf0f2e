"""What the study says of slots is heeded by every trainer."""

from collections.abc import Callable
from pathlib import Path

import pytest

from autopeft.trainers.job import AbstractSlots, AbstractTrainer, TrainJob
from autopeft.trainers.synthetic import SyntheticTrainer
from tests.configurations import configuration, setting
from tests.models import MODELS
from tests.trainers import support

CONFIGURATIONS = tuple(
    configuration(setting("lora", (layer,), rank=rank, targets=MODELS["bert"].query_value))
    for layer, rank in ((0, 1), (1, 2), (2, 3), (0, 4))
)


class Said(AbstractSlots):
    """Stops each slot in `stops` after that many reports; gives the `later` jobs one by one."""

    def __init__(self, *, stops: dict[int, int] | None = None, later: tuple[TrainJob, ...] = ()) -> None:
        self.stops = stops or {}
        self.later = list(later)
        self.asked: list[int] = []

    def stopped(self, slot: int) -> bool:
        self.asked.append(slot)
        return self.asked.count(slot) == self.stops.get(slot)

    def refill(self) -> TrainJob | None:
        return self.later.pop(0) if self.later else None


def real(folder: Path) -> AbstractTrainer:
    return support.trainer(folder, support.classification(folder, n=32))


def synthetic(folder: Path) -> AbstractTrainer:
    with_shape = support.trainer(folder, support.classification(folder, n=32))
    return SyntheticTrainer(with_shape.shape)


@pytest.fixture(params=[real, synthetic], ids=["real", "synthetic"], scope="module")
def trainer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AbstractTrainer:
    make: Callable[[Path], AbstractTrainer] = request.param
    return make(tmp_path_factory.mktemp("slots"))


def job(*indices: int, epochs: int) -> TrainJob:
    return TrainJob(configurations=tuple(CONFIGURATIONS[i] for i in indices), seeds=indices, epochs=epochs)


def test_a_stopped_slot_reports_no_more_and_others_go_on(trainer: AbstractTrainer) -> None:
    said = Said(stops={0: 2})
    reports = list(trainer.run(job(0, 1, epochs=3), said))
    epochs = {slot: [r.measurement.epoch for r in reports if r.slot == slot and r.measurement] for slot in (0, 1)}
    assert epochs == {0: [1, 2], 1: [1, 2, 3]}
    assert [report.done for report in reports if report.slot == 0] == [False, False]
    assert sorted(said.asked) == [0, 0, 1, 1], "the last report of a slot is not asked after"


def test_refills_take_the_next_numbers_and_train_as_their_own_job_says(trainer: AbstractTrainer) -> None:
    said = Said(stops={0: 1}, later=(job(2, epochs=1), job(3, epochs=2)))
    reports = list(trainer.run(job(0, 1, epochs=3), said))
    by_slot = {slot: [report for report in reports if report.slot == slot] for slot in range(4)}
    assert [len(by_slot[slot]) for slot in range(4)] == [1, 3, 1, 2]
    assert by_slot[2][-1].done
    (alone,) = trainer.run(job(2, epochs=1))
    (refilled,) = by_slot[2]
    assert alone.measurement is not None
    assert refilled.measurement is not None
    assert refilled.measurement.metrics == pytest.approx(alone.measurement.metrics, rel=1e-4)
    assert refilled.measurement.parameters == alone.measurement.parameters
