import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import autopeft
from autopeft.cli import main
from autopeft.errors import NotFoundError
from autopeft.studies.registry import alias_of, register
from autopeft.studies.session import study_info
from tests.studies.projects import make_project, write_study
from tests.studies.test_tracking import closed_port

mlflow = pytest.importorskip("mlflow")

Run = Callable[..., str]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Path:
    """A finished study of two trials that no tracking server has heard of."""
    folder = make_project(tmp_path_factory.mktemp("project"))
    (folder / "mlflow.db").write_bytes(migrated.read_bytes())
    database = f"sqlite:///{folder}/mlflow.db"
    file = write_study(folder, space={"lora": {"rank": "choice(2, 4)"}}, tracking__mlflow=database)
    autopeft.search(file, storage=f"sqlite:///{folder}/autopeft.db", settings=["tracking.mlflow=null"], progress=False)
    return folder


@pytest.fixture
def run(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in the project's folder; what it prints."""
    monkeypatch.chdir(project)

    def call(*arguments: str, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["autopeft", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        shown = capsys.readouterr()
        assert left.value.code == status, shown.err
        return shown.out if status == 0 else shown.err

    return call


def test_a_registered_point_answers_texts_and_is_tied_to_its_run(run: Run, project: Path, tmp_path: Path) -> None:
    elsewhere = f"sqlite:///{tmp_path}/elsewhere.db"
    mlflow.set_tracking_uri(elsewhere)
    assert "tracking is off" in run("sync", "tiny", status=2)
    told = json.loads(run("sync", "study.yaml", "--register", "knee", "--json"))
    (model,) = told["models"]
    uri = f"sqlite:///{project}/mlflow.db"
    assert mlflow.get_tracking_uri() == elsewhere
    client = mlflow.MlflowClient(uri)
    version = client.get_model_version_by_alias("tiny", "knee")
    assert (version.name, str(version.version)) == (model["name"], model["version"])
    assert version.source == f"models:/{model['model_id']}"
    child = client.get_run(version.run_id)
    assert child.info.run_name == f"trial-{model['trial']:03d}"
    assert [output.model_id for output in child.outputs.model_outputs] == [model["model_id"]]
    assert 0.0 <= child.data.metrics["test/accuracy"] <= 1.0
    logged = client.get_logged_model(model["model_id"])
    assert (logged.status.value, logged.params["lora.rank"]) == ("READY", child.data.params["lora.rank"])

    mlflow.set_tracking_uri(uri)
    served = mlflow.pyfunc.load_model("models:/tiny@knee")
    assert served.metadata.signature is not None
    example = served.input_example
    assert set(served.predict(example)["label"]) <= {"low", "high"}
    pipeline = mlflow.transformers.load_model(model["uri"])
    assert pipeline(list(example))[0]["label"] == served.predict(example)["label"][0]


def test_registering_again_makes_no_second_version_and_moves_the_alias(run: Run) -> None:
    (first,) = json.loads(run("sync", "study.yaml", "--register", "knee", "--json"))["models"]
    (again,) = json.loads(run("sync", "study.yaml", "--register", f"trial:{first['trial']}", "--json"))["models"]
    assert again == {**first, "made": False}
    assert "was already version" in run("sync", "study.yaml", "--register", "knee")


@pytest.mark.parametrize("pick", ["best:speed", "accuracy > 2"])
def test_a_pick_that_matches_nothing_is_told_before_anything_is_sent(run: Run, pick: str) -> None:
    assert run("sync", "study.yaml", "--register", pick, status=2).startswith("error: pick: no ")


def test_a_server_that_does_not_answer_is_wrong_input(run: Run, project: Path) -> None:
    dead = f"http://127.0.0.1:{closed_port()}"
    text = (project / "study.yaml").read_text().replace(f"sqlite:///{project}/mlflow.db", dead)
    (project / "away.yaml").write_text(text)
    told = run("sync", "away.yaml", status=2)
    assert told.startswith(f"error: MLflow at {dead} does not take anything: [Errno 111] Connection refused\n hint: ")
    assert run("ui", "away.yaml", "--no-open", status=2).startswith("error: MLflow at")


def test_a_trial_that_was_not_mirrored_has_no_run_to_hang_a_model_on(project: Path, tmp_path: Path) -> None:
    study = autopeft.Study.open("tiny", storage=f"sqlite:///{project}/autopeft.db")
    info = study_info(study.spec, study.shape())
    with pytest.raises(NotFoundError, match=r"trial \d has no run in MLflow") as caught:
        register(
            f"sqlite:///{tmp_path}/other.db",
            info,
            study.front().knee(),
            folder=tmp_path,
            held_out={},
            outbox=tmp_path / "o.db",
            alias=None,
        )
    assert "autopeft sync tiny" in caught.value.hint


def test_aliases_follow_the_pick() -> None:
    assert [alias_of(pick) for pick in ("knee", "best: accuracy", "trial:3", "accuracy > 0.5")] == [
        "knee",
        "best-accuracy",
        None,
        None,
    ]
