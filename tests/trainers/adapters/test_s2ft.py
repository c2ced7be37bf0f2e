import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from autopeft.trainers.adapters.s2ft import Slice
from autopeft.trainers.inject import AdapterSet, build, inject
from autopeft.trainers.sites import layers_of, measure
from tests.configurations import configuration, setting
from tests.models import build_base

CHANNELS = torch.tensor([1, 4, 5])
ALL = ("attention.self.value", "attention.output.dense", "intermediate.dense", "output.dense")


def slice_of(*, columns: bool, largest: bool | None = None, channels: torch.Tensor = CHANNELS) -> Slice:
    return Slice(d_in=6, d_out=10, columns=columns, channels=channels.clone(), largest=largest)


@pytest.fixture
def base() -> PreTrainedModel:
    return build_base("bert")


def slices(adapters: AdapterSet) -> dict[str, Slice]:
    return {name: module for name, module in adapters.named_modules() if isinstance(module, Slice)}


@pytest.mark.parametrize("columns", [True, False], ids=["columns", "rows"])
def test_training_the_slice_is_training_those_entries_of_the_weight(columns: bool) -> None:
    linear, part, x = nn.Linear(6, 10), slice_of(columns=columns), torch.randn(3, 4, 6)
    nn.init.normal_(part.change)
    weight = linear.weight.detach().clone()
    if columns:
        weight[:, CHANNELS] += part.change.detach()
    else:
        weight[CHANNELS] += part.change.detach()
    weight.requires_grad_()
    expected = functional.linear(x, weight, linear.bias)
    output = part(x, linear(x))
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    expected.square().sum().backward()
    output.square().sum().backward()
    whole = weight.grad[:, CHANNELS] if columns else weight.grad[CHANNELS]
    torch.testing.assert_close(part.change.grad, whole, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("columns", [True, False], ids=["columns", "rows"])
@pytest.mark.parametrize("linear", [nn.Linear(6, 10), Conv1D(10, 6)], ids=["linear", "conv1d"])
def test_the_folded_weight_gives_the_same_output(linear: nn.Module, columns: bool) -> None:
    part, x = slice_of(columns=columns), torch.randn(4, 6)
    nn.init.normal_(part.change)
    expected = part(x, linear(x))
    weight, _ = part.fold(linear, linear.weight, linear.bias)
    with torch.no_grad():
        linear.weight.copy_(weight)
    torch.testing.assert_close(linear(x), expected, atol=1e-5, rtol=1e-5)


def test_maps_out_of_a_block_train_columns_and_maps_into_it_rows_of_the_same_channels(base: PreTrainedModel) -> None:
    shape = measure(base, base.config)
    parts = slices(build(shape, configuration(setting("s2ft", (0, 1), channels=5, targets=ALL)), seed=0))
    kinds = {name.split(".", 2)[2]: part.columns for name, part in parts.items() if ".0." in name}
    assert kinds == {
        "attention_self_value": False,
        "attention_output_dense": True,
        "intermediate_dense": False,
        "output_dense": True,
    }
    for layer in (0, 1):
        value, out, up, down = (parts[f"s2ft.{layer}.{name.replace('.', '_')}"].channels for name in ALL)
        assert torch.equal(value, out)
        assert torch.equal(up, down)
        assert len(set(up.tolist())) == 5
        assert up.max() < 48
        assert out.max() < 32
    assert not torch.equal(parts["s2ft.0.output_dense"].channels, parts["s2ft.1.output_dense"].channels)


@pytest.mark.parametrize(("selection", "largest"), [("largest", True), ("smallest", False)])
def test_channels_are_chosen_by_the_norm_of_their_weights(base: PreTrainedModel, selection: str, largest: bool) -> None:
    shape = measure(base, base.config)
    config = configuration(setting("s2ft", (1,), channels=4, targets=ALL, selection=selection))
    with inject(base, shape, config, seed=0) as adapters:
        parts = slices(adapters)
        for target in ALL:
            weight = layers_of(base, shape)[1].get_submodule(target).weight
            norms = weight.norm(dim=0 if target.endswith("output.dense") else 1)
            expected = norms.topk(4, largest=largest).indices.sort().values
            assert torch.equal(parts[f"s2ft.1.{target.replace('.', '_')}"].channels, expected)


def test_chosen_channels_stay_when_the_adapter_is_loaded_on_another_weight() -> None:
    first, second = nn.Linear(6, 10), nn.Linear(6, 10)
    unknown = torch.full((3,), -1)
    part = slice_of(columns=True, largest=True, channels=unknown)
    part.derive(first)
    chosen = part.channels.clone()
    again = slice_of(columns=True, largest=True, channels=unknown)
    again.load_state_dict(part.state_dict())
    with torch.no_grad():
        second.weight[:, chosen] = 0
    again.derive(second)
    assert torch.equal(again.channels, chosen)


def test_only_the_slices_inputs_are_kept_for_the_backward_pass() -> None:
    part, x, output = slice_of(columns=True), torch.randn(50, 6), torch.zeros(50, 10)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        part(x, output)
    assert max(kept) == 50 * len(CHANNELS)
