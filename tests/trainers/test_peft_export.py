"""Bridged methods in the format of Hugging Face PEFT: plain peft computes what we do."""

import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import Configuration, FieldValue
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.bridged import AbstractBridged
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.peft_config import count_peft_config
from autopeft.spaces.targets import resolve
from autopeft.trainers.inject import AdapterSet, inject
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.model import LoadedModel, load_model
from autopeft.trainers.peft_folder import fits_folder, write_folder
from autopeft.trainers.peft_format import save_peft
from autopeft.trainers.saved import read_info, save_adapter
from tests.configurations import configuration, setting
from tests.conformance.test_methods import SIZES
from tests.models import save_model

LORAS: tuple[dict[str, FieldValue], ...] = (
    {"variant": "dora"},
    {"variant": "dora", "rslora": True},
    {"variant": "kasa"},
    {"variant": "ffa"},
    {"variant": "mica"},
    {"init": "pissa"},
    {"init": "pissa", "rslora": True},
    {"init": "olora"},
    {"init": "orthogonal"},
)
OTHERS: tuple[tuple[str, dict[str, FieldValue]], ...] = (
    ("c3a", {"init": "zero"}),
    ("fourierft", {"init": "zero"}),
    ("oft", {"constrained": True, "distance": 0.1, "neumann": False}),
    ("peft_deft", {"scaling": 0.5, "start": 2.0}),
    ("psoft", {"frames": "pissa_init", "neumann": True, "terms": 3, "scale_in": False}),
    ("psoft", {"svd": "lowrank", "orthogonal": False}),
    ("randlora", {"bases": "sparse"}),
    ("randlora", {"bases": "very_sparse"}),
    ("waveft", {"wavelet": "sym4", "init": "normal"}),
    ("waveft", {"inverse": False}),
    ("glora", {"weight_path": "vector", "input_path": "vector"}),
    ("lokr", {"decompose_both": True}),
    ("miss", {"mode": "bat"}),
    ("miss", {"mode": "mini", "mini_rank": 4}),
    ("oft", {"shared_block": True}),
    ("peft_deft", {"para": True, "decomposition": "qr"}),
    ("road", {"variant": "road_2"}),
)
CASES = [
    *((name, {}) for name, method in METHODS.items() if isinstance(method, AbstractBridged) and name != "tinylora"),
    *(("peft_lora", fields) for fields in LORAS),
    *OTHERS,
]
IDS = torch.tensor([[1, 6, 7, 8, 9, 2], [1, 11, 12, 13, 14, 2]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save_model(name, tmp_path_factory.mktemp(name) / "base") for name in ("bert", "llama", "gpt2")}


def load(folder: Path) -> LoadedModel:
    return load_model(ModelSpec(name=str(folder)), kind="text-classification", n_labels=3)


def placed(method: str, shape: ModelShape, **fields: FieldValue) -> Configuration:
    """The method on the first target of the first layer and all default targets of the last."""
    words = METHODS[method].field("targets").default
    assert isinstance(words, tuple)
    targets = [resolve(words, shape, 0)[:1], resolve(words, shape, 2)]
    sizes = {METHODS[method].size_field.name: SIZES[method][0]}
    return configuration(setting(method, (0, 2), **(sizes | {"targets": targets} | fields)))


def trained(loaded: LoadedModel, config: Configuration) -> AdapterSet:
    adapters = inject(loaded.model, loaded.shape, config, seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return adapters


def plain_peft(base: Path, adapter: Path) -> PreTrainedModel:
    """What someone without this package loads: the body under peft, the head left out."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(model, adapter).eval()


@pytest.mark.parametrize(("method", "fields"), CASES, ids=lambda value: str(value))
def test_plain_peft_computes_the_same(
    method: str, fields: dict[str, FieldValue], folders: dict[str, Path], tmp_path: Path
) -> None:
    loaded = load(folders["bert"])
    bare = loaded.model(IDS).logits
    adapters = trained(loaded, placed(method, loaded.shape, **fields))
    expected = loaded.model(IDS).logits
    save_peft(tmp_path / "peft", adapters, loaded=loaded)
    theirs = plain_peft(folders["bert"], tmp_path / "peft")
    torch.testing.assert_close(theirs(IDS).logits, expected, atol=1e-6, rtol=0)
    assert (expected - bare).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("fields", [{"variant": "dora"}, {"init": "pissa"}, {"variant": "kasa"}], ids=str)
def test_lora_variants_load_on_other_architectures(
    name: str, fields: dict[str, FieldValue], folders: dict[str, Path], tmp_path: Path
) -> None:
    loaded = load(folders[name])
    config = placed("peft_lora", loaded.shape, **fields)
    adapters = trained(loaded, config)
    expected = loaded.model(IDS).logits
    save_peft(tmp_path / "peft", adapters, loaded=loaded)
    theirs = plain_peft(folders[name], tmp_path / "peft")
    theirs.config.pad_token_id = loaded.model.config.pad_token_id
    torch.testing.assert_close(theirs(IDS).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("peft_lora", {"rank": [2, 5], "alpha": [16.0, 4.0], "dropout": [0.0, 0.1]}),
        ("loha", {"rank": [2, 5], "alpha": [16.0, 4.0], "dropout": [0.0, 0.1]}),
        ("delora", {"rank": [2, 5], "bound": [15, 3]}),
        ("c3a", {"block_size": [4, 8]}),
        ("fourierft", {"frequencies": [9, 20]}),
    ],
)
def test_sizes_that_differ_by_layer_become_patterns(
    method: str, fields: dict[str, FieldValue], folders: dict[str, Path], tmp_path: Path
) -> None:
    loaded = load(folders["llama"])
    adapters = trained(loaded, placed(method, loaded.shape, **fields))
    expected = loaded.model(IDS).logits
    save_peft(tmp_path / "peft", adapters, loaded=loaded)
    theirs = plain_peft(folders["llama"], tmp_path / "peft")
    theirs.config.pad_token_id = loaded.model.config.pad_token_id
    torch.testing.assert_close(theirs(IDS).logits, expected, atol=1e-5, rtol=0)


def test_the_written_configuration_is_counted_as_the_adapter(folders: dict[str, Path], tmp_path: Path) -> None:
    loaded = load(folders["bert"])
    adapters = trained(loaded, placed("oft", loaded.shape))
    save_peft(tmp_path / "peft", adapters, loaded=loaded)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert count_peft_config(config, loaded.shape) == adapters.n_parameters


def test_a_saved_folder_is_converted_without_the_base(folders: dict[str, Path], tmp_path: Path) -> None:
    loaded = load(folders["bert"])
    adapters = trained(loaded, placed("peft_lora", loaded.shape, init="pissa"))
    save_peft(tmp_path / "direct", adapters, loaded=loaded)
    save_adapter(tmp_path / "ours", adapters, loaded=loaded, task={})
    assert fits_folder(read_info(tmp_path / "ours"))
    write_folder(tmp_path / "ours", tmp_path / "converted")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "converted" / file).read_bytes() == (tmp_path / "direct" / file).read_bytes()


@pytest.mark.parametrize(
    ("name", "method", "fields", "message"),
    [
        ("bert", "tinylora", {}, "tinylora: not in the PEFT format, peft numbers its vectors over the whole model"),
        ("gpt2", "oft", {}, "oft: peft's OFT acts on linear maps, this model's are Conv1D"),
        ("bert", "oft", {"block_size": [4, 8]}, "oft.block_size: differs by layer, the PEFT format holds one for all"),
        ("bert", "peft_lora", {"variant": ["dora", "plain"]}, "peft_lora.variant: differs by layer"),
    ],
)
def test_what_the_format_has_no_place_for_is_refused(
    name: str, method: str, fields: dict[str, FieldValue], message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    loaded = load(folders[name])
    adapters = inject(loaded.model, loaded.shape, placed(method, loaded.shape, **fields), seed=0)
    with pytest.raises(ConfigurationError, match=f"{message}.*AutoPEFT's own format"):
        save_peft(tmp_path / "peft", adapters, loaded=loaded)
    save_adapter(tmp_path / "ours", adapters, loaded=loaded, task={})
    assert not fits_folder(read_info(tmp_path / "ours"))
