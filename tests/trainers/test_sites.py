import pytest
from torch import nn
from transformers import LlamaConfig, T5Config, T5Model

from autopeft.errors import ModelError
from autopeft.spaces.model_shape import Role
from autopeft.trainers.sites import layer_list, layers_of, linear_sites, measure, role_of
from tests.models import HIDDEN, MODELS, VOCABULARY_SIZE, build_base

SEPARATE = {Role.QUERY, Role.KEY, Role.VALUE}
FUSED = {Role.QUERY_KEY_VALUE}
COMMON = {Role.ATTENTION_OUTPUT, Role.MLP_UP, Role.MLP_DOWN}


@pytest.mark.parametrize("name", MODELS)
def test_every_linear_site_of_every_model_has_a_role(name: str) -> None:
    base = build_base(name)
    shape = measure(base, base.config)
    for row in shape.layers:
        roles = [site.role for site in row]
        assert set(roles) - {Role.MLP_GATE} in (SEPARATE | COMMON, FUSED | COMMON)
        assert len(roles) == len(set(roles))


@pytest.mark.parametrize("name", MODELS)
def test_sizes_are_those_of_the_weights(name: str) -> None:
    base = build_base(name)
    shape = measure(base, base.config)
    first = base.get_submodule(shape.layer_path)[0]
    assert shape.base_parameters == sum(parameter.numel() for parameter in base.parameters())
    assert (shape.hidden_size, shape.vocabulary_size) == (HIDDEN, VOCABULARY_SIZE)
    assert shape.causal == MODELS[name].causal
    for site in shape.layers[0]:
        module = first.get_submodule(site.name)
        assert module.weight.numel() == site.d_in * site.d_out
        assert (module.bias is not None) == site.bias
    down = next(site for site in shape.layers[0] if site.role is Role.MLP_DOWN)
    assert down.d_out == HIDDEN


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("bert", (4, 4, 8)),
        ("llama", (4, 2, 8)),
        ("qwen2", (4, 1, 8)),
        ("qwen3", (4, 2, 16)),
        ("gpt2", (4, 4, 8)),
        ("phi3", (4, 2, 8)),
        ("falcon", (4, 1, 8)),
        ("gpt_neox", (4, 4, 8)),
        ("gemma", (4, 1, 16)),
    ],
)
def test_heads_are_read_from_the_projections(name: str, heads: tuple[int, int, int]) -> None:
    base = build_base(name)
    shape = measure(base, base.config)
    assert (shape.n_heads, shape.n_kv_heads, shape.head_dim) == heads


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("attention.output.dense", Role.ATTENTION_OUTPUT),
        ("output.dense", Role.MLP_DOWN),
        ("intermediate.dense", Role.MLP_UP),
        ("attention.dense", Role.ATTENTION_OUTPUT),
        ("attn.c_proj", Role.ATTENTION_OUTPUT),
        ("mlp.c_proj", Role.MLP_DOWN),
        ("attn.Wo", Role.ATTENTION_OUTPUT),
        ("mlp.Wo", Role.MLP_DOWN),
        ("fc1", Role.MLP_UP),
        ("crossattention.self.query", Role.OTHER),
        ("mlp.gate", Role.OTHER),
        ("mlp.experts.3.down_proj", Role.MLP_DOWN),
        ("ffn_output", Role.MLP_DOWN),
        ("linear_attn.in_proj_ba", Role.OTHER),
        ("projection", Role.OTHER),
    ],
)
def test_one_leaf_name_means_different_things_in_different_places(name: str, role: Role) -> None:
    assert role_of(name) is role


def test_experts_are_not_taken_for_the_layers() -> None:
    layer = nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(2, 2) for _ in range(8))})
    model = nn.ModuleDict({"blocks": nn.ModuleList(layer for _ in range(2)), "heads": nn.ModuleList([nn.Linear(2, 2)])})
    path, layers = layer_list(model)
    assert (path, len(layers)) == ("blocks", 2)
    assert [site.name for site in linear_sites(layers[0])][:2] == ["experts.0", "experts.1"]


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="Linear has no list of transformer layers"):
        layer_list(nn.Linear(2, 2))


def test_the_layers_of_an_encoder_come_before_those_of_its_decoder() -> None:
    config = T5Config(vocab_size=10, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_decoder_layers=2, num_heads=2)
    base = T5Model(config)
    shape = measure(base, config)
    assert [shape.path_of(layer) for layer in range(3)] == ["encoder.block.0", "decoder.block.0", "decoder.block.1"]
    assert [len(row) for row in shape.layers] == [6, 10, 10]
    assert list(layers_of(base, shape)) == [base.get_submodule(shape.path_of(layer)) for layer in range(3)]
    roles = {site.name: site.role for site in shape.layers[1]}
    assert roles["layer.0.SelfAttention.q"] is Role.QUERY
    assert roles["layer.0.SelfAttention.o"] is Role.ATTENTION_OUTPUT
    assert roles["layer.1.EncDecAttention.q"] is Role.OTHER
    assert (roles["layer.2.DenseReluDense.wi"], roles["layer.2.DenseReluDense.wo"]) == (Role.MLP_UP, Role.MLP_DOWN)
    assert not shape.causal
    assert type(shape).from_json(shape.to_json()) == shape
    assert shape.embedding_parameters == 10 * 8, "one for both"


def test_an_encoder_without_its_decoder_is_refused() -> None:
    config = T5Config(vocab_size=10, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    base = T5Model(config)
    del base.decoder
    with pytest.raises(ModelError, match="T5Model has an encoder and a decoder, but no part called 'decoder'"):
        measure(base, config)


def test_attention_with_a_bias_by_position_takes_no_prefix() -> None:
    base = T5Model(T5Config(vocab_size=10, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    assert measure(base, base.config).closed_attention == (0, 1)
    open_ = build_base("bert")
    assert measure(open_, open_.config).closed_attention == ()


def test_a_shape_survives_json() -> None:
    base = build_base("llama")
    shape = measure(base, base.config)
    assert type(shape).from_json(shape.to_json()) == shape
    assert LlamaConfig.model_type == shape.family
