"""A front on another task: what is trained, what is a guess, and what it is measured against."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import transformers
from transformers import AutoModel

import autopeft
from autopeft.objectives.front import Front
from autopeft.objectives.hypervolume import hypervolume
from autopeft.search.trial import History, TrialState
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.space import SearchSpace
from autopeft.studies.charts import completed_points
from autopeft.studies.load import load_spec
from autopeft.studies.replay import carry_front
from autopeft.studies.session import search
from autopeft.studies.storage import StudyStorage
from autopeft.studies.study import Study
from autopeft.studies.transferred import incomparable, reachable
from tests.models import HIDDEN, N_LAYERS, VOCABULARY_SIZE, tokenizer
from tests.spaces.builders import shape
from tests.studies import synthetic
from tests.studies.projects import make_project, study_data, write_rows, write_study
from tests.studies.runs import refused, succeed
from tests.studies.support import definition

URL = "sqlite:///autopeft.db"
OTHER_TASK = {"study": "new", "task__data": {"train": "new.csv", "validation": "validation.csv"}}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which the study `old` was searched."""
    folder = make_project(tmp_path_factory.mktemp("project"))
    write_rows(folder / "new.csv", 64, seed=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("AUTOPEFT_CACHE", str(folder / "cache"))
        search(write_study(folder, study="old", search__trials=3), progress=False)
    return folder


@pytest.fixture
def project(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(original, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "project" / "cache"))
    return tmp_path / "project"


def replay(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, object]:
    return json.loads(
        succeed(monkeypatch, capsys, "transfer", "old", "--to", "study.yaml", "--mode", "replay", "--json", *more)
    )


def test_a_replay_trains_the_front_once_and_says_what_it_is_not_measured_against(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(project, **OTHER_TASK)
    told = replay(monkeypatch, capsys)
    front = Study.open("old").front()
    study = Study.open("new-replay-old")
    history = study.history()
    assert [trial.configuration for trial in history] == [point.configuration for point in front]
    assert all(trial.state is TrialState.COMPLETED for trial in history)
    assert study.spec.task.data.train == str(project / "new.csv")
    points = told["points"]
    assert [(row["source_trial"], row["trial"], row["exact"], row["notes"]) for row in points] == [
        (point.trial, number, True, []) for number, point in enumerate(front)
    ]
    assert points[0]["source_values"] == front[0].values
    assert points[0]["values"]["accuracy"] == history.trials[0].final.metrics["accuracy"]
    assert told["cost"] == {"trials": len(front), "seconds": sum(trial.seconds for trial in history)}
    assert told["hypervolume"] == study.front().hypervolume
    assert told["reachable"] is None
    assert told["unknown"].startswith("no study new in the storage has searched this task")
    assert replay(monkeypatch, capsys) == told
    assert study.history() == history
    assert json.loads(succeed(monkeypatch, capsys, "front", "new-replay-old", "--json"))["study"] == study.name


def test_beside_a_search_of_the_task_the_share_is_that_of_all_trials_of_both(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    search(write_study(project, **OTHER_TASK, search__trials=2), progress=False)
    told = autopeft.transfer("old", "study.yaml", progress=False)
    searched, known = Study.open("new").history(), told.reachable
    assert known is not None
    assert (known.study, known.trials, told.unknown) == ("new", 2, "")
    assert known.seconds == sum(trial.seconds for trial in searched)
    losses = [
        np.array([[o.to_loss(point.values[o.name]) for o in told.objectives] for point in points])
        for points in (completed_points(history, told.objectives) for history in (told.history, searched))
    ]
    corner = np.array([o.to_loss(known.reference[o.name]) for o in told.objectives])
    both, mine, theirs = (hypervolume(rows, corner) for rows in (np.vstack(losses), *losses))
    assert known.hypervolume == pytest.approx(both)
    assert known.replayed == pytest.approx(mine / both)
    assert known.searched == pytest.approx(theirs / both)
    shown = " ".join(succeed(monkeypatch, capsys, "transfer", "old", "--to", "study.yaml", "-q").split())
    assert f"{known.replayed:.1%} of the hypervolume that this replay and the 2 trials of new" in shown
    assert f"{len(told.points)} of {len(told.points)} points are the same configurations" in shown
    write_study(project, **OTHER_TASK, training__epochs=2)
    said = refused(monkeypatch, capsys, "transfer", "old", "--to", "study.yaml")
    assert "'new-replay-old' exists with a different definition: training.epochs: 1 there, 2 here" in said


def test_a_search_that_measured_otherwise_is_not_compared_with(project: Path) -> None:
    search(write_study(project, **OTHER_TASK, search__trials=1, training__batch_size=8), progress=False)
    told = autopeft.transfer("old", write_study(project, **OTHER_TASK), progress=False)
    assert told.reachable is None
    assert told.unknown == ("the study new in the storage measures otherwise: training.batch_size: 8 there, 16 here")


def test_on_a_deeper_model_what_is_a_guess_is_said(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=2 * HIDDEN,
        num_hidden_layers=N_LAYERS + 2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    AutoModel.from_config(config).save_pretrained(project / "deep")
    tokenizer().save_pretrained(project / "deep")
    write_study(project, **OTHER_TASK, model="deep")
    told = replay(monkeypatch, capsys)
    assert all(not row["exact"] and row["notes"] for row in told["points"])
    assert any("layers" in note for note in told["points"][0]["notes"])
    shown = " ".join(succeed(monkeypatch, capsys, "transfer", "old", "--to", "study.yaml", "-q").split())
    assert "guess: " in shown
    assert f"0 of {len(told['points'])} points are the same configurations; the others are guesses" in shown
    assert Study.open("new-replay-old").shape().n_layers == N_LAYERS + 2


def test_an_imported_study_is_carried_and_goes_on_where_it_was(project: Path) -> None:
    there = "sqlite:///there.db"
    autopeft.import_studies(autopeft.export_studies(["old"], "team.autopeft"), storage=there)
    told = autopeft.transfer("old", write_study(project, **OTHER_TASK), storage=there, progress=False)
    assert [point.source for point in told.points] == list(Study.open("old").front())
    search(write_study(project, study="old", search__trials=4), storage=there, progress=False)
    history = Study.open("old", storage=there).history()
    assert history.trials[:3] == Study.open("old").history().trials
    assert len(history) == 4


BAD: list[tuple[dict[str, object], tuple[str, ...], str]] = [
    ({}, ("transfer", "odl", "--to", "study.yaml"), "no study 'odl'; it has old"),
    ({}, ("transfer", "old", "--to", "study.yaml", "--mode", "repaly"), "--mode: got 'repaly'; allowed: replay"),
    ({}, ("transfer", "old", "--to", "nowhere.yaml"), "nowhere.yaml"),
    ({"study": "old"}, ("transfer", "old", "--to", "study.yaml"), "study: got 'old' twice"),
    ({"study": "n" * 95}, ("transfer", "old", "--to", "study.yaml"), "longer than 100 characters"),
    ({"space": {"ssf": {"enabled": 1}}}, ("transfer", "old", "--to", "study.yaml"), ""),
]


@pytest.mark.parametrize(("changes", "words", "message"), BAD)
def test_what_cannot_be_carried_is_refused_and_nothing_is_written(
    changes: dict[str, object],
    words: tuple[str, ...],
    message: str,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_study(project, **(OTHER_TASK | changes))
    before = (project / "autopeft.db").read_bytes()
    assert message in refused(monkeypatch, capsys, *words)
    assert (project / "autopeft.db").read_bytes() == before


def test_a_source_without_a_completed_trial_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with StudyStorage.open(URL) as storage:
        spec = load_spec(write_study(project, study="empty"))
        storage.create("empty", definition(**spec.to_mapping()))
    write_study(project, **OTHER_TASK)
    said = refused(monkeypatch, capsys, "transfer", "empty", "--to", "study.yaml")
    assert "study empty: has no front, none of its 0 trials completed" in said


def shortened(history: History, n: int) -> History:
    return History(trials=history.trials[:n])


@pytest.mark.parametrize("seed", range(4))
def test_the_search_passes_the_replay_at_the_first_trial_with_as_much_volume(seed: int) -> None:
    searched, replayed = synthetic.history(14, seed=seed), shortened(synthetic.history(20, seed=seed + 100), 3)
    known = reachable("s", searched, replayed, synthetic.OBJECTIVES)
    assert known is not None

    def volume(history: History) -> float:
        points = completed_points(history, synthetic.OBJECTIVES)
        return Front.of(points, synthetic.OBJECTIVES, reference=known.reference).hypervolume

    assert known.replayed == pytest.approx(volume(replayed) / known.hypervolume)
    assert known.searched == pytest.approx(volume(searched) / known.hypervolume)
    assert max(known.replayed, known.searched) <= 1.0 + 1e-12
    enough = [n for n in range(1, 15) if volume(shortened(searched, n)) >= volume(replayed)]
    assert known.passed_at == (enough[0] if enough else None)


def test_nothing_is_reachable_beside_a_search_without_a_completed_trial() -> None:
    failed = History(trials=(synthetic.history(5).trials[3],))
    assert reachable("s", failed, synthetic.history(3), synthetic.OBJECTIVES) is None


def test_a_replay_in_which_all_failed_reaches_nothing() -> None:
    failed = History(trials=(synthetic.history(5).trials[3],))
    known = reachable("s", synthetic.history(6), failed, synthetic.OBJECTIVES)
    assert known is not None
    assert (known.replayed, known.searched, known.passed_at) == (0.0, 1.0, 1)


def test_studies_of_other_data_are_measured_otherwise() -> None:
    parts = {key: value for key, value in study_data().items() if key in ("model", "task", "training")}
    one, other = definition(**parts), definition(**parts)
    assert incomparable(one, other) == ""
    moved = definition(**{**parts, "model": "elsewhere"})
    assert incomparable(one, moved) == "model: 'model' there, 'elsewhere' here"


def test_a_point_of_which_the_new_space_has_nothing_is_left_out() -> None:
    front = synthetic.front_of(synthetic.history(12))
    space = SearchSpace.bind(SpaceDefinition.from_mapping({"ssf": {"enabled": 1}}), shape(6, hidden=384, heads=12))
    for point in carry_front(front, shape(6, hidden=384, heads=12), space):
        assert not point.exact
        assert point.notes
