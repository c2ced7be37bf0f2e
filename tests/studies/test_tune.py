"""The executor on Ray Tune: several workers, dead ones, hung ones, and what must not be seen."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from autopeft.errors import ExecutorError, ModelError, SpecError, StorageError
from autopeft.search.trial import FailureKind, TrialState
from autopeft.studies.drive import drive
from autopeft.studies.events import Noted, StopReason, StudyEvent, TrialFinished, TrialStarted
from autopeft.studies.executor import Resources
from autopeft.studies.flights import is_node_loss, is_out_of_memory
from tests.studies.support import (
    FreshDraws,
    InOrder,
    ModellessTrainer,
    MortalTrainer,
    open_study,
    plan,
    small_space,
)

pytest.importorskip("ray")
from autopeft.studies import ray_session, tune

SPACE = small_space()


@pytest.fixture(scope="module")
def _session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray for the tests that need one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORTAL", str(tmp_path_factory.mktemp("mortal")))
        patch.setenv("ECHO_SECONDS", "0.02")
        with ray_session.ray_session(Resources(max_jobs=2)):
            yield


@pytest.mark.usefixtures("_session")
def test_dead_and_hung_workers_cost_their_trial_only(tmp_path: Path) -> None:
    said: list[StudyEvent] = []
    what = plan(space=SPACE, searcher=InOrder(SPACE, 2, 1, 3, 7, 14, 21), n_trials=6, trainer=MortalTrainer)
    study = open_study(tmp_path)
    resources = Resources(max_jobs=2, trial_deadline_seconds=2.0)
    assert drive(study, what, resources, listeners=[said.append]) is StopReason.BUDGET
    always, once, hung, *fine = study.history()
    assert always.failure is not None
    assert always.failure.kind is FailureKind.CRASHED
    assert always.failure.message.startswith("2 workers died under this trial, the last one: ")
    assert once.state is TrialState.COMPLETED
    assert study.runs()[1][1].attempt == 2
    assert hung.failure is not None
    assert (hung.failure.kind, hung.failure.message) == (FailureKind.TIMEOUT, "stopped after the deadline of 2 seconds")
    assert [row.state for row in fine] == [TrialState.COMPLETED] * 3
    notes = [event.message for event in said if isinstance(event, Noted)]
    assert len([note for note in notes if "lost its worker and will be run again" in note]) == 2


@pytest.mark.usefixtures("_session")
def test_two_jobs_run_at_once_and_a_slow_searcher_keeps_neither_waiting_for_the_other(tmp_path: Path) -> None:
    live, most = 0, 0

    def listen(event: StudyEvent) -> None:
        nonlocal live, most
        live += isinstance(event, TrialStarted) - isinstance(event, TrialFinished)
        most = max(most, live)

    what = plan(space=SPACE, searcher=FreshDraws(SPACE, seconds=0.02), n_trials=12)
    study = open_study(tmp_path)
    assert drive(study, what, Resources(max_jobs=2), listeners=[listen]) is StopReason.BUDGET
    assert (most, live, len(study.history().completed)) == (2, 0, 12)


@pytest.mark.usefixtures("_session")
def test_wrong_input_found_by_a_worker_is_raised_and_leaves_no_study(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    with pytest.raises(ModelError, match=r"no such folder \(give a folder\)"):
        drive(study, plan(trainer=ModellessTrainer), Resources(max_jobs=1))
    assert study.storage.studies() == ()


@pytest.mark.usefixtures("_session")
def test_a_failing_storage_is_raised_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = open_study(tmp_path)

    def full(*_: object) -> None:
        raise StorageError("storage: database or disk is full", hint="free some space")

    monkeypatch.setattr(study, "finish", full)
    with pytest.raises(StorageError, match=r"disk is full \(free some space\)"):
        drive(study, plan(), Resources(max_jobs=1))
    assert [row.state for row in study.history()] == [TrialState.RUNNING]


@pytest.mark.usefixtures("_session")
def test_a_bug_in_the_searcher_is_raised_as_what_it_is(tmp_path: Path) -> None:
    what = plan()

    def broken(*_: object) -> None:
        raise ZeroDivisionError("in the searcher")

    object.__setattr__(what.searcher, "ask", broken)
    with pytest.raises(ZeroDivisionError, match="in the searcher"):
        drive(open_study(tmp_path), what, Resources(max_jobs=1))


def test_the_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "1")
    before = dict(os.environ)
    with ray_session._environment():
        assert os.environ["RAY_CHDIR_TO_TRIAL_DIR"] == "0"
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
        os.environ["RAY_AUTH_MODE"] = "token"  # as Ray does
    assert dict(os.environ) == before


def test_folders_of_dead_drivers_are_removed(tmp_path: Path) -> None:
    dead, mine = tmp_path / "autopeft-ray-2147483647-abc", tmp_path / f"autopeft-ray-{os.getpid()}-abc"
    other = tmp_path / "autopeft-ray-notes-x"
    for path in (dead, mine, other):
        path.mkdir()
    ray_session._clear_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([mine, other])


@pytest.mark.parametrize(
    ("there", "asked", "jobs", "share"),
    [
        ({"CPU": 2.0}, Resources(), 2, {"cpu": 1, "gpu": 0.0}),
        ({"CPU": 8.0}, Resources(cpus_per_job=3), 2, {"cpu": 3, "gpu": 0.0}),
        ({"CPU": 8.0}, Resources(max_jobs=3), 3, {"cpu": 1, "gpu": 0.0}),
        ({"CPU": 16.0, "GPU": 2.0}, Resources(), 2, {"cpu": 1, "gpu": 1.0}),
        ({"CPU": 16.0, "GPU": 2.0}, Resources(gpus_per_job=0.4), 4, {"cpu": 1, "gpu": 0.4}),
        ({"CPU": 16.0, "GPU": 1.0}, Resources(gpus_per_job=0.1), 10, {"cpu": 1, "gpu": 0.1}),
        ({"CPU": 16.0, "GPU": 8.0}, Resources(gpus_per_job=2), 4, {"cpu": 1, "gpu": 2}),
        ({"CPU": 3.0, "GPU": 8.0}, Resources(gpus_per_job=1), 3, {"cpu": 1, "gpu": 1}),
        ({"CPU": 4.0, "GPU": 1.0}, Resources(gpus_per_job=0), 4, {"cpu": 1, "gpu": 0}),
    ],
)
def test_as_many_jobs_as_fit(
    monkeypatch: pytest.MonkeyPatch, there: dict[str, float], asked: Resources, jobs: int, share: dict[str, float]
) -> None:
    monkeypatch.setattr(tune.ray, "cluster_resources", lambda: there)
    assert tune._share(asked) == (jobs, share)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (Resources(gpus_per_job=1), "resources.gpus_per_job: got 1; 0 there"),
        (Resources(cpus_per_job=9), "resources.cpus_per_job: got 9; 2 there"),
    ],
)
def test_what_the_machine_does_not_have_is_refused(
    monkeypatch: pytest.MonkeyPatch, asked: Resources, words: str
) -> None:
    monkeypatch.setattr(tune.ray, "cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(SpecError, match=words):
        tune._share(asked)


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray_session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_session.ray, "init", refuse)
    study = open_study(tmp_path)
    with pytest.raises(SpecError, match=r"no Ray cluster answers at '10\.0\.0\.1:6379'.*ray start --head"):
        drive(study, plan(), Resources(address="10.0.0.1:6379"))
    assert study.storage.studies() == ()


@pytest.mark.parametrize("failures", [2, 3])
def test_ray_is_started_again_where_the_machine_is_too_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    begun = list[int]()

    def slow(**_: object) -> None:
        begun.append(1)
        if len(begun) <= failures:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray_session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_session.ray, "init", slow)
    monkeypatch.setattr(tune.TuneExecutor, "_run", lambda *_: None)
    study = open_study(tmp_path)
    if failures < 3:
        drive(study, plan(), Resources())
    else:
        with pytest.raises(ExecutorError, match="did not start on this machine, 3 times: The current node timed out"):
            drive(study, plan(), Resources())
    assert len(begun) == 3
    assert len(study.storage.studies()) == 1


@pytest.mark.parametrize(
    ("text", "reason", "memory", "node"),
    [
        (
            "Failure # 1 (occurred at x)\nThe actor died unexpectedly.\n\tpid: 7\nThe actor is dead because its worker"
            " process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a"
            " connection error code 2. End of file. Some common causes include: (1) ...",
            "Worker unexpectedly exits with a connection error code 2. End of file",
            False,
            False,
        ),
        ("Task was killed due to the node running low on memory.", None, True, False),
        ("The actor died because its node has died. Node Id: 4", None, False, True),
        ("Failure # 1 (occurred at x)\nray.exceptions.RaySystemError: System error: lost", None, False, False),
    ],
)
def test_rays_obituaries_are_read(tmp_path: Path, text: str, reason: str | None, *, memory: bool, node: bool) -> None:
    class Told:
        error_file = str(tmp_path / "error.txt")

    (tmp_path / "error.txt").write_text(text)
    told = tune._reason(Told())  # type: ignore[arg-type]  # all that is asked of a Tune trial
    assert told == (reason or text.splitlines()[-1])
    assert (is_out_of_memory(told), is_node_loss(told)) == (memory, node)
