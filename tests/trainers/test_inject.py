from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from autopeft.errors import ConfigurationError, ModelError
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.model_shape import ModelShape
from autopeft.trainers.inject import AdapterSet, build, inject, merge, without
from autopeft.trainers.sites import layers_of, measure
from tests.configurations import configuration, setting
from tests.models import build_base

BERT_TARGETS = ("attention.self.query", "attention.self.value")


@pytest.fixture
def base() -> PreTrainedModel:
    return build_base("bert")


@pytest.fixture
def shape(base: PreTrainedModel) -> ModelShape:
    return measure(base, base.config)


def all_four(*layers: int) -> Configuration:
    return configuration(
        setting("lora", layers, rank=2, targets=BERT_TARGETS),
        setting("serial_adapter", layers, bottleneck=3),
        setting("parallel_adapter", layers, bottleneck=3),
        setting("prefix_tuning", layers, length=2),
    )


def lora(*layers: int) -> Configuration:
    return configuration(setting("lora", layers, rank=2, targets=BERT_TARGETS))


def tokens() -> torch.Tensor:
    return torch.randint(5, 50, (2, 7), generator=torch.Generator().manual_seed(1))


def output(base: PreTrainedModel) -> torch.Tensor:
    return base(input_ids=tokens()).last_hidden_state


def disturb(adapters: AdapterSet) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


def test_parameter_names_say_method_layer_and_place(base: PreTrainedModel, shape: ModelShape) -> None:
    names = [name for name, _ in build(shape, all_four(1), seed=0).named_parameters()]
    halves = ["down.weight", "down.bias", "up.weight", "up.bias"]
    assert names == [
        *(f"lora.1.{target.replace('.', '_')}.{factor}" for target in BERT_TARGETS for factor in "ab"),
        *(f"serial_adapter.1.bottleneck.{half}" for half in halves),
        *(f"parallel_adapter.1.bottleneck.{half}" for half in halves),
        "prefix_tuning.1.key",
        "prefix_tuning.1.value",
    ]


def test_equal_seeds_give_equal_tensors_and_global_chance_is_untouched(shape: ModelShape) -> None:
    before = torch.get_rng_state()
    first, again, other = (build(shape, all_four(0, 2), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.get_parameter("prefix_tuning.0.key"), other.get_parameter("prefix_tuning.0.key"))


@pytest.mark.parametrize("method", ["lora", "serial_adapter", "parallel_adapter", "prefix_tuning"])
def test_backward_stops_at_the_lowest_adapted_layer(method: str, base: PreTrainedModel, shape: ModelShape) -> None:
    whole = all_four(2)
    config = replace(whole, methods=tuple(row for row in whole.methods if row.method == method))
    layers = layers_of(base, shape)
    seen: dict[str, bool] = {}
    base.get_input_embeddings().register_forward_hook(lambda _, args, y: seen.update(embeddings=y.requires_grad))
    for index, layer in enumerate(layers):
        layer.register_forward_hook(lambda _, args, y, index=index: seen.update({str(index): y.requires_grad}))
    saved: list[int] = []
    layers[2].register_forward_pre_hook(lambda _, args: seen.update(count_below=bool(saved)))
    record = torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x)
    with inject(base, shape, config, seed=0), record:
        output(base)
    assert seen == {"embeddings": False, "0": False, "1": False, "2": True, "count_below": False}
    assert saved


def test_a_second_injection_is_refused_until_the_first_is_removed(base: PreTrainedModel, shape: ModelShape) -> None:
    first = inject(base, shape, lora(0), seed=0)
    with pytest.raises(ModelError, match=r"already carries adapters.*\.remove\(\)"):
        inject(base, shape, lora(1), seed=0)
    first.remove()
    first.remove()
    inject(base, shape, lora(1), seed=0).remove()


def test_a_failed_injection_leaves_nothing_behind() -> None:
    base = build_base("deberta-v2")
    shape = replace(measure(base, base.config), closed_attention=())  # which only attaching finds to be closed
    before = output(base)
    config = configuration(setting("serial_adapter", (0,), bottleneck=3), setting("prefix_tuning", (0,), length=2))
    with pytest.raises(ModelError, match="prefix_tuning"):
        inject(base, shape, config, seed=0)
    assert torch.equal(output(base), before)
    with inject(base, shape, configuration(setting("serial_adapter", (0,), bottleneck=3)), seed=0):
        assert not torch.equal(output(base), before)


def test_leaving_the_block_removes_the_adapters_even_after_an_error(base: PreTrainedModel, shape: ModelShape) -> None:
    before = output(base)
    adapters = inject(base, shape, all_four(0), seed=0)
    disturb(adapters)
    with pytest.raises(IndexError), adapters:
        base(input_ids=torch.tensor([[10**6]]))
    assert torch.equal(output(base), before)
    assert not adapters.attached


def test_an_empty_configuration_trains_nothing(base: PreTrainedModel, shape: ModelShape) -> None:
    before = output(base)
    with inject(base, shape, configuration(), seed=0) as adapters:
        assert torch.equal(output(base), before)
        assert adapters.n_parameters == 0


def test_a_fresh_set_is_in_eval_mode_and_train_turns_dropout_on(base: PreTrainedModel, shape: ModelShape) -> None:
    config = configuration(setting("lora", (0,), rank=2, targets=BERT_TARGETS, dropout=0.5))
    with inject(base, shape, config, seed=0) as adapters:
        disturb(adapters)
        assert torch.equal(output(base), output(base))
        adapters.train()
        assert not torch.equal(output(base), output(base))
        assert not base.training


def test_adapters_can_be_kept_in_another_dtype(base: PreTrainedModel, shape: ModelShape) -> None:
    with inject(base, shape, all_four(0), seed=0, dtype=torch.bfloat16) as adapters:
        assert {parameter.dtype for parameter in adapters.parameters()} == {torch.bfloat16}
        assert output(base).dtype == torch.float32


def test_adapters_move_from_one_model_to_another(base: PreTrainedModel, shape: ModelShape) -> None:
    other = build_base("bert")
    adapters = inject(base, shape, all_four(0, 1), seed=0)
    disturb(adapters)
    expected = output(base)
    adapters.remove()
    adapters.attach(other, shape)
    assert torch.equal(output(other), expected)


def test_the_bare_model_can_be_asked_in_between(base: PreTrainedModel, shape: ModelShape) -> None:
    before = output(base)
    adapters = inject(base, shape, all_four(1), seed=0)
    disturb(adapters)
    changed = output(base)
    with without(adapters, base, shape):
        assert torch.equal(output(base), before)
    assert torch.equal(output(base), changed)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_merged_weights_compute_the_same_and_come_apart_bit_for_bit(name: str) -> None:
    base = build_base(name)
    shape = measure(base, base.config)
    targets = tuple(site.name for site in shape.layers[0])
    config = configuration(setting("lora", (0, 2), rank=[2, 3], targets=targets, alpha=[4.0, 9.0]))
    adapters = inject(base, shape, config, seed=0)
    disturb(adapters)
    weights = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    expected = output(base)
    merged = merge(adapters, base, shape)
    torch.testing.assert_close(output(base), expected, atol=1e-4, rtol=1e-4)
    assert not adapters.attached
    assert merged.unmerge() is adapters
    assert all(torch.equal(weights[key], tensor) for key, tensor in base.state_dict().items())
    assert torch.equal(output(base), expected)


def test_what_is_no_change_of_a_weight_does_not_merge(base: PreTrainedModel, shape: ModelShape) -> None:
    adapters = inject(base, shape, all_four(0), seed=0)
    message = "parallel_adapter, prefix_tuning, serial_adapter cannot be merged into the base weights"
    with pytest.raises(ConfigurationError, match=message):
        merge(adapters, base, shape)


def test_merging_twice_is_refused(base: PreTrainedModel, shape: ModelShape) -> None:
    adapters = inject(base, shape, lora(0), seed=0)
    merge(adapters, base, shape)
    with pytest.raises(ModelError, match="these adapters are not attached to a model"):
        merge(adapters, base, shape)


def test_a_layer_that_does_not_exist_is_refused(shape: ModelShape) -> None:
    with pytest.raises(ConfigurationError, match=r"lora: layer 3 does not exist.*layers 0 to 2"):
        build(shape, lora(1, 3), seed=0)


def test_an_unknown_method_is_refused(shape: ModelShape) -> None:
    with pytest.raises(ConfigurationError, match=r"unknown method 'magic'.*lora, .*serial_adapter"):
        build(shape, configuration(setting("magic", (0,), size=1)), seed=0)
