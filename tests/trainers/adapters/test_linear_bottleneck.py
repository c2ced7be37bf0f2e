from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from autopeft.errors import ConfigurationError
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.linear_series import INITIALISATIONS
from autopeft.spaces.model_shape import ModelShape, Role
from autopeft.trainers.adapters.linear_bottleneck import LinearBottleneck, LinearParallelAdapter, LinearSeriesAdapter
from autopeft.trainers.inject import AdapterSet, build, inject, merge
from autopeft.trainers.sites import layers_of, measure
from tests.configurations import configuration, setting
from tests.models import build_base

MODELS = ("llama", "bert", "gpt2", "opt")


@pytest.fixture(params=MODELS)
def base(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build_base(request.param)


def shape_of(base: PreTrainedModel) -> ModelShape:
    return measure(base, base.config)


def disturb(adapters: AdapterSet) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def names(shape: ModelShape, *roles: Role) -> tuple[str, ...]:
    return tuple(site.name for site in shape.layers[1] if not roles or site.role in roles)


def at_site(base: PreTrainedModel, shape: ModelShape, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(input before any adapter, output after all) of a site of layer 1."""
    seen: dict[str, torch.Tensor] = {}
    linear = layers_of(base, shape)[1].get_submodule(name)
    handles = [
        linear.register_forward_pre_hook(lambda _, args: seen.update(x=args[0].clone()), prepend=True),
        linear.register_forward_hook(lambda _, args, output: seen.update(y=output.clone())),
    ]
    base(input_ids=torch.randint(5, 50, (2, 6), generator=torch.Generator().manual_seed(1)))
    for handle in handles:
        handle.remove()
    return seen["x"], seen["y"]


def plain(base: PreTrainedModel, shape: ModelShape, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The site's map without hooks."""
    linear = layers_of(base, shape)[1].get_submodule(name)
    weight = linear.weight if isinstance(linear, nn.Linear) else linear.weight.T
    return lambda x: nn.functional.linear(x, weight, linear.bias)


def formula(module: LinearBottleneck, x: torch.Tensor) -> torch.Tensor:
    return module.scale * (torch.tanh(x @ module.down.T) @ module.up.T)


def test_series_acts_on_the_input_of_gate_and_up_and_on_the_output_of_the_rest(base: PreTrainedModel) -> None:
    shape = shape_of(base)
    config = configuration(setting("linear_series", (1,), bottleneck=3, targets=names(shape), scale=0.5))
    with inject(base, shape, config, seed=0) as adapters:
        disturb(adapters)
        (adapter,) = (adapter for _, _, adapter in adapters.adapters())
        assert isinstance(adapter, LinearSeriesAdapter)
        for site in shape.layers[1]:
            f, linear = adapter.bottleneck(site.name), plain(base, shape, site.name)
            x, y = at_site(base, shape, site.name)
            on_input = site.role in (Role.MLP_GATE, Role.MLP_UP)
            expected = linear(x + formula(f, x)) if on_input else linear(x) + formula(f, linear(x))
            torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)
    assert {site.role for site in shape.layers[1]} >= {Role.MLP_UP, Role.MLP_DOWN, Role.ATTENTION_OUTPUT}


def test_parallel_adds_to_every_target_from_its_own_input(base: PreTrainedModel) -> None:
    shape = shape_of(base)
    config = configuration(setting("linear_parallel", (1,), bottleneck=3, targets=names(shape), scale=2.0))
    with inject(base, shape, config, seed=0) as adapters:
        disturb(adapters)
        (adapter,) = (adapter for _, _, adapter in adapters.adapters())
        assert isinstance(adapter, LinearParallelAdapter)
        for name in names(shape):
            x, y = at_site(base, shape, name)
            expected = plain(base, shape, name)(x) + formula(adapter.bottleneck(name), x)
            torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)


def test_both_on_one_map_with_lora_act_in_the_documented_order() -> None:
    base = build_base("llama")
    shape = shape_of(base)
    (down,), (up,) = names(shape, Role.MLP_DOWN), names(shape, Role.MLP_UP)
    config = configuration(
        setting("linear_series", (1,), bottleneck=3, targets=(up, down)),
        setting("linear_parallel", (1,), bottleneck=4, targets=(up, down)),
        setting("lora", (1,), rank=2, targets=(up, down)),
    )
    with inject(base, shape, config, seed=0) as adapters:
        disturb(adapters)
        by_method = {method: adapter for method, _, adapter in adapters.adapters()}
        series, parallel, lora = (by_method[name] for name in ("linear_series", "linear_parallel", "lora"))
        x, y = at_site(base, shape, down)
        w = plain(base, shape, down)(x) + lora.pair(down)(x, torch.zeros(()).expand_as(y))  # type: ignore[union-attr]
        expected = w + formula(series.bottleneck(down), w) + formula(parallel.bottleneck(down), x)  # type: ignore[union-attr]
        torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)
        x, y = at_site(base, shape, up)
        v = x + formula(series.bottleneck(up), x)  # type: ignore[union-attr]
        w = plain(base, shape, up)(v) + lora.pair(up)(v, torch.zeros(()).expand_as(y))  # type: ignore[union-attr]
        torch.testing.assert_close(y, w + formula(parallel.bottleneck(up), v), atol=1e-4, rtol=1e-4)  # type: ignore[union-attr]


def test_the_parallel_adapter_of_the_block_reads_the_input_that_a_series_adapter_has_not_changed() -> None:
    base = build_base("llama")
    shape = shape_of(base)
    (up,), (down,) = names(shape, Role.MLP_UP), names(shape, Role.MLP_DOWN)
    series = setting("linear_series", (1,), bottleneck=3, targets=(up,))
    with inject(base, shape, configuration(series), seed=0) as adapters:
        disturb(adapters)
        x, _ = at_site(base, shape, up)
        _, z = at_site(base, shape, down)
    both = configuration(series, setting("parallel_adapter", (1,), bottleneck=3))
    with inject(base, shape, both, seed=0) as adapters:
        disturb(adapters)
        block = next(adapter for method, _, adapter in adapters.adapters() if method == "parallel_adapter").bottleneck
        _, changed = at_site(base, shape, down)
    hidden = torch.relu(x @ block.down.weight.T + block.down.bias)
    expected = z + block.scale * (hidden @ block.up.weight.T + block.up.bias)
    torch.testing.assert_close(changed, expected, atol=1e-4, rtol=1e-4)


def test_dropout_acts_in_training_only() -> None:
    module = LinearBottleneck(d_in=50, d_out=4, bottleneck=3, activation="tanh", scale=1.0, dropout=0.5)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, base = torch.ones(2, 50), torch.zeros(2, 4)
    module.train()
    assert not torch.equal(module(x, base), module(x, base))
    module.eval()
    assert torch.equal(module(x, base), module(x, base))


@pytest.mark.parametrize("method", ["linear_series", "linear_parallel"])
def test_initialisation_is_that_of_bert_or_of_mam(method: str) -> None:
    base = build_base("bert")
    shape = shape_of(base)
    for init in INITIALISATIONS:
        row = setting(method, (0,), bottleneck=64, targets=("output.dense",), init=init)
        down, up = build(shape, configuration(row), seed=0).parameters()
        if init == "bert":
            assert 0.018 < down.std() < 0.022
            assert 0.018 < up.std() < 0.022
        else:
            assert down.std() > 0.07
            assert not up.any()
    assert METHODS[method].field("init").default == "bert"


@pytest.mark.parametrize("method", ["linear_series", "linear_parallel"])
def test_unknown_words_are_refused_with_those_there_are(method: str) -> None:
    shape = shape_of(build_base("bert"))
    for columns, message in (
        ({"activation": "sine"}, f"{method}: unknown activation 'sine'.*gelu, relu, silu, tanh"),
        ({"init": "ones"}, f"{method}: unknown init 'ones'.*use bert or mam"),
        ({"targets": ("dens",)}, f"{method}: layer 0 has no linear site 'dens'.*output.dense"),
    ):
        row = setting(method, (0,), bottleneck=2, **{"targets": ("output.dense",), **columns})
        with pytest.raises(ConfigurationError, match=message):
            build(shape, configuration(row), seed=0)


def test_neither_merges() -> None:
    base = build_base("bert")
    shape = shape_of(base)
    config = configuration(
        setting("linear_series", (0,), bottleneck=2, targets=("output.dense",)),
        setting("linear_parallel", (0,), bottleneck=2, targets=("output.dense",)),
    )
    adapters = inject(base, shape, config, seed=0)
    with pytest.raises(ConfigurationError, match="linear_parallel, linear_series cannot be merged"):
        merge(adapters, base, shape)
