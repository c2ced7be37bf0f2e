from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autopeft.objectives.memory import Setup
from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.factors import FACTORED, first_factor_parameters
from autopeft.spaces.methods import METHODS
from autopeft.trainers.inject import build
from autopeft.trainers.job import TrainingSettings, TrainJob
from autopeft.trainers.meter import state_bytes
from autopeft.trainers.optimizers import INITIAL, is_first_factor, is_second_factor, make_optimizer
from autopeft.trainers.saved import read_adapter
from autopeft.trainers.sites import measure
from tests.configurations import configuration, setting
from tests.models import MODELS, build_base
from tests.trainers import support
from tests.trainers.measured_memory import forecast_of, measure_peak, open_model

QUERY_VALUE = MODELS["bert"].query_value
SETTINGS = TrainingSettings(learning_rate=0.1, weight_decay=0.3)


def named() -> list[tuple[str, nn.Parameter]]:
    sizes = {
        "lora.0.query.a": (4, 8),
        "lora.0.query.b": (8, 4),
        "serial_adapter.0.bottleneck.down.weight": (4, 8),
        "serial_adapter.0.bottleneck.down.bias": (4,),
        "classifier.weight": (2, 8),
    }
    return [(name, nn.Parameter(torch.ones(size))) for name, size in sizes.items()]


def groups(settings: TrainingSettings, **rates: float) -> dict[str, tuple[float, float]]:
    """(learning rate, decay) of each parameter that the optimizer moves."""
    rows = named()
    names = {id(parameter): name for name, parameter in rows}
    optimizer = make_optimizer(rows, settings, rates=rates)
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_adamw_decays_matrices_and_no_vectors() -> None:
    found = groups(SETTINGS)
    assert found.pop("serial_adapter.0.bottleneck.down.bias") == (0.1, 0.0)
    assert set(found.values()) == {(0.1, 0.3)}
    assert len(found) == 4


def test_lora_plus_moves_the_second_factors_faster() -> None:
    found = groups(replace(SETTINGS, lora_plus_ratio=16.0))
    assert found.pop("lora.0.query.b") == (pytest.approx(1.6), 0.3)
    assert {rate for rate, _ in found.values()} == {0.1}


def test_the_second_factors_may_have_a_decay_of_their_own() -> None:
    found = groups(replace(SETTINGS, weight_decay_b=0.0))
    assert found["lora.0.query.b"] == (0.1, 0.0)
    assert found["lora.0.query.a"] == (0.1, 0.3)


def test_a_method_moves_at_its_own_rate_and_the_head_at_the_common_one() -> None:
    assert groups(replace(SETTINGS, lora_plus_ratio=4.0, weight_decay_b=0.5), lora=1e-3, ssf=9.0) == {
        "lora.0.query.a": (1e-3, 0.3),
        "lora.0.query.b": (pytest.approx(4e-3), 0.5),
        "serial_adapter.0.bottleneck.down.weight": (0.1, 0.3),
        "serial_adapter.0.bottleneck.down.bias": (0.1, 0.0),
        "classifier.weight": (0.1, 0.3),
    }


@pytest.mark.parametrize("optimizer", ["adamw", "galore"])
def test_own_rates_move_tensors_in_proportion(optimizer: str) -> None:
    rows = named()
    made = make_optimizer(rows, replace(SETTINGS, optimizer=optimizer, weight_decay=0.0), rates={"lora": 0.02})
    assert all(group["params"] for group in made.param_groups)
    for _, parameter in rows:
        parameter.grad = torch.ones_like(parameter)
    made.step()
    moved = {name: float((1 - parameter.detach()).abs().max()) for name, parameter in rows}
    assert moved["lora.0.query.b"] == pytest.approx(0.02, rel=1e-4)
    assert moved["classifier.weight"] == pytest.approx(0.1, rel=1e-4)


def test_lora_fa_leaves_the_first_factors_out() -> None:
    found = groups(replace(SETTINGS, optimizer="lora_fa"))
    assert "lora.0.query.a" not in found
    assert len(found) == 4


def test_factors_are_known_by_name_here_and_in_peft() -> None:
    assert is_first_factor("mola.2.attention_self_query.a")
    assert is_first_factor("binary_lora.0.query.parametrizations.a.original")
    assert is_first_factor("peft.base.query.lora_A.default.weight")
    assert is_second_factor("peft.base.query.lora_B.default.weight")
    assert not is_first_factor("svfit.0.query.core")
    assert not is_second_factor("lora.0.query.a")


@pytest.mark.parametrize("method", sorted(FACTORED))
def test_the_first_factors_are_counted_as_they_are_built(method: str) -> None:
    base = build_base("bert")
    shape = measure(base, base.config)
    sizes: list[FieldValue] = [2, 3]
    config = configuration(setting(method, (0, 2), targets=QUERY_VALUE, **{METHODS[method].size_field.name: sizes}))
    built = sum(p.numel() for name, p in build(shape, config, seed=0).named_parameters() if is_first_factor(name))
    assert first_factor_parameters(config, shape) == built > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_memory_without_trained_first_factors_is_predicted_and_lower(
    dtype: str, dropout: float, tmp_path: Path
) -> None:
    loaded = open_model("bert", tmp_path, attention="sdpa", dtype=dtype)
    forecast = forecast_of(loaded)
    lora = setting("lora", (0, 2), rank=4, targets=QUERY_VALUE, dropout=dropout)
    peaks: list[int] = []
    for name in ("adamw", "lora_fa"):
        settings = TrainingSettings(optimizer=name)
        peak = measure_peak(loaded, configuration(lora), batch_size=6, length=24, settings=settings)
        predicted = forecast.predict(configuration(lora), Setup(batch_size=6, length=24, optimizer=name))
        assert predicted == forecast.predict(configuration(lora, optimizer=name), Setup(batch_size=6, length=24))
        assert predicted.total == peak
        peaks.append(peak)
    assert peaks[1] < peaks[0]


def test_the_meter_sees_no_state_for_frozen_factors(tmp_path: Path) -> None:
    states: list[int] = []
    for name in ("adamw", "lora_fa"):
        rows = named()
        optimizer = make_optimizer(rows, replace(SETTINGS, optimizer=name))
        for _, parameter in rows:
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        optimizer.step()
        states.append(state_bytes(optimizer))
    n_steps = 4
    assert states[0] - states[1] == 2 * 4 * (4 * 8) + n_steps


LORA = setting("lora", (0, 1, 2), rank=8, targets=QUERY_VALUE, alpha=16.0, dropout=0.0)


@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": "lora_fa"},
        {"lora_plus_ratio": 4.0, "learning_rate": 5e-3},
        {"optimizer": "galore", "galore_rank": 4, "learning_rate": 3e-2},
        {"weight_decay": 0.1, "weight_decay_b": 0.0},
    ],
    ids=lambda row: "-".join(row),
)
def test_every_optimizer_learns(training: dict[str, float | str], tmp_path: Path) -> None:
    with_optimizer = configuration(LORA, **training)
    trainer = support.trainer(tmp_path, support.classification(tmp_path))
    reports = list(trainer.run(TrainJob(configurations=(with_optimizer,), seeds=(1,), epochs=6)))
    assert accuracies(reports)[-1] >= 0.8


def test_a_configuration_trains_each_method_at_its_rate(tmp_path: Path) -> None:
    """Only a method whose rate is not next to nothing leaves its start."""
    still = replace(LORA, learning_rate=1e-12)
    ssf = setting("ssf", (0, 1), enabled=1, targets=QUERY_VALUE)
    trainer = support.trainer(tmp_path, support.classification(tmp_path))
    folder = tmp_path / "adapter"
    job = TrainJob(
        configurations=(configuration(still, replace(ssf, learning_rate=1e-2)),),
        seeds=(1,),
        epochs=1,
        output_dirs=(folder,),
    )
    list(trainer.run(job))
    info, adapters, _ = read_adapter(folder)
    assert info.configuration == job.configurations[0]
    tensors = dict(adapters.named_parameters())
    assert max(float(p.detach().abs().max()) for name, p in tensors.items() if is_second_factor(name)) < 1e-9
    scales = [p.detach() for name, p in tensors.items() if name.startswith("ssf") and name.endswith("scale")]
    assert scales
    assert min(float((p - 1).abs().max()) for p in scales) > 1e-3


def accuracies(reports: Sequence[object]) -> list[float]:
    return [report.measurement.metrics["accuracy"] for report in reports]  # type: ignore[attr-defined]


def test_the_schedule_moves_every_group_in_proportion() -> None:
    optimizer = make_optimizer(named(), replace(SETTINGS, lora_plus_ratio=8.0))
    rates = sorted({group[INITIAL] for group in optimizer.param_groups})
    assert np.allclose(rates, [0.1, 0.8])
