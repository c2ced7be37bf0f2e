"""What a worker makes of a trainer's troubles."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autopeft.errors import ModelError, SpecError
from autopeft.spaces.configuration import Configuration
from autopeft.studies.worker import Worker, failure_of, load_trainer
from autopeft.trainers.job import Report, TrainJob
from tests.studies.support import EchoTrainer, ModellessTrainer, TroubledTrainer, rank_of, small_space, worker

SPACE = small_space()


def configuration(rank: int) -> Configuration:
    fixed = {"layers[0]": True, "layers[1]": False, "lora.targets[query]": True, "lora.targets[value]": True}
    return SPACE.assemble(fixed | {"lora.rank": rank, "learning_rate": 0.001})


def job(rank: int) -> TrainJob:
    return TrainJob(configurations=(configuration(rank),), seeds=(7,), epochs=2)


@pytest.mark.parametrize(
    ("rank", "kind", "words"),
    [
        (1, "crashed", "in two lines at support.py:"),
        (2, "oom", "MemoryError: no room for 3 GiB at support.py:"),
        (3, "diverged", "the loss became nan in step 7"),
        (5, "crashed", "the trainer ended without a last report"),
    ],
)
def test_what_a_trainer_raises_fails_the_trial(rank: int, kind: str, words: str) -> None:
    assert rank_of(configuration(rank)) == rank
    last = list(Worker(worker(TroubledTrainer)).run(job(rank)))[-1]
    assert last.done
    assert last.failure is not None
    assert last.failure[0] == kind
    assert words in last.failure[1]


def test_a_good_job_is_passed_through() -> None:
    reports = list(Worker(worker()).run(job(4)))
    assert [(report.done, report.failure) for report in reports] == [(False, None), (True, None)]


def test_a_trainer_is_built_once_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(EchoTrainer, "__init__", lambda self, *_: (log.append("built"), setattr(self, "seconds", 0))[0])
    monkeypatch.setattr(EchoTrainer, "close", lambda self: log.append("closed"))
    kept = Worker(worker())
    assert not kept.ready
    for rank in (1, 2):
        list(kept.run(job(rank)))
    assert kept.ready
    kept.close()
    kept.close()
    assert log == ["built", "closed"]


def test_what_is_wrong_with_the_model_is_no_trials_failure() -> None:
    with pytest.raises(ModelError, match="no such folder"):
        Worker(worker(ModellessTrainer)).build()


def test_closing_the_reports_stops_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []

    def run(self: EchoTrainer, job: TrainJob) -> Iterator[Report]:
        try:
            while True:
                yield Report(slot=0, measurement=None)
        finally:
            ended.append(True)

    monkeypatch.setattr(EchoTrainer, "run", run)
    reports = Worker(worker()).run(job(1))
    next(reports)
    reports.close()  # type: ignore[attr-defined]  # a generator
    assert ended == [True]


def test_torch_uses_the_threads_of_the_job_and_gets_them_back() -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    spec = worker()
    kept = Worker(type(spec)(trainer=spec.trainer, model=spec.model, task=spec.task, training=spec.training, threads=3))
    kept.build()
    assert torch.get_num_threads() == 3
    kept.close()
    assert torch.get_num_threads() == before


def test_pytorchs_own_memory_error_is_known_by_its_name() -> None:
    kind = type("OutOfMemoryError", (RuntimeError,), {})
    assert failure_of(kind("CUDA out of memory"))[0] == "oom"


@pytest.mark.parametrize("path", ["nowhere:Trainer", "tests.studies.support:Nothing", "support", "", ":"])
def test_a_trainer_that_is_not_there_is_named(path: str) -> None:
    with pytest.raises(SpecError, match=r"trainer: got .*write package\.module:ClassName"):
        load_trainer(path)


def test_a_worker_imports_no_torch_of_its_own() -> None:
    import subprocess

    code = "import sys, autopeft.studies.worker; sys.exit(any(m in sys.modules for m in ('torch', 'ray', 'optuna')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
