"""Predicted peaks against hand counts, measured steps and whole traced steps."""

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import MixtralConfig, MixtralForSequenceClassification

from autopeft.kernels import dispatch
from autopeft.objectives.memory import MemoryBreakdown, Setup
from autopeft.spaces.configuration import Configuration, MethodSetting
from autopeft.spaces.model_shape import ModelShape, Role
from autopeft.trainers.adapters.adapter import AbstractAdapter, Handle, Placement
from autopeft.trainers.calls import record_calls
from autopeft.trainers.described import describe_model
from autopeft.trainers.device_paths import CudaPaths
from autopeft.trainers.example import example_batch
from autopeft.trainers.forecast import MemoryForecast
from autopeft.trainers.inject import inject
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.meter import distinct_tensors
from autopeft.trainers.model import load_model, set_training
from autopeft.trainers.sites import without_cache
from autopeft.trainers.storages import StorageWatch, storage_key
from autopeft.trainers.task import TASKS
from autopeft.trainers.trace import trace_scoring
from tests.configurations import configuration, setting
from tests.models import MODELS, save_model, tokenizer
from tests.trainers.measured_memory import forecast_of, measure_peak, open_model

QUERY = ("attention.self.query",)
SETUP = Setup(batch_size=6, length=24)
N, T, H, WIDE = 6 * 24, 24, 32, 48


def lora(layers: tuple[int, ...], rank: int = 4, targets: tuple[str, ...] = QUERY) -> Configuration:
    return configuration(setting("lora", layers, rank=rank, targets=targets, alpha=16.0, dropout=0.0))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> MemoryForecast:
    return forecast_of(open_model("bert", tmp_path_factory.mktemp("bert"), attention="sdpa", dtype="float32"))


def language(name: str, folder: Path, *, dtype: str = "float32", device: str = "cpu") -> MemoryForecast:
    spec = ModelSpec(name=str(save_model(name, folder, language_model=True)), dtype=dtype, attention="sdpa")
    described = describe_model(spec, kind="causal-lm", n_labels=None)
    return MemoryForecast(described, TASKS["causal-lm"][0], device=device)


def test_a_step_with_one_map_adapted_equals_a_hand_count(bert: MemoryForecast) -> None:
    found = bert.predict(lora((2,)), SETUP)
    kept = {
        "input of the factor A": N * H,
        "rank activations": N * 4,
        "query, key, value and output of attention": 4 * N * H,
        "log-sum of each row and head": N * 4,
        "mask": N * T,
        "sums before two norms, and their scales": 2 * (N * H + 2 * N),
        "input of the activation": N * WIDE,
    }
    head = {
        "the pooler's tanh, the classifier's dropout and what it leaves": 3 * 4 * 6 * H,
        "log-probabilities and the weight of the loss": 4 * (6 * 2 + 1),
        "labels": 8 * 6,
    }
    trained = 4 * (H + H) + 2 * (H + 1)
    assert found.activations == 4 * sum(kept.values())
    assert found.logits == sum(head.values())
    assert found.adapters == 4 * 4 * (H + H)
    assert found.gradients == 4 * trained
    assert found.optimizer == 8 * trained + 4 * 4, "two moments each, and a step count for each of four tensors"
    assert (found.workspace, found.context) == (0, 0)


def test_maps_that_share_an_input_keep_it_once(bert: MemoryForecast) -> None:
    both = bert.predict(lora((2,), targets=(*QUERY, "attention.self.value")), SETUP)
    assert both.activations - bert.predict(lora((2,)), SETUP).activations == 4 * N * 4, "rank activations alone"


def test_nothing_is_trained_without_adapters_and_head(tmp_path: Path) -> None:
    found = language("llama", tmp_path).predict(configuration(), SETUP)
    assert found.total == found.weights > 0


def test_a_head_alone_is_trained_on_the_last_hidden_states(bert: MemoryForecast) -> None:
    found = bert.predict(configuration(), SETUP)
    assert (found.activations, found.adapters) == (0, 0)
    assert found.gradients == 4 * 2 * (H + 1)


def test_methods_that_train_few_numbers_still_keep_activations(tmp_path: Path) -> None:
    loaded = open_model("llama", tmp_path, attention="sdpa", dtype="float32")
    forecast = forecast_of(loaded)
    tiny = configuration(setting("tinylora", (0, 1, 2), numbers=2, targets=("self_attn.v_proj",)))
    found = forecast.predict(tiny, SETUP)
    assert found.gradients < 4 * 400
    assert found.activations > 100 * found.gradients
    assert found.total == measure_peak(loaded, tiny, batch_size=6, length=24)


def test_tied_embeddings_count_once(tmp_path: Path) -> None:
    weights: list[int] = []
    for tied in (True, False):
        config = MODELS["llama"].config()
        config.tie_word_embeddings = tied
        config.save_pretrained(tmp_path / str(tied))
        spec = ModelSpec(name=str(tmp_path / str(tied)), dtype="bfloat16")
        described = describe_model(spec, kind="causal-lm", n_labels=None)
        forecast = MemoryForecast(described, TASKS["causal-lm"][0])
        weights.append(forecast.predict(configuration(), SETUP).weights)
        vocabulary = config.vocab_size * config.hidden_size
    assert weights[1] - weights[0] == 2 * vocabulary


def test_adapters_stay_in_float32_on_a_bfloat16_base(tmp_path: Path) -> None:
    full, half = (language("llama", tmp_path / dtype, dtype=dtype) for dtype in ("float32", "bfloat16"))
    config = lora((0, 1, 2), targets=("self_attn.q_proj",))
    a, b = full.predict(config, SETUP), half.predict(config, SETUP)
    assert a.adapters == b.adapters == 4 * 3 * 4 * 2 * H
    assert (a.gradients, a.optimizer) == (b.gradients, b.optimizer)
    buffers = sum(tensor.nbytes for tensor in full._described.model.buffers())
    assert a.weights - buffers == 2 * (b.weights - buffers)
    assert 0.5 < b.activations / a.activations < 0.75, "norms compute in float32"


def test_a_language_model_keeps_its_log_probabilities(tmp_path: Path) -> None:
    found = language("gpt2", tmp_path).predict(lora((2,), targets=("attn.c_attn",)), SETUP)
    vocabulary = MODELS["gpt2"].config().vocab_size
    targets = 6 * 23
    kept = 4 * targets * vocabulary + 8 * targets
    norm = 4 * N * (H + 2)
    assert found.logits == pytest.approx(kept + norm, abs=8 * targets + 16), "the last norm's input, and indices"


def test_a_batch_in_parts_keeps_one_part(bert: MemoryForecast) -> None:
    whole, parts = bert.predict(lora((0,)), SETUP), bert.predict(lora((0,)), replace(SETUP, accumulation=4))
    assert parts == bert.predict(lora((0,)), replace(SETUP, batch_size=2))
    assert parts.activations < 0.4 * whole.activations


def test_a_batch_of_one_row_needs_no_mask(bert: MemoryForecast) -> None:
    one = bert.predict(lora((2,)), replace(SETUP, batch_size=1))
    two = bert.predict(lora((2,)), replace(SETUP, batch_size=2))
    assert two.activations - 2 * one.activations == 4 * 2 * T * T


def test_scoring_more_rows_may_take_the_most(tmp_path: Path) -> None:
    config = MODELS["llama"].config()
    config.vocab_size = 5000
    config.save_pretrained(tmp_path)
    described = describe_model(ModelSpec(name=str(tmp_path)), kind="causal-lm", n_labels=None)
    forecast = MemoryForecast(described, TASKS["causal-lm"][0], device="cuda")
    one = lora((2,), targets=("self_attn.q_proj",))
    few, many = (forecast.predict(one, replace(SETUP, evaluation_batch_size=rows)) for rows in (1, 60))
    assert few == forecast.predict(one, SETUP)
    logits = 4 * 60 * 23 * 5000
    hidden = 4 * 60 * 24 * H
    assert 2 * logits < many.workspace < 2 * logits + 8 * hidden, "logits and their log-softmax of each scored token"
    assert many.total > few.total
    assert (many.activations, many.gradients) == (0, 0)


METHODS = ("lora", "parallel_adapter", "prefix_tuning", "serial_adapter")


def random_configuration(shape: ModelShape, chance: random.Random) -> Configuration:
    """Each method on a random half of the layers, sizes by layer."""
    rows: list[MethodSetting] = []
    for method in METHODS:
        layers = tuple(layer for layer in range(shape.n_layers) if chance.random() < 0.5)
        if not layers or chance.random() < 0.4:
            continue
        sizes = [chance.choice((1, 2, 4, 8, 16)) for _ in layers]
        if method == "lora":
            names = [site.name for site in shape.layers[0] if site.role is not Role.OTHER]
            targets = tuple(name for name in names if chance.random() < 0.5) or (names[0],)
            dropout = chance.choice((0.0, 0.1))
            rows.append(setting(method, layers, rank=sizes, targets=targets, alpha=16.0, dropout=dropout))
        elif method == "prefix_tuning":
            rows.append(setting(method, layers, length=sizes))
        else:
            activation = chance.choice(("relu", "gelu", "tanh", "silu"))
            rows.append(setting(method, layers, bottleneck=sizes, activation=activation, scale=1.0))
    return configuration(*rows)


FAMILIES = ("roberta", "distilbert", "modernbert", "albert", "qwen3", "gemma2", "gpt2", "opt", "gpt_neox")


@pytest.mark.parametrize("case", list(enumerate(FAMILIES)), ids=FAMILIES)
def test_the_prediction_equals_the_measured_peak(case: tuple[int, str], tmp_path: Path) -> None:
    index, family = case
    attention = "eager" if index % 2 or family == "gemma2" else "sdpa"
    loaded = open_model(family, tmp_path, attention=attention, dtype=("float32", "bfloat16")[index % 2])
    forecast, chance = forecast_of(loaded), random.Random(index)
    for _ in range(4):
        config = random_configuration(loaded.shape, chance)
        if config.methods:
            assert forecast.predict(config, SETUP).total == measure_peak(loaded, config, batch_size=6, length=24)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_mixture_of_experts_is_predicted_in_every_dtype(dtype: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": H, "intermediate_size": WIDE, "num_hidden_layers": 3, "num_attention_heads": 4}
    base = MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=4, vocab_size=97, pad_token_id=0)
    MixtralForSequenceClassification(base).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    spec = ModelSpec(name=str(tmp_path), attention="sdpa", dtype=dtype)
    loaded = load_model(spec, kind="text-classification", n_labels=2)
    without_cache(loaded.model)
    config = lora((1, 2), targets=("self_attn.q_proj",))
    assert forecast_of(loaded).predict(config, SETUP).total == measure_peak(loaded, config, batch_size=6, length=24)


def whole(forecast: MemoryForecast, config: Configuration, setup: Setup) -> MemoryBreakdown:
    """The same without taking layers one by one."""
    forecast._within = dict.fromkeys((row.method for row in config), False)
    found = forecast.predict(config, setup)
    forecast._within = {}
    return found


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_layers_one_by_one_give_what_a_whole_step_gives(family: str, device: str, tmp_path: Path) -> None:
    loaded = open_model(family, tmp_path, attention="sdpa", dtype="bfloat16")
    forecast, chance = forecast_of(loaded, device=device), random.Random(3)
    for checkpointing in (False, True):
        setup = replace(SETUP, batch_size=16, checkpointing=checkpointing)
        for _ in range(3):
            config = random_configuration(loaded.shape, chance)
            if not config.methods:
                continue
            parts, one = forecast.predict(config, setup), whole(forecast, config, setup)
            if device == "cpu":
                assert parts == one
            else:
                hidden = setup.batch_size * T * H * 2
                assert parts.total == pytest.approx(one.total, abs=hidden), "who holds the embeddings' output"


def test_what_is_alive_on_cuda_s_paths_is_near_a_real_step_on_the_cpu(tmp_path: Path) -> None:
    """The twin of the trace: the same watch around a step with values; only attention and dropout go other ways."""
    loaded = open_model("llama", tmp_path, attention="eager", dtype="float32")
    forecast = forecast_of(loaded, device="cuda")
    config = lora((0, 1, 2), targets=("self_attn.q_proj",))
    adapters = inject(loaded.model, loaded.shape, config, seed=0)
    watch = StorageWatch({storage_key(t) for t in distinct_tensors([loaded.model, adapters])})
    task = TASKS["text-classification"][0]
    batch = example_batch(task, rows=6, sequences=1, length=24)
    set_training(loaded, training=True)
    with watch:
        task.loss(*task.outputs(loaded.model, batch, torch.device("cpu"))).backward()
    adapters.remove()
    found = forecast.predict(config, SETUP)
    alive = found.measurable - found.weights - found.adapters - found.optimizer
    assert alive == pytest.approx(watch.peak, rel=0.02)


def test_what_kernels_keep_is_predicted_and_is_less_than_torch_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = open_model("llama", tmp_path, attention="eager", dtype="bfloat16")
    setup = replace(SETUP, batch_size=16)
    row = setting("lora", (0, 1, 2), rank=4, targets=("self_attn.q_proj", "mlp.down_proj"), alpha=8.0, dropout=0.1)
    config = configuration(row)
    adapters = inject(loaded.model, loaded.shape, config, seed=0)
    watch = StorageWatch({storage_key(t) for t in distinct_tensors([loaded.model, adapters])})
    task = TASKS["text-classification"][0]
    set_training(loaded, training=True)
    adapters.train()
    with CudaPaths(), watch:
        batch = example_batch(task, rows=16, sequences=1, length=24)
        task.loss(*task.outputs(loaded.model, batch, torch.device("cpu"))).backward()
    adapters.remove()
    found = forecast_of(loaded, device="cuda").predict(config, setup)
    alive = found.measurable - found.weights - found.adapters - found.optimizer
    assert alive == pytest.approx(watch.peak, rel=0.02)
    monkeypatch.setattr(dispatch, "choose", lambda *_, **__: "torch")
    plain = forecast_of(loaded, device="cuda").predict(config, setup)
    masks = 3 * setup.batch_size * T * (H + WIDE)
    assert plain.total - found.total > 0.8 * masks, "kernels keep the input, torch what dropout leaves of it and a mask"


class _Prompt(AbstractAdapter):
    """Rows before the embeddings: it acts on no layer."""

    def __init__(self, placement: Placement) -> None:
        super().__init__()
        self.rows = torch.nn.Parameter(torch.zeros(placement.size("rank"), placement.shape.hidden_size))

    def attach(self, model: torch.nn.Module, layer: torch.nn.Module) -> list[Handle]:
        def hook(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
            return output + self.rows.mean()

        return [model.get_input_embeddings().register_forward_hook(hook)]  # type: ignore[operator]  # a model of transformers


def test_what_acts_outside_its_layer_is_traced_in_a_whole_step(
    bert: MemoryForecast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autopeft.trainers.inject.builder", lambda _: _Prompt)
    monkeypatch.setattr(bert, "_within", {})
    found = bert.predict(lora((2,)), SETUP)
    monkeypatch.undo()
    plain = bert.predict(lora((0,)), SETUP)
    assert found.activations > 0.8 * plain.activations, "gradients flow through all three layers"


def test_a_second_prediction_traces_nothing(bert: MemoryForecast, monkeypatch: pytest.MonkeyPatch) -> None:
    first = [bert.predict(lora((0, 1, 2), rank=rank), SETUP) for rank in (1, 8, 4)]
    monkeypatch.setattr(MemoryForecast, "_traced", None)
    again = [bert.predict(lora((0, 1, 2), rank=rank), SETUP) for rank in (1, 8, 4)]
    assert again == first
    steps = np.diff([bert.predict(lora((0, 1, 2), rank=rank), SETUP).activations for rank in (1, 2, 3, 4)])
    assert set(steps) == {3 * 4 * N}


def test_a_layer_is_recorded_as_often_as_it_is_called(tmp_path: Path) -> None:
    forecast = forecast_of(open_model("albert", tmp_path, attention="sdpa", dtype="float32"))
    calls = record_calls(forecast._world(SETUP).step)
    assert [call.layer for call in calls] == [0, 0, 0]
    assert [call.parents for call in calls] == [((),), ((0,),), ((1,),)]
    assert trace_scoring(forecast._world(SETUP).step) > 0


def test_a_decoder_s_layers_depend_on_the_encoder(tmp_path: Path) -> None:
    from tests.trainers.test_kinds import CONFIGS

    CONFIGS["t5"].save_pretrained(tmp_path)
    described = describe_model(ModelSpec(name=str(tmp_path)), kind="seq2seq", n_labels=None)
    forecast = MemoryForecast(described, TASKS["seq2seq"][0])
    site = next(site.name for site in described.shape.layers[0] if site.role is Role.QUERY)
    n = described.shape.n_layers
    kept = [forecast.predict(lora((layer,), targets=(site,)), SETUP).activations for layer in range(n)]
    assert all(low > high for low, high in pairwise(kept)), "the encoder's output is read by every decoder layer"
