"""The script that trains a table: its plan, what it goes on from, and the file that it packs."""

import csv
import json
from pathlib import Path
from typing import Any

import measured_table
import numpy as np
import pytest
import trained_table
from suggestion_time import encoder
from table_plans import PLANS, data_folder

from autopeft.errors import SpecError

TABLE = measured_table.MeasuredTable
TABLES = trained_table.ROOT / "benchmarks" / "tables"
SPACE = PLANS["minilm"].space


def about(**changes: object) -> dict[str, Any]:
    return {
        "space": dict(SPACE),
        "settings": {"epochs": 3},
        "metrics": {"trec": "accuracy", "sst2": "accuracy"},
        "train_rows": {"trec": 400, "sst2": 256},
        "validation_rows": 256,
        "draw_seed": 0,
        "model": {"name": "none"},
        "data_sha256": {},
        "shape": encoder(6).to_json(),
    } | changes


def row(task: str, index: int, seed: int, *, n_epochs: int = 3) -> dict[str, Any]:
    chosen = trained_table.drawn(trained_table.bound(encoder(6), SPACE), index + 1)[index]
    measurements = [
        {
            "epoch": epoch,
            "metrics": {"accuracy": 0.25 * epoch, "loss": 1.0},
            "train_loss": 1.0 / epoch,
            "train_seconds": float(epoch),
            "evaluation_seconds": 0.5,
            "tokens": 100 * epoch,
            "peak_bytes": 1 << 20,
            "parameters": 1000 + index,
            "head_parameters": 6,
            "extra": {},
        }
        for epoch in range(1, n_epochs + 1)
    ]
    failure = None if n_epochs == 3 else ["diverged", "the training loss became nan"]
    here = {"task": task, "index": index, "seed": seed, "id": chosen.id}
    return {**here, "measurements": measurements, "failure": failure}


def folder_of(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "about.json").write_text(json.dumps(about()))
    (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return folder


def test_tasks_and_seeds_take_turns_and_a_longer_plan_begins_with_the_shorter() -> None:
    short, long = (list(trained_table.turns(n, ["a", "b"])) for n in (12, 24))
    assert short[:6] == [("a", 0, 0), ("b", 0, 0), ("a", 0, 1), ("b", 0, 1), ("a", 0, 2), ("b", 0, 2)]
    assert short == long[: len(short)]
    assert len(short) == 2 * (12 + 2 * 2)


def test_a_longer_list_of_configurations_begins_with_the_shorter() -> None:
    space = trained_table.bound(encoder(6), SPACE)
    short, long = trained_table.drawn(space, 5), trained_table.drawn(space, 9)
    assert short == long[:5]
    assert len({one.id for one in long}) == 9


def test_a_packed_table_holds_what_was_measured(tmp_path: Path) -> None:
    rows = [row("trec", 0, 0), row("sst2", 0, 1), row("trec", 1, 0, n_epochs=1)]
    told = trained_table.packed(folder_of(tmp_path, rows), tmp_path / "table.npz")
    assert "3 trainings, configurations: trec 2, sst2 1" in told
    table = TABLE.read(tmp_path / "table.npz")
    space = table.space()
    assert [one.id for one in table.configurations(space)] == [rows[0]["id"], rows[2]["id"]]
    assert table.tasks == ("trec", "sst2")
    np.testing.assert_array_equal(table.task, [0, 1, 0])
    measured = table.measurements(1)
    assert [one.metrics["accuracy"] for one in measured] == [0.25, 0.5, 0.75]
    assert (measured[-1].tokens, measured[-1].parameters, measured[-1].peak_bytes) == (300, 1000, 1 << 20)
    assert len(table.measurements(2)) == 1, "the training failed after its first epoch"


def test_a_new_folder_goes_on_from_a_packed_table(tmp_path: Path) -> None:
    rows = [row("trec", 0, 0), row("sst2", 0, 1), row("trec", 1, 0, n_epochs=1)]
    (tmp_path / "old").mkdir()
    trained_table.packed(folder_of(tmp_path / "old", rows), tmp_path / "table.npz")
    (tmp_path / "new").mkdir()
    for _ in range(2):
        with trained_table.opened(tmp_path / "new") as file:
            trained_table.unpacked(tmp_path / "table.npz", tmp_path / "new", file)
    assert len(trained_table.rows_of(tmp_path / "new")) == 3, "once each"
    trained_table.packed(tmp_path / "new", tmp_path / "again.npz")
    first, again = (TABLE.read(tmp_path / name) for name in ("table.npz", "again.npz"))
    for name in ("task", "index", "seed", "parameters", "epochs"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert first.values == again.values
    (tmp_path / "other").mkdir()
    trained_table.noted(tmp_path / "other", about(validation_rows=300))
    with trained_table.opened(tmp_path / "other") as file, pytest.raises(SpecError, match="validation_rows is 300"):
        trained_table.unpacked(tmp_path / "table.npz", tmp_path / "other", file)


def test_a_half_written_row_is_cut_off(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("trec", 0, 0)])
    path = folder / "rows.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"task": "sst2", "ind')
    assert len(trained_table.rows_of(folder)) == 1
    with trained_table.opened(folder):
        assert path.read_text() == whole
        with pytest.raises(SpecError, match="another process trains into it"):
            trained_table.opened(folder)


def test_rows_of_something_else_are_refused_and_another_task_is_added(tmp_path: Path) -> None:
    trained_table.noted(tmp_path, about())
    with pytest.raises(SpecError, match="validation_rows is 256, this script has 300"):
        trained_table.noted(tmp_path, about(validation_rows=300))
    with pytest.raises(SpecError, match="train_rows of trec changed"):
        trained_table.noted(tmp_path, about(train_rows={"trec": 10}))
    trained_table.noted(tmp_path, about(metrics={"mr": "accuracy"}, train_rows={"mr": 256}))
    found = json.loads((tmp_path / "about.json").read_text())
    assert list(found["metrics"]) == ["trec", "sst2", "mr"]
    assert found["train_rows"]["sst2"] == 256


def test_a_task_of_another_plan_is_refused() -> None:
    assert trained_table.tasks_of(PLANS["minilm"], None) == ["trec", "sst2", "mr"]
    assert trained_table.tasks_of(PLANS["minilm"], ["cola"]) == ["cola"]
    with pytest.raises(SpecError, match="--tasks: trec is of another plan"):
        trained_table.tasks_of(PLANS["docstrings"], ["trec"])


@pytest.mark.parametrize("name", [path.stem for path in sorted(TABLES.glob("*.npz"))])
def test_the_table_that_is_there_is_of_the_plan_that_the_script_trains(name: str) -> None:
    plan, table = PLANS[name], TABLE.read(TABLES / f"{name}.npz")
    space = table.space()
    assert table.about["space"] == plan.space
    assert table.about["train_rows"] == {task: plan.tasks[task].train_rows for task in plan.usual}
    assert table.about["settings"]["epochs"] == plan.settings.epochs == table.epochs.shape[1]
    configurations = table.configurations(space)
    assert configurations == trained_table.drawn(space, len(configurations))
    whole = np.isfinite(table.epochs[:, -1, 0])
    assert whole.mean() > 0.9
    counts = np.array([space.parameters(one) for one in configurations])
    np.testing.assert_array_equal(table.parameters[whole], counts[table.index[whole]])
    assert ((table.epochs[whole][:, :, 0] >= 0) & (table.epochs[whole][:, :, 0] <= 1)).all()


def test_docstrings_are_collected_with_the_columns_that_the_plan_names(tmp_path: Path) -> None:
    plan = PLANS["docstrings"]
    spec = plan.spec("docstrings", data_folder("docstrings", tmp_path))
    for path, least in ((spec.data.train, spec.data.max_train_rows), (spec.data.validation, plan.validation_rows)):
        with open(str(path), newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert set(rows[0]) == {*spec.text, spec.label}
        assert least is not None
        assert len(rows) >= least
