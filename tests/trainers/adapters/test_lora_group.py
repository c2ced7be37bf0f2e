import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from autopeft.trainers.adapters.adapter import AbstractAdapter
from autopeft.trainers.adapters.lora import LoraPair
from autopeft.trainers.adapters.lora_group import LoraGroupAdapter
from autopeft.trainers.inject import AdapterSet, build, inject, merge
from autopeft.trainers.sites import measure
from tests.configurations import configuration, setting
from tests.models import build_base

TARGETS = ("attention.self.query", "output.dense")


def disturb(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def only(adapters: AdapterSet) -> LoraGroupAdapter:
    (adapter,) = (adapter for _, _, adapter in adapters.adapters())
    assert isinstance(adapter, LoraGroupAdapter)
    return adapter


def members(pair: LoraPair, n: int) -> list[torch.Tensor]:
    """B_i A_i of every member."""
    return [b @ a for a, b in zip(pair.a.chunk(n, dim=0), pair.b.chunk(n, dim=1), strict=True)]


def slow_overlap(weight: torch.Tensor, updates: list[torch.Tensor]) -> torch.Tensor:
    """Equations of the paper as the authors compute them, with full matrices."""
    total = torch.zeros(())
    for index, update in enumerate(updates):
        total = total + (weight @ update.T).abs().sum()
        for other in updates[index + 1 :]:
            total = total + (update @ other.T).abs().sum()
    return total


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 4),
    rank=st.integers(1, 3),
    d_in=st.integers(3, 7),
    d_out=st.integers(3, 7),
    transposed=st.booleans(),
)
def test_the_penalty_is_that_of_the_full_matrices(n: int, rank: int, d_in: int, d_out: int, transposed: bool) -> None:
    pair = LoraPair(d_in=d_in, d_out=d_out, rank=n * rank, alpha=1.0, dropout=0.0)
    disturb(pair)
    linear = Conv1D(d_out, d_in) if transposed else nn.Linear(d_in, d_out)
    adapter = LoraGroupAdapter({"map": pair}, members=n, orthogonality=0.5)
    assert adapter.penalty() is None
    layer = nn.ModuleDict({"map": linear})
    handles = adapter.attach(build_base("bert"), layer)
    weight = linear.weight.T if transposed else linear.weight
    penalty, expected = adapter.penalty(), 0.5 * slow_overlap(weight, members(pair, n))
    torch.testing.assert_close(penalty, expected, atol=1e-4, rtol=1e-4)
    ours = torch.autograd.grad(penalty, list(pair.parameters()))  # type: ignore[arg-type]  # attached
    theirs = torch.autograd.grad(expected, list(pair.parameters()))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-3, rtol=1e-3)
    for handle in handles:
        handle.remove()
    assert adapter.penalty() is None
    assert not any(name.startswith("_linears") for name, _ in adapter.named_modules())


def test_the_group_adds_the_scaled_sum_of_its_members() -> None:
    base = build_base("bert")
    shape = measure(base, base.config)
    config = configuration(setting("lora_group", (1,), rank=2, group=3, targets=("output.dense",), scale=0.5))
    with inject(base, shape, config, seed=0) as adapters:
        disturb(adapters)
        pair = only(adapters).pair("output.dense")
        x, output = torch.randn(2, 5, 48), torch.randn(2, 5, 32)
        expected = output + 0.5 * x @ sum(members(pair, 3)).T  # type: ignore[union-attr]  # three tensors
        torch.testing.assert_close(pair(x, output), expected, atol=1e-5, rtol=1e-5)


def test_members_start_different_at_zero_update_and_zero_penalty() -> None:
    base = build_base("bert")
    shape = measure(base, base.config)
    config = configuration(setting("lora_group", (1,), rank=4, targets=TARGETS))
    with inject(base, shape, config, seed=0) as adapters:
        pair = only(adapters).pair("output.dense")
        first, second = pair.a.chunk(2, dim=0)
        assert first.shape == (4, 48)
        assert not torch.equal(first, second)
        assert 0.9 / 48**0.5 < pair.a.abs().max() <= 1 / 48**0.5
        assert not pair.b.any()
        torch.testing.assert_close(adapters.penalty(), torch.tensor(0.0))


def test_an_orthogonality_of_zero_has_no_penalty() -> None:
    base = build_base("bert")
    shape = measure(base, base.config)
    config = configuration(setting("lora_group", (1,), rank=4, targets=TARGETS, orthogonality=0.0))
    with inject(base, shape, config, seed=0) as adapters:
        assert adapters.penalty() is None


def test_the_penalty_pushes_members_apart_and_away_from_the_weights() -> None:
    base = build_base("bert")
    shape = measure(base, base.config)
    config = configuration(setting("lora_group", (1,), rank=2, targets=TARGETS, orthogonality=1.0))
    with inject(base, shape, config, seed=0) as adapters:
        disturb(adapters)
        optimizer = torch.optim.SGD(adapters.parameters(), lr=1e-6)
        before = adapters.penalty()
        assert before is not None
        for _ in range(5):
            optimizer.zero_grad()
            penalty = adapters.penalty()
            assert penalty is not None
            penalty.backward()
            optimizer.step()
        after = adapters.penalty()
        assert after is not None
        assert after < before
        assert all(parameter.grad is None for parameter in base.parameters())


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_a_merged_group_computes_the_same_and_comes_apart(name: str) -> None:
    base = build_base(name)
    shape = measure(base, base.config)
    targets = tuple(site.name for site in shape.layers[0])
    config = configuration(setting("lora_group", (0, 2), rank=[2, 3], group=[2, 3], targets=targets))
    adapters = inject(base, shape, config, seed=0)
    disturb(adapters)
    ids = torch.randint(5, 50, (2, 6), generator=torch.Generator().manual_seed(0))
    expected = base(input_ids=ids).last_hidden_state
    weights = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    merged = merge(adapters, base, shape)
    torch.testing.assert_close(base(input_ids=ids).last_hidden_state, expected, atol=1e-4, rtol=1e-4)
    merged.unmerge()
    assert all(torch.equal(weights[key], tensor) for key, tensor in base.state_dict().items())
    assert torch.equal(base(input_ids=ids).last_hidden_state, expected)


def test_equal_seeds_draw_equal_groups() -> None:
    base = build_base("bert")
    shape = measure(base, base.config)
    config = configuration(setting("lora_group", (0, 2), rank=2, targets=TARGETS))
    first, second = (dict(build(shape, config, seed=5).named_parameters()) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(isinstance(adapter, AbstractAdapter) for _, _, adapter in build(shape, config, seed=5).adapters())
