"""Peft's layers over views of frozen maps: whose tensors they are, how they start, how they meet on one map."""

import copy

import pytest
import torch
from peft import AdamssConfig, LilyConfig, LoraConfig, get_peft_model
from peft.tuners.lora import KasaConfig
from peft.tuners.lora.variants import KasaLinearVariant
from torch import nn
from transformers import PreTrainedModel, T5Config

from autopeft.errors import ConfigurationError, ModelError
from autopeft.objectives.parameters import count_parameters
from autopeft.spaces.configuration import Configuration, FieldValue, MethodSetting
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.bridged import AbstractBridged
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.targets import resolve
from autopeft.trainers.adapters.peft_bridge import MapView, PeftSite
from autopeft.trainers.adapters.site_updates import SiteUpdates
from autopeft.trainers.inject import AdapterSet, build, inject, merge
from autopeft.trainers.kinds import AUTO_CLASSES, CAUSAL, CHOICE, IMAGES, SEQUENCES
from autopeft.trainers.sites import layers_of, measure
from tests.configurations import configuration, setting
from tests.conformance.test_methods import SIZES, disturb, run
from tests.models import EVERY, build_base, example

BRIDGED = [name for name, method in METHODS.items() if isinstance(method, AbstractBridged)]
QUERY = "attention.self.query"
T5 = T5Config(vocab_size=55, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)


@pytest.fixture(scope="module")
def bert() -> PreTrainedModel:
    return build_base("bert")


def on_query(method: str, *, layers: tuple[int, ...] = (0,), **fields: FieldValue) -> MethodSetting:
    size = {METHODS[method].size_field.name: SIZES[method][0]}
    return setting(method, layers, **(size | {"targets": (QUERY,)} | fields))


def site_of(adapters: AdapterSet, layer: int = 0) -> PeftSite:
    adapter = next(one for _, where, one in adapters.adapters() if where == layer)
    assert isinstance(adapter, SiteUpdates)
    site = adapter.update(adapter.targets[0])
    assert isinstance(site, PeftSite)
    return site


def query(base: PreTrainedModel, shape: ModelShape) -> nn.Linear:
    linear = layers_of(base.base_model, shape)[0].get_submodule(QUERY)
    assert isinstance(linear, nn.Linear)
    return linear


def change(base: PreTrainedModel, *settings: MethodSetting) -> torch.Tensor:
    """What disturbed adapters add to the first query projection of fixed inputs."""
    shape = measure(base, base.config)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    bare = query(base, shape)(x)
    with inject(base, shape, configuration(*settings), seed=0) as adapters:
        disturb(adapters, size=0.2)
        return query(base, shape)(x).detach() - bare


@pytest.mark.parametrize("method", BRIDGED)
def test_a_conv1d_is_a_linear_map_to_every_type(method: str) -> None:
    base = build_base("gpt2")
    shape = measure(base, base.config)
    words = METHODS[method].field("targets").default
    assert isinstance(words, tuple)
    sizes = {METHODS[method].size_field.name: SIZES[method][0]}
    config = configuration(setting(method, (1,), targets=resolve(words, shape, 1), **sizes))
    before = run(base)
    adapters = inject(base, shape, config, seed=0)
    disturb(adapters, size=0.1)
    assert adapters.n_parameters == count_parameters(config, shape).total
    changed = run(base)
    if all(adapter.mergeable for _, _, adapter in adapters.adapters()):
        merged = merge(adapters, base, shape)
        torch.testing.assert_close(run(base), changed, atol=1e-4, rtol=1e-4)
        merged.unmerge()
    adapters.remove()
    assert torch.equal(run(base), before)
    assert (changed - before).abs().max() > 1e-4


def test_chance_comes_from_the_seed_alone(bert: PreTrainedModel) -> None:
    shape = measure(bert, bert.config)
    config = configuration(*(on_query(method) for method in ("c3a", "peft_lora", "vblora", "fourierft")))
    state = torch.random.get_rng_state()
    first, second, third = (dict(build(shape, config, seed=seed).named_parameters()) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


@pytest.mark.parametrize(
    ("variant", "fields", "peft_fields"),
    [
        ("plain", {}, {}),
        ("dora", {}, {"use_dora": True}),
        ("kasa", {"kasa_beta": 0.5, "kasa_gamma": 2.0}, {"kasa_config": KasaConfig(beta=0.5, gamma=2.0)}),
        ("mica", {}, {"init_lora_weights": "mica"}),
        ("ffa", {}, {}),
    ],
)
def test_variants_compute_what_peft_computes(
    variant: str, fields: dict[str, FieldValue], peft_fields: dict[str, object], bert: PreTrainedModel
) -> None:
    shape = measure(bert, bert.config)
    targets = r".*layer\.0\." + QUERY.replace(".", r"\.")
    config = LoraConfig(r=3, lora_alpha=6, target_modules=targets, **peft_fields)  # type: ignore[arg-type]  # by name
    twin = get_peft_model(copy.deepcopy(bert), config).eval()  # type: ignore[arg-type]  # a transformers model
    theirs = dict(twin.named_parameters()) | dict(twin.named_buffers())
    placed = configuration(on_query("peft_lora", variant=variant, rank=3, alpha=6.0, **fields))
    with inject(bert, shape, placed, seed=0) as adapters, torch.no_grad():
        disturb(adapters, size=0.2)
        for name, tensor in adapters.state_dict().items():
            if "lora_" in name:
                (other,) = [key for key in theirs if key.endswith(name[name.index("lora_") :])]
                theirs[other].copy_(tensor)
        run(twin)  # KaSA cuts the weight in its first pass
        torch.testing.assert_close(run(bert), run(twin), atol=2e-6, rtol=1e-5)
        if variant == "kasa":
            assert float(adapters.penalty() or 0) == pytest.approx(float(twin.base_model._get_kasa_loss()), rel=1e-5)


@pytest.mark.parametrize("second", ["lora", "oft", "glora", "c3a", "hra", "ia3", "miss", "vera"])
def test_two_methods_on_one_map_add_their_changes(second: str, bert: PreTrainedModel) -> None:
    other = setting("lora", (0,), rank=2, targets=(QUERY,)) if second == "lora" else on_query(second)
    both = change(bert, on_query("gralora"), other)
    alone = [inject_alone(bert, on_query("gralora"), other, keep) for keep in ("gralora", second)]
    torch.testing.assert_close(both, alone[0] + alone[1], atol=2e-5, rtol=1e-4)


def inject_alone(base: PreTrainedModel, first: MethodSetting, second: MethodSetting, keep: str) -> torch.Tensor:
    """`change` with the tensors that `keep` has when both are there."""
    shape = measure(base, base.config)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    bare = query(base, shape)(x)
    with inject(base, shape, configuration(first, second), seed=0) as adapters:
        disturb(adapters, size=0.2)
        tensors = {name: value for name, value in adapters.state_dict().items() if name.startswith(f"{keep}.")}
    with inject(base, shape, configuration(first if first.method == keep else second), seed=0) as adapters:
        adapters.load_state_dict(tensors)
        return query(base, shape)(x).detach() - bare


def test_the_view_owns_nothing_and_shows_the_frozen_weight(bert: PreTrainedModel) -> None:
    shape = measure(bert, bert.config)
    with inject(bert, shape, configuration(on_query("oft")), seed=0) as adapters:
        site = site_of(adapters)
        assert isinstance(site.view, MapView)
        assert not list(site.view.parameters())
        assert not list(site.view.buffers())
        assert site.view.weight is query(bert, shape).weight
        assert not any("base_layer" in name for name in adapters.state_dict())


def test_layers_of_equal_settings_share_projections_and_others_do_not(bert: PreTrainedModel) -> None:
    shape = measure(bert, bert.config)
    config = configuration(on_query("vera", layers=(0, 1, 2), rank=[3, 3, 4]))
    adapters = build(shape, config, seed=0)
    first, second, third = (site_of(adapters, layer).layer.vera_A["default"] for layer in range(3))  # type: ignore[index]
    assert first.data_ptr() == second.data_ptr()
    assert third.shape == (4, 32)
    assert not any("vera_A" in name for name in adapters.state_dict()), "drawn by key, not saved"


@pytest.mark.parametrize(("method", "tensor"), [("vblora", "vector_bank"), ("unilora", "theta_d")])
def test_a_bank_is_trained_and_saved_once(method: str, tensor: str, bert: PreTrainedModel) -> None:
    shape = measure(bert, bert.config)
    adapters = build(shape, configuration(on_query(method, layers=(0, 2))), seed=0)
    assert sum(tensor in name for name in adapters.state_dict()) == 1
    assert adapters.n_parameters == count_parameters(adapters.configuration, shape).total


def test_adamss_clusters_the_outputs_as_peft_does(bert: PreTrainedModel) -> None:
    shape = measure(bert, bert.config)
    fields: dict[str, FieldValue] = {"rank": 6, "subspaces": 3, "subspace_rank": 2}
    with inject(bert, shape, configuration(on_query("adamss", **fields)), seed=0) as adapters:
        site = site_of(adapters)
        linear = copy.deepcopy(query(bert, shape))
        twin = get_peft_model(
            nn.Sequential(linear),  # type: ignore[arg-type]  # any module will do
            AdamssConfig(r=6, num_subspaces=3, subspace_rank=2, target_modules=["0"]),
        ).base_model.model[0]
        assert torch.equal(site.outputs, twin.scatter_index["default"])
        assert torch.equal(site.layer.get_buffer("adamss_newB.default"), twin.get_buffer("adamss_newB.default"))
        for name, row in site.layer.named_parameters():
            assert row.shape == twin.get_parameter(name).shape
            if "adamss_A" in name:  # drawn anew, in the span of the cluster's rows
                torch.testing.assert_close(row @ row.t(), torch.eye(2))
        assert adapters.n_parameters == count_parameters(adapters.configuration, shape).total


def test_a_cluster_smaller_than_its_rank_is_refused(bert: PreTrainedModel) -> None:
    shape = measure(bert, bert.config)
    config = configuration(on_query("adamss", rank=8, subspaces=4, subspace_rank=8))
    with pytest.raises(ModelError, match=r"adamss\.subspace_rank: a cluster of this map's outputs has fewer than 8"):
        inject(bert, shape, config, seed=0)


def test_lily_shares_a_among_neighbours_and_b_among_all_layers(bert: PreTrainedModel) -> None:
    shape = measure(bert, bert.config)
    targets = (QUERY, "attention.self.value")
    placed = configuration(on_query("lily", layers=(0, 1, 2), rank=3, stride=2, experts=4, targets=targets))
    twin = get_peft_model(
        copy.deepcopy(bert),  # type: ignore[arg-type]  # a transformers model
        LilyConfig(r=3, stride_A=2, num_B=4, target_modules=["query", "value"]),
    ).eval()
    theirs = {name: row for name, row in twin.named_parameters(remove_duplicate=False) if "lily" in name}
    with inject(bert, shape, placed, seed=0) as adapters, torch.no_grad():
        assert adapters.n_parameters == sum(row.numel() for row in twin.parameters() if row.requires_grad)
        assert adapters.n_parameters == count_parameters(placed, shape).total
        disturb(adapters, size=0.2)
        for name, row in adapters.named_parameters():
            _, layer, site, _, kind, *rest = name.split(".")
            place = f"layer.{layer}.{site.replace('_', '.')}.{kind}.{'.'.join(rest)}"
            (other,) = [key for key in theirs if key.endswith(place)]
            theirs[other].copy_(row)
        assert len(adapters.state_dict()) == 2 * (2 + 1 + 3), "two A, one B, three routers for each site"
        torch.testing.assert_close(run(bert), run(twin), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("attached", ["once", "again", "converted"])
def test_osf_moves_no_direction_that_stays(attached: str, bert: PreTrainedModel) -> None:
    shape = measure(bert, bert.config)
    adapters = build(shape, configuration(on_query("osf", rank=5)), seed=0)
    if attached == "again":
        adapters.attach(bert, shape)
        adapters.remove()
    elif attached == "converted":
        for module in adapters.modules():  # as a conversion to another device does that cannot be done in place
            for name, row in list(module._parameters.items()):
                module._parameters[name] = None if row is None else nn.Parameter(row.detach().clone())
    adapters.attach(bert, shape)
    u, _, v = torch.linalg.svd(query(bert, shape).weight)
    run(bert).square().sum().backward()
    grads = {name.rsplit(".")[-1]: row.grad for name, row in adapters.named_parameters()}
    adapters.remove()
    assert all(grad is not None and grad.abs().max() > 1e-6 for grad in grads.values())
    assert (u[:, :-5].t() @ grads["U_low"]).abs().max() < 1e-4 * grads["U_low"].abs().max()  # type: ignore[union-attr]
    assert (grads["V_low"] @ v[:-5].t()).abs().max() < 1e-4 * grads["V_low"].abs().max()  # type: ignore[union-attr,operator]


def test_poly_draws_a_mixture_for_each_row_in_training_alone(bert: PreTrainedModel) -> None:
    shape = measure(bert, bert.config)
    linear = query(bert, shape)
    x = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(2)).expand(2, -1, -1)
    with inject(bert, shape, configuration(on_query("poly", splits=2)), seed=0) as adapters:
        disturb(adapters)
        first, second = linear(x)
        assert torch.equal(first, second)
        torch.testing.assert_close(linear(x[0]), first)
        adapters.train()
        first, second = linear(x)
        assert not torch.equal(first, second)


def test_dora_starts_with_the_norms_of_the_rows(bert: PreTrainedModel) -> None:
    shape = measure(bert, bert.config)
    with inject(bert, shape, configuration(on_query("peft_lora", variant="dora")), seed=0) as adapters:
        norms = site_of(adapters).layer.get_parameter("lora_magnitude_vector.default.weight")
        torch.testing.assert_close(norms, query(bert, shape).weight.norm(dim=1))


def test_pissa_takes_the_largest_directions_and_leaves_the_weight(bert: PreTrainedModel) -> None:
    shape = measure(bert, bert.config)
    weight = query(bert, shape).weight
    with inject(bert, shape, configuration(on_query("peft_lora", init="pissa", rank=3)), seed=0) as adapters:
        site = site_of(adapters)
        u, s, v = torch.linalg.svd(weight)
        torch.testing.assert_close(site.taken_b @ site.taken_a, (u[:, :3] * s[:3]) @ v[:3], atol=1e-5, rtol=0)
        a, b, scale = site.low_rank()
        assert a.shape == (6, 32)
        torch.testing.assert_close(scale * b @ a, torch.zeros_like(weight), atol=1e-5, rtol=0)


def test_kasa_is_the_truncated_map_of_peft(bert: PreTrainedModel) -> None:
    shape = measure(bert, bert.config)
    linear = query(bert, shape)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    u, s, v = torch.linalg.svd(linear.weight)
    expected = nn.functional.linear(x, (u[:, :-3] * s[:-3]) @ v[:-3], linear.bias)
    with inject(bert, shape, configuration(on_query("peft_lora", variant="kasa", rank=3)), seed=0) as adapters:
        torch.testing.assert_close(linear(x), expected, atol=1e-5, rtol=0)
        layer = site_of(adapters).layer
        assert isinstance(layer.lora_variant["default"], KasaLinearVariant)  # type: ignore[index]


def test_kasa_adds_its_loss(bert: PreTrainedModel) -> None:
    shape = measure(bert, bert.config)
    config = configuration(on_query("peft_lora", variant="kasa", rank=3, kasa_beta=0.5, kasa_gamma=2.0))
    with inject(bert, shape, config, seed=0) as adapters:
        disturb(adapters, size=0.3)
        layer = site_of(adapters).layer
        a, b = (layer.get_parameter(f"lora_{name}.default.weight") for name in "AB")
        diagonal, eye = layer.get_parameter("lora_diag.default"), torch.eye(3)
        orthogonality = (b.t() @ b - eye).norm() + (a @ a.t() - eye).norm()
        penalty = adapters.penalty()
        assert penalty is not None
        torch.testing.assert_close(penalty, 0.5 * diagonal.square().sum() + 2.0 * orthogonality)
    assert build(shape, configuration(on_query("peft_lora")), seed=0).penalty() is None


@pytest.mark.parametrize(("variant", "trained"), [("ffa", "lora_B"), ("mica", "lora_A")])
def test_one_factor_is_trained_and_both_are_saved(variant: str, trained: str, bert: PreTrainedModel) -> None:
    shape = measure(bert, bert.config)
    adapters = build(shape, configuration(on_query("peft_lora", variant=variant)), seed=0)
    assert [name.split(".")[-3] for name, _ in adapters.named_parameters()] == [trained]
    assert sum("lora_" in name for name in adapters.state_dict()) == 2


def test_a_weight_is_read_once_and_not_again_after_loading(bert: PreTrainedModel) -> None:
    shape = measure(bert, bert.config)
    config = configuration(on_query("peft_lora", init="pissa"))
    adapters = inject(bert, shape, config, seed=0)
    disturb(adapters)
    trained = {name: value.clone() for name, value in adapters.state_dict().items()}
    adapters.remove()
    adapters.attach(bert, shape)
    assert all(torch.equal(trained[name], value) for name, value in adapters.state_dict().items())
    adapters.remove()
    restored = build(shape, config, seed=9)
    restored.load_state_dict(trained)
    restored.attach(bert, shape)
    assert all(torch.equal(trained[name], value) for name, value in restored.state_dict().items())
    restored.remove()


def test_dropout_acts_in_training_only(bert: PreTrainedModel) -> None:
    shape = measure(bert, bert.config)
    config = configuration(on_query("peft_lora", variant="dora", dropout=0.5), on_query("vera", dropout=0.5))
    with inject(bert, shape, config, seed=0) as adapters:
        disturb(adapters)
        assert torch.equal(run(bert), run(bert))
        adapters.train()
        assert not torch.equal(run(bert), run(bert))


def test_a_trained_bias_needs_a_bias_to_merge() -> None:
    base = build_base("llama")
    shape = measure(base, base.config)
    with inject(
        base, shape, configuration(setting("beft", (0,), enabled=1, targets=("self_attn.q_proj",))), seed=0
    ) as a:
        disturb(a)
        with pytest.raises(ConfigurationError, match=r"self_attn\.q_proj: this map has no bias to take in"):
            merge(a, base, shape)


def test_settings_that_do_not_fit_are_refused_when_built(bert: PreTrainedModel) -> None:
    shape = measure(bert, bert.config)
    with pytest.raises(ConfigurationError, match=r"oft\.block_size: 5 does not divide the width 32"):
        build(shape, configuration(on_query("oft", block_size=5)), seed=0)


@pytest.mark.parametrize("kind", AUTO_CLASSES)
def test_linear_map_types_work_on_every_kind_of_task(kind: str) -> None:
    own = EVERY[{CAUSAL: "llama", IMAGES: "vit"}.get(kind, "bert")].config()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = AUTO_CLASSES[kind].from_config(T5 if kind == "seq2seq" else own).requires_grad_(False).eval()
    shape = measure(model.base_model, model.config)
    config: Configuration = configuration(
        *(
            setting(
                method, (0,), targets=resolve(("query-value",), shape, 0), **{METHODS[method].size_field.name: size}
            )
            for method, size in (("ia3", 1), ("oft", 8), ("peft_lora", 4))
        )
    )
    inputs = example(model)
    if kind == CHOICE:
        inputs = {name: rows[:, None] for name, rows in inputs.items()}
    elif kind == SEQUENCES:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    before = model(**inputs).logits
    with inject(model, shape, config, seed=0) as adapters:
        disturb(adapters)
        after = model(**inputs).logits
        after.square().sum().backward()
        assert all(parameter.grad is not None for parameter in adapters.parameters())
    assert not torch.equal(before, after)


@pytest.mark.parametrize(("method", "tensor"), [("vblora", "vector_bank"), ("tinylora", "tinylora_v")])
def test_numbers_start_within_the_bound_that_is_given(method: str, tensor: str, bert: PreTrainedModel) -> None:
    shape = measure(bert, bert.config)
    for start in (0.02, 4.0):
        with inject(bert, shape, configuration(on_query(method, start=start)), seed=0) as adapters:
            (first,) = [value for name, value in adapters.named_parameters() if tensor in name]
            assert 0.4 * start < first.abs().max() <= start


@pytest.mark.parametrize("method", ["loha", "lokr"])
def test_a_map_is_left_out_of_as_many_steps_as_its_dropout_says(method: str, bert: PreTrainedModel) -> None:
    shape = measure(bert, bert.config)
    config = configuration(on_query(method, module_dropout=0.5))
    x, linear = torch.randn(3, 32), query(bert, shape)
    bare = linear(x)
    with inject(bert, shape, config, seed=0) as adapters, torch.no_grad():
        disturb(adapters, size=0.2)
        adapters.train()
        left_out = sum(torch.equal(linear(x), bare) for _ in range(200))
        adapters.eval()
        assert not torch.equal(linear(x), bare)
    assert 60 < left_out < 140


def test_the_task_of_a_row_is_told_where_the_row_is(bert: PreTrainedModel) -> None:
    shape = measure(bert, bert.config)
    site = site_of(build(shape, configuration(on_query("poly")), seed=0))
    assert site._options(torch.empty(2, 3, 32, device="meta"))["task_ids"].device.type == "meta"
