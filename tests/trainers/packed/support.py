"""Packs of mixed methods, and what it means that two trainings came out the same."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from autopeft.spaces.configuration import Configuration
from autopeft.trainers.job import Report, TrainJob
from autopeft.trainers.packed import groups
from tests.configurations import configuration, setting
from tests.models import MODELS

TOLERANCE = 1e-5
"""Of a loss after some steps, relative: the base's products may round otherwise when they have more rows."""
QUERY_VALUE = MODELS["bert"].query_value
LORA = configuration(
    setting("lora", (0, 2), rank=[8, 3], targets=QUERY_VALUE, alpha=16.0, dropout=0.2), learning_rate=3e-3
)
SERIAL = configuration(setting("serial_adapter", (1,), bottleneck=4), schedule="cosine", batch_size=12)
PARALLEL = configuration(setting("parallel_adapter", (0, 2), bottleneck=6), weight_decay=0.1, clip_norm=0.05)
PREFIX = configuration(setting("prefix_tuning", (0, 2), length=[3, 5]), learning_rate=2e-2)
IA3 = configuration(setting("ia3", (0, 1), enabled=1, targets=QUERY_VALUE), optimizer="galore")
MOLA = configuration(setting("mola", (1, 2), experts=3, rank=2, targets=QUERY_VALUE, dropout=0.1, balance=0.1))
HEAD = configuration(accumulation=2)
MIXED = (LORA, SERIAL, PARALLEL, PREFIX, IA3, MOLA, HEAD)
"""Methods, ranks, targets, rates, schedules, decays, bounds and batch sizes of all kinds."""


@contextmanager
def one_pass() -> Iterator[None]:
    """All slots go through the base together, however unlike their lengths are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "PASS_CELLS", {"cpu": 1 << 30})
        patch.setattr(groups, "MOST_CELLS", {"cpu": 1 << 30})
        yield


def job(configurations: Sequence[Configuration], *, at_once: int = 1, epochs: int = 2, **fields: object) -> TrainJob:
    """Seeds are 3, 4 and so on."""
    seeds = tuple(range(3, 3 + len(configurations)))
    return TrainJob(configurations=tuple(configurations), seeds=seeds, epochs=epochs, at_once=at_once, **fields)  # type: ignore[arg-type]  # by name


def by_slot(reports: Iterable[Report]) -> dict[int, list[Report]]:
    found: dict[int, list[Report]] = {}
    for report in reports:
        found.setdefault(report.slot, []).append(report)
    return found


def same(
    packed: Sequence[Report], alone: Sequence[Report], *, tolerance: float = TOLERANCE, memory: bool = True
) -> None:
    """Equal reports, losses up to `tolerance`; measured memory too where it shall be."""
    assert [(r.failure, r.done) for r in packed] == [(r.failure, r.done) for r in alone]
    for mine, other in zip(packed, alone, strict=True):
        if mine.measurement is None or other.measurement is None:
            assert mine.measurement is other.measurement
            continue
        assert mine.measurement.train_loss == pytest.approx(other.measurement.train_loss, rel=tolerance)
        assert mine.measurement.metrics["loss"] == pytest.approx(other.measurement.metrics["loss"], rel=tolerance)
        for name in ("epoch", "tokens", "parameters", "head_parameters", *(["peak_bytes"] if memory else [])):
            assert getattr(mine.measurement, name) == getattr(other.measurement, name), name
