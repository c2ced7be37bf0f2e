"""The predicted memory of every method against what a real step on a CPU is measured to take."""

from pathlib import Path

import pytest

from autopeft.objectives.memory import predict_memory
from autopeft.spaces.configuration import Configuration, FieldValue
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.method import FieldKind
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.targets import resolve
from autopeft.trainers.model import LoadedModel
from tests.configurations import configuration, setting
from tests.conformance.test_methods import sizes_of
from tests.models import IMAGE_MODELS, N_LAYERS
from tests.trainers.measured_memory import measure_peak, open_model

FAMILIES = ("bert", "llama", "vit")
BATCH_SIZE, LENGTH = 6, 24
TOLERANCE = 0.05


def on(method: str, shape: ModelShape, layers: tuple[int, ...]) -> Configuration:
    """`method` on `layers` with the size and targets that the conformance table and the method give."""
    words = next((field.default for field in METHODS[method].fields if field.kind is FieldKind.TARGETS), None)
    targets: dict[str, FieldValue] = {"targets": resolve(words, shape, 0)} if isinstance(words, tuple) else {}
    size = sizes_of(method, shape)[0]
    layers = (0,) if METHODS[method].at_input else layers
    return configuration(setting(method, layers, **{METHODS[method].size_field.name: size}, **targets))


def batch_of(shape: ModelShape) -> dict[str, int]:
    return {"batch_size": BATCH_SIZE, "length": shape.image.n_tokens if shape.image else LENGTH}


PAIRS = [
    (family, method)
    for family in FAMILIES
    for method in sorted(METHODS)
    if not (METHODS[method].at_input and family in IMAGE_MODELS)
]
"""What changes the embeddings of tokens is refused where there are none."""


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder: Path = tmp_path_factory.mktemp(request.param)
    return open_model(request.param, folder, attention="sdpa", dtype="float32")


@pytest.mark.parametrize(("loaded", "method"), PAIRS, indirect=["loaded"])
@pytest.mark.parametrize("layers", [(0, 2), (2,)], ids=["low", "top"])
def test_the_prediction_is_near_the_measured_peak(method: str, layers: tuple[int, ...], loaded: LoadedModel) -> None:
    config = on(method, loaded.shape, layers)
    batch = batch_of(loaded.shape)
    measured, head = measure_peak(loaded, config, **batch)
    predicted = predict_memory(loaded.shape, config, **batch, n_labels=2, head_parameters=head).total
    assert predicted == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.at_input])
def test_gradients_stop_below_the_lowest_adapted_layer(method: str, loaded: LoadedModel) -> None:
    batch = batch_of(loaded.shape)
    kept = [
        predict_memory(loaded.shape, on(method, loaded.shape, (layer,)), **batch, n_labels=2).activations
        for layer in range(N_LAYERS)
    ]
    whole = loaded.shape.hidden_size * batch["batch_size"] * batch["length"] * 4
    assert kept[0] - kept[1] > whole, "a layer keeps several values of the residual stream's width"
    rotation = 2 * batch["length"] * loaded.shape.head_dim * 4
    assert kept[1] - kept[2] - (kept[0] - kept[1]) in (0, rotation), "a layer each; the rotary table is kept once"
