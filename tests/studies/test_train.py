"""One configuration from a file: trained, shown, logged, handed over."""

import csv
import json
import random
import shutil
from pathlib import Path

import peft
import pytest
import torch
import yaml

import autopeft
from autopeft.errors import SpecError
from autopeft.studies.load import load_run
from autopeft.studies.study import Study
from autopeft.studies.train import train
from tests.models import save_model, tokenizer
from tests.studies.projects import make_project, sentence, study_data, write_study
from tests.studies.runs import refused, run, succeed

CONFIGURATION: dict[str, object] = {"lora": {"rank": 4, "layers": [0, 2]}, "learning_rate": 0.03}
TASK_KEYS = ("model", "task", "training", "tracking")
TEXTS = ["baran cesel ditin", "nuzum movor lisel"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    there = tmp_path / "project"
    shutil.copytree(original, there)
    monkeypatch.chdir(there)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    write_study(there)
    write(there / "configuration.yaml", CONFIGURATION)
    task = {key: study_data()[key] for key in TASK_KEYS}
    write(there / "task.yaml", task)
    return there


def write(file: Path, data: object) -> None:
    file.write_text(yaml.safe_dump(data), encoding="utf-8")


def logits(model: torch.nn.Module) -> torch.Tensor:
    given = tokenizer()(TEXTS, return_tensors="pt", padding=True)
    with torch.inference_mode():
        return model(**given).logits


@pytest.mark.parametrize("task", ["task.yaml", "study.yaml"])
def test_a_configuration_is_trained_and_handed_over(
    task: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = json.loads(
        succeed(monkeypatch, capsys, "train", "configuration.yaml", "--task", task, "--out", "out", "--json")
    )
    assert done["format"] == "peft"
    assert done["trial"] is None
    assert set(done["validation"]) == set(done["held_out"]) == {"accuracy", "loss"}
    facts, card = json.loads(Path("out/export.json").read_text()), Path("out/README.md").read_text()
    assert (facts["search"], facts["seed"], facts["epochs"]) == (None, 0, 1)
    assert facts["predicted"]["memory"] > 0
    assert "trained by AutoPEFT" in card
    assert "**Training**: trained for 1 epochs with seed 0 (data split seed 0)." in card
    assert "chose this point among many" not in card
    assert torch.isfinite(logits(autopeft.load("out"))).all()


def test_progress_and_choices_of_the_command_line_are_followed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ("train", "configuration.yaml", "--task", "task.yaml")
    more = ("--epochs", "2", "--seed", "7", "--set", "training.batch_size=8")
    run(monkeypatch, *base, "--out", "one", *more)
    shown = capsys.readouterr()
    assert [line.partition(":")[0] for line in shown.err.splitlines()] == ["epoch 1/2", "epoch 2/2"]
    assert "one (peft format); held-out accuracy" in shown.out
    facts = json.loads(Path("one/export.json").read_text())
    assert (facts["seed"], facts["epochs"], facts["training"]["batch_size"]) == (7, 2, 8)
    run(monkeypatch, *base, "--out", "two", *more, "-q")
    assert capsys.readouterr().err == ""
    torch.testing.assert_close(logits(autopeft.load("two")), logits(autopeft.load("one")), atol=0, rtol=0)
    run(monkeypatch, *base, "--out", "three", *more, "--json")
    events = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert events == ["opened", "started", "reported", "reported", "finished", "stopped"]


def test_a_found_configuration_trains_to_what_the_search_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    succeed(monkeypatch, capsys, "search", "study.yaml", "-q")
    point = Study.open("tiny").front().knee()
    succeed(monkeypatch, capsys, "export", "tiny", "--out", "recipe", "--format", "config")
    seed = json.loads(Path("recipe/export.json").read_text())["seed"]
    arguments = ("recipe/configuration.yaml", "--task", "recipe/task.yaml", "--out", "out", "--seed", str(seed))
    done = json.loads(succeed(monkeypatch, capsys, "train", *arguments, "--set", "resources.cpus_per_job=1", "--json"))
    assert done["validation"] == pytest.approx(dict(point.measurement.metrics), abs=1e-6)
    again = ("train", "recipe/export.json", "--task", "study.yaml", "--out", "again", "-q")
    succeed(monkeypatch, capsys, *again)
    assert json.loads(Path("again/export.json").read_text())["configuration"] == point.configuration.to_json()


def test_pefts_own_file_is_a_configuration(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peft.LoraConfig(r=2, target_modules=["query"], use_dora=True, lora_dropout=0.1).save_pretrained("theirs")
    arguments = ("train", "theirs/adapter_config.json", "--task", "task.yaml")
    succeed(monkeypatch, capsys, *arguments, "--out", "out", "-q")
    written = json.loads(Path("out/adapter_config.json").read_text())
    assert (written["r"], written["use_dora"]) == (2, True)
    configuration = json.loads(Path("out/export.json").read_text())["configuration"]
    assert configuration["peft_lora"]["dropout"] == 0.1
    peft.PrefixTuningConfig(num_virtual_tokens=2).save_pretrained("prefix")
    said = refused(monkeypatch, capsys, "train", "prefix/adapter_config.json", "--task", "task.yaml", "--out", "no")
    assert "prefix/adapter_config.json: peft_type PREFIX_TUNING has no equal configuration here" in said


def test_a_training_is_a_run_on_the_tracking_server(
    folder: Path, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    arguments = ("train", "configuration.yaml", "--task", "task.yaml", "--set", f"tracking.mlflow={uri}", "-q")
    for out in ("one", "two"):
        succeed(monkeypatch, capsys, *arguments, "--set", "study=mine", "--out", out)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    runs = [found for found in client.search_runs([experiment.experiment_id]) if "accuracy" in found.data.metrics]
    assert len(runs) == 2
    facts = json.loads(Path("one/export.json").read_text())
    assert runs[0].data.metrics["accuracy"] == pytest.approx(facts["validation"]["accuracy"])
    assert runs[0].data.params["lora.rank"] == "4"
    assert {found.info.status for found in runs} == {"FINISHED"}


def test_a_failed_training_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(folder.rglob("*"))
    write(folder / "hot.yaml", {"lora": {"rank": 2}, "learning_rate": 1e-3})
    monkeypatch.setattr("autopeft.trainers.loop.train", _diverge)
    assert run(monkeypatch, "train", "hot.yaml", "--task", "task.yaml", "--out", "out", "-q") == 1
    said = capsys.readouterr().err
    assert "error: the training failed (diverged): the training loss became nan" in said
    assert "hint: lower the learning rate" in said
    assert set(folder.rglob("*")) - {folder / "hot.yaml"} == before


def _diverge(run: object) -> object:
    from autopeft.errors import DivergedError

    raise DivergedError("the training loss became nan in epoch 1")


def test_an_interrupted_training_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(folder.rglob("*"))

    def stop(run: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("autopeft.trainers.loop.train", stop)
    with pytest.raises(KeyboardInterrupt):
        train(CONFIGURATION, task="task.yaml", out="out", progress=False)
    assert set(folder.rglob("*")) == before


MISTAKES = [
    ({"lora": {"rnk": 4}}, (), "configuration.yaml: lora: unknown key 'rnk'", "did you mean 'rank'?"),
    ({"lora": {"rank": 999}}, (), "999", ""),
    (CONFIGURATION, ("--set", "task.metric=acuracy"), "unknown metric 'acuracy'", "did you mean 'accuracy'?"),
    (CONFIGURATION, ("--set", "task.text=txt"), "'txt'", "'text'"),
    (CONFIGURATION, ("--set", "trainig.epochs=1"), "unknown key 'trainig'", "did you mean 'training'?"),
    (CONFIGURATION, ("--set", "study=../evil"), "study: got '../evil'", ""),
    (CONFIGURATION, ("--format", "config"), "--format: config has no weights", ""),
    (CONFIGURATION, ("--out", "model"), "the folder is not empty", "name a new folder"),
    ({"mola": {"experts": 2}}, ("--merge",), "mola cannot be merged", "leave --merge out"),
    ({"lora": {"rank": 2}, "learning_rate": 99}, (), "learning_rate", ""),
]


@pytest.mark.parametrize(("data", "arguments", "message", "hint"), MISTAKES, ids=[row[2][:30] for row in MISTAKES])
def test_a_mistake_is_named_before_anything_is_trained(
    data: object,
    arguments: tuple[str, ...],
    message: str,
    hint: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(folder / "configuration.yaml", data)
    before = set(folder.rglob("*"))
    out = () if "--out" in arguments else ("--out", "out")
    said = refused(monkeypatch, capsys, "train", "configuration.yaml", "--task", "task.yaml", *out, *arguments)
    assert message in said
    assert hint in said
    assert set(folder.rglob("*")) == before


def test_a_task_file_that_is_none_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder / "task.yaml", {"model": "model"})
    said = refused(monkeypatch, capsys, "train", "configuration.yaml", "--task", "task.yaml", "--out", "out")
    assert "task: missing" in said
    said = refused(monkeypatch, capsys, "train", "none.yaml", "--task", "study.yaml", "--out", "out")
    assert "none.yaml: no such file" in said


def test_a_task_file_and_a_study_file_say_the_same(folder: Path) -> None:
    from dataclasses import replace

    assert replace(load_run(folder / "task.yaml"), name="tiny", threads=None) == replace(
        load_run(folder / "study.yaml"), threads=None
    )


def test_python_trains_from_values(folder: Path) -> None:
    task = {key: study_data()[key] for key in TASK_KEYS}
    done = autopeft.train(CONFIGURATION, task=task, out=folder / "out", compress="1bit", progress=False)
    assert done.format == "autopeft"
    assert done.compression is not None
    assert torch.isfinite(logits(autopeft.load(folder / "out"))).all()
    with pytest.raises(SpecError, match="the folder is not empty"):
        autopeft.train(CONFIGURATION, task=task, out=folder / "out", progress=False)


def test_pairs_on_a_decoder_are_served_as_their_columns_say(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A decoder needs its padding token in the card; a pair of texts needs two columns."""
    import mlflow
    import pandas as pd

    save_model("llama", folder / "decoder")
    chance = random.Random(0)
    rows = [(sentence(chance, label), sentence(chance, label), label) for label in ("low", "high") * 30]
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("premise", "claim", "label"), *rows])
    task = study_data(model="decoder", task__text=["premise", "claim"], task__data={"train": "pairs.csv"})
    write(
        folder / "task.yaml",
        {key: value for key, value in task.items() if key in ("model", "task", "training", "tracking")},
    )
    arguments = ("train", "configuration.yaml", "--task", "task.yaml", "-q")
    succeed(monkeypatch, capsys, *arguments, "--out", "peft")
    assert "base.config.pad_token_id = 0" in Path("peft/README.md").read_text()
    succeed(monkeypatch, capsys, *arguments, "--out", "served", "--format", "mlflow")
    model = mlflow.pyfunc.load_model("served")
    given = tokenizer()(rows[0][0], rows[0][1], return_tensors="pt")
    given.pop("token_type_ids", None)
    with torch.inference_mode():
        shares = autopeft.load("peft")(**given).logits[0].softmax(-1)
    answer = model.predict(pd.DataFrame({"text": [rows[0][0]], "text_pair": [rows[0][1]]}))
    assert answer["score"][0] == pytest.approx(float(shares.max()), abs=1e-5)
    assert 'pandas.DataFrame({"text": ["a text"], "text_pair": ["a text"]})' in Path("served/README.md").read_text()
