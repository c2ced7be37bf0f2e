"""Layers that train by importance or by chance, step by step."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from autopeft.errors import ConfigurationError, SpecError
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.methods import METHODS
from autopeft.spaces.model_shape import ModelShape
from autopeft.trainers.adapters.adapter import AbstractAdapter
from autopeft.trainers.inject import AdapterSet, inject
from autopeft.trainers.job import Report, TrainingSettings, TrainJob
from autopeft.trainers.layer_sampling import RATE, LayerSampler, distinct_sets, draw, kept, updated
from autopeft.trainers.loop import check_settings
from autopeft.trainers.meter import SavedTensorMeter
from autopeft.trainers.optimizers import make_optimizer
from autopeft.trainers.sites import layers_of, measure
from autopeft.trainers.trainer import Trainer
from tests.configurations import configuration, setting
from tests.conformance.test_methods import applies, disturb, place, run
from tests.models import MODELS, build_base
from tests.trainers import support

QUERY_VALUE = MODELS["bert"].query_value
LORA = setting("lora", (0, 1, 2), rank=2, targets=QUERY_VALUE)
IMPORTANCE = TrainingSettings(layer_sampling="importance", layers_kept=0.34, sampling_interval=2)


@pytest.fixture(scope="module")
def bases() -> dict[str, PreTrainedModel]:
    return {name: build_base(name) for name in ("bert", "llama")}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    folder = tmp_path_factory.mktemp("sampling")
    return support.trainer(folder, support.classification(folder))


def sampler(adapters: AdapterSet, base: PreTrainedModel, settings: TrainingSettings, seed: int = 0) -> LayerSampler:
    return LayerSampler(adapters, layers_of(base, measure(base, base.config)), settings, n_rows=40, seed=seed)


@pytest.fixture
def attached(bases: dict[str, PreTrainedModel]) -> Iterator[tuple[PreTrainedModel, ModelShape, AdapterSet]]:
    base = bases["bert"]
    shape = measure(base, base.config)
    with inject(base, shape, configuration(LORA), seed=0) as adapters:
        disturb(adapters)
        yield base, shape, adapters


def test_layers_are_drawn_without_replacement_by_the_sigmoid_of_their_scores() -> None:
    scores, rng = np.array([0.0, 2.0, -1.0, 0.5]), np.random.default_rng(0)
    weights = 1 / (1 + np.exp(-scores))
    chance: Counter[tuple[int, ...]] = Counter()
    for first, second in itertools.permutations(range(4), 2):
        share = weights[first] / weights.sum() * weights[second] / (weights.sum() - weights[first])
        chance[tuple(sorted((first, second)))] += share
    drawn = Counter(draw(rng, scores, 2) for _ in range(20_000))
    assert drawn.keys() == chance.keys()
    assert all(abs(drawn[rows] / 20_000 - chance[rows]) < 0.015 for rows in chance)


def test_scores_far_apart_leave_nothing_to_chance() -> None:
    rng = np.random.default_rng(0)
    assert {draw(rng, np.array([-800.0, 800.0, 900.0]), 2) for _ in range(50)} == {(1, 2)}


@given(
    scores=st.lists(st.floats(-5, 5), min_size=2, max_size=9).map(np.array),
    seed=st.integers(0, 99),
    losses=st.lists(st.floats(0, 9), min_size=3, max_size=3),
)
def test_importance_follows_the_authors_rule_with_its_sign_turned(
    scores: np.ndarray, seed: int, losses: list[float]
) -> None:
    sets = distinct_sets(np.random.default_rng(seed), scores, kept(len(scores), 0.5))
    losses = losses[: len(sets)]
    theirs = -scores
    p = 1 / (1 + np.exp(-theirs))
    rewards = np.exp(-np.array(losses))
    for rows, reward in zip(sets, rewards, strict=True):
        for row in range(len(scores)):
            if row in rows:
                theirs[row] += (reward - rewards.mean()) * p[row] * (1 - p[row]) * RATE
    np.testing.assert_allclose(updated(scores, sets, losses), -theirs, atol=1e-9)


def test_layers_whose_suppression_costs_more_gain_importance_and_train_more_often() -> None:
    importance, rng = np.zeros(6), np.random.default_rng(0)
    for _ in range(300):
        sets = distinct_sets(rng, -importance, 3)
        importance = updated(importance, sets, [0.5 + 0.5 * (4 in rows) - 0.2 * (1 in rows) for rows in sets])
    assert int(np.argmax(importance)) == 4
    assert int(np.argmin(importance)) == 1
    trained = Counter(row for _ in range(2000) for row in draw(rng, importance, 2))
    assert trained.most_common(1)[0][0] == 4
    assert trained.most_common()[-1][0] == 1


def test_a_loss_that_is_not_finite_teaches_nothing() -> None:
    importance = np.array([1.0, -1.0])
    assert updated(importance, [(0,), (1,)], [float("nan"), 1.0]) is importance


@pytest.mark.parametrize(
    ("n", "share", "expected"), [(32, 0.25, 8), (12, 0.25, 3), (6, 0.25, 1), (2, 0.1, 1), (10, 0.3, 3)]
)
def test_shares_are_rounded_down_to_one_layer_at_least(n: int, share: float, expected: int) -> None:
    assert kept(n, share) == expected


@pytest.mark.parametrize(("n", "sets"), [(2, 2), (3, 3), (12, 3)])
def test_probes_suppress_different_sets(n: int, sets: int) -> None:
    found = distinct_sets(np.random.default_rng(0), np.zeros(n), kept(n, 0.5))
    assert len(set(found)) == len(found) == sets


def test_weights_that_allow_one_set_only_end_the_search_for_more() -> None:
    assert distinct_sets(np.random.default_rng(0), np.array([900.0, -900.0]), 1) == [(0,)]


PAIRS = [(name, "bert") for name, method in METHODS.items() if method.suppressible] + [
    ("prefix_tuning", "llama"),
    ("linear_series", "llama"),
]


@pytest.mark.parametrize(("method", "model"), PAIRS)
def test_every_method_is_suppressed_and_restored_bit_for_bit(
    bases: dict[str, PreTrainedModel], method: str, model: str
) -> None:
    assert applies(method, model)
    base = bases[model]
    shape = measure(base, base.config)
    bare = run(base)
    with inject(base, shape, configuration(place(method, model, shape)), seed=0) as adapters:
        disturb(adapters)
        tensors = {name: parameter.clone() for name, parameter in adapters.named_parameters()}
        full = run(base)
        for factor, expected in ((0.0, bare), (1.0, full)):
            one = sampler(adapters, base, replace(IMPORTANCE, suppression=factor))
            with one.suppressed(range(len(one.layers))):
                assert torch.equal(run(base), expected)
        one = sampler(adapters, base, IMPORTANCE)
        with one.suppressed([0]):
            between = run(base)
        assert not torch.equal(between, full)
        assert torch.equal(run(base), full)
        assert all(torch.equal(tensors[name], parameter) for name, parameter in adapters.named_parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.modules())


def test_suppression_is_the_scale_of_the_adapter(
    attached: tuple[PreTrainedModel, ModelShape, AdapterSet],
) -> None:
    base, _, adapters = attached
    with sampler(adapters, base, IMPORTANCE).suppressed([0, 2]):
        suppressed = run(base)
    with torch.no_grad():
        for name, parameter in adapters.named_parameters():
            if name.endswith(".b") and not name.startswith("lora.1."):
                parameter.mul_(IMPORTANCE.suppression)
    torch.testing.assert_close(run(base), suppressed, atol=1e-6, rtol=1e-6)


def test_an_interrupted_probe_leaves_no_hook_behind(attached: tuple[PreTrainedModel, ModelShape, AdapterSet]) -> None:
    base, _, adapters = attached
    full = run(base)
    with pytest.raises(KeyError), sampler(adapters, base, IMPORTANCE).suppressed([1]):
        raise KeyError
    assert torch.equal(run(base), full)


def step(base: PreTrainedModel, one: LayerSampler, optimizer: torch.optim.Optimizer) -> None:
    one.begin_step(lambda rows: float(rows.sum()) / 1e3)
    run(base).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_only_sampled_layers_move_have_gradients_and_have_state(
    attached: tuple[PreTrainedModel, ModelShape, AdapterSet],
) -> None:
    base, _, adapters = attached
    one = sampler(adapters, base, IMPORTANCE)
    optimizer = make_optimizer(list(adapters.named_parameters()), replace(IMPORTANCE, weight_decay=0.1))
    seen: set[int] = set()
    for _ in range(12):
        before = {name: parameter.clone() for name, parameter in adapters.named_parameters()}
        step(base, one, optimizer)
        assert len(one.active) == 1
        seen |= set(one.active)
        for name, parameter in adapters.named_parameters():
            layer = int(name.split(".")[1])
            assert torch.equal(before[name], parameter) is (layer not in one.active)
            assert (parameter in optimizer.state) is (layer in seen)
    assert seen == {0, 1, 2}
    one.release()
    assert all(parameter.requires_grad for parameter in adapters.parameters())


def test_what_is_frozen_already_stays_frozen(attached: tuple[PreTrainedModel, ModelShape, AdapterSet]) -> None:
    base, _, adapters = attached
    make_optimizer(list(adapters.named_parameters()), replace(IMPORTANCE, optimizer="lora_fa"))
    one = sampler(adapters, base, replace(IMPORTANCE, layers_kept=1.0))
    for _ in range(2):
        one.begin_step(lambda rows: 0.0)
        assert {name[-1] for name, parameter in adapters.named_parameters() if parameter.requires_grad} == {"b"}
        one.release()


def saved_bytes(base: PreTrainedModel, adapters: AdapterSet, active: tuple[int, ...]) -> int:
    for _, layer, adapter in adapters.adapters():
        for parameter in adapter.parameters():
            parameter.requires_grad_(layer in active)
    with SavedTensorMeter((base, adapters)) as meter:
        loss = run(base).square().sum()
    loss.backward()
    return meter.peak_bytes


def test_backward_keeps_nothing_below_the_lowest_layer_that_trains(
    attached: tuple[PreTrainedModel, ModelShape, AdapterSet],
) -> None:
    base, _, adapters = attached
    top, middle, bottom = (saved_bytes(base, adapters, (layer,)) for layer in (2, 1, 0))
    assert 1.5 * top < middle
    assert 1.3 * middle < bottom
    assert bottom < saved_bytes(base, adapters, (0, 1, 2)), "between, only what the layers' own tensors need"


def test_an_adapter_that_cannot_be_scaled_is_refused_by_importance_alone(
    attached: tuple[PreTrainedModel, ModelShape, AdapterSet],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, _, adapters = attached
    monkeypatch.setattr(AbstractAdapter, "suppressible", False)
    with pytest.raises(
        ConfigurationError, match=r"got importance.*that of lora cannot be scaled.*random, or leave lora"
    ):
        sampler(adapters, base, IMPORTANCE)
    assert sampler(adapters, base, replace(IMPORTANCE, layer_sampling="random")).layers == (0, 1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_sampling": "all"}, r"layer_sampling: got 'all'; allowed: none, importance, random"),
        ({"layers_kept": 0.0}, r"layers_kept: got 0.0; allowed: above 0, up to 1"),
        ({"sampling_interval": 0}, r"sampling_interval: got 0; allowed: 1 or more"),
        ({"suppression": 1.5}, r"suppression: got 1.5; allowed: from 0 to 1"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_settings(replace(support.SETTINGS, **change))  # type: ignore[arg-type]  # names of settings


def trained(trainer: Trainer, config: Configuration, *, seed: int = 3, epochs: int = 2) -> list[Report]:
    return list(trainer.run(TrainJob(configurations=(config,), seeds=(seed,), epochs=epochs)))


def test_a_trial_stores_the_importance_of_its_layers(trainer: Trainer) -> None:
    config = configuration(
        LORA,
        setting("prefix_tuning", (0, 2), length=3),
        layer_sampling="importance",
        layers_kept=0.5,
        sampling_interval=2,
        suppression=0.25,
    )
    first, last = [report.measurement for report in trained(trainer, config) if report.measurement is not None]
    assert last.extra.keys() == {"importance/0", "importance/1", "importance/2"}
    assert max(map(abs, first.extra.values())) > 0
    assert first.extra != last.extra
    again = [report.measurement for report in trained(trainer, config) if report.measurement is not None]
    assert [(row.train_loss, row.metrics, row.extra) for row in again] == [
        (row.train_loss, row.metrics, row.extra) for row in (first, last)
    ]
    assert not any(module._forward_hooks for module in trainer.loaded.model.base_model.modules())


def test_layers_sampled_by_chance_learn_and_store_nothing(trainer: Trainer) -> None:
    sampled = configuration(LORA, layer_sampling="random", layers_kept=0.4)
    last = trained(trainer, sampled, epochs=8)[-1].measurement
    assert last is not None
    assert last.extra == {}
    assert last.metrics["accuracy"] >= 0.8
    every = trained(trainer, configuration(LORA))[-1].measurement
    assert every is not None
    assert every.extra == {}
    assert last.parameters == every.parameters


def test_probes_do_not_disturb_training(trainer: Trainer) -> None:
    """With nothing suppressed all rewards are equal, so importance stays zero and only probing is added."""
    fields = {"layer_sampling": "importance", "layers_kept": 1.0, "suppression": 1.0}
    lora = setting("lora", (0, 1, 2), rank=4, targets=QUERY_VALUE, dropout=0.2)
    probed = trained(trainer, configuration(lora, **fields, sampling_interval=1))
    plain = trained(trainer, configuration(lora))
    for left, right in zip(probed, plain, strict=True):
        assert left.measurement is not None
        assert right.measurement is not None
        assert left.measurement.train_loss == right.measurement.train_loss
        assert left.measurement.metrics == right.measurement.metrics
        assert set(left.measurement.extra.values()) == {0.0}


def test_memory_is_that_of_the_deepest_step(trainer: Trainer) -> None:
    def peak(config: Configuration) -> int:
        measurement = trained(trainer, config, epochs=1)[-1].measurement
        assert measurement is not None
        return measurement.peak_bytes

    every = peak(configuration(LORA))
    sampled = peak(configuration(LORA, layer_sampling="random", layers_kept=0.34))
    upper = setting("lora", (2,), rank=2, targets=QUERY_VALUE)
    assert peak(configuration(upper)) < sampled <= every


def test_one_adapted_layer_trains_in_every_step(trainer: Trainer) -> None:
    config = configuration(
        setting("lora", (1,), rank=2, targets=QUERY_VALUE), layer_sampling="importance", sampling_interval=1
    )
    measurement = trained(trainer, config)[-1].measurement
    assert measurement is not None
    assert measurement.extra == {"importance/1": 0.0}


def test_a_language_model_trains_without_a_head(tmp_path: Path) -> None:
    own = support.trainer(tmp_path, support.language(tmp_path), model="llama")
    lora = setting("lora", (0, 1, 2), rank=2, targets=MODELS["llama"].query_value)
    reports = trained(own, configuration(lora, layer_sampling="importance", layers_kept=0.3, sampling_interval=3))
    losses = [report.measurement.train_loss for report in reports if report.measurement]
    assert losses[1] < losses[0]
