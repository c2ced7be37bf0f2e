"""A small real space, a searcher and trainers without a model, for the tests of running studies."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from autopeft.errors import DivergedError, ModelError
from autopeft.objectives.measurement import Measurement
from autopeft.objectives.objective import Objective, resolve_objectives
from autopeft.search.schedulers import Fidelity, make_scheduler
from autopeft.search.searcher import AbstractSearcher
from autopeft.search.trial import History
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.space import SearchSpace
from autopeft.studies.definition import StudyDefinition
from autopeft.studies.drive import Plan
from autopeft.studies.executor import WorkerSpec
from autopeft.studies.storage import StoredStudy, StudyStorage
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
from autopeft.trainers.slots import Entries, Entry
from tests.spaces.builders import shape

OBJECTIVES: tuple[Objective, ...] = resolve_objectives(("accuracy", "parameters"), metric="accuracy")
MODEL = ModelSpec(name="none")
TASK = TaskSpec(kind="text-classification", data=DataSpec(), text=("text",), label="label", metric="accuracy")


def small_space(*, ranks: int = 40) -> SearchSpace:
    """`ranks` LoRA ranks, times two layers on or off (one at least), times a learning rate."""
    definition = SpaceDefinition.from_mapping(
        {
            "layers": "subset",
            "lora": {"rank": f"int(1, {ranks})", "targets": "subset(query, value)"},
            "learning_rate": "log(1e-4, 1e-2)",
        }
    )
    return SearchSpace.bind(definition, shape(2, hidden=48, heads=4))


def tiny_space() -> SearchSpace:
    """Exactly five configurations."""
    return SearchSpace.bind(
        SpaceDefinition.from_mapping({"lora": {"rank": "choice(1, 2, 3, 4, 5)"}}), shape(2, hidden=48, heads=4)
    )


def rank_of(configuration: Configuration) -> int:
    setting = configuration.method("lora")
    assert setting is not None
    return int(setting.column("rank")[0])  # type: ignore[arg-type]  # a size


class FreshDraws(AbstractSearcher):
    """Draws of (seed, number of trials, finished values) that were not tried; slow when told so."""

    def __init__(self, space: SearchSpace, *, seed: int = 0, seconds: float = 0.0) -> None:
        self._space, self._seed, self._seconds = space, seed, seconds

    def ask(self, history: History, n: int) -> Sequence[Configuration]:
        time.sleep(self._seconds)
        known = sum(trial.final.metrics["accuracy"] for trial in history.completed if trial.final)
        rng = np.random.default_rng([self._seed, len(history), int(known * 1e6)])
        drawn = {row.id: row for row in self._space.sample(rng, 20 * n)}
        return [row for key, row in drawn.items() if key not in history.ids][:n]


class InOrder(AbstractSearcher):
    """LoRA on everything with these ranks, one after the other."""

    def __init__(self, space: SearchSpace, *ranks: int) -> None:
        flags = {row.name: True for row in space.dimensions if row.kind == "flag"}
        self._rows = [space.assemble(flags | {"lora.rank": rank, "learning_rate": 0.001}) for rank in ranks]

    def ask(self, history: History, n: int) -> Sequence[Configuration]:
        return [row for row in self._rows if row.id not in history.ids][:n]


class EchoTrainer(AbstractTrainer):
    """Measures numbers that follow from configuration and seed; writes a small adapter file."""

    def __init__(self, model: ModelSpec, task: TaskSpec, training: TrainingSettings) -> None:
        self.seconds = float(os.environ.get("ECHO_SECONDS", "0"))

    def run(self, job: TrainJob, slots: AbstractSlots | None = None) -> Iterator[Report]:
        (configuration,), (seed,) = job.configurations, job.seeds
        rng = np.random.default_rng(seed)
        for epoch in range(1, job.epochs + 1):
            time.sleep(self.seconds)
            if job.output_dirs and epoch == job.epochs:
                write_adapter(job.output_dirs[0], configuration)
            yield Report(slot=0, measurement=measurement(configuration, epoch, rng.random()), done=epoch == job.epochs)

    def close(self) -> None:
        return


class PackTrainer(EchoTrainer):
    """As `EchoTrainer`, `at_once` configurations at a time, an epoch of each in turn; rank 13 has no room."""

    def run(self, job: TrainJob, slots: AbstractSlots | None = None) -> Iterator[Report]:
        entries = Entries(job, slots)
        given = iter(entries.given)
        seats: dict[int, Iterator[Report]] = {}
        while True:
            while len(seats) < job.at_once and (entry := next(given, None) or entries.refill()) is not None:
                seats[entry.slot] = self._alone(entry)
            if not seats:
                return
            for slot, reports in list(seats.items()):
                report = next(reports)
                yield replace(report, slot=slot)
                if report.done or entries.stopped(slot):
                    del seats[slot]

    def _alone(self, entry: Entry) -> Iterator[Report]:
        if rank_of(entry.configuration) == 13:
            yield Report(slot=0, measurement=None, failure=("oom", "no room"), done=True)
            return
        folders = (entry.folder,) if entry.folder else ()
        alone = replace(
            entry.job, configurations=(entry.configuration,), seeds=(entry.seed,), output_dirs=folders, at_once=1
        )
        yield from super().run(alone)


class KeepingTrainer(EchoTrainer):
    """Goes on from its checkpoint; notes every epoch it trains, `<seed> <epoch>`, in the file named in TRAINED."""

    def run(self, job: TrainJob, slots: AbstractSlots | None = None) -> Iterator[Report]:
        (configuration,), (seed,), (path,) = job.configurations, job.seeds, job.checkpoints
        assert path is not None
        start = int(path.read_text()) if path.is_file() else 0
        draws = np.random.default_rng(seed).random(job.epochs)
        for epoch in range(1, job.epochs + 1):
            if epoch > start:
                time.sleep(self.seconds)
                with Path(os.environ["TRAINED"]).open("a") as file:
                    file.write(f"{seed} {epoch}\n")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_suffix(".part").write_text(str(epoch))
                path.with_suffix(".part").replace(path)
            if job.output_dirs and epoch == job.epochs:
                write_adapter(job.output_dirs[0], configuration)
            reached = float(draws[:epoch].max())
            yield Report(slot=0, measurement=measurement(configuration, epoch, reached), done=epoch == job.epochs)


class TroubledTrainer(EchoTrainer):
    """Fails in a way that follows from the rank; rank 0 mod 7 is fine."""

    def run(self, job: TrainJob, slots: AbstractSlots | None = None) -> Iterator[Report]:
        match rank_of(job.configurations[0]) % 7:
            case 1:
                raise ValueError("a bug\nin two lines")
            case 2:
                raise MemoryError("no room for 3 GiB")
            case 3:
                raise DivergedError("the loss became nan in step 7")
            case 4:
                first = measurement(job.configurations[0], 1, float("nan"))
                yield Report(slot=0, measurement=first, done=False)
            case 5:
                yield Report(slot=0, measurement=measurement(job.configurations[0], 1, 0.5), done=False)
            case 6:
                yield Report(slot=0, measurement=None, done=True)
            case _:
                yield from super().run(job, slots)


class MortalTrainer(EchoTrainer):
    """Kills its process (rank 1 once, rank 2 always) or hangs (rank 3); counts itself in the folder named in MORTAL."""

    def run(self, job: TrainJob, slots: AbstractSlots | None = None) -> Iterator[Report]:
        rank = rank_of(job.configurations[0])
        mark = Path(os.environ["MORTAL"]) / f"died-{rank}"
        if rank == 2 or (rank == 1 and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), 9)
        if rank == 3:
            time.sleep(600)
        yield from super().run(job, slots)


class ModellessTrainer(EchoTrainer):
    def __init__(self, model: ModelSpec, task: TaskSpec, training: TrainingSettings) -> None:
        raise ModelError("model: got 'none'; no such folder", hint="give a folder")


def write_adapter(folder: Path | None, configuration: Configuration) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter.json").write_text(configuration.id)


def measurement(configuration: Configuration, epoch: int, accuracy: float) -> Measurement:
    rank = rank_of(configuration)
    return Measurement(
        epoch=epoch,
        metrics={"accuracy": accuracy},
        train_loss=1.0 / epoch,
        train_seconds=0.5 * epoch,
        evaluation_seconds=0.1 * epoch,
        tokens=100 * epoch,
        peak_bytes=1000 * rank,
        parameters=96 * rank,
        head_parameters=10,
    )


def worker(trainer: type[AbstractTrainer] = EchoTrainer) -> WorkerSpec:
    path = f"{trainer.__module__}:{trainer.__name__}"
    return WorkerSpec(trainer=path, model=MODEL, task=TASK, training=TrainingSettings())


def plan(
    *,
    n_trials: int = 6,
    trainer: type[AbstractTrainer] = EchoTrainer,
    space: SearchSpace | None = None,
    searcher: AbstractSearcher | None = None,
    artifacts: Path | None = None,
    epochs: int = 2,
    fidelity: Fidelity | None = None,
) -> Plan:
    space = space or small_space()
    return Plan(
        space=space,
        searcher=searcher or FreshDraws(space, seed=3),
        seed=3,
        n_trials=n_trials,
        epochs=epochs,
        scheduler=make_scheduler(fidelity, OBJECTIVES, epochs=epochs),
        worker=worker(trainer),
        artifacts=artifacts,
    )


def halved(n_trials: int, artifacts: Path) -> Plan:
    """A plan with rungs, trained by what keeps checkpoints."""
    return plan(n_trials=n_trials, trainer=KeepingTrainer, epochs=4, fidelity=Fidelity(), artifacts=artifacts)


def definition(**spec: object) -> StudyDefinition:
    return StudyDefinition(objectives=OBJECTIVES, spec={"study": "s", **spec}, space={"definition": {"lora": 1}})


def open_study(folder: Path, name: str = "s") -> StoredStudy:
    return StudyStorage.open(f"sqlite:///{folder}/studies.db", create=True).create(name, definition())
