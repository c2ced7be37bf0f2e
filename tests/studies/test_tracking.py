import fcntl
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from autopeft.errors import SpecError, TrackingError
from autopeft.search.trial import History, Trial, TrialState
from autopeft.spaces.configuration import Configuration
from autopeft.studies.courier import MlflowCourier
from autopeft.studies.events import (
    StopReason,
    StudyEvent,
    StudyOpened,
    StudyStopped,
    TrialFinished,
    TrialReported,
    TrialStarted,
)
from autopeft.studies.notes import StudyInfo, trial_note
from autopeft.studies.outbox import Note, Outbox
from autopeft.studies.saved_view import VIEW_TAG
from autopeft.studies.tracking import MlflowMirror, sync
from autopeft.studies.tracking_settings import check_uri, public_uri
from tests.studies.servers import serving, unwell
from tests.studies.synthetic import OBJECTIVES, completed, front_of, history, lora

mlflow = pytest.importorskip("mlflow")

INFO = StudyInfo(
    name="rte",
    objectives=OBJECTIVES,
    model="some/model",
    task="text-classification",
    data="rte/train.csv",
    settings={"engine": "random", "seed": 3},
)


def running(trial: Trial) -> Trial:
    return replace(trial, state=TrialState.RUNNING, measurements=(), failure=None, seconds=0.0)


def events(told: History, *, before: History | None = None) -> list[StudyEvent]:
    """What a study says that runs the trials of `told` one by one, after those of `before`."""
    before = before or History()
    said: list[StudyEvent] = [StudyOpened(study=INFO.name, objectives=OBJECTIVES, n_trials=len(told), history=before)]
    for trial in told.trials[len(before) :]:
        said.append(TrialStarted(trial=running(trial), seed=0, attempt=1))
        said += [TrialReported(number=trial.number, measurement=one) for one in trial.measurements]
        said.append(TrialFinished(trial=trial))
    return [*said, StudyStopped(reason=StopReason.BUDGET, history=told)]


def mirrored(uri: str, told: History, outbox: Path, *, info: StudyInfo = INFO) -> int:
    notes: list[str] = []
    mirror = MlflowMirror(uri, info, outbox=outbox, notify=notes.append)
    for event in events(told):
        mirror.on_event(event)
    left = mirror.close(30.0)
    assert notes == []
    return left


def runs_of(uri: str, name: str = INFO.name) -> dict[str, "mlflow.entities.Run"]:
    client = mlflow.MlflowClient(uri)
    found = client.get_experiment_by_name(name)
    return {run.info.run_name: run for run in client.search_runs([found.experiment_id], max_results=500)}


def rows_of(uri: str) -> dict[str, list[tuple[object, ...]]]:
    """Every row of the tables a mirror fills, as the database holds them."""
    tables = ("experiments", "runs", "metrics", "params", "tags", "inputs", "datasets", "experiment_tags")
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        return {table: sorted(database.execute(f"SELECT * FROM {table}"), key=repr) for table in tables}


def test_what_was_confirmed_is_on_its_run_and_in_the_front(uri: str, tmp_path: Path) -> None:
    told, outbox = history(8), tmp_path / "o.db"
    mirrored(uri, told, outbox)
    score = {"mean": 0.71, "std": 0.02, "low": 0.65, "high": 0.77, "split": "test"}
    counts = sync(uri, INFO, told, outbox=outbox, confirmed={1: {"seeds": 3, "accuracy": score}})
    assert counts.sent == 2, "the scores and the front"
    runs = runs_of(uri)
    assert runs["trial-001"].data.metrics.items() >= {("confirmed/accuracy", 0.71), ("confirmed/accuracy_std", 0.02)}
    assert runs["trial-001"].data.tags["confirmed"] == "accuracy 0.7100 ± 0.0200, 3 seeds, test split"
    assert "confirmed" not in runs["trial-002"].data.tags
    page = Path(
        mlflow.artifacts.download_artifacts(f"runs:/{runs['rte'].info.run_id}/front/front.html", tracking_uri=uri)
    )
    assert '"confirmed": {"seeds": 3' in page.read_text("utf-8")
    assert sync(uri, INFO, told, outbox=outbox, confirmed={1: {"seeds": 3, "accuracy": score}}).sent == 0


def test_the_page_of_a_study_is_an_artifact(uri: str, tmp_path: Path) -> None:
    told, outbox = history(3), tmp_path / "o.db"
    mirrored(uri, told, outbox)
    assert sync(uri, INFO, told, outbox=outbox, page="<p>first</p>").sent == 1
    assert sync(uri, INFO, told, outbox=outbox, page="<p>first</p>").sent == 0
    assert sync(uri, INFO, told, outbox=outbox).sent == 0
    assert sync(uri, INFO, told, outbox=outbox, page="<p>second</p>").sent == 1
    place = f"runs:/{runs_of(uri)['rte'].info.run_id}/report.html"
    assert Path(mlflow.artifacts.download_artifacts(place, tracking_uri=uri)).read_text("utf-8") == "<p>second</p>"


def test_a_study_becomes_a_parent_run_and_a_child_for_each_trial(uri: str, tmp_path: Path) -> None:
    told = history(12)
    assert mirrored(uri, told, tmp_path / "o.db") == 0
    runs = runs_of(uri)
    assert set(runs) == {"rte", *(f"trial-{n:03d}" for n in range(12))}
    parent, child = runs["rte"], runs["trial-001"]
    assert parent.data.params.items() >= {("model", "some/model"), ("engine", "random"), ("seed", "3")}
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert {run.info.status for name, run in runs.items() if name != "trial-003"} == {"FINISHED"}
    point = next(trial for trial in told if trial.number == 1)
    assert point.final is not None
    assert child.data.metrics["accuracy"] == point.final.metrics["accuracy"]
    assert child.data.metrics["parameters"] == point.final.parameters
    assert child.data.metrics["memory"] == point.final.peak_bytes
    assert child.data.tags["state"] == "completed"
    assert json.loads(child.data.tags["configuration"]) == point.configuration.to_json()
    assert float(child.data.params["learning_rate"]) == dict(point.configuration.training)["learning_rate"]
    assert child.data.tags["rung"] == str(point.final.epoch)
    assert child.inputs.dataset_inputs[0].dataset.name == "rte/train.csv"
    (base,) = mlflow.MlflowClient(uri).search_logged_models([child.info.experiment_id])
    assert (base.name, base.params["model"], base.status.value) == ("model", "some/model", "READY")
    whole = [mlflow.MlflowClient(uri).get_run(run.info.run_id) for run in (parent, child)]
    assert [run.inputs.model_inputs[0].model_id for run in whole] == [base.model_id] * 2
    took = child.info.end_time - child.info.start_time
    assert took == 31_000
    history_of = mlflow.MlflowClient(uri).get_metric_history(child.info.run_id, "epoch/accuracy")
    assert [(row.step, row.value) for row in history_of] == [
        (m.epoch, m.metrics["accuracy"]) for m in point.measurements
    ]


def test_a_failed_trial_has_its_kind_and_no_final_values(uri: str, tmp_path: Path) -> None:
    mirrored(uri, history(5), tmp_path / "o.db")
    run = runs_of(uri)["trial-003"]
    assert run.info.status == "FAILED"
    assert run.data.tags.items() >= {("failure", "diverged"), ("failure_message", "loss became nan in epoch 1")}
    assert "accuracy" not in run.data.metrics
    assert "on_front" not in run.data.tags


def test_tags_say_which_trials_are_on_the_front_now(uri: str, tmp_path: Path) -> None:
    told = history(12)
    mirrored(uri, told, tmp_path / "o.db")
    tagged = {name for name, run in runs_of(uri).items() if run.data.tags.get("on_front") == "true"}
    assert tagged == {f"trial-{point.trial:03d}" for point in front_of(told)}


def test_the_parent_run_carries_the_front_as_artifacts_and_description(uri: str, tmp_path: Path) -> None:
    told = history(12)
    mirrored(uri, told, tmp_path / "o.db")
    parent = runs_of(uri)["rte"]
    client = mlflow.MlflowClient(uri)
    files = {item.path: item.file_size for item in client.list_artifacts(parent.info.run_id, "front")}
    assert set(files) == {"front/front.html", "front/front.json", "front/front.png"}
    assert files["front/front.html"] < 5_000_000
    assert Path(parent.info.artifact_uri.removeprefix("file://")).is_relative_to(tmp_path / "mlartifacts")
    data = json.loads(Path(client.download_artifacts(parent.info.run_id, "front/front.json")).read_text())
    assert [row["trial"] for row in data["front"]] == [point.trial for point in front_of(told)]
    text = parent.data.tags["mlflow.note.content"]
    assert text.startswith("**rte**: 12 trials: 11 completed, 1 failed")
    assert text.count("\n| ") == 1 + len(front_of(told))


def test_the_hypervolume_never_falls_over_trials(uri: str, tmp_path: Path) -> None:
    mirrored(uri, history(14), tmp_path / "o.db")
    rows = mlflow.MlflowClient(uri).get_metric_history(runs_of(uri)["rte"].info.run_id, "hypervolume")
    values = [row.value for row in sorted(rows, key=lambda row: row.step)]
    assert [row.step for row in rows] == [n for n in range(14) if n != 3]
    assert values == sorted(values)
    assert values[-1] > 0


def test_the_ui_gets_a_named_view_of_the_objectives(uri: str, tmp_path: Path) -> None:
    mirrored(uri, history(3), tmp_path / "o.db")
    tags = mlflow.MlflowClient(uri).get_experiment_by_name("rte").tags
    view = json.loads(tags[VIEW_TAG])
    assert view["name"] == "AutoPEFT front"
    assert "compareRunCharts" in json.loads(view["state"])


def test_mirroring_again_changes_nothing_with_or_without_the_outbox(uri: str, tmp_path: Path) -> None:
    told, outbox = history(10), tmp_path / "o.db"
    mirrored(uri, told, outbox)
    before = rows_of(uri)
    again = sync(uri, INFO, told, outbox=outbox)
    assert (again.trials, again.queued, again.sent) == (10, 0, 0)
    assert rows_of(uri) == before
    outbox.unlink()
    anew = sync(uri, INFO, told, outbox=outbox)
    assert anew.queued == 10
    after = rows_of(uri)
    assert {table: after[table] for table in ("metrics", "params", "inputs", "datasets")} == {
        table: before[table] for table in ("metrics", "params", "inputs", "datasets")
    }
    assert len(after["runs"]) == 11


def test_sync_brings_back_runs_and_whole_databases_that_are_gone(uri: str, migrated: Path, tmp_path: Path) -> None:
    told, outbox = history(6), tmp_path / "o.db"
    mirrored(uri, told, outbox)
    mlflow.MlflowClient(uri).delete_run(runs_of(uri)["trial-002"].info.run_id)
    one = sync(uri, INFO, told, outbox=outbox)
    assert one.queued == 1
    assert "trial-002" in runs_of(uri)
    assert runs_of(uri)["trial-002"].data.tags.get("on_front") in ("true", "false")
    other = tmp_path / "fresh"
    other.mkdir()
    shutil.copy(migrated, tmp_path / "mlflow.db")
    assert sync(uri, INFO, told, outbox=outbox).queued == 6
    assert len(runs_of(uri)) == 7


def test_sync_leaves_to_a_running_search_what_it_has_not_finished(uri: str, tmp_path: Path) -> None:
    told = history(4)
    now = History(trials=(*told.trials[:3], running(told.trials[3])))
    sync(uri, INFO, now, outbox=tmp_path / "o.db", driven=True)
    assert {name: run.info.status for name, run in runs_of(uri).items()} == {
        "rte": "RUNNING",
        "trial-000": "FINISHED",
        "trial-001": "FINISHED",
        "trial-002": "FINISHED",
    }


@pytest.mark.parametrize(("unfinished", "status"), [(False, "FINISHED"), (True, "KILLED")])
def test_sync_of_a_study_that_nobody_runs_says_how_it_stands(
    uri: str, tmp_path: Path, unfinished: bool, status: str
) -> None:
    told = history(2)
    now = History(trials=(told.trials[0], running(told.trials[1]))) if unfinished else told
    sync(uri, INFO, now, outbox=tmp_path / "o.db")
    assert runs_of(uri)["rte"].info.status == status


def test_a_resumed_study_goes_on_in_the_same_runs(uri: str, tmp_path: Path) -> None:
    told, outbox = history(6), tmp_path / "o.db"
    first = MlflowMirror(uri, INFO, outbox=outbox)
    cut = History(trials=told.trials[:4])
    for event in events(cut)[:-1]:
        first.on_event(event)
    first.on_event(TrialStarted(trial=running(told.trials[4]), seed=0, attempt=1))
    first.on_event(StudyStopped(reason=StopReason.INTERRUPTED, history=History(trials=(*cut, running(told.trials[4])))))
    assert first.close(30.0) == 0
    assert {runs_of(uri)[name].info.status for name in ("rte", "trial-004")} == {"KILLED", "RUNNING"}
    second = MlflowMirror(uri, INFO, outbox=outbox)
    for event in events(told, before=cut):
        second.on_event(event)
    assert second.close(30.0) == 0
    runs = runs_of(uri)
    assert len(runs) == 7
    assert {runs[name].info.status for name in ("rte", "trial-004")} == {"FINISHED"}


SCRIPT = """
import sys, time
from pathlib import Path
from autopeft.studies.tracking import MlflowMirror
from tests.studies.test_tracking import INFO, events, history
mirror = MlflowMirror(sys.argv[1], INFO, outbox=Path(sys.argv[2]))
for event in events(history(40)):
    mirror.on_event(event)
    print("said", flush=True)
    time.sleep(0.01)
"""


def test_after_a_kill_in_the_middle_sync_completes_the_mirror(uri: str, tmp_path: Path) -> None:
    outbox = tmp_path / "o.db"
    command = [sys.executable, "-c", SCRIPT, uri, str(outbox)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    for _ in range(80):
        assert process.stdout.readline() == "said\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    told = history(40)
    sync(uri, INFO, told, outbox=outbox)
    runs = mlflow.MlflowClient(uri).search_runs(["1"], max_results=500)
    names = sorted(run.info.run_name for run in runs)
    assert names == sorted(["rte", *(f"trial-{n:03d}" for n in range(40))])
    last = runs_of(uri)["trial-039"].data.metrics["accuracy"]
    final = told.trials[39].final
    assert final is not None
    assert last == final.metrics["accuracy"]


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_dead_server_costs_the_study_no_time_and_no_data(tmp_path: Path) -> None:
    told, outbox, notes = history(10), tmp_path / "o.db", []
    target = f"http://127.0.0.1:{closed_port()}"
    mirror = MlflowMirror(target, INFO, outbox=outbox, notify=notes.append)
    began = time.perf_counter()
    for event in events(told):
        mirror.on_event(event)
    assert time.perf_counter() - began < 1.0
    left = mirror.close(3.0)
    assert left >= 10
    assert [note.partition(" does not take anything: ")[2] for note in notes] == [
        "[Errno 111] Connection refused; the study goes on and what is missing is sent later "
        "(`autopeft sync` mirrors a study afterwards)"
    ]
    kept = Outbox(outbox, target=target, study=INFO.name)
    assert {note.key for note in kept.pending(1000)} >= {f"trial/{n}" for n in range(10)}
    kept.close()
    with pytest.raises(TrackingError, match=r"MLflow at http://127.0.0.1:\d+ does not take anything"):
        sync(target, INFO, told, outbox=outbox)


@pytest.mark.parametrize("answers", [True, False], ids=["answers 500", "never answers"])
def test_a_server_that_is_unwell_does_not_hold_the_study_up(answers: bool, tmp_path: Path) -> None:
    with unwell(answers=answers) as address:
        mirror = MlflowMirror(address, INFO, outbox=tmp_path / "o.db", notify=lambda _: None)
        began = time.perf_counter()
        for event in events(history(5)):
            mirror.on_event(event)
        assert mirror.close(0.3) >= 5
        assert time.perf_counter() - began < 1.5


def test_a_server_that_never_answers_is_given_up_after_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with unwell(answers=False) as address, pytest.raises(TrackingError, match=r"does not take anything.*timed out"):
        sync(address, INFO, history(2), outbox=tmp_path / "o.db")


def test_a_server_is_filled_as_a_file_is(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = history(4)
    with serving(uri, tmp_path / "artifacts", patch=monkeypatch) as address:
        assert mirrored(address, told, tmp_path / "o.db") == 0
        runs = runs_of(address)
        assert set(runs) == {"rte", *(f"trial-{n:03d}" for n in range(4))}
        assert sync(address, INFO, told, outbox=tmp_path / "o.db").sent == 0
        files = mlflow.MlflowClient(address).list_artifacts(runs["rte"].info.run_id, "front")
    assert {item.path for item in files} == {"front/front.html", "front/front.json", "front/front.png"}
    assert list((tmp_path / "artifacts").rglob("front.html"))


BASIC = {"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "pass word"}
TOKEN = {"MLFLOW_TRACKING_TOKEN": "t0ken"}


@pytest.mark.parametrize(
    ("variables", "header"), [(BASIC, "Basic YWRhOnBhc3Mgd29yZA=="), (TOKEN, "Bearer t0ken")], ids=["basic", "token"]
)
def test_a_server_that_asks_who_we_are_is_told_by_mlflows_variables(
    variables: dict[str, str], header: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, outbox = history(2), tmp_path / "o.db"
    with serving(uri, tmp_path / "artifacts", patch=monkeypatch, authorization=header) as address:
        with pytest.raises(TrackingError, match=r"does not take anything: .*401") as caught:
            sync(address, INFO, told, outbox=outbox)
        assert "MLFLOW_TRACKING_USERNAME" in caught.value.hint
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert sync(address, INFO, told, outbox=outbox).queued == 2
        assert set(runs_of(address)) == {"rte", "trial-000", "trial-001"}
    assert not any(secret in outbox.read_bytes() for secret in (b"pass word", b"t0ken"))


def test_hostile_names_reach_the_server_as_they_are(uri: str, tmp_path: Path) -> None:
    name = "a'b\"c|<script>alert(1)</script> `x`"
    info = replace(INFO, name=name, data="../<img src=x>", model="m'; DROP TABLE runs")
    sync(uri, info, history(4), outbox=tmp_path / "o.db")
    sync(uri, info, history(4), outbox=tmp_path / "o.db")
    runs = runs_of(uri, name)
    assert len(runs) == 5
    text = runs[name].data.tags["mlflow.note.content"]
    assert "<script>" not in text
    assert runs[name].data.params["model"] == "m'; DROP TABLE runs"


def test_more_than_the_server_takes_at_once_is_sent_in_parts(uri: str, tmp_path: Path) -> None:
    config = Configuration(methods=(lora((0, 1), 4),), training=tuple((f"setting_{n:03d}", n) for n in range(150)))
    trial = completed(0, config, accuracy=0.9)
    many = tuple(replace(trial.measurements[-1], epoch=epoch) for epoch in range(1, 401))
    told = History(trials=(replace(trial, measurements=many),))
    info = replace(INFO, settings={"long": "x" * 9000})
    sync(uri, info, told, outbox=tmp_path / "o.db")
    runs = runs_of(uri)
    assert len(runs["trial-000"].data.params) > 150
    rows = mlflow.MlflowClient(uri).get_metric_history(runs["trial-000"].info.run_id, "epoch/accuracy")
    assert len(rows) == 400
    assert runs["rte"].data.params["long"] == "x" * 5999 + "…"


def test_a_note_the_server_refuses_is_told_once_and_does_not_hold_up_the_rest(uri: str, tmp_path: Path) -> None:
    outbox, notes = tmp_path / "o.db", []
    sync(uri, INFO, history(2), outbox=outbox)
    mirror = MlflowMirror(uri, replace(INFO, settings={"engine": "sobol"}), outbox=outbox, notify=notes.append)
    for event in events(history(3)):
        mirror.on_event(event)
    assert mirror.close(30.0) == 0
    assert len(notes) == 1
    assert "refused study" in notes[0]
    assert "trial-002" in runs_of(uri)


def test_a_deleted_experiment_is_reported_with_the_way_to_bring_it_back(uri: str, tmp_path: Path) -> None:
    sync(uri, INFO, history(2), outbox=tmp_path / "o.db")
    mlflow.MlflowClient(uri).delete_experiment("1")
    with pytest.raises(TrackingError, match="the experiment 'rte' was deleted") as caught:
        sync(uri, INFO, history(2), outbox=tmp_path / "o.db")
    assert "mlflow experiments restore -x 1" in caught.value.hint


def test_mlflows_variables_are_set_only_while_the_mirror_lives_and_the_users_stay(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "99")
    mirror = MlflowMirror(uri, INFO, outbox=tmp_path / "o.db")
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "99"
    mirror.close(30.0)
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "99"


@pytest.mark.parametrize("bad", ["./mlruns", "file:///data/mlruns", "sqlite://", "sqlite:///", "ftp://x/y"])
def test_a_uri_that_mlflow_keeps_no_runs_in_is_refused(bad: str) -> None:
    with pytest.raises(SpecError, match=r"tracking\.mlflow: got .*sqlite:///FILE") as caught:
        check_uri(bad)
    assert "sqlite:///mlflow.db" in caught.value.hint


def test_a_relative_sqlite_file_is_made_absolute_and_a_server_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert check_uri("http://host:5000") == "http://host:5000"
    assert check_uri("postgresql+psycopg://u:p@h/d") == "postgresql+psycopg://u:p@h/d"


def test_no_password_is_kept_or_shown() -> None:
    assert public_uri("https://user:secret@host:5000/x") == "https://host:5000/x"
    assert public_uri("sqlite:////a/b.db") == "sqlite:////a/b.db"


def courier(uri: str, outbox: Path) -> MlflowCourier:
    made = MlflowCourier(uri, Outbox(outbox, target=uri, study=INFO.name), info=INFO)
    made.connect()
    return made


def test_two_that_connect_do_not_name_the_view_at_once(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, set_tag = list[str](), mlflow.MlflowClient.set_experiment_tag

    def alone(client: object, experiment: str, key: str, value: str) -> None:
        with (tmp_path / "o.db.lock").open("w") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        set_tag(client, experiment, key, value)
        named.append(key)

    monkeypatch.setattr(mlflow.MlflowClient, "set_experiment_tag", alone)
    courier(uri, tmp_path / "o.db")
    assert VIEW_TAG in named


def test_two_that_bring_the_same_notes_make_each_run_once(uri: str, tmp_path: Path) -> None:
    notes = [
        Note(key=f"trial/{trial.number}", content=trial_note(trial, INFO), digest="d", sequence=0)
        for trial in history(2)
    ]
    both = [courier(uri, tmp_path / "o.db") for _ in range(2)]
    for note in notes:
        for one in both:
            one.deliver(note)
    names = sorted(run.info.run_name for run in mlflow.MlflowClient(uri).search_runs(["1"]))
    assert names == ["rte", "trial-000", "trial-001"]


def test_sync_while_a_search_goes_on_makes_no_run_twice(uri: str, tmp_path: Path) -> None:
    outbox, told = tmp_path / "o.db", history(20)
    mirror = MlflowMirror(uri, INFO, outbox=outbox)
    for n, event in enumerate(events(told)):
        mirror.on_event(event)
        if n % 20 == 1:
            sync(uri, INFO, told, outbox=outbox, driven=True)
    assert mirror.close(60.0) == 0
    runs = mlflow.MlflowClient(uri).search_runs(["1"], max_results=500)
    names = sorted(run.info.run_name for run in runs)
    assert names == sorted(["rte", *(f"trial-{n:03d}" for n in range(20))])
