import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from autopeft.errors import ConfigurationError
from autopeft.trainers.adapters.ssf import ScaleShift
from autopeft.trainers.inject import inject, merge
from autopeft.trainers.sites import measure
from tests.configurations import configuration, setting
from tests.models import build_base


def filled() -> ScaleShift:
    module = ScaleShift(d_out=10)
    for tensor in module.parameters():
        nn.init.normal_(tensor, generator=torch.Generator().manual_seed(0))
    return module


def test_the_output_is_scaled_and_shifted() -> None:
    module, x, output = filled(), torch.randn(2, 4, 6), torch.randn(2, 4, 10)
    torch.testing.assert_close(module(x, output), module.scale * output + module.shift)


@pytest.mark.parametrize("linear", [nn.Linear(6, 10), Conv1D(10, 6)], ids=["linear", "conv1d"])
def test_the_folded_weight_and_bias_give_the_same_output(linear: nn.Module) -> None:
    module, x = filled(), torch.randn(4, 6)
    nn.init.normal_(linear.bias)
    expected = module(x, linear(x))
    weight, bias = module.fold(linear, linear.weight, linear.bias)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    torch.testing.assert_close(linear(x), expected, atol=1e-5, rtol=1e-5)


def test_a_map_without_bias_cannot_take_the_shift_and_nothing_is_changed() -> None:
    base = build_base("llama")
    shape = measure(base, base.config)
    config = configuration(
        setting("lora", (0,), rank=2, targets=("self_attn.q_proj",)),
        setting("ssf", (0,), enabled=1, targets=("self_attn.q_proj",)),
    )
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    with inject(base, shape, config, seed=0) as adapters:
        with pytest.raises(ConfigurationError, match=r"self_attn\.q_proj: ssf: this map has no bias"):
            merge(adapters, base, shape)
        assert adapters.attached
    assert all(torch.equal(weights[name], tensor) for name, tensor in base.state_dict().items())
