import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from autopeft.errors import ConfigurationError
from autopeft.trainers.adapters.lora import LoraPair
from autopeft.trainers.inject import build, inject
from autopeft.trainers.sites import layers_of, measure
from tests.configurations import configuration, setting
from tests.models import build_base


def filled_pair(*, d_in: int, d_out: int, rank: int, alpha: float = 16.0, dropout: float = 0.0) -> LoraPair:
    pair = LoraPair(d_in=d_in, d_out=d_out, rank=rank, alpha=alpha, dropout=dropout)
    for tensor in pair.parameters():
        nn.init.normal_(tensor, generator=torch.Generator().manual_seed(0))
    return pair


@settings(max_examples=40, deadline=None)
@given(
    rank=st.integers(1, 6),
    d_in=st.integers(1, 9),
    d_out=st.integers(1, 9),
    alpha=st.floats(0.5, 64),
    rows=st.lists(st.integers(1, 4), min_size=0, max_size=2),
)
def test_the_update_is_alpha_over_rank_times_b_a_x(
    rank: int, d_in: int, d_out: int, alpha: float, rows: list[int]
) -> None:
    pair = filled_pair(d_in=d_in, d_out=d_out, rank=rank, alpha=alpha)
    x, output = torch.randn(*rows, 2, d_in), torch.randn(*rows, 2, d_out)
    expected = output + alpha / rank * (x @ pair.a.T @ pair.b.T)
    torch.testing.assert_close(pair(x, output), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("linear", [nn.Linear(6, 10), Conv1D(10, 6)], ids=["linear", "conv1d"])
def test_the_matrix_form_in_the_weights_layout_gives_the_same_output(linear: nn.Module) -> None:
    pair, x = filled_pair(d_in=6, d_out=10, rank=3), torch.randn(4, 6)
    expected = pair(x, linear(x))
    with torch.no_grad():
        linear.weight += pair.delta(linear)
    torch.testing.assert_close(linear(x), expected, atol=1e-5, rtol=1e-5)


def test_dropout_acts_in_training_only() -> None:
    pair = filled_pair(d_in=50, d_out=4, rank=2, dropout=0.5)
    x, output = torch.ones(2, 50), torch.zeros(2, 4)
    pair.train()
    assert not torch.equal(pair(x, output), pair(x, output))
    pair.eval()
    assert torch.equal(pair(x, output), pair(x, output))


@pytest.mark.parametrize(
    ("name", "targets"), [("bert", ("attention.self.query", "output.dense")), ("gpt2", ("attn.c_attn",))]
)
def test_the_same_tensors_give_the_same_output_and_gradients_in_peft(name: str, targets: tuple[str, ...]) -> None:
    base = build_base(name)
    shape = measure(base, base.config)
    config = configuration(setting("lora", (0, 2), rank=3, targets=targets, alpha=8.0))
    ids = torch.randint(5, 50, (2, 6), generator=torch.Generator().manual_seed(0))
    with inject(base, shape, config, seed=0) as ours:
        for pair in ours.modules():
            if isinstance(pair, LoraPair):
                nn.init.normal_(pair.b, generator=torch.Generator().manual_seed(1))
        expected = base(input_ids=ids).last_hidden_state
        expected.square().sum().backward()
    names = [f"{shape.layer_path}.{layer}.{target}" for layer in (0, 2) for target in targets]
    lora = peft.LoraConfig(r=3, lora_alpha=8, target_modules=names, lora_dropout=0.0, fan_in_fan_out=name == "gpt2")
    theirs = peft.get_peft_model(base, lora)
    layers = layers_of(theirs.base_model.model, shape)
    pairs = {(layer, target): adapter.pair(target) for _, layer, adapter in ours.adapters() for target in targets}
    for (layer, target), pair in pairs.items():
        module = layers[layer].get_submodule(target)
        module.lora_A["default"].weight.data.copy_(pair.a.data)
        module.lora_B["default"].weight.data.copy_(pair.b.data)
    output = theirs(input_ids=ids).last_hidden_state
    output.square().sum().backward()
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    for (layer, target), pair in pairs.items():
        module = layers[layer].get_submodule(target)
        torch.testing.assert_close(module.lora_A["default"].weight.grad, pair.a.grad, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(module.lora_B["default"].weight.grad, pair.b.grad, atol=1e-3, rtol=1e-3)


def test_a_is_drawn_as_a_linear_layer_draws_its_weight() -> None:
    base = build_base("bert")
    shape = measure(base, base.config)
    config = configuration(setting("lora", (0,), rank=16, targets=("output.dense",)))
    a, b = build(shape, config, seed=3).parameters()
    bound = 1 / 48**0.5
    assert 0.9 * bound < a.abs().max() <= bound
    assert not b.any()


def test_alpha_and_dropout_are_the_methods_defaults_when_unsaid() -> None:
    base = build_base("bert")
    shape = measure(base, base.config)
    config = configuration(setting("lora", (0,), rank=4, targets=("output.dense",)))
    pair = next(module for module in build(shape, config, seed=0).modules() if isinstance(module, LoraPair))
    assert (pair.scale, pair.dropout) == (4.0, 0.0)


def test_a_target_that_is_no_site_is_refused_with_the_sites() -> None:
    base = build_base("bert")
    shape = measure(base, base.config)
    config = configuration(setting("lora", (1,), rank=4, targets=("attention.self.quarry",)))
    with pytest.raises(
        ConfigurationError, match=r"layer 1 has no linear site 'attention\.self\.quarry'.*attention\.self\.query"
    ):
        build(shape, config, seed=0)
