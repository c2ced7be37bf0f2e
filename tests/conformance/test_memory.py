"""The predicted memory of every method against what a real step on a CPU is measured to take."""

from itertools import pairwise

import pytest

from autopeft.spaces.configuration import Configuration, FieldValue
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.method import FieldKind
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.targets import resolve
from autopeft.trainers.forecast import MemoryForecast, Setup
from autopeft.trainers.model import LoadedModel
from tests.configurations import configuration, setting
from tests.conformance.test_methods import sizes_of
from tests.models import IMAGE_MODELS, N_LAYERS
from tests.trainers.measured_memory import forecast_of, measure_peak, open_model

CASES = (("bert", "sdpa", "float32"), ("llama", "eager", "bfloat16"), ("vit", "sdpa", "float32"))
BATCH = {"batch_size": 6, "length": 24}
SETUP = Setup(**BATCH)
TOLERANCE = 0.001
"""Some methods choose values by the weights' numbers, which the prediction does not have."""


def on(method: str, shape: ModelShape, layers: tuple[int, ...]) -> Configuration:
    """`method` on `layers` with the size and targets that the conformance table and the method give."""
    words = next((field.default for field in METHODS[method].fields if field.kind is FieldKind.TARGETS), None)
    targets: dict[str, FieldValue] = {"targets": resolve(words, shape, 0)} if isinstance(words, tuple) else {}
    layers = (0,) if METHODS[method].at_input else layers
    return configuration(
        setting(method, layers, **{METHODS[method].size_field.name: sizes_of(method, shape)[0]}, **targets)
    )


LAYERS = {"low": (0, 2), "top": (2,)}
SLOW = {("top", "llama"), ("top", "vit"), ("low", "vit")}
PEAKS = [
    pytest.param(case, method, layers, id=f"{place}-{'-'.join(case)}-{method}", marks=marks)
    for place, layers in LAYERS.items()
    for case in CASES
    for marks in ((pytest.mark.slow,) if (place, case[0]) in SLOW else (),)
    for method in sorted(METHODS)
    if not (METHODS[method].at_input and case[0] in IMAGE_MODELS)
]
"""What changes the embeddings of tokens is refused where there are none. That layers below the lowest adapted one cost
nothing is seen on one model here, and on all models in the last test; the rest is for `make test-slow`."""


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    family, attention, dtype = request.param
    return open_model(family, tmp_path_factory.mktemp(family), attention=attention, dtype=dtype)


@pytest.fixture(scope="module")
def forecast(loaded: LoadedModel) -> MemoryForecast:
    return forecast_of(loaded)


@pytest.mark.parametrize(("loaded", "method", "layers"), PEAKS, indirect=["loaded"])
def test_the_prediction_equals_the_measured_peak(
    method: str, layers: tuple[int, ...], loaded: LoadedModel, forecast: MemoryForecast
) -> None:
    config = on(method, loaded.shape, layers)
    measured = measure_peak(loaded, config, **BATCH)
    assert forecast.predict(config, SETUP).total == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.at_input])
def test_gradients_stop_below_the_lowest_adapted_layer(
    method: str, loaded: LoadedModel, forecast: MemoryForecast
) -> None:
    kept = [forecast.predict(on(method, loaded.shape, (layer,)), SETUP).activations for layer in range(N_LAYERS)]
    length = loaded.shape.image.n_tokens if loaded.shape.image else BATCH["length"]
    whole = loaded.shape.hidden_size * BATCH["batch_size"] * length * 4
    steps = [low - high for low, high in pairwise(kept)]
    assert steps[0] > whole, "a layer keeps several values of the residual stream's width"
    rotation = 2 * length * loaded.shape.head_dim * 4
    assert 0 <= steps[1] - steps[0] <= rotation, "a layer each; the rotary table is kept once"
