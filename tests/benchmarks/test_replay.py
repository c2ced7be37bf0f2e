"""Searches replayed on a small made-up table: answers, curves, costs, and every engine of the comparison."""

import argparse
import json
from pathlib import Path
from typing import Any

import engines
import front_transfer
import numpy as np
import pytest
import recipe
import search_quality
from measured_table import MeasuredTable
from replay import Problem, Step, curves, search
from suggestion_time import encoder

from autopeft.errors import SpecError
from autopeft.search.scheduler import RunAll
from autopeft.search.searcher import SearchProblem
from autopeft.search.table import make_searcher
from autopeft.search.trial import TrialState
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.space import SearchSpace

SPACE = {"layers": "subset", "lora": {"rank": "choice(0, 2, 8, 32)"}, "learning_rate": "log(1e-3, 1e-2)"}
N = 24


def measured(accuracy: float, epoch: int, parameters: int) -> dict[str, Any]:
    times = {"train_loss": 1.0, "train_seconds": 1.0, "evaluation_seconds": 0.1}
    return {
        "epoch": epoch,
        "metrics": {"accuracy": accuracy * epoch / 3},
        "tokens": 10 * epoch,
        "peak_bytes": 1,
        "parameters": parameters,
        **times,
    }


@pytest.fixture(scope="module")
def table() -> MeasuredTable:
    """Two tasks; accuracy grows with parameters and rate. The first configuration has two seeds, one of them failed."""
    space = SearchSpace.bind(SpaceDefinition.from_mapping(SPACE), encoder(3))
    found = list({one.id: one for one in space.sample(np.random.default_rng(0), 2 * N)}.values())[:N]
    rows: list[dict[str, Any]] = []
    for task in ("a", "b"):
        for index, one in enumerate(found):
            accuracy = 0.1 * np.log10(space.parameters(one)) + 30 * float(dict(one.training)["learning_rate"])
            for seed in range(2 if index == 0 else 1):
                whole = [measured(accuracy + 0.1 * seed, epoch, space.parameters(one)) for epoch in (1, 2, 3)]
                short = task == "b" and index == 3
                rows.append({"task": task, "index": index, "seed": seed, "measurements": whole[: 1 if short else 3]})
    about = {"space": SPACE, "shape": encoder(3).to_json(), "settings": {"epochs": 3}}
    metrics = {"metrics": {"a": "accuracy", "b": "accuracy"}}
    return MeasuredTable.of(about | metrics, [space.spell(one) for one in found], rows)


@pytest.fixture(scope="module")
def problem(table: MeasuredTable) -> Problem:
    return Problem.of(table, "a")


def test_the_nearest_row_answers_and_none_twice(problem: Problem) -> None:
    answers = problem.answers(0)
    asked = problem.configurations[5]
    distances = np.abs(problem.points - problem.points[5]).sum(axis=1)
    found: list[int] = []
    while (answer := answers.answer(asked)) is not None:
        found.append(problem.configurations.index(answer[0]))
    assert found[0] == 5
    assert sorted(found) == list(range(N))
    assert (np.diff(distances[found]) >= 0).all()
    assert not answers.left


def test_an_engine_sees_one_seed_and_the_mean_is_counted(problem: Problem) -> None:
    seen = {round(problem.seen(0, seed)[-1].metrics["accuracy"], 6) for seed in range(20)}
    assert len(seen) == 2
    assert -problem.losses[0, 0] == pytest.approx(np.mean(list(seen)))
    assert (
        problem.losses[0, 1] == problem.seen(0, 0)[-1].parameters == problem.space.parameters(problem.configurations[0])
    )


def test_the_whole_table_has_all_of_its_volume(problem: Problem) -> None:
    assert problem.volume(problem.configurations) == pytest.approx(1.0)
    assert 0 < problem.volume(problem.configurations[:1]) < 1


def test_a_smaller_table_is_the_first_of_a_larger_one(table: MeasuredTable, problem: Problem) -> None:
    smaller = Problem.of(table, "a", first=5)
    assert smaller.configurations == problem.configurations[:5]
    assert smaller.rows == problem.rows[:5]


def test_a_training_that_failed_is_a_failed_trial_and_adds_nothing(table: MeasuredTable) -> None:
    failing = Problem.of(table, "b")
    trials = {trial.configuration: trial for trial in failing.study(N, 0)}
    failed = trials[failing.configurations[3]]
    assert failed.state is TrialState.FAILED
    assert failing.volume([failing.configurations[3]]) == 0.0
    assert sum(trial.state is TrialState.COMPLETED for trial in trials.values()) == N - 1


def test_curves_count_trials_when_they_end_and_epochs_when_they_are_paid(problem: Problem) -> None:
    first, second = problem.configurations[:2]
    steps = [Step(begun=1, done=()), Step(begun=1, done=(first,)), Step(begun=2, done=(first,))]
    steps.append(Step(begun=2, done=(first, second)))
    found = curves(iter(steps), lambda chosen: float(len(chosen)))
    assert found.by_trial.tolist() == [1.0, 2.0]
    assert found.by_epoch.tolist() == [0.0, 1.0, 1.0, 2.0]


def test_a_searcher_is_told_what_was_trained(problem: Problem) -> None:
    histories: list[Any] = []
    asked = SearchProblem(space=problem.space, objectives=problem.objectives, seed=0, n_trials=6)
    searcher = make_searcher("sobol", asked)

    class Watched(type(searcher)):  # type: ignore[misc]  # any engine
        def ask(self, history: Any, n: int) -> Any:
            histories.append(history)
            return searcher.ask(history, n)

    steps = list(search(Watched(asked), RunAll(), problem.answers(0), problem.space, n_trials=6))
    assert len(steps) == 18
    for trial in histories[-1]:
        assert trial.configuration in problem.configurations
        place = problem.configurations.index(trial.configuration)
        assert trial.measurements == problem.seen(place, 0)


@pytest.mark.parametrize("engine", ["random", "bayesian", engines.RUNGS, engines.WARM])
def test_every_kind_of_search_runs_and_rises(engine: str, table: MeasuredTable, problem: Problem) -> None:
    found = engines.replayed(engine, problem, seed=0, n_trials=9, source=Problem.of(table, "b"))
    by_trial, by_epoch = found.curves.by_trial, found.curves.by_epoch
    assert (np.diff(by_trial) >= -1e-12).all()
    assert (np.diff(by_epoch) >= -1e-12).all()
    assert by_trial[-1] == pytest.approx(by_epoch[-1])
    if engine == "random":
        assert len(by_trial) == N
        assert by_trial[-1] == pytest.approx(1.0)
    elif engine == engines.RUNGS:
        assert len(by_epoch) < 3 * len(by_trial), "some trials were stopped early"
    else:
        assert len(by_epoch) == 3 * 9
        assert by_trial[-1] > 0.3


def test_the_recipe_proposes_batches_of_rows_that_are_left(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "STEPS", 4)
    monkeypatch.setattr(recipe, "DRAWS", 4)
    answers = problem.answers(1)
    asked = SearchProblem(space=problem.space, objectives=problem.objectives, seed=1, n_trials=8)
    looked: list[int] = []

    def left(history: Any) -> Any:
        looked.append(len(history))
        return answers.left

    steps = list(search(engines.recipe(asked, left), RunAll(), answers, problem.space, n_trials=8))
    assert looked == [4]
    assert len(set(steps[-1].done)) == 8


def test_when_a_share_was_reached() -> None:
    runs = np.array([[0.1, 0.9, 1.0], [0.2, 0.3, 0.95], [0.1, 0.1, 0.1]])
    assert search_quality.reached(runs, 0.9) == [3.0, 3.0, None]
    assert search_quality.together([np.array([0.1]), np.array([0.2, 0.3])]).tolist() == [[0.1, 0.1], [0.2, 0.3]]


def test_made_up_problems_are_searched_without_noise_in_what_is_counted() -> None:
    found = engines.Synthetic().search("random", seed=0, n_trials=5)
    assert len(found.curves.by_trial) == len(found.curves.by_epoch) == 5
    assert 0 < found.curves.by_trial[-1] < 1


def test_the_last_row_of_each_engine_is_shown_with_its_share_of_randoms_trials(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_quality, "RESULTS", tmp_path)
    options = argparse.Namespace(trials=8)
    about = search_quality.noted(problem)
    lines: list[dict[str, Any]] = []
    for engine in ("sobol", "random", "sobol"):
        found = [engines.replayed(engine, problem, seed=len(lines), n_trials=8)]
        lines.append(about | search_quality.row_of("a", engine, found, options))
    other = [lines[0] | {"configurations": 3}]
    (tmp_path / "search_quality.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *other]))
    rows = search_quality.latest("a", about, options)
    assert rows == [lines[1], lines[2]]
    shown = search_quality.table(rows).splitlines()
    assert shown[1].split()[0] == "random"
    assert shown[1].split()[4] == "1.00"
    assert search_quality.draw("a", rows).stat().st_size > 1000


@pytest.mark.parametrize("tasks", [None, ["a"]])
def test_a_warm_search_begins_from_another_task_whichever_are_searched(
    table: MeasuredTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: list[str] | None
) -> None:
    table.write(tmp_path / "table.npz")
    sources: list[tuple[str, str]] = []
    monkeypatch.setattr(
        search_quality, "replayed", lambda _, at, source, **rest: sources.append((at.name, source.name))
    )
    options = argparse.Namespace(
        table=tmp_path / "table.npz", tasks=tasks, configurations=None, trials=3, problem="table"
    )
    for world in search_quality.worlds(options):
        assert world.fits(engines.WARM)
        world.run(engines.WARM, 0)
    assert sources == ([("a", "b"), ("b", "a")] if tasks is None else [("a", "b")])
    options.tasks = ["c"]
    with pytest.raises(SpecError, match=r"--tasks: .* has no task c"):
        search_quality.worlds(options)


def test_a_front_that_is_moved_is_what_its_search_saw_and_is_worth_its_means_there(table: MeasuredTable) -> None:
    one, other = Problem.of(table, "a"), Problem.of(table, "b")
    source = front_transfer.searched(one, seed=0, n_trials=8)
    there = front_transfer.searched(other, seed=0, n_trials=8)
    seen = {asked: one.seen(one.configurations.index(asked), 0)[-1].metrics["accuracy"] for asked in source.front}
    costs = sorted((one.space.parameters(asked), accuracy) for asked, accuracy in seen.items())
    assert [accuracy for _, accuracy in costs] == sorted(accuracy for _, accuracy in costs), "more for more"
    found = front_transfer.moved(source, there, other, seed=0)
    assert found["points"] == len(source.front)
    assert found["moved"] == other.volume(source.front)
    assert found["searched"] == there.curve[-1] == max(there.curve)
    n = int(found["trials_to_as_much"])
    assert all(there.curve[: n - 1] < found["moved"])
    assert n == len(there.curve) + 1 or there.curve[n - 1] >= found["moved"]


def test_an_interval_over_seeds_holds_their_mean() -> None:
    middle, low, high = front_transfer.interval(np.array([0.1, 0.4, 0.4, 0.7]))
    assert low < middle == 0.4 < high
    assert front_transfer.interval(np.full(5, 0.3)) == [0.3, 0.3, 0.3]
