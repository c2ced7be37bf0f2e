"""Studies that a search begins from: found, carried, refused with nothing written, kept when they vanish."""

import json
from pathlib import Path

import pytest
import transformers
from transformers import AutoModel

import autopeft
from autopeft.errors import SpecError, StorageError
from autopeft.search.initial_design import FROM_SOURCES
from autopeft.search.source_model import source_models
from autopeft.search.trial import TrialState
from autopeft.search.warm_design import begun_from
from autopeft.studies.beginning import Beginning
from autopeft.studies.bind import bind_study
from autopeft.studies.load import load_spec
from autopeft.studies.past import KEY, Past, find_past
from autopeft.studies.session import search
from autopeft.studies.storage import StudyStorage
from autopeft.studies.study import Study
from tests.models import HIDDEN, N_LAYERS, VOCABULARY_SIZE, tokenizer
from tests.studies.projects import make_project, write_rows, write_study
from tests.studies.runs import refused, succeed

URL = "sqlite:///autopeft.db"
SPACE = {"layers": "subset", "lora": {"rank": "per_layer(choice(0, 2, 4))"}, "learning_rate": "log(1e-4, 1e-1)"}
NEW = {
    "study": "new",
    "space": SPACE,
    "task__data": {"train": "new.csv", "validation": "validation.csv"},
    "search__engine": "bayesian",
    "search__trials": 7,
    "confirm": False,
}
OLD = {"study": "old", "space": SPACE, "search__trials": 5, "confirm": False}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which `old` was searched, and a deeper and wider model lies ready."""
    folder = make_project(tmp_path_factory.mktemp("project"))
    write_rows(folder / "new.csv", 64, seed=7)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=2 * HIDDEN,
        num_hidden_layers=N_LAYERS + 2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    AutoModel.from_config(config).save_pretrained(folder / "deep")
    tokenizer().save_pretrained(folder / "deep")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("AUTOPEFT_CACHE", str(folder / "cache"))
        search(write_study(folder, **OLD), progress=False)
        autopeft.export_studies(["old"], "old.autopeft")
    return folder


@pytest.fixture(autouse=True)
def _inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(project / "cache"))


def past_of(folder: Path, storage: str = URL, **changes: object) -> Past:
    spec = load_spec(write_study(folder, **{**NEW, "search__from": ["old"], **changes}))
    return find_past(spec, bind_study(spec).space, storage=storage)


def test_on_the_same_model_and_space_every_trial_is_the_same_configuration(project: Path) -> None:
    (one,) = past_of(project).studies
    history = Study.open("old").history()
    assert one.past.configurations == tuple(trial.configuration for trial in history)
    measured = [trial.measurements[-1] for trial in history]
    assert [-loss for loss in one.past.losses] == [one.metrics["accuracy"] for one in measured]
    assert one.past.costs[:, 0].tolist() == [one.parameters for one in measured]
    assert (one.trials, one.exact, dict(one.guesses)) == (5, 5, {})
    (exported,) = past_of(project, search__from=["old.autopeft"], storage="sqlite:///nowhere.db").studies
    assert exported.to_json() == one.to_json()
    assert exported.past.configurations == one.past.configurations
    assert exported.past.losses.tolist() == one.past.losses.tolist()
    assert not Path("nowhere.db").exists()


def test_on_another_model_costs_are_those_of_that_model_and_guesses_are_told(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (one,) = past_of(project, model="deep").studies
    spec = load_spec(project / "study.yaml")
    space = bind_study(spec).space
    assert one.exact == 0
    assert f"layers: {N_LAYERS} carried to {N_LAYERS + 2} by relative depth" in one.guesses
    assert all(space.contains(configuration) for configuration in one.past.configurations)
    assert one.past.costs[:, 0].tolist() == [space.parameters(row) for row in one.past.configurations]
    shown = " ".join(succeed(monkeypatch, capsys, "check", "study.yaml").split())
    assert "begins from old, 5 of its 5 trials, 0 the same configurations and 5 guesses: layers:" in shown
    told = json.loads(succeed(monkeypatch, capsys, "check", "study.yaml", "--json"))
    assert told["from"] == [json.loads(json.dumps(one.to_json()))]


def test_a_search_begins_with_what_its_source_expects_most_of_and_keeps_it(project: Path) -> None:
    storage = "sqlite:///kept.db"
    autopeft.import_studies("old.autopeft", storage=storage)
    file = write_study(project, **NEW, search__from=["old"])
    study = search(file, storage=storage, progress=False)
    spec = load_spec(file)
    space = bind_study(spec).space
    past = find_past(spec, space, storage=storage)
    problem = Beginning(layers=None, past=past).problem(spec, space)
    begun = begun_from(problem, source_models(past.rows, space, seed=spec.search.seed), n=FROM_SOURCES)
    tried = [trial.configuration for trial in study.history()]
    assert tried[: len(begun)] == list(begun)
    with StudyStorage.open(storage) as there:
        assert there.study("new").definition.space[KEY] == ["old"]
        assert there.study("new").definition.spec["search"] == {
            "engine": "bayesian",
            "trials": 7,
            "seed": 1,
            "from": ["old"],
        }
        there.study("old").delete()
    search(write_study(project, **{**NEW, "search__trials": 8}, search__from=["old"]), storage=storage, progress=False)
    history = Study.open("new", storage=storage).history()
    assert [trial.configuration for trial in history][:7] == tried
    assert [trial.state for trial in history] == [TrialState.COMPLETED] * 8
    moved = search(write_study(project, **NEW, search__from=["old.autopeft"]), storage=storage, progress=False)
    assert len(moved.history()) == 8
    with pytest.raises(StorageError, match=r"different definition: space\.past: .*old.* there, absent here"):
        search(write_study(project, **NEW), storage=storage, progress=False)


BAD: list[tuple[dict[str, object], str]] = [
    ({"search__from": ["odl"]}, "search.from[0]: no study 'odl' in sqlite:///autopeft.db, and no file of that name"),
    ({"search__from": ["old", "old.autopeft"]}, "search.from[1]: study 'old' is named twice"),
    ({"search__from": ["new.csv"]}, "search.from[0]: {folder}/new.csv: is not a file of exported studies"),
    ({"search__from": ["new"]}, "study.yaml:"),
    ({"search__from": "old"}, "search.from: got 'old'; a list is needed"),
    ({"search__frm": ["old"]}, "unknown key 'frm'; known here: engine, from, layers_from, seed, trials"),
    ({"search__engine": "random"}, "search.from: got engine random, which learns nothing from other studies"),
    ({"task__metric": "f1"}, "search.from[0]: study 'old' measured accuracy, parameters, memory; this one learns f1"),
    ({"objectives": ["parameters"]}, "search.from: the objectives of this study are known before training"),
    (
        {"space": {"serial_adapter": {"bottleneck": "choice(2, 4)"}}},
        "search.from[0]: nothing of study 'old' can be had in this space: lora: not in this space",
    ),
    (
        {"space": {"lora": {"rank": 1, "targets": "subset(key)"}, "weight_decay": "choice(0.0, 0.1)"}},
        "search.from[0]: all 5 trials of study 'old' are one configuration here",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_what_cannot_be_begun_from_is_refused_and_nothing_is_written(
    changes: dict[str, object],
    message: str,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_study(project, **{**NEW, "search__from": ["old"], **changes})
    before = (project / "autopeft.db").read_bytes()
    said = refused(monkeypatch, capsys, "search", "study.yaml", "-q")
    assert message.format(folder=project) in said
    assert (project / "autopeft.db").read_bytes() == before


def test_a_truncated_file_is_named(project: Path) -> None:
    Path("cut.autopeft").write_bytes(Path("old.autopeft").read_bytes()[:300])
    with pytest.raises(SpecError, match=r"search\.from\[0\]: .*cut\.autopeft: is truncated or damaged"):
        past_of(project, search__from=["cut.autopeft"])


def test_a_transfer_in_mode_warm_is_a_search_of_its_own_that_says_what_the_source_was_worth(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = "sqlite:///warm.db"
    autopeft.import_studies("old.autopeft", storage=storage)
    words = ("transfer", "old", "--to", "study.yaml", "--mode", "warm", "--storage", storage)
    confirmed = {**NEW, "confirm": {"budget": 1.0}}
    write_study(project, **confirmed)
    told = json.loads(succeed(monkeypatch, capsys, *words, "--json", "-q"))
    study = Study.open("new-warm-old", storage=storage)
    history = study.history()
    assert (told["study"], told["mode"], told["source"], told["task"]) == ("new-warm-old", "warm", "old", "new")
    assert len(history) == 7
    assert told["begun"] == list(range(len(told["begun"])))
    assert told["begun"]
    assert 0.0 <= told["share"] <= 1.0
    assert told["from"][0]["exact"] == told["from"][0]["carried"] == 5
    assert told["confirmed"] == {str(trial): scores for trial, scores in study.front().confirmed.items()} != {}
    assert told["hypervolume"] == study.front().hypervolume
    assert told["reachable"] is None
    assert told["unknown"].startswith("no study new in the storage has searched this task")
    search(write_study(project, **{**NEW, "search__trials": 2}), storage=storage, progress=False)
    write_study(project, **confirmed)
    again = autopeft.transfer("old", "study.yaml", mode="warm", storage=storage, progress=False)
    assert again.history == history
    assert again.reachable is not None
    assert json.loads(json.dumps(again.to_json()))["reachable"]["warm"] == again.reachable.replayed
    shown = " ".join(succeed(monkeypatch, capsys, *words, "-q").split())
    assert "test, 3 seeds" in shown
    assert "began from old, 5 of its 5 trials, all of them the same configurations" in shown
    assert "that this warm search and the 2 trials of new" in shown
    assert f"believed in the end: {again.share:.0%} with the sources" in shown


def test_a_warm_transfer_with_another_engine_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(project, **{**NEW, "search__engine": "sobol"})
    said = refused(monkeypatch, capsys, "transfer", "old", "--to", "study.yaml", "--mode", "warm")
    assert "search.from: got engine sobol, which learns nothing from other studies" in said
    assert "new-warm-old" not in Path("autopeft.db").read_bytes().decode("latin1")
