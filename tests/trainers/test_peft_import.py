"""An `adapter_config.json` as a configuration of ours: the same adapters, or a refusal that names the field."""

import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from autopeft.errors import ConfigurationError
from autopeft.spaces.model_shape import ModelShape
from autopeft.trainers.inject import build
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.model import read_shape
from autopeft.trainers.peft_import import read_peft_config
from autopeft.trainers.peft_recipe import recipes
from tests.configurations import configuration, setting
from tests.models import save_model
from tests.spaces import builders

QUERY, VALUE, KEY = "attention.self.query", "attention.self.value", "attention.self.key"
TARGETS = ["query", "value"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("bert", tmp_path_factory.mktemp("bert") / "base")


@pytest.fixture(scope="module")
def shape(base: Path) -> ModelShape:
    return read_shape(ModelSpec(name=str(base)))


def as_written(config: peft.PeftConfig) -> dict[str, object]:
    """What peft writes into the file."""

    def plain(value: object) -> object:
        return sorted(value) if isinstance(value, set) else getattr(value, "value", str(value))

    return json.loads(json.dumps(config.to_dict(), default=plain))


EQUAL: list[tuple[peft.PeftConfig, dict[str, object]]] = [
    (peft.LoraConfig(r=4, target_modules=TARGETS), {"lora": {"rank": 4, "alpha": 8.0}}),
    (
        peft.LoraConfig(r=4, target_modules=TARGETS, layers_to_transform=[0, 2], rank_pattern={r"layer\.2\..*": 3}),
        {"lora": {"layers": [0, 2], "rank": [4, 3], "alpha": 8.0}},
    ),
    (peft.LoraConfig(r=4, target_modules=TARGETS, use_rslora=True), {"lora": {"rank": 4, "alpha": 16.0}}),
    (
        peft.LoraConfig(r=4, target_modules=TARGETS, use_dora=True, lora_dropout=0.1),
        {"peft_lora": {"rank": 4, "alpha": 8.0, "variant": "dora", "dropout": 0.1}},
    ),
    (
        peft.LoraConfig(r=4, target_modules=TARGETS, init_lora_weights="pissa"),
        {"peft_lora": {"rank": 4, "alpha": 8.0, "init": "pissa"}},
    ),
    (peft.OFTConfig(oft_block_size=4, r=0, target_modules=TARGETS), {"oft": {"block_size": 4}}),
    (peft.OFTConfig(oft_block_size=4, r=0, target_modules=TARGETS, num_cayley_neumann_terms=3), {"oft": {"terms": 3}}),
    (peft.C3AConfig(block_size=8, target_modules=TARGETS, init_weights=True), {"c3a": {"init": "zero"}}),
    (peft.DeftConfig(r=4, alpha=2, target_modules=TARGETS), {"peft_deft": {"scaling": 0.5}}),
    (peft.DeftConfig(r=4, target_modules=TARGETS), {"peft_deft": {"scaling": 1.0}}),
    (peft.PsoftConfig(r=4, psoft_alpha=4, psoft_orth=False, target_modules=TARGETS), {"psoft": {"orthogonal": False}}),
    (
        peft.RandLoraConfig(r=4, sparse=True, target_modules=TARGETS, save_projection=False),
        {"randlora": {"bases": "sparse"}},
    ),
    (
        peft.WaveFTConfig(n_frequency=9, wavelet_family="coif1", target_modules=TARGETS),
        {"waveft": {"wavelet": "coif1"}},
    ),
    (
        peft.LilyConfig(r=2, stride_A=3, num_B=4, target_modules=TARGETS),
        {"lily": {"rank": 2, "stride": 3, "experts": 4}},
    ),
    (peft.LoHaConfig(r=2, target_modules=TARGETS, alpha=4), {"loha": {"rank": 2, "alpha": 4.0}}),
    (peft.VeraConfig(r=2, target_modules=TARGETS), {"vera": {"rank": 2}}),
    (
        peft.OSFConfig(effective_rank=0.75, target_modules=TARGETS, rank_pattern={r"layer\.2\.": 30}),
        {"osf": {"rank": [8, 8, 2]}},
    ),
    (peft.OSFConfig(target_modules=TARGETS), {"osf": {"rank": 16}}),
    (peft.PolyConfig(r=2, target_modules=TARGETS, n_splits=2), {"poly": {"rank": 2, "splits": 2}}),
    (peft.UniLoraConfig(r=2, target_modules=TARGETS), {"unilora": {"length": 256, "rank": 2}}),
    (
        peft.IA3Config(target_modules=["key", "intermediate.dense"], feedforward_modules=[]),
        {"ia3": {"enabled": 1, "targets": [KEY, "intermediate.dense"]}},
    ),
    (
        peft.PsoftConfig(r=4, target_modules=TARGETS, psoft_alpha=4, use_cayley_neumann=True, cayley_neumann_eps=0.9),
        {"psoft": {"rank": 4, "neumann": True, "bound": 0.9}},
    ),
    (
        peft.LoHaConfig(r=4, alpha=4, target_modules=TARGETS, module_dropout=0.25),
        {"loha": {"rank": 4, "alpha": 4.0, "module_dropout": 0.25}},
    ),
    (
        peft.VBLoRAConfig(r=4, vector_length=16, target_modules=TARGETS, init_vector_bank_bound=0.1, init_logits_std=1),
        {"vblora": {"rank": 4, "start": 0.1, "spread": 1.0}},
    ),
]


@pytest.mark.parametrize(("config", "expected"), EQUAL, ids=lambda value: getattr(value, "peft_type", ""))
def test_settings_of_peft_are_a_configuration(
    config: peft.PeftConfig, expected: dict[str, dict[str, object]], shape: ModelShape
) -> None:
    found = read_peft_config(as_written(config), shape).to_json()
    assert found.keys() == expected.keys()
    for method, fields in expected.items():
        row = found[method]
        assert isinstance(row, dict)
        assert {"targets": [QUERY, VALUE], "layers": [0, 1, 2], **fields}.items() <= row.items()


REFUSED: list[tuple[dict[str, object], str]] = [
    ({"peft_type": "NEW"}, "peft_type: 'NEW' is not known"),
    ({}, "peft_type: None is not known"),
    (as_written(peft.PrefixTuningConfig(num_virtual_tokens=3)), "peft_type PREFIX_TUNING has no equal"),
    (as_written(peft.LoraConfig(target_modules=TARGETS, bias="all")), "bias: got 'all', which has no equal here"),
    (as_written(peft.LoraConfig(target_modules=TARGETS)) | {"new_field": 3}, "new_field: got '3'"),
    (as_written(peft.LoraConfig(target_modules=["nothing"])), "this bert model has no module 'nothing'"),
    (as_written(peft.LoraConfig(target_modules=["pooler.dense"])), "bert.pooler.dense is no linear map of a layer"),
    (
        as_written(peft.LoraConfig(target_modules=TARGETS, rank_pattern={"query": 2})),
        "rank_pattern: 2, 8 within the layer of bert.encoder.layer.0",
    ),
    (
        as_written(peft.LoraConfig(target_modules=TARGETS, modules_to_save=["word_embeddings"])),
        "modules_to_save: bert.embeddings.word_embeddings is part of the base model",
    ),
    (
        as_written(peft.LilyConfig(target_modules=["query", "output.dense"])),
        "target_modules: 'output.dense' shares factors among attention.output.dense and output.dense",
    ),
    (as_written(peft.PolyConfig(target_modules=TARGETS, n_tasks=3)), "n_tasks: got '3', which has no equal here"),
    (
        as_written(peft.IA3Config(target_modules=["query"], feedforward_modules=["query"])),
        r"feedforward_modules: got \"\['query'\]\"",
    ),
]


@pytest.mark.parametrize(("config", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_what_has_no_equal_is_refused_by_name(config: dict[str, object], message: str, shape: ModelShape) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_peft_config(config, shape)


def test_a_share_of_directions_is_refused_where_it_is_two_ranks_in_a_layer() -> None:
    narrow = builders.shape(2, hidden=48, sites=builders.GATED, family="llama", heads=4, kv_heads=2)
    config = as_written(peft.OSFConfig(effective_rank=0.5, target_modules=["q_proj", "v_proj"]))
    with pytest.raises(ConfigurationError, match=r"osf: the targets in the layer of .*q_proj come to .*one value"):
        read_peft_config(config, narrow)


RECIPES = [
    configuration(setting("lora", (0, 2), rank=[2, 4], alpha=[4.0, 16.0], targets=[(QUERY,), (QUERY, VALUE)])),
    configuration(setting("peft_lora", (0, 1), rank=2, targets=(QUERY,), variant="dora", rslora=True)),
    configuration(setting("peft_lora", (0, 1), rank=2, targets=(QUERY,), variant="kasa")),
    configuration(setting("oft", (0, 2), block_size=4, targets=(QUERY,))),
    configuration(setting("ia3", (0, 2), enabled=1, targets=(KEY, "output.dense"))),
    configuration(setting("fourierft", (0, 2), frequencies=[9, 20], targets=(QUERY,))),
    configuration(setting("osf", (0, 2), rank=[2, 5], targets=[(QUERY,), (QUERY, "output.dense")])),
    configuration(setting("unilora", (0, 2), length=30, targets=(QUERY,))),
]


@pytest.mark.parametrize("config", RECIPES, ids=lambda config: config.methods[0].method)
def test_a_recipe_builds_as_many_numbers_as_ours(config: object, base: Path, shape: ModelShape) -> None:
    (recipe,) = recipes(config, shape)  # type: ignore[arg-type]  # a configuration
    fields = dict(recipe.fields)
    if isinstance(fields.get("kasa_config"), dict):
        fields["kasa_config"] = peft.tuners.lora.KasaConfig(**fields["kasa_config"])
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = peft.get_peft_model(model, getattr(peft, recipe.class_name)(**fields))
    trained = sum(p.numel() for p in whole.parameters() if p.requires_grad)
    assert trained == build(shape, config, seed=0).n_parameters  # type: ignore[arg-type]  # a configuration
    assert torch.isfinite(whole(torch.tensor([[1, 6, 2]])).logits).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (configuration(setting("mola", (0,), experts=2, targets=(QUERY,))), "mola: peft does not train it"),
        (
            configuration(setting("lora", (0, 1), rank=2, targets=(QUERY,), dropout=[0.0, 0.1])),
            "lora: lora_dropout differs by layer",
        ),
        (
            configuration(setting("peft_lora", (0,), rank=2, targets=(QUERY,), variant="ffa")),
            "peft_lora.variant: peft has no setting that freezes A",
        ),
        (
            configuration(setting("peft_lora", (0,), rank=2, targets=(QUERY,), init="eva")),
            "peft_lora.init: peft fills its weights in a step of its own",
        ),
        (configuration(setting("adalora", (0,), rank=2, targets=(QUERY,))), "adalora: peft's needs a call after"),
        (configuration(setting("lily", (0,), rank=2, targets=(QUERY,))), "lily: peft's needs targets that the ends of"),
        (
            configuration(setting("poly", (0,), rank=2, targets=(QUERY,))),
            "poly: peft's needs task_ids",
        ),
    ],
)
def test_what_peft_does_not_train_has_no_recipe(config: object, message: str, shape: ModelShape) -> None:
    with pytest.raises(ConfigurationError, match=message):
        recipes(config, shape)  # type: ignore[arg-type]  # a configuration
