"""Layer importances of one study that lead the first trials of another: found, refused, kept."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from autopeft import cli
from autopeft.errors import SpecError
from autopeft.search.initial_design import initial_design
from autopeft.search.searcher import SearchProblem
from autopeft.search.trial import TrialState
from autopeft.spaces.layer_prior import LayerScores
from autopeft.studies.bind import bind_study
from autopeft.studies.layer_prior import KEY, LayerPrior, find_layer_prior, find_layers, stored_layers
from autopeft.studies.load import spec_from_mapping
from autopeft.studies.records import RunRecord, TrialRecord
from autopeft.studies.report import report_page
from autopeft.studies.spec import StudySpec
from autopeft.studies.storage import StoredStudy, StudyStorage
from autopeft.studies.study import Study
from tests.spaces.builders import shape
from tests.studies.projects import make_project, study_data, write_study
from tests.studies.support import definition, measurement, small_space

SPACE = small_space()
MODEL = shape(2, hidden=48, heads=4)
UNKNOWING: dict[str, float] = {"importance/0": 0.0, "importance/1": 0.0}
LEARNT: dict[str, float] = {"importance/0": -2.0, "importance/1": 1.0, "activation": 3.0}


def url(folder: Path) -> str:
    return f"sqlite:///{folder}/studies.db"


def source(folder: Path, *trials: tuple[float, Mapping[str, float]], name: str = "source") -> StoredStudy:
    """A study with a completed trial for each (accuracy, extra values)."""
    written = replace(definition(), space=json.loads(SPACE.fingerprint()))
    study = StudyStorage.open(url(folder), create=True).create(name, written)
    row = SPACE.assemble({"layers[0]": True, "layers[1]": True, "lora.rank": 4, "learning_rate": 1e-3} | TARGETS)
    for accuracy, extra in trials:
        (number,) = study.start(SPACE, [TrialRecord(configuration=row, predicted={}, epochs=1)])
        measured = replace(measurement(row, 1, accuracy), extra=extra)
        study.finish(number, TrialState.COMPLETED, RunRecord(started=0.0, ended=1.0, measurements=(measured,)))
    return study


TARGETS = {"lora.targets[query]": True, "lora.targets[value]": False}


def spec(engine: str = "bayesian", **layers_from: object) -> StudySpec:
    changes = {"search__layers_from": layers_from or {"study": "source"}, "search__engine": engine}
    return spec_from_mapping(study_data(**changes))


def find(folder: Path, **layers_from: object) -> LayerPrior | None:
    return find_layer_prior(spec(**layers_from), MODEL, storage=url(folder))  # type: ignore[arg-type]  # engine stays


def test_the_best_trial_that_learnt_importances_is_taken(tmp_path: Path) -> None:
    source(tmp_path, (0.9, {}), (0.6, LEARNT), (0.8, LEARNT | {"importance/1": 2.0}), (0.85, UNKNOWING))
    prior = find(tmp_path)
    assert prior is not None
    assert (prior.study, prior.trial, prior.n_layers) == ("source", 2, 2)
    assert prior.weights == {0: pytest.approx(0.1192, abs=1e-4), 1: pytest.approx(0.8808, abs=1e-4)}
    named = find(tmp_path, study="source", trial=1)
    assert named is not None
    assert named.trial == 1
    assert named.weights[1] == pytest.approx(0.7311, abs=1e-4)
    assert LayerPrior.from_json(json.loads(json.dumps(prior.to_json()))) == prior


def test_a_model_of_another_depth_takes_them_by_relative_depth(tmp_path: Path) -> None:
    source(tmp_path, (0.6, LEARNT))
    deeper = find_layer_prior(spec(), shape(4, hidden=48, heads=4), storage=url(tmp_path))
    assert deeper is not None
    assert [round(deeper.weights[layer], 2) for layer in range(4)] == [0.12, 0.12, 0.73, 0.73]
    assert deeper.n_layers == 2


def test_a_study_that_asks_for_none_needs_no_storage(tmp_path: Path) -> None:
    assert find_layer_prior(spec_from_mapping(study_data()), MODEL, storage=url(tmp_path)) is None


@pytest.mark.parametrize(
    ("trials", "asked", "message"),
    [
        ([], {"study": "sourse"}, r"search\.layers_from\.study: no study 'sourse' in sqlite:///.*; it has source"),
        (
            [(0.5, {}), (0.6, UNKNOWING)],
            {"study": "source"},
            r"none of the 2 completed trials of 'source' learnt layer",
        ),
        (
            [(0.5, LEARNT)],
            {"study": "source", "trial": 7},
            r"\.trial: study 'source' has no completed trial 7 \(it has 1",
        ),
        ([(0.5, UNKNOWING)], {"study": "source", "trial": 0}, r"trial 0 of 'source' learnt no layer importances \(imp"),
        ([(0.5, LEARNT)], {"engine": "sobol"}, r"search\.layers_from: got engine sobol, which has no first design"),
    ],
)
def test_what_cannot_lead_is_named(
    trials: list[tuple[float, Mapping[str, float]]], asked: dict[str, object], message: str, tmp_path: Path
) -> None:
    source(tmp_path, *trials)
    with pytest.raises(SpecError, match=message):
        find(tmp_path, **asked)


def test_a_storage_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"search\.layers_from: .*studies\.db.* \(run the study that learns"):
        find(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_a_study_was_begun_with_is_kept_when_its_source_goes(tmp_path: Path) -> None:
    learnt = source(tmp_path, (0.6, LEARNT))
    prior = find(tmp_path)
    assert prior is not None
    begun = replace(definition(), space={**json.loads(SPACE.fingerprint()), KEY: prior.to_json()})
    StudyStorage.open(url(tmp_path)).create("tiny", begun)
    learnt.delete()
    assert find(tmp_path) == find(tmp_path, study="source", trial=0) == prior
    with pytest.raises(SpecError, match="no study 'source'"):
        find(tmp_path, study="source", trial=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"study": "tiny"}, r"search\.layers_from\.study: got 'tiny', which is this study"),
        ({"stdy": "source"}, r"search\.layers_from\.stdy: unknown key 'stdy'; known here: study, trial"),
        ({"study": "source", "trial": -1}, r"search\.layers_from\.trial: got -1; it must be at least 0"),
    ],
)
def test_a_wrong_entry_is_refused_with_its_place(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec(**changes)  # type: ignore[arg-type]  # no engine among them


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["autopeft", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code


def test_a_search_learns_importances_that_the_next_search_begins_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_project(tmp_path)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(folder / "cache"))
    ist = {"lora": {"rank": 4}, "layer_sampling": "importance", "sampling_interval": 1, "learning_rate": 1e-2}
    write_study(folder, study="ist", space=ist, search__trials=1)
    run(monkeypatch, "search", "study.yaml", "-q")
    space = {
        "lora": {"rank": "per_layer(choice(0, 2))", "targets": "subset(query, key, value)", "alpha": "real(1, 64)"}
    }
    changes: dict[str, object] = {"study": "led", "space": space, "search__engine": "bayesian", "search__trials": 2}
    write_study(folder, **changes, search__layers_from={"study": "ist"})
    capsys.readouterr()
    run(monkeypatch, "check", "study.yaml", "--json")
    shown = json.loads(capsys.readouterr().out)["layer_prior"]
    assert (shown["study"], shown["trial"]) == ("ist", 0)
    run(monkeypatch, "check", "study.yaml")
    assert "first trials led by trial 0 of ist; most important first:" in " ".join(capsys.readouterr().out.split())
    run(monkeypatch, "search", "study.yaml", "-q")
    with StudyStorage.open("sqlite:///autopeft.db") as storage:
        assert storage.study("led").definition.space[KEY] == shown
        storage.study("ist").delete()
    write_study(folder, **(changes | {"search__trials": 3}), search__layers_from={"study": "ist"})
    run(monkeypatch, "search", "study.yaml", "-q")
    study = Study.open("led", storage="sqlite:///autopeft.db")
    tried = [trial.configuration for trial in study.history()]
    problem = SearchProblem(space=bind_study(study.spec).space, objectives=study.spec.objectives, seed=1, n_trials=3)
    weights = LayerPrior.from_json(shown).weights
    assert tried == list(initial_design(replace(problem, layer_weights=weights))[:3])
    assert tried != list(initial_design(problem)[:3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"search__layers_from": "gradient_nrm"},
            r"layers_from: got 'gradient_nrm'; scores of .*did you mean 'gradient_",
        ),
        (
            {"search__layers_from": "ist-rte"},
            r"search\.layers_from: got 'ist-rte'; .*sensitivity \(write \{study: NAME\}",
        ),
        ({"search__layers_from": 3}, r"search\.layers_from: got 3; the name of a score or a mapping with a study"),
        ({"search__layers_from": {}}, r"search\.layers_from\.study: missing"),
    ],
)
def test_a_score_that_is_not_known_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec_from_mapping(study_data(**changes))


def test_another_engine_has_no_use_for_scores(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"search\.layers_from: got engine sobol, which has no first design"):
        find_layers(
            spec_from_mapping(study_data(search__engine="sobol", search__layers_from="saliency")),
            MODEL,
            storage=url(tmp_path),
        )


def test_a_study_scores_its_layers_once_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_project(tmp_path)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(folder / "cache"))
    space = {"lora": {"rank": "per_layer(choice(0, 2))", "targets": "subset(query, value)", "alpha": "real(1, 64)"}}
    changes: dict[str, object] = {"study": "led", "space": space, "search__engine": "bayesian"}
    changes["search__layers_from"] = "gradient_norm"
    write_study(folder, **changes, search__trials=1)
    run(monkeypatch, "check", "study.yaml")
    said = " ".join(capsys.readouterr().out.split())
    assert "first trials led by gradient_norm, computed when the search begins" in said
    run(monkeypatch, "search", "study.yaml")
    noted = capsys.readouterr().err
    assert "layers scored in" in noted
    assert "gradient_norm on" in noted

    def never(*_: object) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr("autopeft.trainers.layer_scores.score_layers", never)
    write_study(folder, **changes, search__trials=2)
    run(monkeypatch, "search", "study.yaml")
    run(monkeypatch, "check", "study.yaml", "--json")
    with StudyStorage.open("sqlite:///autopeft.db") as storage:
        scores = stored_layers(storage.study("led"))
    assert isinstance(scores, LayerScores)
    assert '"gradient_norm"' in capsys.readouterr().out
    study = Study.open("led", storage="sqlite:///autopeft.db")
    problem = SearchProblem(space=bind_study(study.spec).space, objectives=study.spec.objectives, seed=1, n_trials=2)
    design = initial_design(replace(problem, layer_weights=scores.weights))[:2]
    assert [trial.configuration for trial in study.history()] == list(design)
    page = report_page(study.report())
    assert "What was known of the layers before" in page
    assert "attention.self.query" in page
