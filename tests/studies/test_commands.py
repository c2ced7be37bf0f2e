"""The verbs, end to end, on a tiny model and a task that can be learned."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import autopeft
from autopeft import cli
from autopeft.errors import DivergedError
from autopeft.studies.report import report_page
from tests.models import tokenizer
from tests.studies.projects import make_project, study_data, write_study

STUDY: dict[str, object] = {
    "search__trials": 6,
    "search__engine": "bayesian",
    "space__learning_rate": "log(1e-3, 1e-1)",
    "space__lora__learning_rate": "auto",
    "training__epochs": 2,
    "tracking__mlflow": "sqlite:///mlflow.db",
}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `autopeft search` ran six trials."""
    folder = make_project(tmp_path_factory.mktemp("searched"))
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setenv("AUTOPEFT_CACHE", str(folder / "cache"))
    write_study(folder, **STUDY)
    patch.setattr("sys.argv", ["autopeft", "search", "study.yaml", "-q"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    patch.undo()
    return folder


@pytest.fixture
def folder(searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    there = tmp_path / "project"
    shutil.copytree(searched, there)
    monkeypatch.chdir(there)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(there / "cache"))
    return there


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a verb prints; it must succeed."""
    monkeypatch.setattr("sys.argv", ["autopeft", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main()
    shown = capsys.readouterr()
    assert not caught.value.code, shown.err
    return shown.out


def test_front_json_is_as_the_contract_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    front = json.loads(run(monkeypatch, capsys, "front", "tiny", "--json"))
    assert front["study"] == "tiny"
    assert [row["name"] for row in front["objectives"]] == ["accuracy", "parameters", "memory"]
    assert front["trials"] == {"completed": 6, "pruned": 0, "failed": 0}
    assert front["front"]
    assert set(front["front"][0]) == {"trial", "values", "configuration"}
    assert set(front["reference"]) == {"accuracy", "parameters", "memory"}


def test_a_search_of_which_every_trial_fails_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_project(tmp_path)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(folder / "cache"))
    write_study(folder, search__trials=2, search__engine="random")
    monkeypatch.setattr("autopeft.trainers.loop.train", _diverge)
    monkeypatch.setattr("sys.argv", ["autopeft", "search", "study.yaml"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    shown = capsys.readouterr()
    assert caught.value.code == 1
    assert "No trial has completed yet" in shown.out
    assert "error: study tiny: none of its 2 trials has completed (2 diverged)" in shown.err
    assert "hint: `autopeft trials tiny` says why each of them failed" in shown.err
    assert "the front is not confirmed" not in shown.err


def _diverge(run: object) -> object:
    raise DivergedError("the training loss became nan in epoch 1")


def test_the_page_of_a_search_is_in_mlflow_too_and_tells_no_password(folder: Path) -> None:
    (page,) = folder.glob("mlartifacts/*/*/artifacts/report.html")
    study = autopeft.Study.open("tiny")
    assert page.read_text("utf-8") == report_page(study.report())
    study.spec = replace(study.spec, mlflow="postgresql://me:hush@host/runs")
    assert "postgresql://host/runs" in report_page(study.report())
    assert "hush" not in report_page(study.report())


def test_a_study_is_found_by_its_file_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    by_name = run(monkeypatch, capsys, "front", "tiny", "--json")
    assert run(monkeypatch, capsys, "front", "study.yaml", "--json") == by_name


def test_tables_name_every_trial_and_study(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, capsys, "trials", "tiny").count("completed") == 6
    assert "tiny" in run(monkeypatch, capsys, "studies")
    assert json.loads(run(monkeypatch, capsys, "studies", "--json"))[0]["trials"]["completed"] == 6
    assert len(json.loads(run(monkeypatch, capsys, "trials", "tiny", "--json"))) == 6


@pytest.mark.parametrize("suffix", ["html", "png", "svg"])
def test_the_front_is_drawn(
    suffix: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, capsys, "front", "tiny", "--plot", f"front.{suffix}")
    assert (folder / f"front.{suffix}").stat().st_size > 1000


def test_a_finished_search_run_again_trains_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run(monkeypatch, capsys, "trials", "tiny", "--json")
    run(monkeypatch, capsys, "search", "study.yaml")
    assert run(monkeypatch, capsys, "trials", "tiny", "--json") == before


def test_a_larger_budget_adds_trials_to_those_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads(run(monkeypatch, capsys, "trials", "tiny", "--json"))
    run(monkeypatch, capsys, "search", "study.yaml", "--set", "search.trials=7", "-q")
    after = json.loads(run(monkeypatch, capsys, "trials", "tiny", "--json"))
    assert len(after) == 7
    assert after[:6] == before


def test_a_small_space_that_is_exhausted_ends_the_study(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(folder, study="small", space={"lora": {"rank": "choice(2, 4)"}}, search__trials=50)
    run(monkeypatch, capsys, "search", "study.yaml", "-q")
    assert len(json.loads(run(monkeypatch, capsys, "trials", "small", "--json"))) == 2


def test_check_shows_size_and_costs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads(run(monkeypatch, capsys, "check", "study.yaml", "--json"))
    assert summary["configurations"] == 3 * 2 - 1
    assert summary["parameters"][0] < summary["parameters"][1]
    assert {"name": "lora.rank", "domain": "choice(0, 2, 4)"} in summary["dimensions"]
    assert {"name": "lora.learning_rate", "domain": "log(0.0001, 0.0022)"} in summary["dimensions"]
    assert summary["continuous"] == ["lora.learning_rate", "learning_rate"]
    assert "5 configurations" in run(monkeypatch, capsys, "check", "study.yaml")


def test_methods_shows_the_rates_of_auto_and_their_source(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join(run(monkeypatch, capsys, "methods", "prefix_tuning").split())
    assert "learning_rate: auto is log(0.01, 0.3) (LLM-Adapters 3e-2;" in text
    assert "no published range known" in run(monkeypatch, capsys, "methods", "vera")
    row = json.loads(run(monkeypatch, capsys, "methods", "ssf", "--json"))
    assert (row["learning_rates"]["low"], row["learning_rates"]["high"]) == (1e-3, 5e-2)
    assert row["fields"][-1]["field"] == "learning_rate"


def test_sync_rebuilds_a_lost_mirror(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in folder.glob("mlflow.db*"):
        file.unlink()
    counts = json.loads(run(monkeypatch, capsys, "sync", "tiny", "--json"))
    assert counts["trials"] == 6
    assert counts["sent"] >= 6
    assert (folder / "mlflow.db").exists()


@pytest.mark.parametrize("pick", ["knee", "best:accuracy", "min parameters"])
def test_an_exported_adapter_loads_and_scores_as_the_card_says(
    pick: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = json.loads(run(monkeypatch, capsys, "export", "tiny", "--pick", pick, "--out", "adapter", "--json"))
    model = autopeft.load(folder / "adapter")
    tokens = tokenizer()(["baran cesel ditin", "nuzum movor lisel"], return_tensors="pt", padding=True)
    with torch.inference_mode():
        logits = model(**tokens).logits
    assert logits.shape == (2, 2)
    assert torch.isfinite(logits).all()
    card = (folder / "adapter" / "README.md").read_text()
    assert f"{done['held_out']['accuracy']:.4f}" in card
    assert json.loads((folder / "adapter" / "export.json").read_text())["trial"] == done["trial"]


def test_export_refuses_a_folder_that_is_not_empty(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["autopeft", "export", "tiny", "--out", "model"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert "the folder is not empty" in capsys.readouterr().err


def test_export_names_an_adapter_that_is_gone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder / "autopeft-artifacts")
    monkeypatch.setattr("sys.argv", ["autopeft", "export", "tiny", "--out", "adapter"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert "the trained adapter of trial" in capsys.readouterr().err
    assert not (folder / "adapter").exists()


def test_the_python_interface_does_the_same(folder: Path) -> None:
    data = study_data(study="python", search__trials=2)
    study = autopeft.search(data, progress=False)
    front = study.front()
    assert len(front) >= 1
    assert front.knee() in list(front)
    assert list(front.to_frame().columns) == ["trial", "accuracy", "parameters", "memory", "configuration"]
    assert autopeft.Study.open("python").front().to_json() == front.to_json()
    study.export(front.best("accuracy"), folder / "adapter")
    assert (folder / "adapter" / "README.md").exists()


def test_a_study_can_be_made_of_python_objects(folder: Path) -> None:
    from autopeft.spaces import choice, log, per_layer

    study = autopeft.Study.create(
        study="objects",
        model="model",
        task=study_data()["task"],  # type: ignore[arg-type]  # a mapping
        space={"lora": {"rank": per_layer(choice(0, 2))}, "learning_rate": log(1e-4, 1e-2)},
        search={"engine": "random", "trials": 2},
        training={"epochs": 1, "batch_size": 16, "max_length": 16, "precision": "float32"},
        resources={"executor": "local"},
    )
    study.run()
    assert len(study.history()) == 2
    assert study.spec.space.to_mapping()["lora"] == {"rank": "per_layer(choice(0, 2))"}
