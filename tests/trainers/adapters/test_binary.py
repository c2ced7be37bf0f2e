import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from autopeft.trainers.adapters.binary import Rounded, levels_of
from autopeft.trainers.inject import AdapterSet, inject, merge
from autopeft.trainers.sites import measure
from tests.configurations import configuration, setting
from tests.models import build_base


@pytest.fixture
def base() -> PreTrainedModel:
    return build_base("bert")


def output(base: PreTrainedModel) -> torch.Tensor:
    ids = torch.randint(5, 50, (2, 7), generator=torch.Generator().manual_seed(1))
    return base(input_ids=ids).last_hidden_state


def disturb(adapters: AdapterSet) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


@pytest.mark.parametrize(("bits", "levels"), [(1, [-0.6745, 0.6745]), (2, [-1.266, -0.378, 0.378, 1.266]), (4, None)])
def test_levels_are_the_medians_of_their_cells(bits: int, levels: list[float] | None) -> None:
    found = torch.tensor(levels_of(bits), dtype=torch.float64)
    assert len(found) == 2**bits
    if levels is not None:
        torch.testing.assert_close(found, torch.tensor(levels, dtype=torch.float64), atol=5e-4, rtol=0)
    edges = torch.cat((torch.tensor([-torch.inf]), (found[1:] + found[:-1]) / 2, torch.tensor([torch.inf])))
    mass = torch.special.ndtr(edges)
    torch.testing.assert_close(torch.special.ndtr(found), (mass[1:] + mass[:-1]) / 2, atol=1e-6, rtol=0)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_weight_is_rounded_as_in_the_released_code_with_its_gradient(bits: int) -> None:
    """The released rounding adds half a step's sign at every cell border, then scales by the deviation."""
    weight = torch.randn(12, 9, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.1
    ours, theirs = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    levels = torch.tensor(levels_of(bits))
    normal = (theirs - theirs.mean()) / (theirs.std() + 1e-5)
    steps = torch.sign(normal.detach()[..., None] - (levels[1:] + levels[:-1]) / 2) * (levels[1:] - levels[:-1]) / 2
    expected = (steps.sum(-1) + normal - normal.detach()) * theirs.std() + theirs.mean()
    rounded = Rounded(bits)(ours)
    torch.testing.assert_close(rounded, expected)
    assert len(rounded.unique()) <= 2**bits
    direction = torch.randn(12, 9)
    (rounded * direction).sum().backward()
    (expected * direction).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_factors_of_a_map_have_two_values_each(base: PreTrainedModel) -> None:
    config = configuration(setting("binary_lora", (0,), rank=4, targets=("output.dense",), scale=3.0))
    with inject(base, measure(base, base.config), config, seed=0) as adapters:
        disturb(adapters)
        pair = next(adapters.adapters())[2].pair("output.dense")
        assert len(pair.a.unique()) == len(pair.b.unique()) == 2
        x, y = torch.randn(3, 48), torch.randn(3, 32)
        torch.testing.assert_close(pair(x, y), y + 3.0 * x @ pair.a.T @ pair.b.T, atol=1e-4, rtol=1e-4)


def test_the_bottleneck_has_rounded_weights_and_full_biases(base: PreTrainedModel) -> None:
    config = configuration(setting("binary_adapter", (0,), bottleneck=6, bits=2, scale=0.5))
    with inject(base, measure(base, base.config), config, seed=0) as adapters:
        disturb(adapters)
        half = next(adapters.adapters())[2].bottleneck
        assert len(half.down.weight.unique()) <= 4
        assert len(half.down.bias.unique()) == 6
        x, y = torch.randn(3, 32), torch.randn(3, 32)
        hidden = torch.relu(functional.linear(x, half.down.weight, half.down.bias))
        expected = y + 0.5 * functional.linear(hidden, half.up.weight, half.up.bias)
        torch.testing.assert_close(half(x, y), expected)


def test_the_second_factor_starts_small_but_not_at_zero(base: PreTrainedModel) -> None:
    config = configuration(
        setting("binary_lora", (0,), rank=4, targets=("output.dense",)), setting("binary_adapter", (0,), bottleneck=6)
    )
    with inject(base, measure(base, base.config), config, seed=0) as adapters:
        names = dict(adapters.named_parameters())
        for name in (
            "binary_lora.0.output_dense.parametrizations.b.original",
            "binary_adapter.0.bottleneck.up.parametrizations.weight.original",
        ):
            assert 0.0005 < names[name].std() < 0.001
            assert names[name].abs().max() <= 0.002


def test_a_merged_map_keeps_the_rounded_update(base: PreTrainedModel) -> None:
    shape = measure(base, base.config)
    config = configuration(setting("binary_lora", (0, 2), rank=3, targets=("attention.self.query", "output.dense")))
    adapters = inject(base, shape, config, seed=0)
    disturb(adapters)
    expected = output(base)
    merge(adapters, base, shape)
    torch.testing.assert_close(output(base), expected, atol=1e-4, rtol=1e-4)
