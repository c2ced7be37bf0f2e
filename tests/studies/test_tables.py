import io
import json
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from autopeft.search.schedulers import Fidelity
from autopeft.search.trial import History, TrialState
from autopeft.spaces.configuration import Configuration
from autopeft.studies.tables import (
    CheckSummary,
    check_table,
    front_json,
    front_table,
    studies_table,
    trials_json,
    trials_table,
)
from autopeft.studies.terminal import percentage, print_table
from tests.studies.synthetic import OBJECTIVES, completed, failed, front_of, history, lora, setting, stopped

GOLDEN = Path(__file__).parent / "golden"


def text_of(renderable: RenderableType, *, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False).print(renderable)
    return "".join(f"{line.rstrip()}\n" for line in stream.getvalue().splitlines())


def summary(**changes: object) -> CheckSummary:
    fields: dict[str, object] = {
        "study": "rte-minilm",
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "n_layers": 6,
        "objectives": OBJECTIVES,
        "dimensions": (("layers", "subset"), ("lora.rank", "per_layer(choice(0, 2, 4, 8, 16))")),
        "configurations": 5_446_350,
        "continuous": ("learning_rate",),
        "parameters": (768, 221_184),
        "base_parameters": 22_713_216,
        "memory": (1.2e8, 5.4e8),
        "n_trials": 24,
        "engine": "bayesian",
        "epochs": 9,
    }
    return CheckSummary(**(fields | changes))  # type: ignore[arg-type]  # a test's shorthand


def tables() -> dict[str, RenderableType]:
    told = history(7)
    counts = {TrialState.COMPLETED: 27, TrialState.FAILED: 2}
    return {
        "front": front_table(front_of(told), told, study="rte-minilm"),
        "trials": trials_table(told, OBJECTIVES),
        "studies": studies_table([("rte-minilm", OBJECTIVES, counts), ("sst2", OBJECTIVES[:1], {})]),
        "check": check_table(summary()),
    }


def golden_text(name: str, width: int) -> str:
    """What a golden file holds; `python -m tests.studies.test_tables` writes them anew."""
    return text_of(tables()[name], width=width)


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("name", ["front", "trials", "studies", "check"])
def test_tables_look_as_they_did(name: str, width: int) -> None:
    assert golden_text(name, width) == (GOLDEN / f"{name}-{width}.txt").read_text("utf-8")


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("name", ["front", "trials", "studies", "check"])
def test_no_line_is_wider_than_the_terminal(name: str, width: int) -> None:
    assert max(map(len, golden_text(name, width).splitlines())) <= width


def test_a_shortened_front_keeps_the_knee_and_says_what_is_missing() -> None:
    told = history(12)
    front = front_of(told)
    text = text_of(front_table(front, told, study="s", limit=2), width=100)
    assert f"{front.knee().trial}*" in text
    assert f"{len(front) - 2} more on the front" in text


def test_nothing_yet_is_said_in_words() -> None:
    none = History()
    assert "No trial has completed yet." in text_of(front_table(front_of(none), none, study="s"), width=80)
    assert "no trials yet" in text_of(trials_table(none, OBJECTIVES), width=80)
    assert "no studies" in text_of(studies_table([]), width=80)


def test_what_a_user_wrote_is_text_and_not_markup() -> None:
    config = Configuration(methods=(setting("[red]x[/red]", (0,), note="[link=http://e]y[/link]"),), training=())
    told = History(trials=(completed(0, config, accuracy=0.9), failed(1, config, message="[bold]boom[/oops]")))
    text = text_of(trials_table(told, OBJECTIVES), width=120)
    assert "[red]x[/red]" in text
    assert "[bold]boom[/oops]" in text
    assert "[b]s[/b]" in text_of(front_table(front_of(told), told, study="[b]s[/b]"), width=120)


def test_a_huge_space_and_one_without_a_memory_prediction_are_summarised() -> None:
    text = text_of(check_table(summary(configurations=10**40, memory=None, continuous=())), width=100)
    assert "1.00e+40 configurations" in text
    assert "predicted" not in text
    assert json.loads(json.dumps(summary(memory=None).to_json()))["memory"] is None


def test_colour_only_where_it_is_wanted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_table(trials_table(history(5), OBJECTIVES), width=100)
    assert "\x1b[31m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    print_table(trials_table(history(5), OBJECTIVES), width=100)
    assert "\x1b[31m" not in capsys.readouterr().out


def test_the_front_as_json_has_the_documented_keys() -> None:
    told = history(7)
    data = json.loads(json.dumps(front_json(front_of(told), told, study="s")))
    assert set(data) == {"study", "objectives", "hypervolume", "reference", "trials", "front"}
    assert data["trials"] == {"completed": 6, "pruned": 0, "failed": 1}
    assert set(data["front"][0]) == {"trial", "values", "configuration"}


def test_trials_as_json_hold_values_failures_and_epochs() -> None:
    rows = json.loads(json.dumps(trials_json(history(5), OBJECTIVES)))
    assert [row["trial"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[3]["failure"] == {"kind": "diverged", "message": "loss became nan in epoch 1"}
    assert rows[3]["values"] is None
    assert set(rows[0]["values"]) == {"accuracy", "parameters", "memory"}
    assert [epoch["epoch"] for epoch in rows[0]["epochs"]] == [1, 2, 3]
    assert rows[0]["configuration"]


def test_a_shared_rank_reads_short() -> None:
    config = Configuration(methods=(lora((0, 1, 2), 8),), training=())
    told = History(trials=(completed(0, config, accuracy=0.9),))
    assert "lora r8 q,v on 0-2" in text_of(trials_table(told, OBJECTIVES), width=100)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for table in tables():
        for columns in (80, 100):
            (GOLDEN / f"{table}-{columns}.txt").write_text(golden_text(table, columns), "utf-8")


def test_text_without_room_beside_the_values_stands_below_them() -> None:
    told = history(5)
    narrow, wide = (text_of(trials_table(told, OBJECTIVES), width=width) for width in (70, 120))
    assert max(line.count("lora") for line in wide.splitlines()) == 1
    assert "trial  configuration" in narrow
    assert "trial  configuration" not in wide
    for trial in told:
        assert sum(line.split()[:1] == [str(trial.number)] for line in narrow.splitlines()) == 2


@pytest.mark.parametrize(
    ("part", "whole", "shown"), [(3, 2, "150 %"), (1, 1, "100 %"), (3, 400, "0.75 %"), (996, 1000, "100 %")]
)
def test_shares_of_a_model_are_written_out(part: int, whole: int, shown: str) -> None:
    assert percentage(part, whole) == shown


def test_a_stopped_trial_says_why_in_the_table_and_as_json() -> None:
    one = stopped(history(2).trials[0])
    text = text_of(trials_table(History(trials=(one,)), OBJECTIVES), width=120)
    assert "pruned" in text
    assert "after epoch 1: place 4 of 9, the best 3 go on" in text
    (row,) = trials_json(History(trials=(one,)), OBJECTIVES)
    assert row["pruned"] == {"rung": 1, "because": "after epoch 1: place 4 of 9, the best 3 go on", "final": False}
    assert row["values"] is None


@pytest.mark.parametrize(
    ("fidelity", "words"),
    [
        (Fidelity(), "9 epochs a trial; one in 3 goes on after epoch 1, 3"),
        (Fidelity(scheduler="curves", minimum=2), "from epoch 2 on those that can no longer enter the front stop"),
        (Fidelity(scheduler="all"), "9 epochs a trial\n"),
    ],
)
def test_the_summary_says_how_far_trials_are_trained(fidelity: Fidelity, words: str) -> None:
    assert words in text_of(check_table(summary(fidelity=fidelity)), width=120)
