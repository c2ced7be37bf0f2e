"""Counts from a plain configuration against the models that peft builds, and against published runs."""

import csv
import dataclasses
import importlib
import json
import os
import time
import warnings
from pathlib import Path

import peft
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.lokr.layer import factorization as peft_factorization
from peft.tuners.oft.layer import OFTLayer

from autopeft.errors import ConfigurationError
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.peft_config import count_peft_config, known_peft_types
from autopeft.spaces.peft_counts import SITE_COUNTS, factorization, nearest_divisor
from autopeft.spaces.peft_fields import KNOWN
from autopeft.spaces.peft_targets import modules
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.model import read_shape
from autopeft.trainers.sites import measure
from tests.models import MODELS

DATA = Path(os.environ.get("AUTOPEFT_DATA") or Path(__file__).parents[3] / "shared" / "data") / "peft_llama32_3b"

KASA = {"kasa_config": {"beta": 1e-4, "gamma": 1e-3}}
BLOCKS = {"nblocks": 2, "target_modules_bd_a": ["value", "v_proj"], "target_modules_bd_b": ["query", "q_proj"]}

LINEAR: dict[str, tuple[str, dict[str, object]]] = {
    "lora": ("LORA", {"r": 4}),
    "lora-all": ("LORA", {"r": 2, "target_modules": "all-linear"}),
    "lora-layers": ("LORA", {"r": 3, "layers_to_transform": [0, 2]}),
    "lora-one-layer": ("LORA", {"r": 3, "layers_to_transform": 1, "layers_pattern": ["layer", "layers"]}),
    "lora-regex": ("LORA", {"r": 3, "target_modules": r".*\.(query|q_proj|intermediate\.dense|up_proj)"}),
    "lora-excluded": ("LORA", {"r": 3, "target_modules": "all-linear", "exclude_modules": ["query", "q_proj"]}),
    "lora-ranks": ("LORA", {"r": 3, "rank_pattern": {"query": 5, "q_proj": 5, r"layers\.0\..*v_proj": 7}}),
    "lora-embedding": ("LORA", {"r": 3, "target_modules": ["query", "q_proj", "embed_tokens", "word_embeddings"]}),
    "lora-saved": ("LORA", {"r": 3, "modules_to_save": ["embed_tokens", "word_embeddings"]}),
    "lora-bias": ("LORA", {"r": 3, "lora_bias": True}),
    "lora-trained-biases": ("LORA", {"r": 3, "bias": "lora_only"}),
    "lora-all-biases": ("LORA", {"r": 3, "bias": "all"}),
    "lora-tokens": ("LORA", {"r": 3, "trainable_token_indices": [1, 2, 3]}),
    "lora-blocks": ("LORA", {"r": 4, "use_bdlora": BLOCKS}),
    "dora": ("LORA", {"r": 4, "use_dora": True}),
    "rslora": ("LORA", {"r": 4, "use_rslora": True}),
    "kasa": ("LORA", {"r": 4, **KASA}),
    "mica": ("LORA", {"r": 4, "init_lora_weights": "mica"}),
    "pissa": ("LORA", {"r": 4, "init_lora_weights": "pissa"}),
    "olora": ("LORA", {"r": 4, "init_lora_weights": "olora"}),
    "velora": ("LORA", {"r": 4, "velora_config": {"num_groups": 2}}),
    "monteclora": ("LORA", {"r": 4, "monteclora_config": {"num_samples": 3}}),
    "adalora": ("ADALORA", {"init_r": 5, "target_r": 2, "total_step": 10}),
    "adamss": ("ADAMSS", {"r": 8, "num_subspaces": 3, "subspace_rank": 1}),
    "beft": ("BEFT", {}),
    "boft": ("BOFT", {"boft_block_size": 8}),
    "boft-blocks": ("BOFT", {"boft_block_size": 0, "boft_block_num": 2}),
    "c3a": ("C3A", {"block_size": 8}),
    "deft": ("DEFT", {"r": 4}),
    "deft-para": ("DEFT", {"r": 4, "para": True, "decomposition_method": "qr"}),
    "delora": ("DELORA", {"r": 4}),
    "fourierft": ("FOURIERFT", {"n_frequency": 33}),
    "frod": ("FROD", {"sparse_rate": 0.05, "progressbar": False}),
    "glora": ("GLORA", {"r": 4}),
    "glora-vector": ("GLORA", {"config_A_B": "vector", "config_C": "vector", "config_D_E": "vector"}),
    "glora-constant": ("GLORA", {"config_A_B": "constant", "config_C": "none", "config_D_E": "none"}),
    "gralora": ("GRALORA", {"r": 4, "hybrid_r": 2}),
    "hira": ("HIRA", {"r": 4}),
    "hira-ranks": ("HIRA", {"r": 4, "rank_pattern": {"query": 5, "q_proj": 5}}),
    "loha-ranks": ("LOHA", {"r": 4, "rank_pattern": {"query": 5, "q_proj": 5}}),
    "lokr-ranks": ("LOKR", {"r": 1, "rank_pattern": {"query": 2, "q_proj": 2}}),
    "delora-ranks": ("DELORA", {"r": 4, "rank_pattern": {"query": 5, "q_proj": 5}}),
    "c3a-blocks": ("C3A", {"block_size": 8, "block_size_pattern": {"query": 4, "q_proj": 4}}),
    "fourierft-frequencies": ("FOURIERFT", {"n_frequency": 9, "n_frequency_pattern": {"query": 5, "q_proj": 5}}),
    "waveft-frequencies": ("WAVEFT", {"n_frequency": 9, "n_frequency_pattern": {"query": 5, "q_proj": 5}}),
    "osf-ranks": ("OSF", {"effective_rank": 9, "rank_pattern": {"self.query": 5, "q_proj": 0.5, "1.self": 3}}),
    "hra": ("HRA", {"r": 4}),
    "ia3": ("IA3", {"feedforward_modules": []}),
    "ia3-regex": (
        "IA3",
        {"target_modules": r".*(output\.dense|down_proj)", "feedforward_modules": r".*(output\.dense|down_proj)"},
    ),
    "ia3-names": (
        "IA3",
        {"target_modules": ["output.dense", "key", "down_proj"], "feedforward_modules": ["output.dense", "down_proj"]},
    ),
    "lily": ("LILY", {"r": 4, "stride_A": 2, "num_B": 3}),
    "loha": ("LOHA", {"r": 4}),
    "lokr": ("LOKR", {"r": 1, "decompose_both": True}),
    "lokr-factor": ("LOKR", {"r": 2, "decompose_factor": 3}),
    "lokr-full": ("LOKR", {"r": 64}),
    "miss": ("MISS", {"r": 8}),
    "miss-bat": ("MISS", {"r": 8, "init_weights": "bat"}),
    "miss-mini": ("MISS", {"r": 8, "mini_r": 4, "init_weights": "mini"}),
    "oft": ("OFT", {"oft_block_size": 8}),
    "oft-blocks": ("OFT", {"r": 4, "oft_block_size": 0}),
    "oft-adjusted": ("OFT", {"oft_block_size": 7}),
    "oft-shared": ("OFT", {"oft_block_size": 8, "block_share": True}),
    "osf": ("OSF", {"effective_rank": 10}),
    "osf-share": ("OSF", {"effective_rank": 0.25}),
    "osf-half": ("OSF", {}),
    "peanut": ("PEANUT", {"r": 4, "depth": 2}),
    "poly": ("POLY", {"r": 4, "n_tasks": 3, "n_skills": 2, "n_splits": 2}),
    "psoft": ("PSOFT", {"r": 4}),
    "psoft-free": ("PSOFT", {"r": 4, "psoft_orth": False, "psoft_mag_a": False}),
    "pvera": ("PVERA", {"r": 4}),
    "randlora": ("RANDLORA", {"r": 6}),
    "road": ("ROAD", {"group_size": 8}),
    "road-2": ("ROAD", {"group_size": 8, "variant": "road_2"}),
    "road-4": ("ROAD", {"group_size": 8, "variant": "road_4"}),
    "shira": ("SHIRA", {"r": 2}),
    "supertuning": ("SUPERTUNING", {"sparsity": 0.95}),
    "supertuning-lora": ("SUPERTUNING", {"sparsity": 0.95, "r": 2, "lora_alpha": 4}),
    "tinylora": ("TINYLORA", {"u": 5}),
    "tinylora-tied": ("TINYLORA", {"u": 5, "weight_tying": 0.6}),
    "unilora": ("UNILORA", {"theta_d_length": 40}),
    "vblora": ("VBLORA", {"r": 2, "num_vectors": 12, "vector_length": 8}),
    "vera": ("VERA", {"r": 4}),
    "waveft": ("WAVEFT", {"n_frequency": 21}),
    "waveft-shared": ("WAVEFT", {"n_frequency": 21, "proportional_parameters": True}),
}
"""Configurations that act on linear maps; the rest of `TARGETS` is filled in."""

PROMPTS: dict[str, tuple[str, dict[str, object]]] = {
    "adaption-prompt": ("ADAPTION_PROMPT", {"adapter_len": 4, "adapter_layers": 2}),
    "cartridge": ("CARTRIDGE", {"num_virtual_tokens": 6, "num_frozen_tokens": 2}),
    "cpt": ("CPT", {"cpt_token_ids": [1, 2, 3], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3]}),
    "multitask": ("MULTITASK_PROMPT_TUNING", {"num_virtual_tokens": 5, "num_tasks": 3, "num_ranks": 2}),
    "prefix": ("PREFIX_TUNING", {"num_virtual_tokens": 5}),
    "prefix-projected": (
        "PREFIX_TUNING",
        {"num_virtual_tokens": 5, "prefix_projection": True, "encoder_hidden_size": 7},
    ),
    "prompt": ("PROMPT_TUNING", {"num_virtual_tokens": 5}),
    "p-tuning": ("P_TUNING", {"num_virtual_tokens": 5, "encoder_hidden_size": 12}),
    "p-tuning-lstm": (
        "P_TUNING",
        {"num_virtual_tokens": 5, "encoder_hidden_size": 12, "encoder_reparameterization_type": "LSTM"},
    ),
    "tokens": ("TRAINABLE_TOKENS", {"token_indices": [1, 4, 5]}),
    "norms": ("LN_TUNING", {"target_modules": ["input_layernorm", "norm", "post_attention_layernorm"]}),
}
TARGETS = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"]}


def base_of(name: str, *, head: bool = False) -> torch.nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        auto = transformers.AutoModelForCausalLM if head else transformers.AutoModel
        return auto.from_config(MODELS[name].config())


def shape_of(name: str) -> ModelShape:
    base = base_of(name)
    return measure(base, base.config)


def built_size(model: torch.nn.Module, kind: str, fields: dict[str, object]) -> int:
    classes = importlib.import_module("peft.mapping").PEFT_TYPE_TO_CONFIG_MAPPING
    with warnings.catch_warnings(), torch.random.fork_rng(devices=()):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return peft.get_peft_model(model, classes[kind](**fields)).get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("case", LINEAR)
def test_an_adapter_on_linear_maps_has_the_counted_parameters(case: str, name: str) -> None:
    kind, fields = LINEAR[case]
    fields = {"target_modules": TARGETS[name], **fields}
    counted = count_peft_config({"peft_type": kind, **fields}, shape_of(name))
    assert built_size(base_of(name, head=name == "llama"), kind, dict(fields)) == counted


@pytest.mark.parametrize("case", PROMPTS)
def test_a_prompt_or_norm_adapter_has_the_counted_parameters(case: str) -> None:
    kind, fields = PROMPTS[case]
    fields = {"task_type": "CAUSAL_LM", **fields}
    virtual = {"num_virtual_tokens": len(fields["cpt_token_ids"])} if kind == "CPT" else {}  # type: ignore[arg-type]
    counted = count_peft_config({"peft_type": kind, **fields, **virtual}, shape_of("llama"))
    assert built_size(base_of("llama", head=True), kind, dict(fields)) == counted


def test_every_known_type_is_compared_with_a_built_one() -> None:
    compared = {kind for kind, _ in (*LINEAR.values(), *PROMPTS.values())}
    assert compared | {"BONE"} == set(known_peft_types()) >= set(SITE_COUNTS)
    assert {*compared, "XLORA", "SHADOW"} == {kind.value for kind in peft.PeftType}


def test_bone_of_an_earlier_peft_is_counted_as_its_successor() -> None:
    fields = {"target_modules": ["query"], "r": 8}
    counted = count_peft_config({"peft_type": "BONE", **fields}, shape_of("bert"))
    assert counted == count_peft_config({"peft_type": "MISS", "init_weights": "bat", **fields}, shape_of("bert"))


def test_a_type_that_peft_does_not_train_on_conv1d_is_refused() -> None:
    fields: dict[str, object] = {"target_modules": ["c_attn"]}
    assert built_size(base_of("gpt2", head=True), "OSF", fields) == 0
    with pytest.raises(ConfigurationError, match=r"peft_type OSF: peft .* trains nothing of it on gpt2"):
        count_peft_config({"peft_type": "OSF", **fields}, shape_of("gpt2"))


def test_a_conv1d_base_is_counted_too() -> None:
    fields: dict[str, object] = {"target_modules": ["c_attn"], "r": 3}
    counted = count_peft_config({"peft_type": "LORA", **fields}, shape_of("gpt2"))
    assert built_size(base_of("gpt2", head=True), "LORA", {**fields, "fan_in_fan_out": True}) == counted


@pytest.mark.parametrize("more", [{"bias": "all"}, {"bias": "lora_only"}, {"modules_to_save": ["lm_head"]}], ids=str)
@pytest.mark.parametrize("name", ["phi", "gptj", "llama"])
def test_biases_of_a_language_model_head_are_counted(name: str, more: dict[str, object]) -> None:
    targets = ["q_proj", "lm_head"] if "bias" in more else ["q_proj"]
    fields: dict[str, object] = {"target_modules": targets, "r": 3, **more}
    counted = count_peft_config({"peft_type": "LORA", **fields}, shape_of(name))
    assert built_size(base_of(name, head=True), "LORA", fields) == counted


def test_families_whose_head_has_a_bias_are_known() -> None:
    for name, model in MODELS.items():
        if model.causal:
            base = base_of(name, head=True)
            biased = getattr(base.get_output_embeddings(), "bias", None) is not None  # type: ignore[operator]  # a model's method
            head = modules(shape_of(name), head=True)[-1]
            assert head.linear is not None
            assert head.linear.bias == biased, name


def test_a_map_of_the_classification_model_alone_is_not_left_out_in_silence() -> None:
    config = {"peft_type": "LORA", "target_modules": "all-linear", "r": 2, "task_type": "SEQ_CLS"}
    shape = shape_of("deberta-v2")
    with pytest.raises(ConfigurationError, match=r"names pooler.dense too, which this deberta-v2 model has for classi"):
        count_peft_config(config, shape)
    bare = count_peft_config({**config, "task_type": "TOKEN_CLS"}, shape)
    assert count_peft_config({**config, "exclude_modules": ["pooler.dense"]}, shape) == bare


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("LORA", {"target_modules": ["q", "v"], "r": 3}),
        ("LORA", {"target_modules": "all-linear", "r": 2, "rank_pattern": {r"decoder\.block\.1.*\.q": 5}}),
        ("LORA", {"target_modules": ["q", "lm_head"], "r": 2, "layers_to_transform": [1], "layers_pattern": "block"}),
        ("LORA", {"target_modules": ["q"], "r": 2, "modules_to_save": ["lm_head"]}),
        ("PROMPT_TUNING", {"num_virtual_tokens": 4}),
        ("PREFIX_TUNING", {"num_virtual_tokens": 4}),
        ("IA3", {"target_modules": ["k", "wo"], "feedforward_modules": ["wo"]}),
    ],
)
def test_an_encoder_with_a_decoder_is_counted_on_both_sides(kind: str, fields: dict[str, object]) -> None:
    config = transformers.T5Config(vocab_size=55, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    base = transformers.T5Model(config)
    counted = count_peft_config({"peft_type": kind, "task_type": "SEQ_2_SEQ_LM", **fields}, measure(base, config))
    model = transformers.T5ForConditionalGeneration(config)
    assert built_size(model, kind, {**fields, "task_type": "SEQ_2_SEQ_LM"}) == counted


def test_the_head_of_a_language_model_counts_when_it_is_named() -> None:
    for fields in ({"target_modules": ["q_proj", "lm_head"], "r": 3}, {"target_modules": "all-linear", "r": 3}):
        counted = count_peft_config({"peft_type": "LORA", **fields}, shape_of("llama"))
        assert built_size(base_of("llama", head=True), "LORA", {**fields, "task_type": "CAUSAL_LM"}) == counted


def test_a_classifier_is_not_counted() -> None:
    plain = {"peft_type": "LORA", "target_modules": ["query"], "r": 3}
    counted = count_peft_config(plain, shape_of("bert"))
    assert count_peft_config({**plain, "modules_to_save": ["classifier", "score"]}, shape_of("bert")) == counted


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("LORA", {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1, 2]}}),
        ("LORA", {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [1, 2]}}),
        ("TRAINABLE_TOKENS", {"target_modules": ["lm_head"], "token_indices": [1, 2, 3]}),
    ],
)
def test_trained_rows_count_where_they_are_named(kind: str, fields: dict[str, object]) -> None:
    counted = count_peft_config({"peft_type": kind, **fields}, shape_of("llama"))
    assert built_size(base_of("llama", head=True), kind, dict(fields)) == counted


def test_every_field_that_peft_writes_is_known() -> None:
    classes = importlib.import_module("peft.mapping").PEFT_TYPE_TO_CONFIG_MAPPING.values()
    assert {field.name for kind in classes for field in dataclasses.fields(kind)} == KNOWN


@pytest.mark.skipif(not DATA.is_dir(), reason="the folder of published runs is absent")
def test_every_published_adapter_has_the_counted_parameters() -> None:
    with (DATA / "runs.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["peft_config"] != "null"]
    start = time.perf_counter()
    shape = read_shape(ModelSpec(name=str(DATA)))
    counted = {row["experiment"]: count_peft_config(json.loads(row["peft_config"]), shape) for row in rows}
    assert time.perf_counter() - start < 5.0
    assert counted == {row["experiment"]: int(row["trainable_parameters"]) for row in rows}
    assert len(rows) == 31


@given(dimension=st.integers(1, 3000), factor=st.sampled_from([-1, 1, 2, 3, 4, 7, 8, 16, 100]))
def test_lokr_factors_are_those_of_peft(dimension: int, factor: int) -> None:
    assert factorization(dimension, factor) == peft_factorization(dimension, factor)


@given(dimension=st.integers(1, 3000), wanted=st.integers(1, 3100))
def test_oft_sizes_are_adjusted_as_peft_does(dimension: int, wanted: int) -> None:
    assert nearest_divisor(dimension, wanted) == OFTLayer.adjust_oft_parameters(None, dimension, wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "peft_type: None is not known; known are ADALORA, ADAMSS"),
        ({"peft_type": "LORRA"}, "'LORRA' is not known; known are .*LORA"),
        ({"peft_type": "XLORA"}, "XLORA cannot be counted from its configuration: it routes adapters"),
        ({"peft_type": "SHADOW"}, "SHADOW cannot be counted from its configuration: its size is that of a second"),
        ({"peft_type": "LORA"}, "target_modules: None names no module"),
        ({"peft_type": "LORA", "target_modules": ["q_proj"]}, "this bert model has no module 'q_proj'; its layers"),
        ({"peft_type": "LORA", "target_modules": ["query"], "r": "8"}, "r: '8' is no whole number from 0"),
        ({"peft_type": "C3A", "target_modules": ["query"], "block_size": 0}, "block_size: 0 is no whole number from 1"),
        (
            {"peft_type": "OFT", "target_modules": ["query"], "oft_block_size": 0},
            "oft_block_size: 0 is no whole",
        ),
        ({"peft_type": "LILY", "target_modules": ["query"], "stride_A": 0}, "stride_A: 0 is no whole number from 1"),
        ({"peft_type": "POLY", "target_modules": ["query"], "n_splits": 0}, "n_splits: 0 is no whole number from 1"),
        ({"peft_type": "RANDLORA", "target_modules": ["query"], "r": 0}, "r: 0 is no whole number from 1"),
        (
            {"peft_type": "VBLORA", "target_modules": ["query"], "vector_length": 0},
            "vector_length: 0 is no whole",
        ),
        ({"peft_type": "OSF", "target_modules": ["query"], "effective_rank": "x"}, "effective_rank: 'x' is no number"),
        (
            {"peft_type": "TINYLORA", "target_modules": ["query"], "weight_tying": []},
            r"weight_tying: \[\] is no number",
        ),
        (
            {"peft_type": "ROAD", "target_modules": ["query"], "variant": "road_3"},
            "variant: 'road_3' is none of",
        ),
        ({"peft_type": "LORA", "target_modules": 5}, "target_modules: 5 is no name of modules and no list of names"),
        ({"peft_type": "LORA", "target_modules": "*.query"}, r"target_modules: '\*.query' is no regular expression"),
        ({"peft_type": "LORA", "target_modules": ["query"], "rank_pattern": {"*": 2}}, r"rank_pattern: '\*' is no reg"),
        ({"peft_type": "LORA", "target_modules": ["query"], "rank_pattern": [2]}, r"rank_pattern: \[2\] is no mapping"),
        (
            {"peft_type": "LORA", "target_modules": ["query"], "layers_to_transform": "0-2"},
            "layers_to_transform: '0-2' is no list of whole numbers",
        ),
        (
            {"peft_type": "LORA", "target_modules": ["query"], "trainable_token_indices": {"word_embeddings": 1}},
            "trainable_token_indices: {'word_embeddings': 1} is no list of whole numbers",
        ),
        (
            {"peft_type": "LORA", "target_modules": ["query"], "trainable_token_indices": {"wte": [1]}},
            "this bert model has no module 'wte'",
        ),
        (
            {"peft_type": "LORA", "target_modules": ["query"], "use_doraa": True},
            "use_doraa: not a field that is known, so the size of this adapter is not",
        ),
        ({"peft_type": "SUPERTUNING", "target_modules": ["query"], "sparsity": "x"}, "sparsity: 'x' is no number"),
        (
            {"peft_type": "LORA", "target_modules": ["query"], "target_parameters": ["mlp.w"]},
            "target_parameters: the size of such an adapter is not known",
        ),
        ({"peft_type": "IA3", "target_modules": ["word_embeddings"]}, "word_embeddings is no linear map, IA3 acts"),
        (
            {"peft_type": "ADAMSS", "target_modules": ["query"], "subspace_rank": 2, "use_dynamic_rank": True},
            "use_dynamic_rank: the ranks of ADAMSS then depend on the weights",
        ),
    ],
)
def test_what_cannot_be_counted_is_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        count_peft_config(config, shape_of("bert"))


def test_a_field_of_another_peft_that_says_nothing_is_passed_over() -> None:
    plain = {"peft_type": "LORA", "target_modules": ["query"], "r": 3}
    older = {**plain, "merge_weights": False, "enable_lora": None, "some_pattern": {}, "some_list": []}
    assert count_peft_config(older, shape_of("bert")) == count_peft_config(plain, shape_of("bert"))


@pytest.mark.parametrize(
    "fields",
    [
        {"peft_type": "TRAINABLE_TOKENS", "target_modules": ["embed_tokens", "lm_head"], "token_indices": [1]},
        {
            "peft_type": "LORA",
            "target_modules": ["q_proj"],
            "trainable_token_indices": {"embed_tokens": [1], "lm_head": [1]},
        },
    ],
)
def test_rows_of_a_head_that_may_be_tied_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="rows of lm_head and of the embedding are one where"):
        count_peft_config(fields, shape_of("llama"))


def test_a_model_without_word_embedding_has_no_trained_tokens() -> None:
    shape = ModelShape.from_json({**shape_of("bert").to_json(), "parts": []})
    with pytest.raises(ConfigurationError, match="no embedding of its 55 words"):
        count_peft_config({"peft_type": "TRAINABLE_TOKENS", "token_indices": [1]}, shape)
