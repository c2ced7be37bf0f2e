from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from autopeft.errors import ConfigurationError
from autopeft.spaces.methods import METHODS
from autopeft.spaces.model_shape import ModelShape, Role
from autopeft.trainers.adapters.bottleneck import ACTIVATIONS, Bottleneck
from autopeft.trainers.inject import AdapterSet, build, inject
from autopeft.trainers.sites import layers_of, measure
from tests.configurations import configuration, setting
from tests.models import build_base


@pytest.fixture(params=["bert", "llama", "gpt2", "opt"])
def base(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build_base(request.param)


def shape_of(base: PreTrainedModel) -> ModelShape:
    return measure(base, base.config)


def disturb(adapters: AdapterSet) -> None:
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.3)


def bottleneck_of(adapters: AdapterSet, method: str) -> Bottleneck:
    return next(adapter.bottleneck for name, _, adapter in adapters.adapters() if name == method)


def formula(module: Bottleneck, x: torch.Tensor) -> torch.Tensor:
    hidden = ACTIVATIONS["relu"](x @ module.down.weight.T + module.down.bias)
    return module.scale * (hidden @ module.up.weight.T + module.up.bias)


def feed_forward(
    base: PreTrainedModel, shape: ModelShape, adapters: AdapterSet | None = None
) -> tuple[torch.Tensor, ...]:
    """(x, FFN's output) of layer 1: the input of its first linear map, what its last one gives with all hooks."""
    seen: dict[str, torch.Tensor] = {}
    layer = layers_of(base, shape)[1]
    by_role = {site.role: layer.get_submodule(site.name) for site in shape.layers[1]}
    up = by_role[Role.MLP_UP].register_forward_pre_hook(lambda _, args: seen.update(x=args[0].detach().clone()))
    down = by_role[Role.MLP_DOWN].register_forward_hook(lambda _, args, z: seen.update(z=z.detach().clone()))
    base(input_ids=torch.randint(5, 50, (2, 6), generator=torch.Generator().manual_seed(1)))
    up.remove()
    down.remove()
    return seen["x"], seen["z"]


def test_the_serial_adapter_reads_the_output_and_the_parallel_one_the_input(base: PreTrainedModel) -> None:
    shape = shape_of(base)
    x, z = feed_forward(base, shape)
    both = configuration(setting("serial_adapter", (1,), bottleneck=3), setting("parallel_adapter", (1,), bottleneck=5))
    with inject(base, shape, both, seed=0) as adapters:
        disturb(adapters)
        _, changed = feed_forward(base, shape)
    serial, parallel = (bottleneck_of(adapters, name) for name in ("serial_adapter", "parallel_adapter"))
    torch.testing.assert_close(changed, z + formula(serial, z) + formula(parallel, x), atol=1e-4, rtol=1e-4)


def test_the_serial_adapter_sees_what_lora_makes_of_the_output() -> None:
    base = build_base("bert")
    shape = shape_of(base)
    lora = setting("lora", (1,), rank=2, targets=("output.dense",))
    with inject(base, shape, configuration(lora), seed=0) as adapters:
        disturb(adapters)
        _, z = feed_forward(base, shape)
    with inject(base, shape, configuration(lora, setting("serial_adapter", (1,), bottleneck=3)), seed=0) as adapters:
        disturb(adapters)
        _, changed = feed_forward(base, shape)
    torch.testing.assert_close(changed, z + formula(bottleneck_of(adapters, "serial_adapter"), z), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "function"),
    [("relu", functional.relu), ("gelu", functional.gelu), ("silu", functional.silu), ("tanh", torch.tanh)],
)
def test_every_activation_is_the_one_it_is_called(name: str, function) -> None:
    module = Bottleneck(d_in=4, d_out=4, bottleneck=3, activation=name, scale=0.5)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    x, y = torch.randn(2, 4), torch.randn(2, 4)
    expected = y + 0.5 * module.up(function(module.down(x)))
    torch.testing.assert_close(module(x, y), expected)


def test_initialisation_follows_the_papers() -> None:
    shape = replace(shape_of(build_base("bert")))
    config = configuration(
        setting("serial_adapter", (0,), bottleneck=64), setting("parallel_adapter", (0,), bottleneck=64)
    )
    adapters = build(shape, config, seed=0)
    serial, parallel = (bottleneck_of(adapters, name) for name in ("serial_adapter", "parallel_adapter"))
    for weight in (serial.down.weight, serial.up.weight):
        assert 0.018 < weight.std() < 0.022
    assert parallel.down.weight.abs().max() <= 1 / 32**0.5
    assert parallel.down.weight.std() > 0.08
    assert not parallel.up.weight.any()
    assert not any(module.bias.any() for half in (serial, parallel) for module in (half.down, half.up))
    assert (serial.scale, parallel.scale) == (1.0, 4.0)


def test_the_activations_are_those_that_a_space_offers() -> None:
    for method in ("serial_adapter", "parallel_adapter"):
        assert set(METHODS[method].field("activation").choices) == set(ACTIVATIONS)


def test_an_unknown_activation_is_refused() -> None:
    config = configuration(setting("serial_adapter", (0,), bottleneck=2, activation="sine"))
    with pytest.raises(ConfigurationError, match=r"serial_adapter: unknown activation 'sine'.*gelu, relu, silu, tanh"):
        build(shape_of(build_base("bert")), config, seed=0)


def test_a_layer_of_experts_is_refused() -> None:
    shape = shape_of(build_base("llama"))
    down = next(site for site in shape.layers[0] if site.role is Role.MLP_DOWN)
    experts = tuple(replace(down, name=f"mlp.experts.{index}.down_proj") for index in range(2))
    rows = (tuple(site for site in shape.layers[0] if site is not down) + experts,)
    config = configuration(setting("serial_adapter", (0,), bottleneck=2))
    with pytest.raises(
        ConfigurationError, match="layer 0 of this llama model needs exactly one mlp_down site, it has 2"
    ):
        build(replace(shape, layers=rows), config, seed=0)
