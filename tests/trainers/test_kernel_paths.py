"""Trainers run the kernels where a CUDA device would, and what they train comes out as on a CPU.

A CUDA device is assumed. What its kernels would compute their twins do, or the kernels themselves under Triton's
interpreter, which has to be chosen before Triton is imported: the first test runs this file again in such a process.
"""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from autopeft.kernels import low_rank as operations
from autopeft.kernels.device import assuming_cuda
from autopeft.kernels.dispatch import Operation
from autopeft.spaces.configuration import Configuration
from autopeft.trainers import training_loss
from autopeft.trainers.adapters import lora as pairs
from autopeft.trainers.adapters import mola as experts
from autopeft.trainers.job import DataSpec, TaskSpec
from autopeft.trainers.packed import bank
from autopeft.trainers.packed import low_rank as grouped
from autopeft.trainers.trainer import Trainer
from tests.configurations import configuration, setting
from tests.models import MODELS
from tests.trainers import support
from tests.trainers.packed.support import MIXED, by_slot, job, one_pass, same
from tests.trainers.test_data import write

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="the interpreter has its own process")
QUERY_VALUE = MODELS["bert"].query_value
ROUNDING = 1e-4
"""Of a loss, relative: fp32 sums in another order, after some steps."""


@pytest.mark.skipif(not HAS_TRITON or INTERPRETED, reason="Triton is not installed, or interprets already")
def test_the_interpreter_runs_what_trainers_run_on_a_gpu() -> None:
    command = [sys.executable, "-m", "pytest", "-o", "addopts=-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    done = subprocess.run(
        [*command, "-k", "interpreted"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"[1-9]\d* passed", done.stdout), done.stdout[-2000:]


@contextmanager
def on_cuda(*, twins: bool = True) -> Iterator[None]:
    """Inside, everything is dispatched as on a CUDA device, and computed by the kernels or by their twins."""
    with assuming_cuda(launches=True), pytest.MonkeyPatch.context() as patch:
        if twins:
            patch.setattr(Operation, "kernel", lambda operation: operation.twin)
        yield


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    folder = tmp_path_factory.mktemp("kernels")
    settings = replace(support.SETTINGS, batch_size=8, max_length=10)
    return support.trainer(folder, support.classification(folder, n=14), settings=settings)


def lora(*layers: int, rank: int, dropout: float = 0.0, **training: float) -> Configuration:
    row = setting("lora", layers, rank=rank, targets=QUERY_VALUE, alpha=16.0, dropout=dropout)
    return configuration(row, **training)


SLOTS = (
    lora(0, 1, 2, rank=8),
    lora(0, 1, rank=3, learning_rate=2e-2),
    lora(0, 2, rank=2, dropout=0.3),
    lora(1, 2, rank=5, dropout=0.1),
)
MOLA = configuration(setting("mola", (0, 2), experts=3, rank=2, top_k=2, targets=QUERY_VALUE, dropout=0.2, balance=0.1))
EVEN = configuration(setting("mola", (0, 2), experts=3, rank=2, targets=QUERY_VALUE, dropout=0.0, balance=0.1))
GROUP = configuration(setting("lora_group", (0, 2), group=2, rank=2, targets=QUERY_VALUE))


def test_a_cpu_runs_no_kernel_and_none_of_its_twins(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((pairs, "lora_linear"), (pairs, "shrink"), (grouped, "lora_linear"), (operations, "_run")):
        monkeypatch.setattr(module, name, None)
    monkeypatch.setattr(experts, "routed_lora", None)
    monkeypatch.setattr(bank, "implementation", None)
    assert all(report.failure is None for report in trainer.run(job((SLOTS[2], GROUP, MOLA), epochs=1)))
    assert all(report.failure is None for report in trainer.run(job(SLOTS[:2], epochs=1, at_once=2)))


@pytest.mark.parametrize(
    "config", [SLOTS[0], GROUP, EVEN, lora(0, rank=70)], ids=["lora", "group", "experts", "no kernel holds it"]
)
def test_a_trial_has_the_losses_of_a_cpu_where_nothing_is_dropped(trainer: Trainer, config: Configuration) -> None:
    with on_cuda():
        found = list(trainer.run(job((config,))))
    same(found, list(trainer.run(job((config,)))), tolerance=ROUNDING, memory=False)


def counted(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> list[tuple[object, ...]]:
    """Arguments of every call of a function of `module` from now on."""
    calls: list[tuple[object, ...]] = []
    run = getattr(module, name)

    def noted(*args: object, **options: object) -> object:
        calls.append(args)
        return run(*args, **options)

    monkeypatch.setattr(module, name, noted)
    return calls


def test_map_and_pair_are_one_operation_where_nothing_stands_between(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, halves = counted(monkeypatch, pairs, "lora_linear"), counted(monkeypatch, pairs, "expand_add")
    scaled = configuration(
        setting("lora", (0,), rank=2, targets=QUERY_VALUE), setting("ssf", (0,), enabled=1, targets=QUERY_VALUE)
    )
    first = configuration(
        setting("ia3", (0,), enabled=1, targets=QUERY_VALUE), setting("lora", (0,), rank=2, targets=QUERY_VALUE)
    )
    with on_cuda():
        list(trainer.run(job((SLOTS[0],), epochs=1)))
        assert whole
        assert not halves
        for config in (scaled, first):
            same(list(trainer.run(job((config,)))), plain(trainer, config), tolerance=ROUNDING)


def plain(trainer: Trainer, *configs: Configuration) -> list[object]:
    """Reports of the CPU's own paths, whatever is assumed around."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autopeft.kernels.dispatch.choose", lambda *_, **__: "torch")
        return list(trainer.run(job(configs)))


def test_pairs_of_several_slots_are_one_operation_with_the_same_losses(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch, grouped, "summed")
    with on_cuda(), one_pass():
        packed = by_slot(trainer.run(job(SLOTS, at_once=4)))
        assert max(sum(pair is not None for pair in args[0]) for args in calls) == 3  # type: ignore[attr-defined]
        alone = by_slot(trainer.run(job(SLOTS)))
    for slot, own in alone.items():
        same(packed[slot], own)


def test_what_a_step_drops_follows_from_the_seed_and_differs_from_step_to_step(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch, pairs, "lora_linear")

    def keys() -> list[int]:
        calls.clear()
        list(trainer.run(job((SLOTS[2],))))
        return [args[5].seed.item() for args in calls if args[5].drops]  # type: ignore[attr-defined]

    with on_cuda():
        first = keys()
        assert first == keys()
    assert len(set(first)) == 2 * 2, "epochs and their steps"
    assert len(first) == len(set(first)) * 2 * 2, "layers and targets"


def test_a_layer_that_is_computed_twice_drops_the_same_both_times(trainer: Trainer, tmp_path: Path) -> None:
    settings = replace(support.SETTINGS, batch_size=8, max_length=10, checkpointing=True)
    twice = support.trainer(tmp_path, support.classification(tmp_path, n=14), settings=settings)
    for config in (SLOTS[2], MOLA):
        with on_cuda():
            found, expected = list(twice.run(job((config,)))), list(trainer.run(job((config,))))
        same(found, expected, memory=False)


def test_slots_of_all_kinds_move_together_as_alone(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, bank, "implementation")
    with on_cuda(), one_pass():
        packed = by_slot(trainer.run(job(MIXED, at_once=len(MIXED))))
        n_calls = len(calls)
        alone = by_slot(trainer.run(job(MIXED)))
    assert 0 < n_calls == len(calls), "a trial alone has its own optimizer"
    for slot, own in alone.items():
        same(packed[slot], own)


def test_experts_beside_others_train_as_alone(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, experts, "routed_lora")
    with on_cuda(), one_pass():
        packed = by_slot(trainer.run(job((SLOTS[2], MOLA), at_once=2)))
        alone = by_slot(trainer.run(job((SLOTS[2], MOLA))))
    assert calls
    for slot, own in alone.items():
        same(packed[slot], own)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    folder = tmp_path_factory.mktemp("language")
    settings = replace(support.SETTINGS, batch_size=40, max_length=10)
    return support.trainer(folder, support.language(folder), model="llama", settings=settings)


def llama(*layers: int, rank: int, dropout: float = 0.0) -> Configuration:
    targets = MODELS["llama"].query_value
    return configuration(setting("lora", layers, rank=rank, targets=targets, alpha=16.0, dropout=dropout))


TEXTS = (llama(0, 2, rank=4), llama(1, 2, rank=2))


def test_a_language_model_s_loss_is_computed_from_its_hidden_states(
    writer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = by_slot(writer.run(job(TEXTS)))
    calls = counted(monkeypatch, training_loss, "linear_cross_entropy")
    assert not calls
    with on_cuda():
        alone = by_slot(writer.run(job(TEXTS)))
        n_alone = len(calls)
        with one_pass():
            packed = by_slot(writer.run(job(TEXTS, at_once=2)))
    assert n_alone == 2 * 2 * 3, "configurations, epochs and steps"
    assert len(calls) - n_alone == 2 * 3 + 2, "slots together, but for the step that is measured"
    for slot, own in plain.items():
        same(alone[slot], own, tolerance=ROUNDING, memory=False)
        same(packed[slot], alone[slot])


@interpreted
def test_interpreted_kernels_train_as_their_twins(tmp_path: Path) -> None:
    few = DataSpec(
        train=write(tmp_path / "train.csv", support.rows(4, seed=0)),
        validation=write(tmp_path / "validation.csv", support.rows(2, seed=1)),
    )
    task = TaskSpec(kind="text-classification", data=few, text=("text",), label="label", metric="accuracy")
    small = support.trainer(tmp_path, task, settings=replace(support.SETTINGS, batch_size=2, max_length=8))
    asked = job((*SLOTS[1:3], MOLA), epochs=1, at_once=3)
    with one_pass():
        with on_cuda(twins=False):
            kernels = by_slot(small.run(asked))
        with on_cuda():
            twins = by_slot(small.run(asked))
    for slot, own in twins.items():
        same(kernels[slot], own, tolerance=ROUNDING)
