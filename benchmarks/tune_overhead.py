"""What a trial costs beyond its training: seconds a trial with a trainer that does nothing, and the storage's part.

Usage: `python benchmarks/tune_overhead.py [--trials 60]`; appends rows to `benchmarks/results/tune_overhead.jsonl`.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import write_rows

from autopeft.objectives.measurement import Measurement
from autopeft.objectives.objective import resolve_objectives
from autopeft.search.random_search import RandomSearcher
from autopeft.search.searcher import SearchProblem
from autopeft.search.trial import TrialState
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.model_shape import ModelShape, Role, Site
from autopeft.spaces.space import SearchSpace
from autopeft.studies.definition import StudyDefinition
from autopeft.studies.drive import Plan, drive
from autopeft.studies.events import StudyEvent, TrialFinished
from autopeft.studies.executor import Resources, WorkerSpec
from autopeft.studies.records import RunRecord, TrialRecord
from autopeft.studies.storage import StudyStorage
from autopeft.trainers.job import (
    AbstractSlots,
    AbstractTrainer,
    DataSpec,
    ModelSpec,
    Report,
    TaskSpec,
    TrainingSettings,
    TrainJob,
)

OBJECTIVES = resolve_objectives(("accuracy", "parameters", "memory"), metric="accuracy")
EPOCHS = 3


class IdleTrainer(AbstractTrainer):
    """Reports `EPOCHS` epochs at once."""

    def __init__(self, model: ModelSpec, task: TaskSpec, training: TrainingSettings) -> None:
        pass

    def run(self, job: TrainJob, slots: AbstractSlots | None = None) -> Iterator[Report]:
        for epoch in range(1, job.epochs + 1):
            yield Report(slot=0, measurement=row(epoch, job.seeds[0]), done=epoch == job.epochs)

    def close(self) -> None:
        return


def row(epoch: int, seed: int) -> Measurement:
    return Measurement(
        epoch=epoch,
        metrics={"accuracy": seed % 1000 / 1000, "loss": 0.5, "f1": 0.5},
        train_loss=0.5,
        train_seconds=1.0,
        evaluation_seconds=1.0,
        tokens=1,
        peak_bytes=seed,
        parameters=seed,
    )


def space() -> SearchSpace:
    """24 dimensions: a flag and a rank for each of 12 layers."""
    sites = tuple(
        Site(name=name, d_in=768, d_out=768, bias=True, role=role)
        for name, role in (("attention.self.query", Role.QUERY), ("attention.self.value", Role.VALUE))
    )
    shape = ModelShape(
        family="bert",
        layer_path="encoder.layer",
        layers=(sites,) * 12,
        hidden_size=768,
        n_heads=12,
        n_kv_heads=12,
        head_dim=64,
        vocabulary_size=30522,
        base_parameters=109_482_240,
        embedding_parameters=23_837_184,
        causal=False,
    )
    written = {"layers": "subset", "lora": {"rank": "per_layer(choice(2, 4, 8, 16))"}}
    return SearchSpace.bind(SpaceDefinition.from_mapping(written), shape)


def storage_seconds(folder: Path, n: int) -> dict[str, list[float]]:
    """Seconds of each kind of write, one entry a trial."""
    bound = space()
    taken: dict[str, list[float]] = {"start": [], "save": [], "finish": []}
    with StudyStorage.open(f"sqlite:///{folder}/storage.db", create=True) as storage:
        study = storage.create("s", StudyDefinition(objectives=OBJECTIVES, spec={}, space={}))
        for configuration in bound.sample(np.random.default_rng(0), n):
            marks = [time.perf_counter()]
            record = TrialRecord(configuration=configuration, predicted=bound.predicted(configuration), epochs=EPOCHS)
            (number,) = study.start(bound, [record])
            marks.append(time.perf_counter())
            run = RunRecord(started=0.0, measurements=tuple(row(epoch, number) for epoch in range(1, EPOCHS + 1)))
            study.save(number, run)
            marks.append(time.perf_counter())
            study.finish(number, TrialState.COMPLETED, replace(run, ended=1.0))
            marks.append(time.perf_counter())
            for name, seconds in zip(taken, np.diff(marks), strict=True):
                taken[name].append(float(seconds))
    taken["trial"] = [a + (EPOCHS - 1) * b + c for a, b, c in zip(*taken.values(), strict=True)]
    return taken


def executor_seconds(folder: Path, n: int, resources: Resources) -> list[float]:
    """Seconds between the ends of consecutive trials, from the second one on."""
    ends: list[float] = []

    def listen(event: StudyEvent) -> None:
        if isinstance(event, TrialFinished):
            ends.append(time.perf_counter())

    bound = space()
    task = TaskSpec(kind="text-classification", data=DataSpec(), text=("text",), label="label", metric="accuracy")
    worker = WorkerSpec(
        trainer="benchmarks.tune_overhead:IdleTrainer",
        model=ModelSpec(name="none"),
        task=task,
        training=TrainingSettings(),
    )
    problem = SearchProblem(space=bound, objectives=OBJECTIVES, seed=0, n_trials=n)
    plan = Plan(
        space=bound, searcher=RandomSearcher(problem), seed=0, n_trials=n, epochs=EPOCHS, worker=worker, artifacts=None
    )
    name = f"{resources.executor}-{resources.max_jobs}"
    with StudyStorage.open(f"sqlite:///{folder}/{name}.db", create=True) as storage:
        study = storage.create("s", StudyDefinition(objectives=OBJECTIVES, spec={}, space={}))
        drive(study, plan, resources, listeners=[listen])
    assert len(ends) == n, "every trial has to finish before its time counts"
    return [float(seconds) for seconds in np.diff(ends)]


def write(name: str, seconds: list[float], **more: object) -> None:
    p20, p50, p80 = np.percentile(seconds, [20, 50, 80])
    result = {
        "name": name,
        "unit": "seconds a trial",
        "mean": round(float(np.mean(seconds)), 5),
        "p20": round(float(p20), 5),
        "p50": round(float(p50), 5),
        "p80": round(float(p80), 5),
        "n": len(seconds),
        "epochs": EPOCHS,
        "seed": 0,
        **more,
    }
    write_rows("tune_overhead", [result])
    print(f"{name:28s} mean {np.mean(seconds) * 1000:8.1f} ms   p50 {p50 * 1000:8.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=60)
    n = parser.parse_args().trials
    with tempfile.TemporaryDirectory() as folder:
        for part, seconds in storage_seconds(Path(folder), n).items():
            write(f"storage/{part}", seconds)
        write("local", executor_seconds(Path(folder), n, Resources(executor="local")), jobs=1)
        for jobs in (1, 2):
            write(f"ray/{jobs}-jobs", executor_seconds(Path(folder), n, Resources(max_jobs=jobs)), jobs=jobs)


if __name__ == "__main__":
    main()
