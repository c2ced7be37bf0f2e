"""Whatever a user gets wrong comes back as one message with place, value and fix; status 2; nothing written."""

import shutil
import sqlite3
from pathlib import Path

import pytest
import transformers

from autopeft import cli
from tests.images import CLASSES, drawn, write_folder, write_table
from tests.models import save_model
from tests.studies.projects import make_project, put, study_data, write_rows, write_study


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def project(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(original, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    return folder


def status_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["autopeft", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


CASES: list[tuple[dict[str, object], tuple[str, ...]]] = [
    ({"trainin": {"epochs": 1}}, ("study.yaml:", "unknown key 'trainin'", "did you mean 'training'?")),
    ({"training__epoch": 3}, ("training.epoch: unknown key 'epoch'", "did you mean 'epochs'?")),
    ({"training__epochs": "three"}, ("training.epochs: got 'three'", "a whole number is needed")),
    ({"training__epochs": 0}, ("training.epochs: got 0", "above 0")),
    ({"training__learning_rate": -1.0}, ("training.learning_rate: got -1.0", "above 0")),
    (
        {"training__fidelity": {"reductoin": 3}},
        ("training.fidelity.reductoin: unknown key", "did you mean 'reduction'?"),
    ),
    ({"training__fidelity": {"reduction": 1}}, ("training.fidelity.reduction: got 1", "at least 2")),
    ({"training__fidelity": {"minimum": 0}}, ("training.fidelity.minimum: got 0", "above 0")),
    ({"training__fidelity": {"scheduler": "asha"}}, ("training.fidelity.scheduler: got 'asha'", "'halving'")),
    ({"training__fidelity": 3}, ("training.fidelity: got 3", "a mapping of keys to values")),
    (
        {"training__epochs": 4, "training__fidelity": {"minimum": 4}},
        ("study.yaml:", "training.fidelity.minimum: got 4, and training.epochs is 4", "use 3 or less"),
    ),
    (
        {"training__epochs": 1, "training__fidelity": {}},
        ("training.fidelity.minimum: got 1, and training.epochs is 1", "raise training.epochs"),
    ),
    ({"study": "../evil"}, ("study: got '../evil'", "letters, digits")),
    ({"study": ...}, ("study: missing", "add `study: ...`")),
    ({"search__engine": "bayes"}, ("search.engine: got 'bayes'", "'bayesian'")),
    ({"task__kind": "text-classificatio"}, ("task.kind: got 'text-classificatio'", "'text-classification'")),
    ({"task__metric": "acuracy"}, ("task.metric: unknown metric 'acuracy'", "did you mean 'accuracy'?")),
    ({"objectives": ["accuracy", "latency"]}, ("objectives: got 'latency'", "memory, parameters")),
    ({"space": "autopft"}, ("autopft", "autopeft")),
    ({"space__lra": {"rank": 4}}, ("lra", "lora")),
    (
        {"space": ["lora"]},
        ("space: got ['lora']; the name of a preset or a mapping", "write for instance space"),
    ),
    ({"space__dora": {"rank": 4}}, ("unknown key 'dora'", "did you mean 'peft_lora' with variant: dora?")),
    ({"space__lr": 0.001}, ("unknown key 'lr'", "did you mean 'learning_rate'?")),
    ({"space__lora__r": 4}, ("unknown key 'r'", "did you mean 'rank'?")),
    ({"space__lora__rnk": 4}, ("rnk", "rank")),
    ({"space__lora__rank": "choice()"}, ("space.lora.rank", "choice")),
    ({"space__lora__rank": "int(8, 2)"}, ("space.lora.rank", "8", "2")),
    ({"space__lora__rank": "choice(-1, 2)"}, ("space.lora.rank", "-1")),
    ({"space__lora__rank": "choice(0, 999)"}, ("lora.rank", "999", "32")),
    ({"space__lora__rank": "__import__('os').system('ls')"}, ("space.lora.rank",)),
    ({"space__lora__targets": "subset(query, valeu)"}, ("valeu", "attention.self.value")),
    ({"space__learning_rate": "log(0, 1)"}, ("space.learning_rate", "0")),
    ({"space__lora__learning_rate": "ramp(choice(1e-4, 1e-3))"}, ("space.lora.learning_rate", "one rate on all its")),
    (
        {"space__galore_rank": "choice(4, 8)"},
        ("space.galore_rank: means something only with optimizer galore", "adamw"),
    ),
    (
        {"space__layer_sampling": "choice(none, random)", "space__suppression": 0.5},
        ("space.suppression: means something only with layer_sampling importance", "this study has none or random"),
    ),
    (
        {"space__checkpointing": True, "training__density": 1.0},
        ("checkpointing-hides-activations", "density 1.0 looks into their first pass"),
    ),
    (
        {"space": {"serial_adapter": {"bottleneck": 4}}, "training__optimizer": "lora_fa"},
        ("lora-fa-needs-factors", "use optimizer adamw"),
    ),
    ({"constraints": ["parameters <= 3"]}, ("parameters <= 3",)),
    ({"constraints": ["speed <= 3"]}, ("speed",)),
    ({"task__data__train": "trian.csv"}, ("trian.csv", "train.csv")),
    ({"task__text": "txt"}, ("'txt'", "'text'")),
    ({"task__label": "lable"}, ("'lable'", "'label'")),
    ({"model": "train.csv"}, ("train.csv",)),
    ({"model": "missing-folder/model"}, ("missing-folder/model",)),
    ({"resources__trials_per_job": 0}, ("resources.trials_per_job: got 0", "it must be above 0")),
    (
        {"resources__memory_per_job": "20 KiB"},
        ("resources.memory_per_job: a job has 20 KiB; the smallest", "predicted to take", "give a job more"),
    ),
    ({"resources__gpus_per_job": 64}, ("resources.gpus_per_job: got 64",)),
    ({"tracking__mlflow": "./mlruns"}, ("tracking.mlflow: got './mlruns'", "sqlite:///mlflow.db")),
]


@pytest.mark.parametrize(("changes", "said"), CASES, ids=[str(changes)[:50] for changes, _ in CASES])
def test_a_mistake_in_the_study_file_is_named_and_nothing_is_written(
    changes: dict[str, object],
    said: tuple[str, ...],
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_study(project, **changes)
    before = files_in(project)
    assert status_of(monkeypatch, "search", "study.yaml") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert len(shown.err.splitlines()) <= 2, shown.err
    for words in said:
        assert words in shown.err
    assert files_in(project) == before


ROWS = [
    ("text,label\n", ("train.csv",)),
    ("text,label\nbaran,low\ncesel,low\n", ("low",)),
]


@pytest.mark.parametrize(("content", "said"), ROWS)
def test_unusable_training_rows_are_named(
    content: str,
    said: tuple[str, ...],
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_study(project)
    (project / "train.csv").write_text(content)
    assert status_of(monkeypatch, "search", "study.yaml") == 2
    shown = capsys.readouterr().err
    assert all(words in shown for words in said)


IMAGE_CASES: list[tuple[dict[str, object], tuple[str, ...]]] = [
    ({"task__image": ...}, ("task.image: missing", "add `task.image: ...`")),
    ({"task__text": "image"}, ("task.text: got ['image']", "reads images")),
    ({"task__image": "picture"}, ("no column 'picture'", "task.image", "'image'")),
    ({"task__label": "class"}, ("no column 'class'", "task.label", "'label'")),
    ({"task__metric": "perplexity"}, ("task.metric: got 'perplexity'", "accuracy")),
    ({"task__data__train": "shapes/trian"}, ("shapes/trian: no such file",)),
    ({"task__data__train": "shapes"}, ("holds splits (train, test)", "data: {train: ")),
    ({"task__data__train": "empty"}, ("empty: no images could be read", "a folder for each class")),
    ({"task__data__train": "one"}, ("one: its folders give no classes", "CLASS/FILE")),
    ({"task__data__train": "gone.csv"}, ("gone.csv row 2: ", "nowhere.png: no such file")),
    ({"task__data__train": "text.csv"}, ("text.csv row 1: ", "notes.txt: not an image file")),
    ({"task__data__train": "cut.csv"}, ("cut.csv row 1: ", "cut.png: a damaged image")),
    ({"task__data__train": "same.csv"}, ("same.csv: every row has the label 'a'",)),
    ({"model": "bert"}, ("a bert model is no vision transformer",)),
    ({"model": "swin"}, ("a swin model has no single width",)),
    ({"space": {"prompt_tuning": {"length": 4}}}, ("prompt_tuning: this vit model embeds no tokens",)),
    ({"model": "bare"}, ("image processor: ", "preprocessor_config.json")),
    ({"task__kind": "text-classification", "task__image": ..., "task__text": "label"}, ("a vit model reads images",)),
    ({"task__kind": "text-classification"}, ("task.text: missing",)),
    ({"task__kind": "text-classification", "task__text": "label"}, ("task.image: got 'image'", "reads texts")),
]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of images beside all kinds of unusable files."""
    folder = tmp_path_factory.mktemp("gallery")
    for name in ("vit", "bert", "bare"):
        save_model("vit" if name == "bare" else name, folder / name)
    (folder / "bare" / "preprocessor_config.json").unlink()
    transformers.SwinConfig().save_pretrained(folder / "swin")
    for split in ("train", "test"):
        write_folder(folder / "shapes" / split, 20)
    write_folder(folder / "one", 1)
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("no image")
    drawn(0).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:-30])
    shown = [(f"shapes/train/{name}/{index:03d}.png", name) for index, name in enumerate(CLASSES * 10)]
    write_table(folder / "train.csv", shown)
    write_table(folder / "gone.csv", [shown[0], ("nowhere.png", "disc"), *shown])
    write_table(folder / "text.csv", [("notes.txt", "disc"), *shown])
    write_table(folder / "cut.csv", [("cut.png", "disc"), *shown])
    write_table(folder / "same.csv", [(path, "a") for path, _ in shown])
    return folder


@pytest.mark.parametrize(("changes", "said"), IMAGE_CASES, ids=[str(changes)[:50] for changes, _ in IMAGE_CASES])
def test_a_mistake_in_a_study_of_images_is_named_and_nothing_is_written(
    changes: dict[str, object],
    said: tuple[str, ...],
    gallery: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    task = {"kind": "image-classification", "image": "image", "label": "label", "metric": "accuracy"}
    data = {"train": "train.csv", "test": "train.csv", "validation": "train.csv"}
    if str(changes.get("task__data__train", "")).endswith("csv"):
        data = {"train": "train.csv"}
    study = study_data(model="vit", task=task | {"data": data}, space={"lora": {"rank": 2}}, **{"study": "images"})
    write_study(gallery, put(study, changes))
    monkeypatch.chdir(gallery)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    before = files_in(gallery)
    assert status_of(monkeypatch, "search", "study.yaml") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert len(shown.err.splitlines()) <= 2, shown.err
    for words in said:
        assert words in shown.err
    assert files_in(gallery) == before


def test_a_label_that_train_does_not_have_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(project)
    with (project / "validation.csv").open("a") as file:
        file.write("baran cesel,middle\n")
    assert status_of(monkeypatch, "search", "study.yaml") == 2
    shown = capsys.readouterr().err
    assert "validation.csv" in shown
    assert "'middle'" in shown


def test_another_programs_database_is_left_alone(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(project)
    with sqlite3.connect(project / "other.db") as other:
        other.execute("create table recipes (name text)")
    before = (project / "other.db").read_bytes()
    assert status_of(monkeypatch, "search", "study.yaml", "--storage", "sqlite:///other.db") == 2
    assert "other.db" in capsys.readouterr().err
    assert (project / "other.db").read_bytes() == before


def test_a_study_that_exists_with_another_space_says_what_differs(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(project)
    assert status_of(monkeypatch, "search", "study.yaml", "-q") == 0
    write_study(project, space__lora__rank="choice(0, 8)")
    capsys.readouterr()
    assert status_of(monkeypatch, "search", "study.yaml") == 2
    shown = capsys.readouterr().err
    assert "space.lora.rank" in shown
    assert "choice(0, 2, 4)" in shown
    assert "choice(0, 8)" in shown


def test_a_study_whose_rows_have_changed_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(project)
    assert status_of(monkeypatch, "search", "study.yaml", "-q") == 0
    write_rows(project / "train.csv", 60, seed=5)
    capsys.readouterr()
    assert status_of(monkeypatch, "search", "study.yaml") == 2
    assert "task.data.train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("front", "nothing"), "autopeft.db"),
        (("search", "nothing.yaml"), "no such file"),
        (("search", "study.yaml", "--set", "search.trials"), "not of the form key=value"),
        (("search", "study.yaml", "--set", "search.trails=3"), "did you mean 'trials'?"),
        (("search", "study.yaml", "--set", "study.a=3"), "holds 'tiny'"),
        (("check", "study.yaml", "--set", "training.epochs=x"), "a whole number is needed"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(
    arguments: tuple[str, ...],
    said: str,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_study(project)
    assert status_of(monkeypatch, *arguments) == 2
    assert said in capsys.readouterr().err


def test_an_unknown_flag_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert status_of(monkeypatch, "search", "study.yaml", "--trails", "3") == 2


def test_study_data_of_the_tests_is_itself_fine(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(project, study_data())
    assert status_of(monkeypatch, "check", "study.yaml") == 0


def test_rows_can_be_written(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.csv", 4, seed=0)
    assert (tmp_path / "rows.csv").read_text().count("\n") == 5
