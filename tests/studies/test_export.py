"""A point of a study in every format: it loads where it says, scores as its card says, and nothing is half-written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import autopeft
from autopeft.errors import DataError, HubError, SpecError
from autopeft.studies import formats
from autopeft.studies.base_facts import read_license
from autopeft.studies.export import export
from autopeft.studies.options import ExportOptions
from autopeft.studies.serving import rows_of
from autopeft.studies.study import Study
from tests.models import tokenizer
from tests.studies.projects import make_project, write_rows, write_study
from tests.studies.runs import refused, run, succeed

TEXTS = ["baran cesel ditin", "nuzum movor lisel", "baran nuzum"]
STUDIES: dict[str, dict[str, object]] = {
    "plain": {"lora": {"rank": "choice(2, 4)"}, "learning_rate": "choice(0.02, 0.03)"},
    "mixed": {"lora": {"rank": "choice(2, 4)"}, "loha": {"rank": 2}, "learning_rate": 0.03},
    "serial": {"serial_adapter": {"bottleneck": "choice(2, 4)"}, "learning_rate": 0.03},
}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a small study of each space has run; its data has a test split."""
    folder = make_project(tmp_path_factory.mktemp("searched"))
    write_rows(folder / "test.csv", 24, seed=2)
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setenv("AUTOPEFT_CACHE", str(folder / "cache"))
    for name, space in STUDIES.items():
        write_study(folder, study=name, space=space, task__data__test="test.csv", search__trials=4)
        assert run(patch, "search", "study.yaml", "-q") == 0
    patch.undo()
    return folder


@pytest.fixture
def folder(searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    there = tmp_path / "project"
    shutil.copytree(searched, there)
    monkeypatch.chdir(there)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(there / "cache"))
    return there


def logits(model: torch.nn.Module) -> torch.Tensor:
    given = tokenizer()(TEXTS, return_tensors="pt", padding=True)
    with torch.inference_mode():
        return model(**given).logits


def kept(study: str) -> torch.nn.Module:
    """The model with the weights that the search kept of the knee."""
    from autopeft.trainers.saved import load_adapter

    opened = Study.open(study)
    return load_adapter(opened.adapter_folder(opened.front().knee().trial))[0]


OUTSIDE = """
import json, sys, warnings
import mlflow, torch
from peft import PeftMixedModel, PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
warnings.simplefilter("ignore")
base, texts = "model", json.loads(sys.argv[1])
tokens = AutoTokenizer.from_pretrained(base)(texts, return_tensors="pt", padding=True)

def plain(folder, **options):
    return AutoModelForSequenceClassification.from_pretrained(folder, **options)

mixed = PeftMixedModel.from_pretrained(plain(base, num_labels=2), "mixed/loha", adapter_name="loha")
mixed.load_adapter("mixed/lora", adapter_name="lora")
mixed.set_adapter(["loha", "lora"])
models = {
    "peft": PeftModel.from_pretrained(plain(base, num_labels=2), "peft"),
    "mixed": mixed,
    "merged": plain("merged"),
}
with torch.inference_mode():
    found = {name: model.eval()(**tokens).logits.tolist() for name, model in models.items()}
served = mlflow.pyfunc.load_model("served")
found["served"] = served.predict(texts).to_dict("list")
found["labels"] = models["merged"].config.id2label
assert not any(name.startswith("autopeft") for name in sys.modules)
print(json.dumps(found))
"""


def test_a_process_without_autopeft_computes_what_the_search_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within 1e-6 of the logits for peft folders, mixtures and merged models; the served labels follow from them."""
    for study, out, *more in (
        ("plain", "peft"),
        ("mixed", "mixed"),
        ("mixed", "merged", "--merge"),
        ("plain", "served", "--format", "mlflow"),
    ):
        assert out in succeed(monkeypatch, capsys, "export", study, "--out", out, *more)
    shown = subprocess.run(
        [sys.executable, "-c", OUTSIDE, json.dumps(TEXTS)], capture_output=True, text=True, check=True, cwd=folder
    )
    found = json.loads(shown.stdout.splitlines()[-1])
    expected = {"peft": logits(kept("plain")), "mixed": logits(kept("mixed"))}
    expected["merged"] = expected["mixed"]
    for name, ours in expected.items():
        torch.testing.assert_close(torch.tensor(found[name]), ours, atol=1e-6, rtol=0, msg=name)
        torch.testing.assert_close(logits(autopeft.load(name)), ours, atol=1e-6, rtol=0)
    names = found["labels"]
    shares = expected["peft"].softmax(-1)
    assert found["served"]["label"] == [names[str(index)] for index in shares.argmax(-1).tolist()]
    assert found["served"]["score"] == pytest.approx(shares.max(-1).values.tolist(), abs=1e-6)
    torch.testing.assert_close(logits(autopeft.load("served")), expected["peft"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("more", [(), ("--merge",)], ids=["serial", "merged"])
def test_what_is_no_pipeline_is_served_by_code(
    more: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow
    import pandas as pd

    study = "plain" if more else "serial"
    monkeypatch.setattr(formats, "CLASSIFICATION", "another kind") if more else None
    succeed(monkeypatch, capsys, "export", study, "--out", "served", "--format", "mlflow", *more)
    model = mlflow.pyfunc.load_model("served")
    answers = model.predict(pd.DataFrame({"text": TEXTS}))
    shares = logits(kept(study)).softmax(-1)
    assert answers["score"].tolist() == pytest.approx(shares.max(-1).values.tolist(), abs=1e-6)
    assert set(answers["label"]) <= {"low", "high"}
    assert model.predict(TEXTS).to_dict() == answers.to_dict()
    torch.testing.assert_close(logits(autopeft.load("served")).softmax(-1), shares, atol=1e-6, rtol=0)
    assert "AutoPEFT must be installed" in Path("served/README.md").read_text()


def test_a_table_that_lacks_a_column_is_refused() -> None:
    import pandas as pd

    table = pd.DataFrame({"premise": ["a"], "claim": ["b"], "more": [1]})
    assert rows_of(table, ["claim", "premise"]) == [["b", "a"]]
    assert rows_of(pd.DataFrame({0: ["a"]}), ["text"]) == [["a"]]
    with pytest.raises(DataError, match="input: no column 'question'; the columns are premise, claim, more"):
        rows_of(table, ["premise", "question"])


@pytest.mark.parametrize(("how", "bits"), [("compeft", 2.0), ("compeft:k=10,alpha=3", 0.8), ("1bit", 2.2)])
def test_compressed_weights_load_and_score_as_the_card_says(
    how: str, bits: float, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = json.loads(succeed(monkeypatch, capsys, "export", "plain", "--out", "small", "--compress", how, "--json"))
    facts = done["compression"]
    assert facts["bits_a_number"] < bits
    assert facts["bytes_before"] == 4 * facts["numbers"]
    assert done["format"] == "autopeft"
    right = [model_says(autopeft.load("small"), text) == label for text, label in rows("test.csv")]
    assert done["held_out"]["accuracy"] == pytest.approx(sum(right) / len(right))
    card = Path("small/README.md").read_text()
    before = json.loads(Path("small/export.json").read_text())["held_out_before"]["accuracy"]
    assert f"Held-out accuracy {before:.4f} before, {done['held_out']['accuracy']:.4f} after" in card


def rows(file: str) -> list[list[str]]:
    return [line.split(",") for line in Path(file).read_text().splitlines()[1:]]


def model_says(model: torch.nn.Module, text: str) -> str:
    with torch.inference_mode():
        best = int(model(**tokenizer()([text], return_tensors="pt")).logits.argmax())
    return model.config.id2label[best]  # type: ignore[union-attr, index]  # of transformers


def test_the_card_tells_scores_with_intervals_sizes_and_seeds(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(Study.open("plain").spec.model.name) / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    done = json.loads(succeed(monkeypatch, capsys, "export", "plain", "--out", "out", "--json"))
    card, facts = Path("out/README.md").read_text(), json.loads(Path("out/export.json").read_text())
    interval = done["intervals"]["accuracy"]
    assert interval["method"] == "wilson"
    assert interval["rows"] == 24
    bounds = f"({interval['low']:.4f} to {interval['high']:.4f})"
    assert f"{done['held_out']['accuracy']:.4f} {bounds}" in card
    for words in (
        'license: "apache-2.0"',
        "over the 24 held-out rows, of accuracy Wilson's",
        f"trainable parameters: {facts['parameters']:,}, and 66 of the task head",
        "measured (predicted ",
        f"seed {facts['seed']} (data split seed 0)",
        "`random`, seed 1, 4 trials",
        "train.csv, validation.csv, test.csv; texts from `text`, labels from `label`",
        "id2label={0: 'high', 1: 'low'}",
    ):
        assert words in card
    assert "base_model" not in card  # a folder is no name on a hub


def test_a_base_without_a_card_has_no_known_licence(tmp_path: Path) -> None:
    assert read_license(str(tmp_path), None) is None
    (tmp_path / "README.md").write_text("# no front matter\n")
    assert read_license(str(tmp_path), None) is None
    (tmp_path / "README.md").write_text("---\nlicense: [mit]\n---\n")
    assert read_license(str(tmp_path), None) is None
    (tmp_path / "README.md").write_text("---\nlicense: &a mit\n---\n")
    assert read_license(str(tmp_path), None) is None
    assert read_license("org/never-downloaded", None) is None


def test_training_again_gives_the_searchs_weights_and_tells_both_scores(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = logits(kept("plain"))
    shutil.rmtree("autopeft-artifacts")
    said = refused(monkeypatch, capsys, "export", "plain", "--out", "out")
    assert "the trained adapter of trial" in said
    assert "--train trains it again with the same seed and budget" in said
    succeed(monkeypatch, capsys, "export", "plain", "--out", "out", "--train")
    torch.testing.assert_close(logits(autopeft.load("out")), expected, atol=1e-5, rtol=0)
    facts, card = json.loads(Path("out/export.json").read_text()), Path("out/README.md").read_text()
    assert facts["searched"]["accuracy"] == pytest.approx(facts["validation"]["accuracy"])
    assert "| validation, in the search | validation, trained again |" in card
    assert "of a second training with the same seed and budget" in card


def test_a_dominated_trial_can_be_trained_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    front = {point.trial for point in Study.open("plain").front()}
    other = next(trial.number for trial in Study.open("plain").history() if trial.number not in front)
    succeed(monkeypatch, capsys, "export", "plain", "--pick", f"trial:{other}", "--out", "out", "--train")
    assert "It is not on the front" in Path("out/README.md").read_text()


def test_a_configuration_without_weights_can_be_trained_by_us_and_built_by_peft(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree("autopeft-artifacts")
    shown = succeed(monkeypatch, capsys, "export", "mixed", "--out", "recipe", "--format", "config")
    assert "autopeft train recipe/configuration.yaml --task recipe/task.yaml" in shown
    chosen = Study.open("mixed").front().knee()
    assert yaml.safe_load(Path("recipe/configuration.yaml").read_text()) == chosen.configuration.to_json()
    done = subprocess.run(
        [sys.executable, "recipe/peft_model.py"], capture_output=True, text=True, check=True, cwd=folder
    )
    assert f"trainable params: {chosen.measurement.parameters}" in done.stdout.replace(",", "")
    with pytest.raises(autopeft.AutoPeftError, match="the format config has no weights"):
        autopeft.load("recipe")
    succeed(monkeypatch, capsys, "export", "serial", "--out", "own", "--format", "config")
    assert not Path("own/peft_model.py").exists()
    assert (
        "There is no snippet for plain peft: serial_adapter: peft does not train it"
        in Path("own/README.md").read_text()
    )


REFUSED = [
    (("--format", "pfet"), "--format: got 'pfet'", "did you mean 'peft'?"),
    (("--format", "peft", "--merge"), "--merge: the format peft keeps the adapter apart", "--format merged"),
    (("--format", "config", "--train"), "--train: the format config has no weights", "leave --train out"),
    (("--compress", "zip"), "--compress: got 'zip'; allowed: compeft, 1bit", ""),
    (("--compress", "compeft:k=0"), "--compress: got 'k=0'; a number above 0 up to 100", ""),
    (("--compress", "compeft:k=ten"), "--compress: got 'k=ten'", ""),
    (("--compress", "1bit:k=3"), "--compress: got 'k=3'; 1bit takes no settings", ""),
    (("--compress", "1bit", "--merge"), "--compress: a merged model cannot hold compressed weights", ""),
    (("--compress", "1bit", "--format", "peft"), "--compress: the format peft cannot hold compressed weights", ""),
    (("--pick", "trial:77"), "pick: the study has no trial 77", "the nearest on the front is trial:"),
    (("--pick", "acuracy >= 0.5"), "pick: no value called 'acuracy'", "did you mean 'accuracy'?"),
    (("--pick", "best:memry"), "pick: no objective called 'memry'", "did you mean 'memory'?"),
    (("--pick", "parameters < 3"), "pick: no point of the front meets the conditions", "the nearest is trial:"),
    (("--push-to-hub", "a/b/c"), "--push-to-hub: got 'a/b/c'", "write owner/name"),
    (("--out", "model"), "--out model: the folder is not empty", "name a new folder"),
    (("--out", "train.csv"), "--out train.csv: there is a file of that name", "name a new folder"),
]


@pytest.mark.parametrize(("arguments", "message", "hint"), REFUSED, ids=[" ".join(row[0]) for row in REFUSED])
def test_what_cannot_be_exported_is_named_and_nothing_is_written(
    arguments: tuple[str, ...],
    message: str,
    hint: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = set(folder.rglob("*"))
    out = () if "--out" in arguments else ("--out", "out")
    said = refused(monkeypatch, capsys, "export", "plain", *out, *arguments)
    assert message in said
    assert hint in said
    assert set(folder.rglob("*")) == before


def test_what_does_not_merge_or_fit_is_refused_before_it_is_trained(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(monkeypatch, capsys, "export", "serial", "--out", "out", "--merge", "--train")
    assert "serial_adapter cannot be merged into the base weights" in said
    assert "leave --merge out: --format auto keeps the adapter apart from the base" in said
    said = refused(monkeypatch, capsys, "export", "serial", "--out", "out", "--format", "peft", "--train")
    assert "serial_adapter" in said
    assert "use --format autopeft" in said
    assert not (folder / "out").exists()


def test_a_trial_that_failed_or_was_pruned_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(folder, study="failing", space={"lora": {"rank": 2}, "learning_rate": 1e-3}, search__trials=1)
    monkeypatch.setattr("autopeft.trainers.loop.train", _diverge)
    run(monkeypatch, "search", "study.yaml", "-q")
    said = refused(monkeypatch, capsys, "export", "failing", "--pick", "trial:0", "--out", "out")
    assert "pick: trial 0 failed (diverged: " in said
    assert "no trial of this study has completed" in said


def _diverge(run: object) -> object:
    from autopeft.errors import DivergedError

    raise DivergedError("the training loss became nan in epoch 1")


class Hub:
    """A stand-in for the hub's API."""

    def __init__(self, *, fails: str = "") -> None:
        self.fails, self.files = fails, dict[str, set[str]]()

    def whoami(self) -> dict[str, object]:
        return {"name": "somebody"}

    def create_repo(self, repo_id: str, *, exist_ok: bool) -> str:
        assert exist_ok
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> str:
        if self.fails:
            raise OSError(self.fails)
        assert commit_message == "Export of plain"
        self.files[repo_id] = {path.name for path in Path(folder_path).iterdir()}
        return commit_message


def push(out: str, hub: Hub) -> object:
    study = Study.open("plain")
    point = study.front().knee()
    return export(
        study.spec,
        point,
        shape=study.shape(),
        predicted={},
        on_front=True,
        source=study.adapter_folder(point.trial),
        out=Path(out),
        options=ExportOptions(push_to_hub="me/adapter"),
        api=hub,  # type: ignore[arg-type]  # the part that is used
    )


def test_a_folder_goes_to_the_hub_whole(folder: Path) -> None:
    hub = Hub()
    done = push("out", hub)
    assert hub.files == {"me/adapter": {path.name for path in Path("out").iterdir()}}
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= hub.files["me/adapter"]
    assert getattr(done, "address", None) == "https://hub/me/adapter"


def test_a_hub_that_does_not_take_it_leaves_the_folder(folder: Path) -> None:
    with pytest.raises(HubError, match="the folder is in out, but the hub did not take it: no route to host"):
        push("out", Hub(fails="no route to host"))
    assert autopeft.load("out") is not None


@pytest.mark.parametrize(
    ("environment", "error", "message"),
    [
        ({"HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "0"}, HubError, "the hub does not answer"),
        ({"HF_TOKEN": "", "HF_HUB_OFFLINE": "0"}, SpecError, "nobody is logged in"),
    ],
)
def test_no_network_or_no_login_is_said_before_anything_is_written(
    environment: dict[str, str], error: type[Exception], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    from autopeft.studies.hub import check_hub

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HOME", str(folder / "nobody"))
    with pytest.raises(error, match=message):
        check_hub("me/adapter", HfApi(endpoint="http://127.0.0.1:9", token=environment["HF_TOKEN"] or None))  # type: ignore[arg-type]  # wider than what is used
