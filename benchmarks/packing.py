"""Trials per hour of K configurations at once on one base, against one by one and against processes side by side.

    python benchmarks/packing.py [DATA] [--device cpu|cuda] [--tiny] [--slots 1 2 4 8] [--processes 2] [--rows N]

DATA is a folder with train.csv and validation.csv (columns text, maybe text_pair, and label), or the word `words` for
rows that are made up (the default). The configurations are LoRA of several ranks, serial and parallel bottlenecks,
prefixes and heads alone, with dropout, seeds and rates of their own, on all layers and on the upper half. Every side
trains the same ones; losses are compared before anything is timed. Then each lever is switched off in turn: the kept
prefix, passes of several slots, and their grouping by length. Appends rows to benchmarks/results/packing.jsonl.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import torch
from common import write_rows
from models import SHAPES, make_model, make_rows
from step_time import default_model

from autopeft.spaces.configuration import Configuration, MethodSetting
from autopeft.spaces.methods import METHODS
from autopeft.spaces.model_shape import ModelShape, Role
from autopeft.trainers.job import DataSpec, ModelSpec, TaskSpec, TrainingSettings, TrainJob
from autopeft.trainers.packed import groups
from autopeft.trainers.trainer import Trainer

TOLERANCE = 2e-2
"""Of a training loss, relative, in bf16; float32 stays below 1e-4."""
LEVERS = ("prefix", "passes", "lengths")


def configurations(shape: ModelShape, n: int, *, lowest: int) -> tuple[Configuration, ...]:
    """`n` of five kinds in turn, on the layers from `lowest` up."""
    layers = tuple(range(lowest, shape.n_layers))
    roles = (Role.QUERY, Role.VALUE, Role.QUERY_KEY_VALUE)
    targets = tuple(site.name for site in shape.layers[0] if site.role in roles)
    kinds: list[dict[str, dict[str, object]]] = [
        {"lora": {"rank": 8, "targets": targets, "dropout": 0.1}},
        {"serial_adapter": {"bottleneck": 16}},
        {"lora": {"rank": 2, "targets": targets, "alpha": 8.0}},
        {"parallel_adapter": {"bottleneck": 32}},
        {"prefix_tuning": {"length": 8}, "lora": {"rank": 4, "targets": targets}},
    ]
    made = [_configuration(kinds[index % len(kinds)], layers) for index in range(n)]
    rates = [1e-3 * (1 + index % 3) for index in range(n)]
    return tuple(replace(row, training=(("learning_rate", rate),)) for row, rate in zip(made, rates, strict=True))


def _configuration(methods: dict[str, dict[str, Any]], layers: tuple[int, ...]) -> Configuration:
    settings: list[MethodSetting] = []
    for name in sorted(methods):
        defaults = {field.name: field.default for field in METHODS[name].fields if field.default is not None}
        fields = tuple(sorted((key, (value,) * len(layers)) for key, value in (defaults | methods[name]).items()))
        settings.append(MethodSetting(method=name, layers=layers, fields=fields))
    return Configuration(methods=tuple(settings), training=())


def job(configs: Sequence[Configuration], *, at_once: int, epochs: int) -> TrainJob:
    return TrainJob(configurations=tuple(configs), seeds=tuple(range(len(configs))), epochs=epochs, at_once=at_once)


def losses(trainer: Trainer, work: TrainJob) -> list[float]:
    """The last training loss of each configuration; the trainer waits for the device to have it."""
    found: dict[int, float] = {}
    for report in trainer.run(work):
        assert report.measurement is not None, report.failure
        found[report.slot] = report.measurement.train_loss
    return [found[slot] for slot in range(len(work.configurations))]


@contextmanager
def without(lever: str | None) -> Iterator[None]:
    """The packed engine with one of its levers off."""
    cells: dict[str, Any] = {}
    if lever == "passes":
        cells["MOST_CELLS"] = MappingProxyType({"cpu": 0, "cuda": 0})
    if lever == "lengths":
        cells["PASS_CELLS"] = MappingProxyType({"cpu": 1 << 40, "cuda": 1 << 40})
    with mock.patch.multiple(groups, **cells) if cells else mock.patch.object(groups, "PASS_CELLS", groups.PASS_CELLS):
        yield


def once(trainer: Trainer, work: TrainJob, lever: str | None) -> tuple[float, float]:
    """Wall-clock and processor seconds of a run; what is kept for all trials is dropped before it."""
    trainer._prefix = None
    began, cpu = time.perf_counter(), time.process_time()
    with without(lever):
        losses(trainer, work)
    if trainer._device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, time.process_time() - cpu


def _process(
    arguments: tuple[Any, ...], configs: Sequence[Configuration], epochs: int, barrier: Any, threads: int
) -> None:
    """One of several processes: loads, waits for the others, trains its share one by one, waits again."""
    torch.set_num_threads(threads)
    trainer = make_trainer(*arguments)
    for split in ("train", "validation"):
        trainer.tokens(split)
    barrier.wait()
    losses(trainer, job(configs, at_once=1, epochs=epochs))
    if trainer._device.type == "cuda":
        torch.cuda.synchronize()
    barrier.wait()


def beside(arguments: tuple[Any, ...], configs: Sequence[Configuration], n: int, *, epochs: int) -> tuple[float, None]:
    """Wall-clock seconds of `n` processes that train a share each on one device."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(n + 1)
    threads = max(1, torch.get_num_threads() // n)
    workers = [
        context.Process(target=_process, args=(arguments, configs[first::n], epochs, barrier, threads))
        for first in range(n)
    ]
    for worker in workers:
        worker.start()
    barrier.wait()
    began = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - began
    for worker in workers:
        worker.join()
    return seconds, None


def make_trainer(model: str, task: TaskSpec, settings: TrainingSettings, device: str) -> Trainer:
    return Trainer(ModelSpec(name=model), task, settings, device=device)


def task_of(options: argparse.Namespace, scratch: Path) -> TaskSpec:
    data = Path(options.data)
    if options.data == "words":
        data = make_rows(scratch / "rows", tiny=options.tiny, mean_tokens=options.mean_tokens)
    header = (data / "train.csv").open(encoding="utf-8").readline().strip().split(",")
    files = DataSpec(
        train=str(data / "train.csv"),
        validation=str(data / "validation.csv"),
        max_train_rows=options.rows,
        max_validation_rows=options.rows and max(16, options.rows // 4),
    )
    text = tuple(name for name in ("text", "text_pair") if name in header)
    return TaskSpec(kind="text-classification", data=files, text=text, label="label", metric="accuracy")


def model_of(options: argparse.Namespace, scratch: Path) -> str:
    name = options.model or ("roberta-base" if options.device == "cuda" or options.tiny else default_model())
    if name in SHAPES:
        return str(make_model(name, scratch / "model", tiny=options.tiny, causal=False, device=options.device))
    return name


def compared(trainer: Trainer, n: int, lowest: int, options: argparse.Namespace) -> float:
    """The largest relative difference of a loss, packed and alone."""
    configs = configurations(trainer.shape, n, lowest=lowest)
    alone = losses(trainer, job(configs, at_once=1, epochs=1))
    packed = losses(trainer, job(configs, at_once=n, epochs=1))
    worst = max(abs(mine / other - 1.0) for mine, other in zip(packed, alone, strict=True))
    assert worst < TOLERANCE, f"losses differ by {worst:.2%}: nothing is timed"
    return worst


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way to train the configurations."""

    name: str
    slots: int
    lever: str | None = None
    run: Callable[[], tuple[float, float | None]]
    """Wall-clock and processor seconds."""


def sides_of(trainer: Trainer, arguments: tuple[Any, ...], lowest: int, options: argparse.Namespace) -> list[Side]:
    """One by one, packs, packs without a lever each, processes; all train the same configurations."""
    most, epochs = max(options.slots), options.epochs
    configs = configurations(trainer.shape, most, lowest=lowest)
    bare = _without_prefix(trainer, arguments)

    def side(name: str, slots: int, lever: str | None = None) -> Side:
        work, own = job(configs, at_once=slots, epochs=epochs), bare if lever == "prefix" else trainer
        return Side(name=name, slots=slots, lever=lever, run=partial(once, own, work, lever))

    sides = [side("one by one", 1), *(side("packed", slots) for slots in options.slots if slots > 1)]
    if options.levers:
        sides += [*(side("packed", most, lever) for lever in LEVERS), side("one by one", 1, "prefix")]
    return sides + [
        Side(name=f"{n} processes", slots=n, run=partial(beside, arguments, configs, n, epochs=epochs))
        for n in options.processes
    ]


def measured(trainer: Trainer, arguments: tuple[Any, ...], lowest: int, options: argparse.Namespace) -> list[Any]:
    """A row a side: the shortest times of some rounds, in which the sides take turns."""
    sides, n = sides_of(trainer, arguments, lowest, options), max(options.slots)
    found: dict[int, list[tuple[float, float | None]]] = {}
    for turn in range(options.repeats):
        for step in range(len(sides)):
            index = (step + turn * len(sides) // options.repeats) % len(sides)
            found.setdefault(index, []).append(sides[index].run())
    wall = [min(seconds for seconds, _ in found[index]) for index in range(len(sides))]
    cpu = [min((own for _, own in found[index] if own is not None), default=None) for index in range(len(sides))]
    rows: list[dict[str, Any]] = []
    for side, seconds, own in zip(sides, wall, cpu, strict=True):
        by_cpu = None if own is None or cpu[0] is None else round(cpu[0] / own, 3)
        row = {
            "side": side.name,
            "slots": side.slots,
            "lever_off": side.lever,
            "lowest_layer": lowest,
            "seconds_per_trial": round(seconds / n, 4),
            "trials_per_hour": round(3600 * n / seconds, 1),
            "faster_than_one_by_one": round(wall[0] / seconds, 3),
            "faster_by_cpu": by_cpu,
            "load": round(os.getloadavg()[0], 2),
        }
        rows.append(row)
        shown = f"{row['faster_than_one_by_one']:6.2f}x   {by_cpu or 0:6.2f}x by processor"
        lever = f"no {side.lever}" if side.lever else ""
        print(f"layers from {lowest}: {side.name:12} {side.slots:3} {lever:11} {shown}", flush=True)
    return rows


def _without_prefix(trainer: Trainer, arguments: tuple[Any, ...]) -> Trainer:
    """The same trainer, keeping nothing; the model is not loaded again."""
    model, task, settings, device = arguments
    other = make_trainer(model, task, replace(settings, prefix_bytes=0), device)
    other._loaded, other._splits, other._tokens = trainer.loaded, trainer.splits, trainer._tokens
    return other


def main() -> None:
    options = read_arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        os.environ.setdefault("AUTOPEFT_CACHE", str(scratch / "cache"))
        settings = TrainingSettings(
            batch_size=options.batch_size, max_length=options.max_length, precision=options.precision
        )
        model = model_of(options, scratch)
        arguments = (model, task_of(options, scratch), settings, options.device)
        trainer = make_trainer(*arguments)
        lengths = trainer.tokens("train").lengths
        tokens = float(lengths.mean()) * options.batch_size
        print(f"{len(lengths)} rows, {tokens:.0f} tokens per trial per step, {trainer.loaded.model.dtype}", flush=True)
        halves = [0, trainer.shape.n_layers // 2]
        worst = max(compared(trainer, min(8, max(options.slots)), lowest, options) for lowest in halves)
        rows = [row for lowest in halves for row in measured(trainer, arguments, lowest, options)]
    common = {
        "benchmark": "packing",
        "data": options.data if options.data == "words" else Path(options.data).name,
        "model": options.model or Path(model).name,
        **{key: getattr(options, key) for key in ("device", "epochs", "batch_size", "max_length", "tiny")},
        "dtype": str(trainer.loaded.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "rows": len(lengths),
        "validation_rows": len(trainer.tokens("validation")),
        "tokens_per_trial_per_step": round(tokens, 1),
        "length_quantiles": [int(q) for q in quantiles(lengths)],
        "largest_loss_difference": worst,
    }
    print(write_rows("packing", [{**common, **row} for row in rows]))


def quantiles(lengths: Any) -> list[float]:
    """Tokens of a row at 0, 20, 50, 80 and 100 %."""
    ordered = sorted(lengths.tolist())
    return [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.0, 0.2, 0.5, 0.8, 1.0)]


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="words")
    parser.add_argument("--model", help="a folder, or a row of models.SHAPES")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--slots", type=int, nargs="+")
    parser.add_argument("--processes", type=int, nargs="*", help="side by side on the device")
    parser.add_argument("--rows", type=int, help="training rows at most; a quarter as many are scored")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--mean-tokens", type=int, default=48, help="of made-up rows")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--repeats", type=int, default=2, help="rounds, in which the sides take turns")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-levers", dest="levers", action="store_false")
    parser.add_argument("--tiny", action="store_true", help="a small model and few rows, to try the script")
    options = parser.parse_args()
    small = options.tiny or options.device == "cpu"
    options.slots = options.slots or ([1, 2, 4] if options.tiny else [1, 2, 4, 8] if small else [1, 2, 4, 8, 16, 32])
    options.processes = options.processes if options.processes is not None else ([2] if small else [4, 8])
    options.rows = options.rows or (64 if options.tiny else 256 if small else 512)
    return options


if __name__ == "__main__":
    main()
