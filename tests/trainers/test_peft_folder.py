"""Several methods as several adapters, and prefixes: plain peft computes what we do, or the format refuses."""

import json
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, PreTrainedModel

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import Configuration, MethodSetting
from autopeft.trainers.inject import AdapterSet, inject
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.model import LoadedModel, load_model, reset_head
from autopeft.trainers.peft_folder import check_folder, expected_info, fits_folder, write_folder
from autopeft.trainers.saved import read_info, save_adapter
from tests.configurations import configuration, setting
from tests.models import save_model, tokenizer

QUERY, VALUE = "attention.self.query", "attention.self.value"
IDS = torch.tensor([[1, 6, 7, 8, 9, 2], [1, 11, 12, 13, 14, 2]])
TOLERANCE = 2e-6

PLAIN = """
import json, sys, warnings
import torch
from peft import PeftMixedModel, PeftModel
from transformers import AutoModelForSequenceClassification
warnings.simplefilter("ignore")
base, folder, ids, names = sys.argv[1], sys.argv[2], torch.tensor(json.loads(sys.argv[3])), json.loads(sys.argv[4])
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
if names:
    model = PeftMixedModel.from_pretrained(model, f"{folder}/{names[0]}", adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(f"{folder}/{name}", adapter_name=name)
    model.set_adapter(names)
else:
    model = PeftModel.from_pretrained(model, folder)
print(json.dumps(model.eval()(input_ids=ids).logits.tolist()))
assert not any(name.startswith("autopeft") for name in sys.modules)
"""


def on(method: str, *targets: str, layers: tuple[int, ...] = (0, 2), **fields: object) -> MethodSetting:
    sizes = {"oft": {"block_size": 4}, "hra": {"reflections": 2}, "mola": {"experts": 2}}.get(method, {"rank": 2})
    return setting(method, layers, targets=targets or (QUERY, VALUE), **{**sizes, **fields})  # type: ignore[arg-type]  # values of fields


def load(base: Path, *, kind: str = "text-classification") -> LoadedModel:
    loaded = load_model(ModelSpec(name=str(base)), kind=kind, n_labels=None if kind == "causal-lm" else 3)
    reset_head(loaded, 1)
    return loaded


def trained(loaded: LoadedModel, config: Configuration, *, size: float = 0.2) -> AdapterSet:
    adapters = inject(loaded.model, loaded.shape, config, seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return adapters


def written(loaded: LoadedModel, config: Configuration, folder: Path) -> tuple[tuple[str, ...], torch.Tensor]:
    """Names of the sub-folders under `folder / "peft"`, and our logits."""
    adapters = trained(loaded, config)
    expected = loaded.model(IDS).logits
    save_adapter(folder / "ours", adapters, loaded=loaded, task={})
    return write_folder(folder / "ours", folder / "peft").adapters, expected


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("bert", tmp_path_factory.mktemp("bert") / "base")


MIXTURES: Mapping[str, tuple[MethodSetting, ...]] = {
    "two LoRAs on one map": (on("lora"), on("peft_lora")),
    "LoRA and LoHa": (on("lora"), on("loha", layers=(1, 2))),
    "LoRA, LoHa and LoKr": (on("lora"), on("loha"), on("lokr", QUERY)),
    "LoRA and OFT apart": (on("lora", QUERY), on("oft", VALUE)),
    "LoRA and SHiRA apart": (on("lora", layers=(0,)), on("shira", layers=(1, 2))),
    "LoRA and DoRA apart": (on("lora", QUERY), on("peft_lora", VALUE, variant="dora")),
    "LoRA and PiSSA": (on("lora"), on("peft_lora", init="pissa")),
    "LoRA and what starts from the weight": (on("lora"), on("sorsa"), on("adalora", QUERY)),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_becomes_named_adapters_that_peft_sums(name: str, bert: Path, tmp_path: Path) -> None:
    loaded = load(bert)
    names, expected = written(loaded, configuration(*MIXTURES[name]), tmp_path)
    assert names == tuple(sorted(part.method for part in MIXTURES[name]))
    found = mixed(bert, tmp_path / "peft", names)(IDS).logits
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def mixed(base: Path, folder: Path, names: tuple[str, ...]) -> torch.nn.Module:
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = peft.PeftMixedModel.from_pretrained(model, folder / names[0], adapter_name=names[0])
        for name in names[1:]:
            whole.load_adapter(folder / name, adapter_name=name)
        whole.set_adapter(list(names))
    return whole.eval()


def test_the_head_goes_with_the_first_adapter_alone(bert: Path, tmp_path: Path) -> None:
    names, _ = written(load(bert), configuration(on("lora"), on("loha")), tmp_path)
    saved = [json.loads((tmp_path / "peft" / name / "adapter_config.json").read_text()) for name in names]
    assert [config["modules_to_save"] for config in saved] == [["classifier"], None]


@pytest.mark.parametrize("parts", [(on("lora"), on("loha")), (on("lora"),)], ids=["mixed", "single"])
def test_a_process_without_autopeft_computes_the_same(
    parts: tuple[MethodSetting, ...], bert: Path, tmp_path: Path
) -> None:
    names, expected = written(load(bert), configuration(*parts), tmp_path)
    arguments = [str(bert), str(tmp_path / "peft"), json.dumps(IDS.tolist()), json.dumps(names)]
    done = subprocess.run([sys.executable, "-c", PLAIN, *arguments], capture_output=True, text=True, check=True)
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((on("lora"), on("oft")), "oft: another method acts on attention.self.query of layer 0 too.*OFT otherwise"),
        ((on("lora"), on("peft_lora", variant="dora")), "peft_lora: another method acts on attention.self.query"),
        ((on("lora"), on("hra")), "hra: peft keeps no adapter of type HRA active beside another one"),
        ((on("lora"), on("mola")), "mola"),
        ((on("lora"), setting("prompt_tuning", (0,), length=2)), "PROMPT_TUNING active beside another one"),
        ((on("lora"), setting("ln_tuning", (0,), enabled=1)), "LN_TUNING active beside another one"),
    ],
)
def test_a_mixture_that_peft_would_compute_otherwise_is_refused(
    parts: tuple[MethodSetting, ...], message: str, bert: Path, tmp_path: Path
) -> None:
    loaded = load(bert)
    save_adapter(tmp_path / "ours", trained(loaded, configuration(*parts)), loaded=loaded, task={})
    with pytest.raises(ConfigurationError, match=f"{message}.*AutoPEFT's own format"):
        write_folder(tmp_path / "ours", tmp_path / "peft")
    assert not fits_folder(read_info(tmp_path / "ours"))
    assert not (tmp_path / "peft").exists()


PREFIXES = (
    configuration(setting("prefix_tuning", (0, 1, 2), length=3)),
    configuration(setting("cartridge", (0, 1, 2), length=3, frozen=2)),
)
ROTARY = ("gemma", "gpt_neox", "llama", "phi", "phi3", "qwen2", "qwen3", "starcoder2")


@pytest.mark.parametrize("family", ROTARY)
@pytest.mark.parametrize("kind", ["text-classification", "causal-lm"])
def test_a_prefix_of_a_rotary_model_is_pefts(family: str, kind: str, tmp_path: Path) -> None:
    base = save_model(family, tmp_path / "base", language_model=kind == "causal-lm")
    same_prefix(base, tmp_path, kind=kind)


@pytest.mark.parametrize("kind", ["text-classification", "causal-lm"])
def test_a_cartridge_of_a_rotary_model_is_pefts(kind: str, tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base", language_model=kind == "causal-lm")
    same_prefix(base, tmp_path, kind=kind, config=PREFIXES[1])
    saved = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (saved["peft_type"], saved["num_virtual_tokens"], saved["num_frozen_tokens"]) == ("CARTRIDGE", 3, 2)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
            "rope_theta": 500.0,
        },
    ],
    ids=lambda rope: str(rope["rope_type"]),
)
def test_stretched_rotary_positions_are_followed(rope: dict[str, object], tmp_path: Path) -> None:
    same_prefix(llama(tmp_path / "base", rope_parameters=rope), tmp_path, kind="causal-lm")


def llama(folder: Path, **fields: object) -> Path:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(
        vocab_size=55, intermediate_size=48, max_position_embeddings=64, pad_token_id=0, **sizes, **fields
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def same_prefix(base: Path, folder: Path, *, kind: str, config: Configuration = PREFIXES[0]) -> None:
    loaded = load(base, kind=kind)
    adapters = trained(loaded, config, size=0.5)
    expected = loaded.model(IDS).logits
    save_adapter(folder / "ours", adapters, loaded=loaded, task={})
    write_folder(folder / "ours", folder / "peft")
    model: PreTrainedModel
    if kind == "causal-lm":
        model = AutoModelForCausalLM.from_pretrained(base)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
        model.config.pad_token_id = loaded.model.config.pad_token_id
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = peft.PeftModel.from_pretrained(model, folder / "peft").eval()
        found = whole(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize(
    ("family", "kind", "layers", "length", "message"),
    [
        ("bert", "text-classification", (0, 1, 2), 3, "in a bert model peft's PREFIX_TUNING would move the position"),
        ("gpt2", "causal-lm", (0, 1, 2), 3, "in a gpt2 model"),
        ("mistral", "causal-lm", (0, 1, 2), 3, "attention has a window"),
        ("llama", "multiple-choice", (0, 1, 2), 3, "peft passes no prefix to a model for multiple-choice"),
        ("llama", "causal-lm", (0, 2), 3, "differs by layer"),
        ("llama", "causal-lm", (0, 1, 2), [2, 2, 3], "differs by layer"),
    ],
)
def test_a_prefix_that_peft_would_compute_otherwise_is_refused(
    family: str, kind: str, layers: tuple[int, ...], length: int | list[int], message: str, tmp_path: Path
) -> None:
    base = save_model(family, tmp_path / "base", language_model=kind == "causal-lm")
    shape = load(base, kind="causal-lm" if kind == "causal-lm" else "text-classification").shape
    config = configuration(setting("prefix_tuning", layers, length=length))
    info = expected_info(ModelSpec(name=str(base)), shape, config, kind=kind)
    with pytest.raises(ConfigurationError, match=f"prefix_tuning: not in the PEFT format, .*{message}"):
        check_folder(info)


def test_rotary_positions_that_depend_on_the_length_are_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    base = llama(tmp_path / "base", rope_parameters=rope)
    info = expected_info(ModelSpec(name=str(base)), load(base, kind="causal-lm").shape, PREFIXES[0], kind="causal-lm")
    with pytest.raises(ConfigurationError, match="rotary positions of the kind 'dynamic'"):
        check_folder(info)
