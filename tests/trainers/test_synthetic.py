from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import SpecError
from autopeft.objectives.parameters import count_parameters
from autopeft.spaces.configuration import Configuration
from autopeft.trainers.job import TrainJob
from autopeft.trainers.synthetic import FAILURES, LEARNING_RATE, SyntheticTrainer
from tests.configurations import configuration, setting
from tests.objectives.test_memory import bert_shape

SHAPE = bert_shape()
LAYERS = st.sets(st.integers(0, SHAPE.n_layers - 1), min_size=1).map(lambda layers: tuple(sorted(layers)))


def adapter(layers: tuple[int, ...], bottleneck: int, **training: float) -> Configuration:
    return configuration(
        setting("serial_adapter", layers, bottleneck=bottleneck, activation="relu", scale=1.0), **training
    )


def job(*configurations: Configuration, epochs: int = 3, evaluate_test: bool = False) -> TrainJob:
    seeds = tuple(range(len(configurations)))
    return TrainJob(configurations=configurations, seeds=seeds, epochs=epochs, evaluate_test=evaluate_test)


@given(LAYERS, st.integers(1, 100), st.integers(1, 100))
def test_more_capacity_is_better_but_never_by_as_much(layers: tuple[int, ...], size: int, more: int) -> None:
    trainer = SyntheticTrainer(SHAPE)
    small, middle, large = (trainer.quality(adapter(layers, size + k * more)) for k in range(3))
    assert 0.0 < small <= middle <= large < 1.0 + 1e-12
    assert large - middle <= middle - small + 1e-12


def test_later_layers_weigh_more_and_the_learning_rate_has_one_optimum() -> None:
    trainer = SyntheticTrainer(SHAPE)
    by_layer = [trainer.quality(adapter((layer,), 8)) for layer in range(SHAPE.n_layers)]
    assert by_layer == sorted(by_layer)
    rates = [trainer.quality(adapter((0,), 8, learning_rate=LEARNING_RATE * 10.0**k)) for k in (-1, -0.5, 0, 0.5, 1)]
    assert max(rates) == rates[2]
    assert rates[0] == pytest.approx(rates[4]) == pytest.approx(rates[2] / 2.718281828)


def test_a_method_is_judged_by_its_own_rate() -> None:
    trainer = SyntheticTrainer(SHAPE)
    wrong = adapter((0,), 8, learning_rate=LEARNING_RATE * 10.0)
    own = replace(wrong, methods=(replace(wrong.methods[0], learning_rate=LEARNING_RATE),))
    assert trainer.quality(own) == pytest.approx(trainer.quality(adapter((0,), 8, learning_rate=LEARNING_RATE)))
    assert trainer.quality(wrong) < 0.5 * trainer.quality(own)


def test_reports_look_like_a_trainer_s() -> None:
    trainer = SyntheticTrainer(SHAPE)
    config = adapter((0, 1), 8)
    reports = list(trainer.run(job(config, evaluate_test=True)))
    assert [report.done for report in reports] == [False, False, True]
    values = [report.measurement.metrics["accuracy"] for report in reports if report.measurement is not None]
    assert values == sorted(values)
    last = reports[-1].measurement
    assert last is not None
    assert last.parameters == count_parameters(config, SHAPE).total
    assert last.peak_bytes > 0
    assert reports[-1].test_metrics == {"accuracy": trainer.value(config)}


def test_noise_is_drawn_from_the_seed() -> None:
    trainer = SyntheticTrainer(SHAPE, noise=0.05)
    config = adapter((0,), 8)
    assert trainer.value(config, seed=1) == trainer.value(config, seed=1) != trainer.value(config, seed=2)
    assert trainer.value(config) == SyntheticTrainer(SHAPE).value(config)


def test_a_metric_that_is_minimised_falls_with_quality() -> None:
    trainer = SyntheticTrainer(SHAPE, metric="perplexity")
    assert trainer.value(adapter((0, 1), 64)) < trainer.value(adapter((0,), 1))


@pytest.mark.parametrize("kind", FAILURES)
def test_chosen_configurations_fail_as_they_are_told(kind: str) -> None:
    bad, good = adapter((0,), 8), adapter((1,), 8)
    reports = list(SyntheticTrainer(SHAPE, fail={bad.id: kind}).run(job(bad, good, epochs=1)))
    assert reports[0].failure == (kind, f"synthetic {kind}")
    assert reports[0].done
    assert reports[1].measurement is not None


def test_a_share_of_all_configurations_fails_the_same_way_each_time() -> None:
    configs = [adapter((0,), size) for size in range(1, 201)]
    trainer = SyntheticTrainer(SHAPE, failure_rate=0.25)
    failed = [report.failure for report in trainer.run(job(*configs, epochs=1))]
    assert failed == [report.failure for report in trainer.run(job(*configs, epochs=1))]
    assert 30 <= sum(failure is not None for failure in failed) <= 70
    assert len({failure[0] for failure in failed if failure is not None}) == len(FAILURES)


def test_what_it_cannot_imitate_is_refused() -> None:
    with pytest.raises(SpecError, match="fail: got 'fire'; allowed are oom"):
        SyntheticTrainer(SHAPE, fail={"x": "fire"})
    with pytest.raises(SpecError, match="metric: got 'speed'; allowed are accuracy"):
        SyntheticTrainer(SHAPE, metric="speed")
    with pytest.raises(SpecError, match=r"noise: got -1, failure_rate: got 0\.0"):
        SyntheticTrainer(SHAPE, noise=-1)
