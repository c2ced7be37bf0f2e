import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.methods import METHODS
from autopeft.spaces.model_shape import ModelShape
from autopeft.trainers.inject import AdapterSet, inject
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.model import LoadedModel, load_model, reset_head
from autopeft.trainers.peft_folder import write_folder
from autopeft.trainers.peft_format import LORAS, save_peft
from autopeft.trainers.saved import save_adapter
from tests.configurations import configuration, setting
from tests.models import MODELS, save_model, sentences

PLAIN_PEFT = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
base, folder, ids = sys.argv[1], sys.argv[2], torch.tensor(json.loads(sys.argv[3]))
model = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, num_labels=3), folder)
print(json.dumps(model.eval()(ids).logits.tolist()))
assert not any(name.startswith("autopeft") for name in sys.modules)
"""


def load(name: str, tmp_path: Path, *, kind: str = "text-classification") -> LoadedModel:
    folder = save_model(name, tmp_path / "base", language_model=kind == "causal-lm")
    loaded = load_model(ModelSpec(name=str(folder)), kind=kind, n_labels=3 if kind == "text-classification" else None)
    reset_head(loaded, 1)
    return loaded


def varied(name: str, shape: ModelShape) -> Configuration:
    """Two layers with other ranks, alphas and targets; the layer between has none."""
    every = tuple(site.name for site in shape.layers[0])
    targets = [MODELS[name].query_value, every]
    return configuration(setting("lora", (0, 2), rank=[2, 5], alpha=[16.0, 4.0], targets=targets, dropout=[0.0, 0.1]))


def trained(loaded: LoadedModel, config: Configuration) -> AdapterSet:
    adapters = inject(loaded.model, loaded.shape, config, seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return adapters


@pytest.mark.parametrize(
    "name", ["bert", "roberta", "distilbert", "electra", "modernbert", "llama", "gpt2", "gpt_neox"]
)
def test_peft_computes_the_same_logits(name: str, tmp_path: Path) -> None:
    loaded = load(name, tmp_path)
    batch = loaded.tokenizer(sentences(4), return_tensors="pt", padding=True, return_token_type_ids=False)
    bare = loaded.model(**batch).logits
    adapters = trained(loaded, varied(name, loaded.shape))
    expected = loaded.model(**batch).logits
    save_peft(tmp_path / "peft", adapters, loaded=loaded)
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    torch.testing.assert_close(theirs(**batch).logits, expected, atol=1e-5, rtol=0)
    assert (expected - bare).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_peft_loads_a_language_model_adapter(name: str, tmp_path: Path) -> None:
    loaded = load(name, tmp_path, kind="causal-lm")
    adapters = trained(loaded, varied(name, loaded.shape))
    ids = torch.tensor([[1, 6, 7, 8, 9]])
    expected = loaded.model(ids).logits
    save_peft(tmp_path / "peft", adapters, loaded=loaded)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    torch.testing.assert_close(theirs(ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["modules_to_save"] is None


def test_a_process_without_autopeft_computes_the_same_logits(tmp_path: Path) -> None:
    loaded = load("bert", tmp_path)
    adapters = trained(loaded, varied("bert", loaded.shape))
    ids = [[1, 6, 7, 8, 2], [1, 9, 10, 11, 2]]
    expected = loaded.model(torch.tensor(ids)).logits
    save_peft(tmp_path / "peft", adapters, loaded=loaded)
    command = [sys.executable, "-c", PLAIN_PEFT, str(tmp_path / "base"), str(tmp_path / "peft"), json.dumps(ids)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    torch.testing.assert_close(torch.tensor(json.loads(run.stdout)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", LORAS)
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_every_low_rank_method_is_plain_lora_in_peft(method: str, name: str, tmp_path: Path) -> None:
    loaded = load(name, tmp_path)
    batch = loaded.tokenizer(sentences(4), return_tensors="pt", padding=True, return_token_type_ids=False)
    bare = loaded.model(**batch).logits
    sizes: dict[str, object] = {METHODS[method].size_field.name: [2, 5]}
    config = configuration(setting(method, (0, 2), targets=MODELS[name].query_value, **sizes))  # type: ignore[arg-type]  # two sizes
    adapters = trained(loaded, config)
    expected = loaded.model(**batch).logits
    save_adapter(tmp_path / "own", adapters, loaded=loaded, task={})
    write_folder(tmp_path / "own", tmp_path / "peft")
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    torch.testing.assert_close(theirs(**batch).logits, expected, atol=2e-5, rtol=1e-5)
    assert (expected - bare).abs().max() > 1e-4


def test_an_adapter_folder_converts_without_its_base(tmp_path: Path) -> None:
    loaded = load("gpt2", tmp_path)
    adapters = trained(loaded, varied("gpt2", loaded.shape))
    save_adapter(tmp_path / "own", adapters, loaded=loaded, task={})
    save_peft(tmp_path / "direct", adapters, loaded=loaded)
    (tmp_path / "base").rename(tmp_path / "gone")
    write_folder(tmp_path / "own", tmp_path / "converted")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "direct" / file).read_bytes() == (tmp_path / "converted" / file).read_bytes()


def test_the_configuration_names_full_modules_and_what_differs(tmp_path: Path) -> None:
    loaded = load("bert", tmp_path)
    config = configuration(setting("lora", (0, 1), rank=[2, 4], alpha=[16.0, 8.0], targets=("attention.self.key",)))
    save_peft(tmp_path / "peft", trained(loaded, config), loaded=loaded)
    written = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    keys = [f"bert.encoder.layer.{layer}.attention.self.key" for layer in (0, 1)]
    assert written["target_modules"] == keys
    assert (written["r"], written["rank_pattern"]) == (2, {keys[1]: 4})
    assert (written["lora_alpha"], written["alpha_pattern"]) == (16.0, {keys[1]: 8.0})
    assert (written["task_type"], written["modules_to_save"]) == ("SEQ_CLS", ["classifier"])
    assert set(written) <= set(peft.LoraConfig.__dataclass_fields__)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (configuration(setting("prefix_tuning", (0,), length=2)), "prefix_tuning"),
        (configuration(), "no adapters"),
        (
            configuration(
                setting("lora", (0,), rank=2, targets=("attention.self.key",)),
                setting("serial_adapter", (0,), bottleneck=2),
            ),
            "lora, serial_adapter",
        ),
    ],
)
def test_several_methods_or_one_of_our_own_are_refused(config: Configuration, named: str, tmp_path: Path) -> None:
    loaded = load("bert", tmp_path)
    adapters = inject(loaded.model, loaded.shape, config, seed=0)
    message = rf"holds one low-rank method, one bridged or one prompt, this configuration has {named}.*autopeft\.load"
    with pytest.raises(ConfigurationError, match=message):
        save_peft(tmp_path / "peft", adapters, loaded=loaded)
    assert not (tmp_path / "peft").exists()
