"""Confirmations end to end, with a trainer that needs no time."""

import json
import shutil
from pathlib import Path

import pytest

from autopeft.errors import NotFoundError, SpecError
from autopeft.objectives.measurement import Measurement
from autopeft.search.trial import TrialState
from autopeft.studies import study as study_module
from autopeft.studies.confirm_jobs import read_entries, seed_of
from autopeft.studies.confirmation import baseline_name, confirm_name
from autopeft.studies.events import Listener, StopReason, StudyEvent, TrialFinished
from autopeft.studies.exchange import export_studies, import_studies
from autopeft.studies.signals import StopLevel, StopRequest
from autopeft.studies.storage import StudyStorage
from autopeft.studies.study import Study
from tests.models import save_model
from tests.studies.projects import make_project, write_study
from tests.studies.runs import refused, run, succeed

STORAGE = "sqlite:///autopeft.db"
TRIALS = 12
STUDY: dict[str, object] = {
    "search__trials": TRIALS,
    "search__engine": "sobol",
    "space__learning_rate": "log(1e-3, 1e-1)",
    "space__lora__rank": "choice(0, 2, 4, 8)",
    "confirm": False,
}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished study of twelve trials, nothing confirmed."""
    folder = make_project(tmp_path_factory.mktemp("searched"))
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setattr(study_module, "TRAINER", "tests.studies.scored:ScoredTrainer")
    write_study(folder, **STUDY)
    assert run(patch, "search", "study.yaml", "-q") == 0
    patch.undo()
    return folder


@pytest.fixture
def folder(searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    there = tmp_path / "project"
    shutil.copytree(searched, there)
    monkeypatch.chdir(there)
    monkeypatch.setattr(study_module, "TRAINER", "tests.studies.scored:ScoredTrainer")
    return there


def opened(*settings: str) -> Study:
    return Study.open("study.yaml", storage=STORAGE, settings=settings)


def runs_of(name: str) -> list[tuple[str, int, list[Measurement]]]:
    """(configuration, seed, measurements) of the trainings of a confirmation, in order."""
    with StudyStorage.open(STORAGE) as storage:
        study = storage.study(name)
        trials = study.history().trials
        return [
            (entry.configuration.id, entry.seed, list(trial.measurements))
            for entry, trial in zip(read_entries(study), trials, strict=False)
        ]


def stopping(after: int, stop: StopRequest) -> Listener:
    """Asks to stop at once when `after` trainings are done."""
    done: list[StudyEvent] = []

    def listen(event: StudyEvent) -> None:
        if isinstance(event, TrialFinished):
            done.append(event)
        if len(done) >= after:
            stop.raise_to(StopLevel.NOW)

    return listen


def test_every_point_is_trained_from_the_same_seeds_and_none_of_the_search(folder: Path) -> None:
    study = opened()
    assert study.confirm(baselines=False) is StopReason.BUDGET
    front = study.front()
    rows = runs_of(confirm_name("tiny"))
    assert {(one, seed) for one, seed, _ in rows} == {(p.configuration.id, k) for p in front for k in range(3)}
    assert [seed for _, seed, _ in rows] == sorted(seed for _, seed, _ in rows), "seed by seed"
    seeds = {seed_of(1, index) for index in range(3)}
    assert len(seeds) == 3
    assert set(front.confirmed) == {point.trial for point in front}


def test_it_goes_on_where_it_was_stopped_and_ends_as_if_it_had_not_been(folder: Path) -> None:
    whole, stop = opened(), StopRequest()
    assert whole.confirm(baselines=False, stop=stop, listeners=[stopping(4, stop)]) is StopReason.INTERRUPTED
    with StudyStorage.open(STORAGE) as storage:
        states = [trial.state for trial in storage.study(confirm_name("tiny")).history()]
    assert states.count(TrialState.COMPLETED) == 4
    assert whole.confirm(baselines=False) is StopReason.BUDGET
    resumed = runs_of(confirm_name("tiny"))
    with StudyStorage.open(STORAGE, create=True) as storage:
        storage.study(confirm_name("tiny")).delete()
    opened().confirm(baselines=False)
    assert runs_of(confirm_name("tiny")) == resumed


def test_what_is_there_is_not_trained_again_and_more_seeds_are_added(folder: Path) -> None:
    opened().confirm(baselines=False)
    before = runs_of(confirm_name("tiny"))
    opened().confirm(baselines=False)
    assert runs_of(confirm_name("tiny")) == before
    opened("confirm.seeds=4").confirm(baselines=False)
    after = runs_of(confirm_name("tiny"))
    assert after[: len(before)] == before
    assert {seed for _, seed, _ in after[len(before) :]} == {3}
    found = opened().confirmation()
    assert found is not None
    assert found.seeds == 4


def test_the_baselines_are_tuned_by_as_many_trainings_as_asked_for(folder: Path) -> None:
    opened("confirm.points=1", "confirm.baseline_trials=5").confirm()
    with StudyStorage.open(STORAGE) as storage:
        for kind in ("lora", "random"):
            assert len(storage.study(baseline_name("tiny", kind)).history()) == 5
            again = storage.study(confirm_name(baseline_name("tiny", kind))).history()
            assert len({trial.configuration.id for trial in again}) == 1
            assert len(again) == 3
        (lora,) = {trial.configuration for trial in storage.study("tiny/lora/confirm").history()}
    assert [method.method for method in lora] == ["lora"]
    assert len(lora.adapted_layers) == 3, "of one rank on all layers"
    found = opened().confirmation()
    assert found is not None
    assert [arm.kind for arm in found] == ["front", "lora", "random"]
    assert all(found.difference(found.points[0], arm) for arm in found if arm.kind != "front")
    export_studies(["tiny"], "team.autopeft", storage=STORAGE)
    import_studies("team.autopeft", storage="sqlite:///other.db")
    carried = Study.open("tiny", storage="sqlite:///other.db")
    assert carried.confirmation() == found
    assert carried.front().confirmed == opened().front().confirmed != {}


def test_a_baseline_has_the_budget_of_the_search_unless_told(folder: Path) -> None:
    opened("confirm.points=1").confirm()
    with StudyStorage.open(STORAGE) as storage:
        assert len(storage.study("tiny/random").history()) == TRIALS


def test_a_random_search_needs_no_second_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(folder, **{**STUDY, "study": "drawn", "search__engine": "random", "search__trials": 6})
    assert run(monkeypatch, "search", "study.yaml", "-q") == 0
    Study.open("drawn", storage=STORAGE, settings=["confirm.baseline_trials=4"]).confirm()
    with StudyStorage.open(STORAGE) as storage:
        assert {"drawn/lora", "drawn/lora/confirm"} <= storage.names()
        assert "drawn/random" not in storage.names()


def test_seeds_that_fail_are_told_and_their_point_is_not_compared(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = opened().front()
    monkeypatch.setenv("SCORED_FAILS", front[0].configuration.id)
    opened("confirm.baseline_trials=0").confirm()
    found = opened().confirmation()
    assert found is not None
    failed = next(arm for arm in found if arm.trial == front[0].trial)
    assert len(failed.failures) == 3
    assert found.estimate(failed) is None
    assert failed not in found.chosen().values()


def test_a_search_confirms_what_its_budget_holds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {key: value for key, value in STUDY.items() if key != "confirm"}
    write_study(folder, **{**data, "study": "long", "search__trials": 20})
    assert run(monkeypatch, "search", "study.yaml", "-q") == 0
    assert len(runs_of("long/confirm")) in (3, 6), "0.3 of 20 trainings: knee and best, 3 seeds each"
    write_study(folder, **{**data, "study": "short", "search__trials": 9})
    assert run(monkeypatch, "search", "study.yaml", "-q") == 0
    with StudyStorage.open(STORAGE) as storage:
        assert "short/confirm" not in storage.names()
        assert {row.name for row in storage.studies()} == {"tiny", "long", "short"}, "what serves another is not listed"


def test_the_verb_says_what_was_found_and_the_front_shows_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = succeed(monkeypatch, capsys, "confirm", "tiny", "-q", "--set", "confirm.baseline_trials=4")
    assert "tuned LoRA" in told
    assert "after confirmation: trial" in " ".join(told.split())
    data = json.loads(succeed(monkeypatch, capsys, "confirm", "tiny", "--json", "--set", "confirm.baseline_trials=4"))
    assert data["rows"] == 8
    assert data["search_trials"] == TRIALS
    point = next(arm for arm in data["arms"] if arm["kind"] == "front")
    assert set(point["over"]) == {"lora", "random"}
    assert 0 <= point["over"]["lora"]["chance"] <= 1
    assert len(point["held_out"]) == 3
    row = json.loads(succeed(monkeypatch, capsys, "front", "tiny", "--json"))["front"][0]
    assert row["confirmed"]["seeds"] == 3
    assert row["confirmed"]["accuracy"]["split"] == "test"
    assert "test, 3 seeds" in succeed(monkeypatch, capsys, "front", "tiny")
    succeed(monkeypatch, capsys, "front", "tiny", "--plot", "front.html", "--json")
    assert '"confirmed": {"seeds": 3' in (folder / "front.html").read_text()


def test_what_cannot_be_confirmed_is_said_in_a_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no study 'none'" in refused(monkeypatch, capsys, "confirm", "none")
    text = refused(monkeypatch, capsys, "confirm", "tiny", "--set", "search.trials=20")
    assert "12 of 20 trials are done" in text
    assert "`autopeft search`" in text
    text = refused(monkeypatch, capsys, "confirm", "tiny", "--set", "training.epochs=9")
    assert "it is not what was searched: training.epochs: 1 there, 9 here" in text
    assert "it must be at least 3" in refused(monkeypatch, capsys, "confirm", "tiny", "--set", "confirm.seeds=1")
    with StudyStorage.open(STORAGE) as storage:
        assert storage.names() == {"tiny"}, "nothing was begun"


def test_another_model_or_other_rows_are_not_confirmed(folder: Path) -> None:
    shutil.rmtree(folder / "model")
    save_model("roberta", folder / "model")
    study = Study.open("study.yaml", storage=STORAGE, settings=[f"model={folder / 'model'}"])
    with pytest.raises(SpecError, match=r"it is not what was searched: .*shape"):
        study.confirm()


def test_a_study_without_a_front_is_not_confirmed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(folder, **{**STUDY, "study": "broken", "search__trials": 2})
    monkeypatch.setattr(study_module, "TRAINER", "tests.studies.scored:FailingTrainer")
    run(monkeypatch, "search", "study.yaml", "-q")
    with pytest.raises(NotFoundError, match=r"has no front to confirm, none of its 2 trials has completed"):
        Study.open("broken", storage=STORAGE).confirm()
