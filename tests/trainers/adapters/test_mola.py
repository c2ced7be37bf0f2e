import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.model_shape import ModelShape
from autopeft.trainers.adapters.mola import MolaAdapter, RoutedExperts
from autopeft.trainers.inject import AdapterSet, build, inject, merge
from autopeft.trainers.sites import measure
from tests.configurations import configuration, setting
from tests.models import build_base

TARGETS = ("attention.self.query", "output.dense")


@pytest.fixture
def base() -> PreTrainedModel:
    return build_base("bert")


def shape_of(base: PreTrainedModel) -> ModelShape:
    return measure(base, base.config)


def disturb(module: nn.Module, *, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


def routed(*, d_in: int = 6, d_out: int = 5, experts: int = 4, rank: int = 2, top_k: int = 2) -> RoutedExperts:
    site = RoutedExperts(d_in=d_in, d_out=d_out, experts=experts, rank=rank, alpha=3.0, dropout=0.0, top_k=top_k)
    disturb(site)
    return site


def slow_twin(site: RoutedExperts, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """The authors' formulation: softmax over all experts, the largest divided by their sum, expert after expert."""
    rows = x.reshape(-1, x.shape[-1])
    result = output.reshape(len(rows), -1).clone()
    for row, token in enumerate(rows):
        probabilities = torch.softmax(site.router @ token, dim=0)
        order = probabilities.tolist()
        best = sorted(range(len(order)), key=lambda expert: -order[expert])[: site.top_k]
        total = sum(probabilities[expert] for expert in best)
        for expert in best:
            block = slice(expert * site.rank, (expert + 1) * site.rank)
            update = site.scale * site.b[:, block] @ (site.a[block] @ token)
            result[row] += probabilities[expert] / total * update
    return result.reshape(output.shape)


@settings(max_examples=40, deadline=None)
@given(
    experts=st.integers(1, 6),
    rank=st.integers(1, 4),
    d_in=st.integers(1, 8),
    d_out=st.integers(1, 8),
    rows=st.lists(st.integers(1, 3), min_size=0, max_size=2),
    data=st.data(),
)
def test_the_stacked_experts_compute_what_a_loop_over_experts_does(
    experts: int, rank: int, d_in: int, d_out: int, rows: list[int], data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, experts))
    site = routed(d_in=d_in, d_out=d_out, experts=experts, rank=rank, top_k=top_k)
    x, output = torch.randn(*rows, 2, d_in), torch.randn(*rows, 2, d_out)
    updated, logits, chosen = site(x, output)
    torch.testing.assert_close(updated, slow_twin(site, x, output), atol=1e-4, rtol=1e-4)
    assert logits.shape == (*rows, 2, experts)
    assert chosen.shape == (*rows, 2, top_k)


def test_the_stacked_experts_have_the_gradients_of_a_loop_over_experts() -> None:
    site, x, output = routed(), torch.randn(2, 3, 6), torch.randn(2, 3, 5)
    site(x, output)[0].square().sum().backward()
    ours = [parameter.grad for parameter in site.parameters()]
    site.zero_grad()
    slow_twin(site, x, output).square().sum().backward()
    for mine, theirs in zip(ours, site.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.grad, atol=1e-3, rtol=1e-3)


def test_all_experts_of_a_site_run_in_two_products_and_the_router() -> None:
    site = routed(experts=6)
    x, output = torch.randn(2, 3, 6), torch.randn(2, 3, 5)
    with torch.profiler.profile() as profile:
        site(x, output)
    calls = [event.name for event in profile.events() or () if event.name in ("aten::mm", "aten::addmm", "aten::bmm")]
    assert len(calls) == 3


def test_dropout_acts_in_training_only() -> None:
    site = RoutedExperts(d_in=50, d_out=4, experts=2, rank=2, alpha=2.0, dropout=0.5, top_k=2)
    disturb(site)
    x, output = torch.ones(2, 50), torch.zeros(2, 4)
    site.train()
    assert not torch.equal(site(x, output)[0], site(x, output)[0])
    site.eval()
    assert torch.equal(site(x, output)[0], site(x, output)[0])


def test_routers_and_a_are_drawn_as_linear_layers_are_and_b_is_zero(base: PreTrainedModel) -> None:
    config = configuration(setting("mola", (0,), experts=8, rank=4, targets=("output.dense",)))
    adapter = next(adapter for _, _, adapter in build(shape_of(base), config, seed=3).adapters())
    assert isinstance(adapter, MolaAdapter)
    site, bound = adapter.experts("output.dense"), 1 / 48**0.5
    for tensor in (site.router, site.a):
        assert 0.9 * bound < tensor.abs().max() <= bound
    assert not site.b.any()
    assert site.scale == 4.0


def attached(base: PreTrainedModel, **columns: FieldValue) -> AdapterSet:
    config = configuration(setting("mola", (0, 2), experts=[3, 5], rank=2, targets=TARGETS, **columns))
    adapters = inject(base, shape_of(base), config, seed=0)
    disturb(adapters)
    return adapters.train()


def padded_batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, 50, (2, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    return ids, mask


def slow_penalty(base: PreTrainedModel, adapters: AdapterSet, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """E * sum f_e P_e a layer over the real tokens of all its targets, from the inputs that the sites saw."""
    layers = base.encoder.layer
    total = torch.zeros(())
    for _, layer, adapter in adapters.adapters():
        assert isinstance(adapter, MolaAdapter)
        rows: list[torch.Tensor] = []
        handles = [
            layers[layer]
            .get_submodule(target)
            .register_forward_pre_hook(
                lambda _, args, target=target, adapter=adapter, rows=rows: rows.append(
                    torch.softmax(args[0][mask.bool()] @ adapter.experts(target).router.T, dim=-1)
                )
            )
            for target in TARGETS
        ]
        base(input_ids=ids, attention_mask=mask)
        for handle in handles:
            handle.remove()
        probabilities = torch.cat(rows)
        counts = torch.zeros(probabilities.shape[1])
        for token in probabilities:
            for expert in token.topk(2).indices:
                counts[expert] += 1
        total = total + len(counts) * (counts / counts.sum() * probabilities.mean(dim=0)).sum()
    return total


def test_the_balance_loss_is_that_of_the_real_tokens(base: PreTrainedModel) -> None:
    ids, mask = padded_batch()
    adapters = attached(base, balance=0.01)
    expected = 0.01 * slow_penalty(base, adapters, ids, mask)
    base(input_ids=ids, attention_mask=mask)
    penalty = adapters.penalty()
    assert penalty is not None
    torch.testing.assert_close(penalty, expected)
    ids[1, 4:] = 7
    base(input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(adapters.penalty(), expected)
    base(ids, mask)
    torch.testing.assert_close(adapters.penalty(), expected)
    base(input_ids=ids)
    assert not torch.isclose(adapters.penalty(), expected, rtol=1e-4)  # type: ignore[arg-type]  # in training mode


def test_the_balance_loss_reaches_every_router(base: PreTrainedModel) -> None:
    ids, mask = padded_batch()
    adapters = attached(base)
    base(input_ids=ids, attention_mask=mask)
    penalty = adapters.penalty()
    assert penalty is not None
    penalty.backward()
    routers = {name for name, _ in adapters.named_parameters() if name.endswith("router")}
    moved = {n for n, p in adapters.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert len(routers) == 4
    assert routers <= moved


def test_with_one_expert_a_token_the_router_learns_from_the_balance_loss_alone(base: PreTrainedModel) -> None:
    ids, mask = padded_batch()
    adapters = attached(base, top_k=1)
    routers = [parameter for name, parameter in adapters.named_parameters() if name.endswith("router")]
    base(input_ids=ids, attention_mask=mask).last_hidden_state.square().sum().backward()
    assert not any(router.grad is not None and router.grad.any() for router in routers)
    base(input_ids=ids, attention_mask=mask)
    penalty = adapters.penalty()
    assert penalty is not None
    penalty.backward()
    assert all(router.grad is not None and router.grad.any() for router in routers)


def test_each_forward_pass_has_a_balance_loss_of_its_own(base: PreTrainedModel) -> None:
    ids, mask = padded_batch()
    adapters = attached(base)
    assert adapters.penalty() is None
    base(input_ids=ids, attention_mask=mask)
    first = adapters.penalty()
    base(input_ids=ids, attention_mask=mask)
    base(input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(adapters.penalty(), first)
    assert adapters.penalty() is None


def test_evaluation_and_a_balance_of_zero_have_no_loss(base: PreTrainedModel) -> None:
    ids, mask = padded_batch()
    with attached(base) as adapters:
        adapters.eval()
        base(input_ids=ids, attention_mask=mask)
        assert adapters.penalty() is None
    with attached(base, balance=0.0) as adapters:
        base(input_ids=ids, attention_mask=mask)
        assert adapters.penalty() is None


def test_the_balance_loss_is_one_at_balance_and_the_number_of_experts_at_collapse(base: PreTrainedModel) -> None:
    config = configuration(
        setting("mola", (1,), experts=4, rank=2, top_k=1, targets=("attention.self.query",), balance=1.0)
    )
    adapters = inject(base, shape_of(base), config, seed=0).train()
    (adapter,) = (adapter for _, _, adapter in adapters.adapters())
    assert isinstance(adapter, MolaAdapter)
    router = adapter.experts("attention.self.query").router
    with torch.no_grad():
        router.zero_()
    base(input_ids=padded_batch()[0])
    torch.testing.assert_close(adapters.penalty(), torch.tensor(1.0))
    seen: list[torch.Tensor] = []
    handle = base.encoder.layer[1].attention.self.query.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    base(input_ids=padded_batch()[0])
    handle.remove()
    with torch.no_grad():
        router[2] = torch.linalg.lstsq(seen[0].reshape(-1, 32), torch.full((14,), 50.0)).solution
    base(input_ids=padded_batch()[0])
    torch.testing.assert_close(adapters.penalty(), torch.tensor(4.0), atol=1e-3, rtol=1e-3)


def test_removal_takes_the_hook_off_the_base_model_too(base: PreTrainedModel) -> None:
    before = len(base._forward_pre_hooks)
    adapters = attached(base)
    assert len(base._forward_pre_hooks) == before + 2
    adapters.remove()
    assert len(base._forward_pre_hooks) == before


def test_a_model_with_a_head_gives_its_base_the_mask() -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(build_base("llama").config).eval()
    model.requires_grad_(False)
    shape = measure(model.base_model, model.config)
    config = configuration(setting("mola", (0,), experts=4, rank=2, targets=("self_attn.q_proj",)))
    adapters = inject(model, shape, config, seed=0).train()
    ids, mask = padded_batch()
    model(input_ids=ids, attention_mask=mask)
    first = adapters.penalty()
    ids[1, 4:] = 9
    model(input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(adapters.penalty(), first)


def test_routed_experts_are_refused_by_merge_by_name(base: PreTrainedModel) -> None:
    adapters = attached(base)
    with pytest.raises(ConfigurationError, match="mola cannot be merged into the base weights"):
        merge(adapters, base, shape_of(base))
