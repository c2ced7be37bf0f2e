from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from autopeft.objectives.parameters import count_parameters
from autopeft.spaces.configuration import Configuration
from autopeft.trainers.adapters.s2_lora import SharedFactors, SharedPair
from autopeft.trainers.inject import AdapterSet, build, inject
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.model import load_model
from autopeft.trainers.saved import restore_adapter, save_adapter
from autopeft.trainers.sites import layers_of, measure
from tests.configurations import configuration, setting
from tests.models import build_base, save_model

QUERY, VALUE, DOWN = "attention.self.query", "attention.self.value", "output.dense"


@pytest.fixture
def base() -> PreTrainedModel:
    return build_base("bert")


def shared(**fields: object) -> Configuration:
    columns = {"rank": [4, 2, 3], "targets": [(QUERY, VALUE), (QUERY,), (VALUE, DOWN)]} | fields
    return configuration(setting("s2_lora", (0, 1, 2), **columns))


def pairs_of(adapters: AdapterSet) -> list[SharedPair]:
    return [module for module in adapters.modules() if isinstance(module, SharedPair)]


def fill(adapters: AdapterSet) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def output(base: PreTrainedModel) -> torch.Tensor:
    ids = torch.randint(5, 50, (2, 7), generator=torch.Generator().manual_seed(1))
    return base(input_ids=ids).last_hidden_state


def test_factors_are_counted_and_stored_once_a_shape_at_the_largest_rank(base: PreTrainedModel) -> None:
    shape = measure(base, base.config)
    adapters = build(shape, shared(), seed=0)
    n_square, n_down, n_weights = 4 * (32 + 32), 3 * (48 + 32), 2 * 4 + 2 + 2 * 3
    assert adapters.n_parameters == n_square + n_down + n_weights
    assert sum(tensor.numel() for tensor in adapters.state_dict().values()) == adapters.n_parameters
    count = count_parameters(shared(), shape)
    assert count.total == adapters.n_parameters
    assert count.by_layer == {0: n_square + n_down + 2 * 4, 1: 2, 2: 2 * 3}


def test_each_map_computes_b_diagonal_a_with_the_first_rows_of_the_shared_factors(base: PreTrainedModel) -> None:
    shape = measure(base, base.config)
    adapters = inject(base, shape, shared(alpha=6.0), seed=0)
    fill(adapters)
    square, down = (module for module in adapters.modules() if isinstance(module, SharedFactors))
    expected = {(0, QUERY): 4, (0, VALUE): 4, (1, QUERY): 2, (2, VALUE): 3, (2, DOWN): 3}
    layers = layers_of(base, shape)
    for (layer, target), rank in expected.items():
        factors = down if target == DOWN else square
        pair = adapters.get_submodule(f"s2_lora.{layer}.{target.replace('.', '_')}")
        linear = layers[layer].get_submodule(target)
        delta = 6.0 / rank * factors.b[:, :rank] @ torch.diag(pair.weights) @ factors.a[:rank]
        x = torch.randn(3, linear.in_features)
        torch.testing.assert_close(
            linear(x), functional.linear(x, linear.weight + delta, linear.bias), atol=1e-4, rtol=1e-4
        )
    adapters.remove()


def test_layers_share_one_pair_of_tensors_also_after_a_move(base: PreTrainedModel) -> None:
    adapters = inject(base, measure(base, base.config), shared(), seed=0)
    fill(adapters)
    first, *_, last = pairs_of(adapters)
    (ours,), (theirs,) = first._factors, pairs_of(adapters)[-2]._factors
    assert ours is theirs
    assert last._factors[0] is not ours
    adapters.to(torch.float64).to(torch.float32)
    assert first._factors[0].a is pairs_of(adapters)[-2]._factors[0].a
    adapters.remove()


def test_the_penalty_is_the_weighted_sum_of_all_magnitudes(base: PreTrainedModel) -> None:
    adapters = inject(base, measure(base, base.config), shared(sparsity=0.01), seed=0)
    assert adapters.penalty() == 0
    fill(adapters)
    expected = 0.01 * sum(pair.weights.abs().sum() for pair in pairs_of(adapters))
    torch.testing.assert_close(adapters.penalty(), expected)
    adapters.remove()
    assert build(measure(base, base.config), shared(sparsity=0.0), seed=0).penalty() is None


def test_a_saved_adapter_shares_again_when_it_is_loaded(tmp_path: Path) -> None:
    loaded = load_model(
        ModelSpec(name=str(save_model("bert", tmp_path / "base"))), kind="text-classification", n_labels=2
    )
    adapters = inject(loaded.model, loaded.shape, shared(), seed=0)
    fill(adapters)
    expected = output(loaded.model.base_model)
    save_adapter(tmp_path / "adapter", adapters, loaded=loaded, task={})
    restored = restore_adapter(tmp_path / "adapter")
    assert torch.equal(output(restored.loaded.model.base_model), expected)
    assert restored.adapters.n_parameters == adapters.n_parameters
