import warnings
from collections.abc import Callable, Sequence

import numpy as np
import optuna
import pytest

from autopeft.errors import SpecError
from autopeft.objectives.hypervolume import hypervolume
from autopeft.search.optuna_log import quiet_optuna
from autopeft.search.optuna_sampler import AutoPeftSampler
from autopeft.search.parameter_belief import ParameterBelief

BOTH = ("maximize", "minimize")


def cost_of(parameters: dict[str, float]) -> float:
    return 100.0 * parameters["rank"] * sum(parameters[f"on{at}"] for at in range(4))


def quality(trial: optuna.Trial) -> float:
    """Rises with size, peaks at a learning rate, and only two of four layers matter."""
    rank = trial.suggest_int("rank", 1, 32)
    on = [trial.suggest_categorical(f"on{at}", [False, True]) for at in range(4)]
    rate = trial.suggest_float("rate", 1e-5, 1e-1, log=True)
    if trial.suggest_categorical("extra", [False, True]):
        trial.suggest_float("dropout", 0.0, 0.5)
    return (0.4 * on[1] + 0.3 * on[3]) * (1 - 1 / rank) - 0.05 * (np.log10(rate) + 3) ** 2


def tuned(trial: optuna.Trial) -> tuple[float, float]:
    value = quality(trial)
    return value, cost_of(trial.params)


def run(
    sampler: optuna.samplers.BaseSampler,
    objective: Callable[[optuna.Trial], float | Sequence[float]],
    *,
    directions: Sequence[str] = BOTH,
    n: int = 30,
) -> optuna.Study:
    with quiet_optuna(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(directions=list(directions), sampler=sampler)
        study.optimize(objective, n_trials=n)
    return study


def volume(study: optuna.Study) -> float:
    losses = np.array([[-one.values[0], one.values[1] / 12_800] for one in study.trials])
    return hypervolume(losses, np.array([0.3, 1.1]))


@pytest.mark.parametrize("known", [{1: cost_of}, {}], ids=["known", "modelled"])
def test_it_finds_more_of_the_front_than_random_draws(known: dict) -> None:
    ours = [volume(run(AutoPeftSampler(seed=seed, known=known), tuned, n=30)) for seed in range(2)]
    drawn = [volume(run(optuna.samplers.RandomSampler(seed=seed), tuned, n=30)) for seed in range(4)]
    assert min(ours) > max(drawn)


def test_the_same_trials_and_seed_give_the_same_suggestion() -> None:
    first, second = (run(AutoPeftSampler(seed=3, known={1: cost_of}), tuned, n=14) for _ in range(2))
    assert [one.params for one in first.trials] == [one.params for one in second.trials]
    other = run(AutoPeftSampler(seed=4, known={1: cost_of}), tuned, n=12)
    assert [one.params for one in first.trials[:12]] != [one.params for one in other.trials]


@pytest.mark.parametrize("done", [4, 11], ids=["while drawing", "while modelling"])
def test_a_study_that_is_resumed_goes_on_as_if_it_had_not_stopped(done: int) -> None:
    whole = run(AutoPeftSampler(seed=3), tuned, n=13)
    with quiet_optuna():
        study = optuna.create_study(directions=list(BOTH), sampler=AutoPeftSampler(seed=3))
        study.add_trials(whole.trials[:done])
        study.optimize(tuned, n_trials=13 - done)
    assert [one.params for one in study.trials] == [one.params for one in whole.trials]


def test_one_objective_is_expected_improvement() -> None:
    study = run(AutoPeftSampler(seed=0), lambda trial: quality(trial), directions=["maximize"], n=25)
    assert study.best_value > 0.6


@pytest.mark.parametrize("seed", range(3))
def test_real_parameters_are_found_more_finely_than_a_local_search_steps(seed: int) -> None:
    best = np.array([0.3137, 0.6871])
    study = optuna.create_study(sampler=AutoPeftSampler(seed=seed))
    study.optimize(lambda trial: sum((trial.suggest_float(f"x{i}", 0, 1) - best[i]) ** 2 for i in range(2)), 25)
    found = np.array([study.best_params[f"x{i}"] for i in range(2)])
    assert np.abs(found - best).max() < 0.005


def test_running_trials_keep_proposals_apart() -> None:
    study = run(AutoPeftSampler(seed=0, known={1: cost_of}), tuned, n=12)
    with quiet_optuna():
        asked = [study.ask() for _ in range(4)]
        for trial in asked:
            quality(trial)
    assert len({str(sorted((k, v) for k, v in one.params.items() if k != "dropout")) for one in asked}) == 4


def test_what_is_not_admitted_is_not_proposed() -> None:
    sampler = AutoPeftSampler(seed=0, known={1: cost_of}, admits=lambda parameters: cost_of(dict(parameters)) <= 3200)
    study = run(sampler, tuned, n=20)
    assert max(one.values[1] for one in study.trials[10:]) <= 3200
    assert max(one.values[1] for one in study.trials[:10]) > 3200


def test_a_parameter_of_some_trials_is_drawn_alone() -> None:
    study = run(AutoPeftSampler(seed=0, known={1: cost_of}), tuned, n=16)
    assert all(("dropout" in one.params) == one.params["extra"] for one in study.trials)


def test_failed_and_unusable_trials_are_no_obstacle() -> None:
    def broken(trial: optuna.Trial) -> tuple[float, float]:
        if trial.number % 3 == 0:
            quality(trial)
            raise optuna.TrialPruned if trial.number % 2 else ValueError("lost")
        return tuned(trial)

    with quiet_optuna():
        study = optuna.create_study(directions=list(BOTH), sampler=AutoPeftSampler(seed=0, known={1: cost_of}))
        study.optimize(broken, n_trials=20, catch=(ValueError,))
    assert len(study.trials) == 20


def constrained(trial: optuna.Trial) -> float:
    """The best of a corner that a constraint forbids; the largest value kept is 1.2, on the line x + y = 1.2."""
    x, y = (trial.suggest_float(name, 0.0, 1.0) for name in "xy")
    trial.set_constraint("sum", x + y - 1.2)
    return x + y


def test_constraints_that_trials_set_are_learned() -> None:
    study = run(AutoPeftSampler(seed=0, n_startup_trials=5), constrained, directions=["maximize"], n=15)
    chosen = study.trials[5:]
    assert max(one.value for one in chosen if one.constraints["sum"] <= 0) > 1.15


def test_before_any_trial_keeps_the_constraints_the_likeliest_is_proposed() -> None:
    def rarely(trial: optuna.Trial) -> tuple[float, float]:
        x, y = (trial.suggest_float(name, 0.0, 1.0) for name in "xy")
        trial.set_constraint("small", x + y - 0.15)
        return x, y

    study = run(AutoPeftSampler(seed=0, n_startup_trials=5), rarely, directions=["maximize"] * 2, n=9)
    assert not any(all(value <= 0 for value in one.constraints.values()) for one in study.trials[:5])
    assert any(all(value <= 0 for value in one.constraints.values()) for one in study.trials[5:])


def test_pruned_and_failed_trials_tell_of_constraints_and_are_not_proposed_again() -> None:
    def stopped(trial: optuna.Trial) -> float:
        x = trial.suggest_int("x", 0, 30)
        trial.set_constraint("small", float(x - 20))
        if x > 20:
            raise optuna.TrialPruned if x % 2 else ValueError("lost")
        return float(x)

    with quiet_optuna():
        study = optuna.create_study(direction="maximize", sampler=AutoPeftSampler(seed=0, n_startup_trials=4))
        study.optimize(stopped, n_trials=18, catch=(ValueError,))
    assert study.best_value == 20
    chosen = [one.params["x"] for one in study.trials[8:]]
    assert len(chosen) == len(set(chosen))


def test_pruned_trials_count_at_their_expected_end(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[dict[tuple[object, ...], float]] = []
    plain = ParameterBelief.of

    def kept(*arguments: object, **named: object) -> ParameterBelief:
        taken.append(dict(named["stopped"]))
        return plain(*arguments, **named)

    monkeypatch.setattr(ParameterBelief, "of", kept)

    def falling(trial: optuna.Trial) -> float:
        x = trial.suggest_int("x", 0, 40)
        trial.report(float(x + 3), 1)
        if trial.number == 5:
            raise optuna.TrialPruned
        trial.report(float(x + 1), 7)
        if trial.number == 6:
            trial.report(99.0, 8)
            raise optuna.TrialPruned
        return float(x)

    with quiet_optuna():
        study = optuna.create_study(direction="minimize", sampler=AutoPeftSampler(seed=0, n_startup_trials=5))
        study.optimize(falling, n_trials=9)
    pruned = study.trials[5].params["x"]
    assert taken[-1] == {(pruned,): pytest.approx(pruned)}, "no completed trial reported step 8"


def test_where_trials_fail_fewer_are_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(trial: optuna.Trial) -> float:
        x, y = (trial.suggest_float(name, 0.0, 1.0) for name in "xy")
        if x > 0.5:
            raise ValueError("out of memory")
        return y**2 - x

    def searched() -> optuna.Study:
        with quiet_optuna():
            study = optuna.create_study(direction="minimize", sampler=AutoPeftSampler(seed=0, n_startup_trials=4))
            study.optimize(failing, n_trials=20, catch=(ValueError,))
        return study

    learned = searched()
    monkeypatch.setattr("autopeft.search.feasibility.LEAST", 1.0)  # failing has no say then
    ignored = searched()
    counts = [[one.state for one in study.trials].count(optuna.trial.TrialState.FAIL) for study in (learned, ignored)]
    assert counts[0] < counts[1]
    assert learned.best_value < ignored.best_value


def test_a_trial_of_another_range_is_no_obstacle() -> None:
    with quiet_optuna():
        study = optuna.create_study(direction="minimize", sampler=AutoPeftSampler(seed=0, n_startup_trials=3))
        failed = optuna.trial.create_trial(
            state=optuna.trial.TrialState.FAIL,
            params={"x": "c"},
            distributions={"x": optuna.distributions.CategoricalDistribution(("c", "d"))},
        )
        study.add_trial(failed)
        study.optimize(lambda trial: float(trial.suggest_categorical("x", ["a", "b"]) == "a"), n_trials=5)
    assert len(study.trials) == 6


def test_a_used_up_space_is_drawn_from_again() -> None:
    study = run(
        AutoPeftSampler(seed=0, n_startup_trials=2),
        lambda trial: float(trial.suggest_int("x", 0, 2)),
        directions=["maximize"],
        n=8,
    )
    assert {one.params["x"] for one in study.trials} == {0, 1, 2}


def test_bad_arguments_are_named() -> None:
    with pytest.raises(SpecError, match="n_startup_trials: got 0; 1 or more"):
        AutoPeftSampler(n_startup_trials=0)
    with pytest.raises(SpecError, match="known: got objective 2; the study has 2"):
        run(AutoPeftSampler(known={2: cost_of}), tuned, n=1)
    with pytest.raises(SpecError, match=r"known: values\[1\] asks for the parameter 'dropout'"):
        run(AutoPeftSampler(seed=0, known={1: lambda parameters: parameters["dropout"]}), tuned, n=12)


def test_it_survives_pickling() -> None:
    import pickle

    sampler = pickle.loads(pickle.dumps(AutoPeftSampler(seed=1)))
    assert len(run(sampler, tuned, n=3).trials) == 3
