"""A deep model's peak under PEFT, told from models of few layers, is that of the whole model."""

from dataclasses import replace
from pathlib import Path

import pytest

from autopeft.objectives.memory import MemoryBreakdown, Setup
from autopeft.trainers.foreign import PeftForecast
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.shallow import DEPTHS, deepened, treats_layers_alike
from tests.models import IMAGE_MODELS, MODELS

DEEP = 7
CONFIGS = {
    "lora": {"peft_type": "LORA", "r": 4, "target_modules": "all-linear", "bias": "all"},
    "ia3": {"peft_type": "IA3", "target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "prompt": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5},
    "head": {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    config = MODELS["llama"].config()
    config.num_hidden_layers = DEEP
    config.save_pretrained(tmp_path / "model")
    return ModelSpec(name=str(tmp_path / "model"))


def forecast(config: dict[str, object], spec: ModelSpec, *, device: str = "cuda", whole: bool = False) -> PeftForecast:
    made = PeftForecast(config, spec, kind="causal-lm", n_labels=None, device=device)
    if whole:
        made._shallow = False
    return made


def test_peft_draws_nothing_on_the_terminal(
    spec: ModelSpec, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    forecast({"peft_type": "FROD", "target_modules": ["q_proj"]}, spec).predict(Setup(batch_size=3, length=16))
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_few_layers_say_what_all_say(config: dict[str, object], spec: ModelSpec) -> None:
    device = "cpu" if "bias" in config else "cuda"
    few, every = forecast(config, spec, device=device), forecast(config, spec, device=device, whole=True)
    setup = Setup(batch_size=3, length=16)
    assert few.predict(setup) == every.predict(setup)
    assert set(few._wrapped) == set(DEPTHS)


def test_all_layers_are_traced_where_few_do_not_say(spec: ModelSpec) -> None:
    config = {"peft_type": "LORA", "r": 64, "target_modules": "all-linear"}
    small, checkpointed = Setup(batch_size=1, length=1), Setup(batch_size=3, length=16, checkpointing=True)
    heavy, other = forecast(config, spec), forecast(CONFIGS["prompt"], spec)
    assert heavy.predict(small) == forecast(config, spec, whole=True).predict(small)
    assert DEEP in heavy._wrapped, "gradients outweigh activations"
    other.predict(checkpointed)
    assert set(other._wrapped) == {DEEP}


@pytest.mark.parametrize(
    "more",
    [
        {"layers_to_transform": [1]},
        {"rank_pattern": {"model.layers.0.self_attn.q_proj": 8}},
        {"target_modules": r".*layers\.[01]\.self_attn\.q_proj"},
        {"target_modules": ["layers.0.self_attn.q_proj"]},
        {"peft_type": "LILY"},
        {"peft_type": "ADAPTION_PROMPT"},
    ],
    ids=str,
)
def test_layers_that_are_told_apart_are_all_traced(more: dict[str, object]) -> None:
    config = {"peft_type": "LORA", "target_modules": ["q_proj"], "layers_to_transform": None, "rank_pattern": {}}
    assert treats_layers_alike(config)
    assert not treats_layers_alike(config | more)


@pytest.mark.parametrize("family", ["gemma2", "vit"])
def test_models_whose_layers_differ_are_traced_whole(family: str, tmp_path: Path) -> None:
    config = {**MODELS, **IMAGE_MODELS}[family].config()
    config.num_hidden_layers = DEEP
    if family == "gemma2":
        config.layer_types = [["sliding_attention", "full_attention"][at % 2] for at in range(DEEP)]
    config.save_pretrained(tmp_path)
    kind, n_labels = ("image-classification", 2) if family == "vit" else ("causal-lm", None)
    written = {"peft_type": "LORA", "target_modules": "all-linear"}
    made = PeftForecast(written, ModelSpec(name=str(tmp_path)), kind=kind, n_labels=n_labels, device="cpu")
    assert not made._shallow


def test_peaks_that_are_no_line_are_not_made_one() -> None:
    one = MemoryBreakdown(weights=5, adapters=1, gradients=0, optimizer=2, activations=10, logits=3, workspace=4)
    peaks = [replace(one, activations=10 * depth) for depth in DEPTHS]
    found = deepened(peaks, gradients=[2, 3, 4], n_layers=9, cuda=True)
    assert found == replace(one, activations=90)
    assert deepened(peaks, gradients=[20, 30, 40], n_layers=9, cuda=True) is None
    assert deepened(peaks, gradients=[20, 30, 40], n_layers=9, cuda=False) == found
    bent = [*peaks[:2], replace(one, activations=41)]
    assert deepened(bent, gradients=[2, 3, 4], n_layers=9, cuda=True) is None
