"""Trainings that are broken off between two epochs and go on from their checkpoint."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from autopeft.objectives.measurement import Measurement
from autopeft.spaces.configuration import Configuration
from autopeft.trainers.job import Report, TrainJob
from autopeft.trainers.trainer import Trainer
from tests.configurations import configuration, setting
from tests.models import MODELS
from tests.trainers import support
from tests.trainers.test_allocation import adalora

QUERY_VALUE = MODELS["bert"].query_value
LORA = setting("lora", (0, 1, 2), rank=8, targets=QUERY_VALUE, alpha=16.0, dropout=0.1)
SERIAL = setting("serial_adapter", (2,), bottleneck=4, activation="gelu", scale=1.0)
CASES = {
    "mixed": configuration(LORA, SERIAL, setting("prefix_tuning", (0, 2), length=3), learning_rate=5e-3),
    "ranks that move": adalora(warmup_share=0.1, final_share=0.1),
    "layers by importance": configuration(LORA, layer_sampling="importance", layers_kept=0.5, sampling_interval=2),
    "galore": configuration(LORA, optimizer="galore", galore_rank=2),
    "lora-fa": configuration(LORA, optimizer="lora_fa"),
}
EPOCHS = 4


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    folder = tmp_path_factory.mktemp("trainer")
    return support.trainer(folder, support.classification(folder))


def job(one: Configuration, checkpoint: Path | None, *, folder: Path | None = None, **changes: object) -> TrainJob:
    made = TrainJob(configurations=(one,), seeds=(7,), epochs=EPOCHS, checkpoints=(checkpoint,), output_dirs=(folder,))
    return replace(made, **changes)  # type: ignore[arg-type]  # its own fields


def broken_off(trainer: Trainer, what: TrainJob, *, after: int) -> None:
    """Train until the report of that epoch, which the driver may or may not have heard."""
    reports = trainer.run(what)
    for report in reports:
        assert report.measurement is not None
        if report.measurement.epoch == after:
            break
    reports.close()  # type: ignore[attr-defined]  # a generator


def facts(reports: Sequence[Report]) -> list[tuple[object, ...]]:
    """All that was measured but for the clock."""
    rows = [report.measurement for report in reports]
    assert all(isinstance(row, Measurement) for row in rows)
    return [(r.epoch, r.metrics, r.train_loss, r.tokens, r.peak_bytes, r.parameters, r.extra) for r in rows if r]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("after", [1, 3])
def test_what_goes_on_ends_as_if_it_had_never_stopped(name: str, after: int, trainer: Trainer, tmp_path: Path) -> None:
    checkpoint, whole, parts = tmp_path / "state.pt", tmp_path / "whole", tmp_path / "parts"
    undisturbed = list(trainer.run(job(CASES[name], None, folder=whole)))
    broken_off(trainer, job(CASES[name], checkpoint, folder=parts), after=after)
    list(trainer.run(job(CASES["mixed"], None, seeds=(99,))))  # somebody else uses model and head in between
    went_on = list(trainer.run(job(CASES[name], checkpoint, folder=parts)))
    assert facts(went_on) == facts(undisturbed)
    assert [report.done for report in went_on] == [False] * (EPOCHS - 1) + [True]
    one, other = load_file(whole / "adapter.safetensors"), load_file(parts / "adapter.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_epochs_that_were_measured_are_not_trained_again(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autopeft.trainers import loop

    checkpoint, trained = tmp_path / "state.pt", list[int]()
    own = loop._train_epoch
    monkeypatch.setattr(
        loop, "_train_epoch", lambda course, *rest: trained.append(course.epoch + 1) or own(course, *rest)
    )
    broken_off(trainer, job(CASES["mixed"], checkpoint), after=2)
    list(trainer.run(job(CASES["mixed"], checkpoint)))
    assert trained == [1, 2, 3, 4]


def test_a_checkpoint_that_is_damaged_or_of_another_training_is_passed_over(trainer: Trainer, tmp_path: Path) -> None:
    checkpoint = tmp_path / "state.pt"
    expected = facts(list(trainer.run(job(CASES["mixed"], None))))
    broken_off(trainer, job(CASES["mixed"], checkpoint), after=2)
    whole = checkpoint.read_bytes()
    for content in (b"", b"no checkpoint", whole[: len(whole) // 2]):
        checkpoint.write_bytes(content)
        assert facts(list(trainer.run(job(CASES["mixed"], checkpoint)))) == expected
    for other in (job(CASES["galore"], checkpoint), job(CASES["mixed"], checkpoint, seeds=(8,))):
        broken_off(trainer, other, after=2)
        assert facts(list(trainer.run(job(CASES["mixed"], checkpoint)))) == expected


def test_nothing_is_executed_from_a_checkpoint(trainer: Trainer, tmp_path: Path) -> None:
    checkpoint, mark = tmp_path / "state.pt", tmp_path / "mark"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (mark.touch, ())

    torch.save({"of": Evil()}, checkpoint)
    assert len(list(trainer.run(job(CASES["mixed"], checkpoint)))) == EPOCHS
    assert not mark.exists()


def test_no_checkpoint_is_written_where_none_is_asked_for_or_after_the_last_epoch(
    trainer: Trainer, tmp_path: Path
) -> None:
    list(trainer.run(job(CASES["mixed"], None)))
    assert list(tmp_path.iterdir()) == []
    list(trainer.run(job(CASES["mixed"], tmp_path / "state.pt", epochs=1)))
    assert list(tmp_path.iterdir()) == []
