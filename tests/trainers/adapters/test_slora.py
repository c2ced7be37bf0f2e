import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from autopeft.trainers.adapters.slora import StructuredPair
from autopeft.trainers.inject import build
from autopeft.trainers.sites import measure
from tests.configurations import configuration, setting
from tests.models import build_base


def filled_pair() -> StructuredPair:
    pair = StructuredPair(d_in=6, d_out=10, rank=3, alpha=12.0)
    for tensor in pair.parameters():
        nn.init.normal_(tensor, generator=torch.Generator().manual_seed(0))
    return pair


def test_the_update_is_alpha_over_rank_times_b_n_a_x() -> None:
    pair, x, output = filled_pair(), torch.randn(2, 4, 6), torch.randn(2, 4, 10)
    expected = output + 4.0 * (x @ pair.a.T @ pair.n.T @ pair.b.T)
    torch.testing.assert_close(pair(x, output), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("linear", [nn.Linear(6, 10), Conv1D(10, 6)], ids=["linear", "conv1d"])
def test_the_folded_weight_gives_the_same_output(linear: nn.Module) -> None:
    pair, x = filled_pair(), torch.randn(4, 6)
    expected = pair(x, linear(x))
    with torch.no_grad():
        linear.weight.copy_(pair.fold(linear, linear.weight, linear.bias)[0])
    torch.testing.assert_close(linear(x), expected, atol=1e-4, rtol=1e-4)


def test_a_and_n_are_drawn_and_b_is_zero() -> None:
    base = build_base("bert")
    config = configuration(setting("slora", (0,), rank=16, targets=("output.dense",)))
    tensors = dict(build(measure(base, base.config), config, seed=3).named_parameters())
    a, n, b = (tensors[f"slora.0.output_dense.{name}"] for name in "anb")
    assert 0.9 / 48**0.5 < a.abs().max() <= 1 / 48**0.5
    assert 0.9 / 16**0.5 < n.abs().max() <= 1 / 16**0.5
    assert not b.any()
