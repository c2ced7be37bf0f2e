"""The frozen-frame methods against the plain formulas of their papers."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from autopeft.errors import ModelError
from autopeft.trainers.adapters import loldu, nlora, sorsa, svfit
from autopeft.trainers.adapters.framed import FramedSite, Recipe
from autopeft.trainers.inject import AdapterSet, build, inject
from autopeft.trainers.sites import layers_of, measure
from tests.configurations import configuration, setting
from tests.models import build_base

METHODS = ("svfit", "loldu", "inttune", "nlora", "sorsa")
TARGETS = ("attention.self.query", "output.dense")


def linear_of(d_in: int, d_out: int, *, seed: int = 0) -> nn.Linear:
    linear = nn.Linear(d_in, d_out).requires_grad_(False)
    linear.weight.copy_(torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(seed)))
    return linear


def site_of(recipe: Recipe, linear: nn.Linear, *, rank: int, scale: float = 1.0, size: float = 0.0) -> FramedSite:
    site = FramedSite(recipe, d_in=linear.in_features, d_out=linear.out_features, rank=rank, scale=scale)
    site.derive(linear)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in site.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return site


def svfit_weight(site: FramedSite, weight: torch.Tensor) -> torch.Tensor:
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    r = site.rank
    residual = weight - (u[:, :r] * s[:r]) @ vt[:r]
    return residual + (u[:, :r] * (s[:r] + site.core)) @ vt[:r]


def loldu_weight(site: FramedSite, weight: torch.Tensor) -> torch.Tensor:
    """The released code: residual W - s0 P L diag(z0) U, and s P L diag(z) U on top."""
    permutation, lower, upper = torch.linalg.lu(weight)
    r, z = site.rank, upper.diagonal()
    left, right = (permutation @ lower)[:, :r], (upper / z[:, None])[:r]
    residual = weight - site.scale * left @ torch.diag(z[:r]) @ right
    return residual + (site.scale + site.gain) * left @ torch.diag(z[:r] + site.core) @ right


def nlora_weight(site: FramedSite, weight: torch.Tensor) -> torch.Tensor:
    r = site.rank
    a, n, b = weight[:r], weight[:r, :r], weight[:, :r]
    residual = weight - site.scale * b @ n @ a
    if site.left is None:
        return residual + site.scale * b @ (n + site.core) @ a
    return residual + site.scale * (b + site.left) @ (n + site.core) @ (a + site.right)


def sorsa_weight(site: FramedSite, weight: torch.Tensor) -> torch.Tensor:
    """The released code: W - s (B * S) A with A = V^T, B = U, and s (B * S) A on top."""
    r = site.rank
    b, s, a = site.frame_left, site.frame_core, site.frame_right
    u, values, vt = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close((b * s) @ a, (u[:, :r] * values[:r]) @ vt[:r], atol=1e-4, rtol=1e-4)
    residual = weight - site.scale * (b * s) @ a
    return residual + site.scale * ((b + site.left) * (s + site.core)) @ (a + site.right)


TWINS = [
    (svfit.RECIPE, svfit_weight),
    (loldu.RECIPE, loldu_weight),
    (nlora.INTTUNE, nlora_weight),
    (nlora.NLORA, nlora_weight),
    (sorsa.RECIPE, sorsa_weight),
]


@pytest.mark.parametrize(("recipe", "twin"), TWINS, ids=METHODS)
@settings(max_examples=15, deadline=None)
@given(
    d_in=st.integers(3, 9),
    d_out=st.integers(3, 9),
    rank=st.integers(1, 3),
    scale=st.floats(0.5, 2.0),
    rows=st.lists(st.integers(1, 3), max_size=2),
)
def test_the_layer_computes_what_residual_and_factors_do(
    recipe: Recipe,
    twin: Callable[[FramedSite, torch.Tensor], torch.Tensor],
    d_in: int,
    d_out: int,
    rank: int,
    scale: float,
    rows: list[int],
) -> None:
    linear = linear_of(d_in, d_out)
    site = site_of(recipe, linear, rank=rank, scale=1.0 if recipe is svfit.RECIPE else scale, size=0.3)
    x = torch.randn(*rows, 2, d_in)
    expected = functional.linear(x, twin(site, linear.weight), linear.bias)
    torch.testing.assert_close(site(x, linear(x)), expected, atol=2e-3, rtol=2e-3)
    folded, bias = site.fold(linear, linear.weight, linear.bias)
    torch.testing.assert_close(folded, twin(site, linear.weight), atol=2e-3, rtol=2e-3)
    assert bias is linear.bias


@pytest.mark.parametrize(("recipe", "twin"), TWINS, ids=METHODS)
def test_gradients_are_those_of_the_plain_factors(
    recipe: Recipe, twin: Callable[[FramedSite, torch.Tensor], torch.Tensor]
) -> None:
    linear, x = linear_of(7, 5), torch.randn(4, 7)
    site = site_of(recipe, linear, rank=3, size=0.3)
    site(x, linear(x)).square().sum().backward()
    ours = {name: parameter.grad.clone() for name, parameter in site.named_parameters()}
    site.zero_grad()
    functional.linear(x, twin(site, linear.weight), linear.bias).square().sum().backward()
    for name, parameter in site.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize(("recipe", "twin"), TWINS, ids=METHODS)
def test_nothing_changes_at_step_zero_not_even_a_bit(
    recipe: Recipe, twin: Callable[[FramedSite, torch.Tensor], torch.Tensor]
) -> None:
    linear, x = linear_of(96, 64), torch.randn(4, 96)
    site = site_of(recipe, linear, rank=8)
    assert torch.equal(site(x, linear(x)), linear(x))


def test_the_released_nlora_start_without_its_residual_would_change_the_model() -> None:
    weight = linear_of(96, 64).weight
    product = weight[:, :8] @ weight[:8, :8] @ weight[:8]
    assert product.norm() > 0.05 * weight.norm()
    nystroem = weight[:, :8] @ torch.linalg.pinv(weight[:8, :8]) @ weight[:8]
    assert nystroem.norm() > weight.norm()


def test_a_small_change_survives_bf16_because_no_large_products_are_subtracted() -> None:
    linear = linear_of(64, 48)
    site = site_of(sorsa.RECIPE, linear, rank=8, size=1e-3)
    x = torch.randn(16, 64)
    exact = site(x, torch.zeros(16, 48))
    low = site(x.bfloat16(), torch.zeros(16, 48, dtype=torch.bfloat16)).float()
    assert (low - exact).norm() < 0.02 * exact.norm()


def test_the_penalty_is_the_mean_distance_from_orthonormal_factors() -> None:
    base, config = bert(), configuration(setting("sorsa", (0, 2), rank=3, targets=TARGETS, orthonormality=0.5))
    shape = measure(base, base.config)
    with inject(base, shape, config, seed=0) as adapters:
        disturb(adapters)
        norms = []
        for site in framed(adapters):
            a, b = site.frame_right + site.right, site.frame_left + site.left
            norms += [(a @ a.t() - torch.eye(3)).norm(), (b.t() @ b - torch.eye(3)).norm()]
        torch.testing.assert_close(adapters.penalty(), 0.5 * torch.stack(norms).mean(), atol=1e-5, rtol=1e-5)


def test_the_penalty_starts_at_zero_with_no_gradient() -> None:
    site = site_of(sorsa.RECIPE, linear_of(40, 30), rank=6)
    value = site.non_orthonormality()
    value.backward()
    assert value == 0
    assert not site.left.grad.any()
    assert not site.right.grad.any()


def test_without_weight_there_is_no_penalty() -> None:
    base = bert()
    config = configuration(setting("sorsa", (0,), rank=3, targets=TARGETS, orthonormality=0.0))
    with inject(base, measure(base, base.config), config, seed=0) as adapters:
        assert adapters.penalty() is None


@pytest.mark.parametrize(
    ("method", "count"), [("svfit", 4), ("loldu", 5), ("inttune", 16), ("sorsa", 4 + 4 * 64), ("nlora", 16 + 4 * 64)]
)
def test_a_file_holds_what_is_trained_and_one_number_a_rank(method: str, count: int) -> None:
    config = configuration(setting(method, (0,), rank=4, targets=("attention.self.query",)))
    base = bert()
    with inject(base, measure(base, base.config), config, seed=0) as adapters:
        assert adapters.n_parameters == count
        assert sum(tensor.numel() for tensor in adapters.state_dict().values()) == count + 4


@pytest.mark.parametrize("method", METHODS)
def test_frames_are_found_again_from_the_base_alone(method: str) -> None:
    base, config = bert(), configuration(setting(method, (0, 2), rank=4, targets=TARGETS))
    shape = measure(base, base.config)
    with inject(base, shape, config, seed=0) as adapters:
        disturb(adapters)
        expected = output(base)
    again = build(shape, config, seed=1)
    again.load_state_dict(adapters.state_dict())
    other = bert()
    again.attach(other, shape)
    assert torch.equal(output(other), expected)


@pytest.mark.parametrize("method", METHODS)
def test_another_base_weight_is_refused(method: str) -> None:
    base, config = bert(), configuration(setting(method, (1,), rank=2, targets=TARGETS))
    shape = measure(base, base.config)
    adapters = inject(base, shape, config, seed=0)
    adapters.remove()
    other = build_base("bert", seed=1)
    with pytest.raises(ModelError, match=r"attention\.self\.query: the base weight is not the one this adapter was"):
        adapters.attach(other, shape)
    assert not layers_of(other, shape)[1].get_submodule("attention.self.query")._forward_hooks


def test_an_impossible_frame_leaves_the_model_untouched() -> None:
    base = bert()
    shape = measure(base, base.config)
    with torch.no_grad():
        layers_of(base, shape)[2].get_submodule("output.dense").weight.zero_()
    before = output(base)
    config = configuration(setting("loldu", (0, 2), rank=2, targets=TARGETS))
    with pytest.raises(ModelError, match=r"output\.dense: pivot 1 of the weight is zero"):
        inject(base, shape, config, seed=0)
    assert torch.equal(output(base), before)


def bert() -> PreTrainedModel:
    return build_base("bert")


def framed(adapters: AdapterSet) -> list[FramedSite]:
    return [module for module in adapters.modules() if isinstance(module, FramedSite)]


def disturb(adapters: AdapterSet) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


def output(base: PreTrainedModel) -> torch.Tensor:
    ids = torch.randint(5, 50, (2, 7), generator=torch.Generator().manual_seed(1))
    return base(input_ids=ids).last_hidden_state
