"""Layers that compute their activations again give the same losses and gradients, and keep less."""

from pathlib import Path

import pytest
import torch
from torch import nn

from autopeft.objectives.memory import Setup
from autopeft.trainers.checkpointing import CheckpointedLayers
from autopeft.trainers.job import TrainingSettings
from tests.configurations import configuration, setting
from tests.models import MODELS
from tests.trainers.measured_memory import forecast_of, measure_peak, open_model

BATCH = {"batch_size": 6, "length": 24}


def test_gradients_are_the_same_with_dropout_and_hooks() -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.GELU()) for _ in range(3)]
    model = nn.Sequential(*layers)
    layers[1].register_forward_hook(lambda _, __, output: output * 2)
    grads: list[list[torch.Tensor]] = []
    for checkpointing in (False, True):
        held = CheckpointedLayers(layers) if checkpointing else None
        torch.manual_seed(1)
        model(torch.ones(4, 8)).sum().backward()
        grads.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        model.zero_grad()
        if held is not None:
            held.remove()
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert all("_call_impl" not in layer.__dict__ for layer in layers)


def test_a_layer_that_appears_twice_is_wrapped_once() -> None:
    layer = nn.Linear(3, 3)
    CheckpointedLayers([layer, layer]).remove()
    assert "_call_impl" not in layer.__dict__


@pytest.mark.parametrize("family", ["bert", "llama", "albert"])
def test_the_measured_peak_equals_the_prediction(family: str, tmp_path: Path) -> None:
    loaded = open_model(family, tmp_path, attention="eager", dtype="float32")
    layers = tuple(range(loaded.shape.n_layers))
    config = configuration(setting("lora", layers, rank=4, targets=MODELS[family].query_value, dropout=0.1))
    forecast = forecast_of(loaded)
    kept: list[int] = []
    for checkpointing in (False, True):
        settings = TrainingSettings(checkpointing=checkpointing)
        measured = measure_peak(loaded, config, **BATCH, settings=settings)
        predicted = forecast.predict(config, Setup(**BATCH, checkpointing=checkpointing))
        assert predicted.total == measured
        kept.append(predicted.activations)
    assert kept[1] < 0.6 * kept[0]


def test_what_is_kept_equals_a_hand_count(tmp_path: Path) -> None:
    loaded = open_model("bert", tmp_path, attention="sdpa", dtype="float32")
    config = configuration(setting("lora", (0, 1, 2), rank=4, targets=("attention.self.query",), dropout=0.0))
    found = forecast_of(loaded).predict(config, Setup(**BATCH, checkpointing=True))
    t, h, heads, wide = BATCH["length"], loaded.shape.hidden_size, loaded.shape.n_heads, 48
    n = BATCH["batch_size"] * t
    second_pass = {
        "rank activations": n * 4,
        "query, key, value and output of attention": 4 * n * h,
        "log-sum of each row and head": n * heads,
        "mask, in float32": n * t,
        "sums before two norms, and their scales": 2 * (n * h + 2 * n),
        "input of the activation": n * wide,
    }
    mask = n * t  # of bytes: an argument of every layer
    assert found.activations == 4 * (3 * n * h + sum(second_pass.values())) + mask, "inputs, one layer's second pass"
    assert found.logits == 0, "the head's part is gone when a layer runs again"
