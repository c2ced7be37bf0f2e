"""What every method promises on every architecture: one suite over the table of methods and the table of models."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from autopeft.errors import ConfigurationError
from autopeft.objectives.parameters import count_parameters
from autopeft.spaces.canonical import configuration as canonical
from autopeft.spaces.configuration import Configuration, FieldValue, MethodSetting
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.bridged import AbstractBridged
from autopeft.spaces.methods.method import FieldKind
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.targets import resolve
from autopeft.trainers.adapters import BUILDERS
from autopeft.trainers.inject import AdapterSet, build, inject, merge
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.kinds import CLASSIFICATION, IMAGES
from autopeft.trainers.model import load_model, reset_head
from autopeft.trainers.saved import restore_adapter, save_adapter
from autopeft.trainers.sites import measure
from tests.configurations import configuration, setting
from tests.models import EVERY, IMAGE_MODELS, MODELS, SHORT, VOCABULARY_SIZE, build_base, example, save_model

Case = tuple[str, PreTrainedModel, ModelShape, Configuration]

EXACT_IDENTITY = {
    *("adaption_prompt", "frod", "inttune", "ln_tuning", "loldu", "lora", "lora_group", "mola", "nlora"),
    "parallel_adapter",
    *("s2_lora", "s2ft", "slora", "sorsa", "ssf", "svfit", "trainable_tokens"),
    *(
        "adalora",
        "adamss",
        "beft",
        "boft",
        "delora",
        "glora",
        "gralora",
        "hira",
        "ia3",
        "lily",
        "loha",
        "lokr",
        "miss",
        "oft",
        "peanut",
        "peft_lora",
    ),
    *("poly", "psoft", "pvera", "randlora", "road", "shira", "supertuning", "tinylora", "vera", "waveft"),
}
NEAR_IDENTITY = {
    *("binary_adapter", "binary_lora", "linear_parallel", "linear_series", "serial_adapter"),
    *("hra", "osf", "peft_deft", "vblora"),
}
"""Drawn from N(0, 0.02) on both sides, as in the paper, or equal up to rounding."""
NO_IDENTITY = {
    "cartridge",
    "multitask_prompt_tuning",
    "c3a",
    "dept",
    "fourierft",
    "p_tuning",
    "prefix_tuning",
    "prompt_tuning",
    "unilora",
}
"""What starts away from the base, as documented; a method that is in none of the three promises nothing."""

SIZES: dict[str, tuple[FieldValue, FieldValue]] = {
    "binary_adapter": (3, 7),
    "binary_lora": (2, 5),
    "frod": (1, 1),
    "inttune": (2, 5),
    "linear_parallel": (3, 7),
    "linear_series": (3, 7),
    "loldu": (2, 5),
    "lora": (2, 5),
    "lora_group": (2, 3),
    "mola": (2, 4),
    "nlora": (2, 5),
    "parallel_adapter": (3, 7),
    "cartridge": (2, 4),
    "prefix_tuning": (1, 4),
    "dept": (2, 2),
    "multitask_prompt_tuning": (3, 3),
    "p_tuning": (3, 3),
    "prompt_tuning": (3, 3),
    "s2_lora": (2, 5),
    "s2ft": (3, 7),
    "serial_adapter": (3, 7),
    "slora": (2, 5),
    "sorsa": (2, 5),
    "ssf": (1, 1),
    "ln_tuning": (1, 1),
    "svfit": (2, 5),
    "trainable_tokens": (VOCABULARY_SIZE, VOCABULARY_SIZE),
    **{name: (2, 5) for name in METHODS if isinstance(METHODS[name], AbstractBridged)},
    "adalora": (3, 5),
    **dict.fromkeys(("beft", "ia3", "road", "supertuning"), (1, 1)),
    **dict.fromkeys(("boft", "c3a", "oft"), (4, 8)),
    **dict.fromkeys(("fourierft", "unilora", "waveft"), (20, 30)),
    **dict.fromkeys(("gralora", "hra"), (2, 4)),
}

PEFT_MODELS = ("bert", "llama", "vit")
"""Peft's layers see a linear map, whatever the architecture; the bridge has tests of its own on others."""

KIN = ("cartridge", "multitask_prompt_tuning")
"""Methods that share all but how their rows are made with one that is tried on every model."""

LIKE_VIT = ("deit", "beit", "dinov2")
"""Their layers have the sites of a ViT's, so what sees a linear map alone need not be tried on all."""
BLOCK_METHODS = ("lora", "parallel_adapter", "prefix_tuning", "serial_adapter")


def applies(method: str, model: str) -> bool:
    if model in LIKE_VIT:
        return method in BLOCK_METHODS
    if METHODS[method].at_input and model in IMAGE_MODELS:
        return False
    if isinstance(METHODS[method], AbstractBridged) or method in KIN:
        return model in PEFT_MODELS
    if method == "adaption_prompt":
        return EVERY[model].prefix and len(EVERY[model].query_value) == 2  # separate key and value maps
    return method != "prefix_tuning" or EVERY[model].prefix


PAIRS = [(method, model) for method in METHODS for model in EVERY if applies(method, model)]


ANY_SIZES = ((2, 5), (4, 8), (1, 1))
"""Tried in turn for a method that is not in `SIZES`."""


def test_every_method_has_a_builder_and_what_is_said_here_is_said_of_methods() -> None:
    assert set(METHODS) == set(BUILDERS)
    assert {name for name, method in METHODS.items() if getattr(method, "by_batch", False)} == BY_BATCH
    assert {*SIZES, *EXACT_IDENTITY, *NEAR_IDENTITY, *NO_IDENTITY, *MERGING} <= set(METHODS)


def sizes_of(method: str, shape: ModelShape) -> tuple[FieldValue, FieldValue]:
    """Two sizes that `method` can have on every layer of `shape`, different where it has more than one."""
    return SIZES[method] if method in SIZES else next(pair for pair in ANY_SIZES if fits(method, shape, pair))


def fits(method: str, shape: ModelShape, sizes: tuple[int, int]) -> bool:
    name = METHODS[method].size_field.name
    try:
        return bool([canonical({method: {name: size}}, shape) for size in sizes])
    except ConfigurationError:
        return False


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.at_input])
def test_what_changes_embeddings_of_tokens_is_refused_where_there_are_none(method: str) -> None:
    base = build_base("vit")
    with pytest.raises(ConfigurationError, match=rf"{method}: this vit model embeds no tokens"):
        canonical({method: {METHODS[method].size_field.name: 3}}, measure(base, base.config))


@pytest.fixture(scope="module")
def bases() -> dict[str, PreTrainedModel]:
    return {name: build_base(name) for name in EVERY}


def place(method: str, model: str, shape: ModelShape) -> MethodSetting:
    """`method` with different sizes on the first and the last layer, nothing between."""
    layers = (0,) if METHODS[method].at_input else tuple(sorted({0, shape.n_layers - 1}))
    sizes: list[FieldValue] = list(sizes_of(method, shape)[: len(layers)])
    words = next((field.default for field in METHODS[method].fields if field.kind is FieldKind.TARGETS), None)
    targets: dict[str, FieldValue] = {"targets": resolve(words, shape, 0)} if isinstance(words, tuple) else {}
    return setting(method, layers, **{METHODS[method].size_field.name: sizes}, **targets)


def everything(model: str, shape: ModelShape) -> Configuration:
    return configuration(*(place(method, model, shape) for method, name in PAIRS if name == model))


def disturb(adapters: AdapterSet, *, seed: int = 5, size: float = 0.3) -> None:
    """Move every tensor away from its initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


def without_by_batch(config: Configuration) -> Configuration:
    return configuration(*(row for row in config if row.method not in BY_BATCH))


@pytest.mark.parametrize("name", [name for name in PEFT_MODELS if name in MODELS])
def test_all_methods_that_see_rows_alone_pad_together(name: str, bases: dict[str, PreTrainedModel]) -> None:
    base = bases[name]
    shape = measure(base, base.config)
    with inject(base, shape, without_by_batch(everything(name, shape)), seed=0) as adapters:
        disturb(adapters, size=0.1)
        torch.testing.assert_close(*padded_and_alone(base, 0, 6), atol=2e-5, rtol=2e-5)


def run(model: PreTrainedModel, **inputs: torch.Tensor) -> torch.Tensor:
    return model(**(inputs or example(model))).last_hidden_state


BY_BATCH = {"lily"}
"""Methods whose result for a row depends on the rows beside it, as documented."""
TEXT_PAIRS = [(method, model) for method, model in PAIRS if model in MODELS and method not in BY_BATCH]
"""Only rows of text are padded."""


ON_MAPS = [name for name, method in METHODS.items() if any(row.kind is FieldKind.TARGETS for row in method.fields)]
BESIDE = ("lora", "ssf", "s2ft", "oft", "vera", "randlora", "peft_lora", "sorsa", "binary_lora", "glora")
"""Additive, scaling, on the weight, on the input, on the output: one of each kind of change."""


@pytest.mark.parametrize("first", ON_MAPS)
def test_two_methods_on_one_map_merge_as_they_act(first: str, bases: dict[str, PreTrainedModel]) -> None:
    base = bases["bert"]
    shape, linear = measure(base, base.config), base.encoder.layer[0].attention.self.query
    x, weight = torch.randn(5, 32, generator=torch.Generator().manual_seed(2)), linear.weight.clone()
    size = METHODS[first].size_field.name
    here = setting(first, (0,), **{size: sizes_of(first, shape)[0]}, targets=("attention.self.query",))
    for second in BESIDE:
        if second == first:
            continue
        there = METHODS[second].size_field.name
        other = setting(second, (0,), **{there: sizes_of(second, shape)[0]}, targets=("attention.self.query",))
        adapters = inject(base, shape, configuration(here, other), seed=0)
        disturb(adapters, size=0.1)
        with torch.no_grad():
            acting = linear(x)
            if not all(adapter.mergeable for _, _, adapter in adapters.adapters()):
                with pytest.raises(ConfigurationError, match="cannot be merged into the base weights"):
                    merge(adapters, base, shape)
                adapters.remove()
                continue
            merged = merge(adapters, base, shape)
            difference = (linear(x) - acting).abs().max() / acting.abs().max()
        merged.unmerge().remove()
        assert difference < 1e-4, f"{first} beside {second}"
        assert torch.equal(linear.weight, weight)


def case_of(pair: tuple[str, str], bases: dict[str, PreTrainedModel]) -> Case:
    method, name = pair
    base = bases[name]
    shape = measure(base, base.config)
    return method, base, shape, configuration(place(method, name, shape))


def pair_name(pair: tuple[str, str]) -> str:
    return f"{pair[0]}-{pair[1]}"


@pytest.fixture(params=PAIRS, ids=pair_name)
def case(request: pytest.FixtureRequest, bases: dict[str, PreTrainedModel]) -> Case:
    return case_of(request.param, bases)


def test_the_closed_form_counts_the_built_tensors(case: Case) -> None:
    _, _, shape, config = case
    assert build(shape, config, seed=0).n_parameters == count_parameters(config, shape).total


@pytest.mark.parametrize("method", METHODS)
def test_what_samples_layers_knows_whether_a_response_can_be_scaled(
    method: str, bases: dict[str, PreTrainedModel]
) -> None:
    shape = measure(bases["bert"], bases["bert"].config)
    built = build(shape, configuration(place(method, "bert", shape)), seed=0)
    assert {adapter.suppressible for _, _, adapter in built.adapters()} == {METHODS[method].suppressible}


def test_the_start_changes_the_model_as_little_as_promised(case: Case) -> None:
    method, base, shape, config = case
    before = run(base)
    with inject(base, shape, config, seed=0):
        after = run(base)
    if method in EXACT_IDENTITY:
        assert torch.equal(before, after)
    elif method in NEAR_IDENTITY:
        assert 0 < (before - after).abs().max() < 0.05 * before.abs().max()
    elif method in NO_IDENTITY:
        assert not torch.equal(before, after)
    assert torch.isfinite(after).all()


def test_removal_brings_the_base_back_bit_for_bit(case: Case) -> None:
    _, base, shape, config = case
    names, implementation = list(base.state_dict()), base.config._attn_implementation
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    before = run(base)
    adapters = inject(base, shape, config, seed=0)
    disturb(adapters)
    changed = run(base)
    assert list(base.state_dict()) == names
    adapters.remove()
    assert (before - changed).abs().max() > 1e-4
    assert torch.equal(run(base), before)
    assert base.config._attn_implementation == implementation
    assert all(torch.equal(weights[name], tensor) for name, tensor in base.state_dict().items())


def test_gradients_reach_every_tensor_within_two_steps(case: Case) -> None:
    _, base, shape, config = case
    with inject(base, shape, config, seed=0) as adapters:
        adapters.train()
        optimizer = torch.optim.SGD(adapters.parameters(), lr=0.1)
        moved: set[str] = set()
        for _ in range(2):
            optimizer.zero_grad()
            output = run(base)
            (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
            moved |= {n for n, p in adapters.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
            optimizer.step()
    assert moved == {name for name, _ in adapters.named_parameters()}
    assert all(parameter.grad is None for parameter in base.parameters())


def padded_and_alone(base: PreTrainedModel, row: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `length` positions of a row that is padded beside a longer one, and the same row without."""
    ids, mask = (example(base, length=9)[name] for name in ("input_ids", "attention_mask"))
    ids[row, length:], mask[row, length:] = 0, 0
    both = run(base, input_ids=ids, attention_mask=mask)
    alone = ids[row : row + 1, :length]
    return both[row, :length], run(base, input_ids=alone, attention_mask=torch.ones_like(alone))[0]


@pytest.mark.parametrize("pair", TEXT_PAIRS, ids=pair_name)
def test_a_padded_row_gives_what_it_gives_alone(pair: tuple[str, str], bases: dict[str, PreTrainedModel]) -> None:
    _, base, shape, config = case_of(pair, bases)
    with inject(base, shape, config, seed=0) as adapters:
        disturb(adapters)
        padded, alone = padded_and_alone(base, 1, 5)
    torch.testing.assert_close(padded, alone, atol=2e-5, rtol=2e-5)


def test_a_bf16_base_computes_what_an_fp32_base_does(case: Case) -> None:
    _, base, shape, config = case
    with inject(base, shape, config, seed=0) as adapters:
        disturb(adapters, size=0.1)
        exact = run(base)
    low = type(base)(base.config).to(torch.bfloat16).eval().requires_grad_(False)
    low.load_state_dict(base.state_dict())
    with inject(low, shape, config, seed=0) as adapters:
        disturb(adapters, size=0.1)
        assert {parameter.dtype for parameter in adapters.parameters()} == {torch.float32}
        rounded = run(low)
        rounded.float().square().mean().backward()
    assert rounded.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in adapters.parameters())
    assert torch.nn.functional.cosine_similarity(rounded.float().flatten(), exact.flatten(), dim=0) > 0.98


def test_autocast_over_an_fp32_base_is_close_to_fp32(case: Case) -> None:
    _, base, shape, config = case
    with inject(base, shape, config, seed=0) as adapters:
        disturb(adapters, size=0.1)
        exact = run(base)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = run(base)
        rounded.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in adapters.parameters())
    assert torch.nn.functional.cosine_similarity(rounded.float().flatten(), exact.flatten(), dim=0) > 0.98


@pytest.mark.parametrize("name", EVERY)
def test_all_methods_at_once_count_pad_and_come_off(name: str, bases: dict[str, PreTrainedModel]) -> None:
    base = bases[name]
    shape = measure(base, base.config)
    config = everything(name, shape)
    before = run(base)
    with inject(base, shape, config, seed=0) as adapters:
        disturb(adapters, size=0.1)
        assert adapters.n_parameters == count_parameters(config, shape).total
        assert (run(base) - before).abs().max() > 1e-4
        if name in MODELS and not BY_BATCH & {row.method for row in config}:
            torch.testing.assert_close(*padded_and_alone(base, 0, 6), atol=2e-5, rtol=2e-5)
    assert torch.equal(run(base), before)


MERGING = {
    *("binary_lora", "frod", "inttune", "loldu", "lora", "lora_group", "nlora"),
    *("s2_lora", "s2ft", "slora", "sorsa", "ssf", "svfit"),
    *(name for name, method in METHODS.items() if isinstance(method, AbstractBridged) and method.mergeable),
}
"""Methods that are a change of weights and biases; others may be, and say so."""
NEEDING_BIAS = {"beft", "ssf"}
"""Of these, methods that change a bias and so need one."""


def test_merged_weights_compute_the_same_and_come_apart_bit_for_bit(case: Case) -> None:
    method, base, shape, config = case
    adapters = inject(base, shape, config, seed=0)
    disturb(adapters, size=0.1)
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    expected = run(base)
    needs_bias = method in NEEDING_BIAS and not all(site.bias for site in shape.layers[0])
    mergeable = all(adapter.mergeable for _, _, adapter in adapters.adapters())
    assert mergeable or method not in MERGING
    if needs_bias or not mergeable:
        message = "no bias" if needs_bias else f"{method} cannot be merged"
        with pytest.raises(ConfigurationError, match=message):
            merge(adapters, base, shape)
    else:
        merged = merge(adapters, base, shape)
        torch.testing.assert_close(run(base), expected, atol=1e-4, rtol=1e-4)
        assert merged.unmerge() is adapters
    assert torch.equal(run(base), expected)
    adapters.remove()
    assert all(torch.equal(weights[name], tensor) for name, tensor in base.state_dict().items())


@pytest.mark.parametrize("name", [*SHORT, "vit"])
def test_methods_on_one_map_merge_in_the_order_in_which_they_act(name: str, bases: dict[str, PreTrainedModel]) -> None:
    base = bases[name]
    shape = measure(base, base.config)
    methods = {method for method in MERGING if not isinstance(METHODS[method], AbstractBridged)}
    methods -= set() if all(site.bias for site in shape.layers[0]) else NEEDING_BIAS
    adapters = inject(base, shape, configuration(*(place(method, name, shape) for method in methods)), seed=0)
    disturb(adapters, size=0.05)
    expected = run(base)
    merged = merge(adapters, base, shape)
    torch.testing.assert_close(run(base), expected, atol=1e-3, rtol=1e-3)
    merged.unmerge().remove()


@pytest.mark.parametrize("name", [*SHORT, "vit"])
def test_a_saved_adapter_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    spec = ModelSpec(name=str(save_model(name, tmp_path / "base")))
    loaded = load_model(spec, kind=CLASSIFICATION if name in MODELS else IMAGES, n_labels=3)
    reset_head(loaded, 4)
    config = everything(name, loaded.shape)
    adapters = inject(loaded.model, loaded.shape, config, seed=0)
    disturb(adapters, size=0.1)
    batch = example(loaded.model, n=4)
    expected = loaded.model(**batch).logits
    save_adapter(tmp_path / "adapter", adapters, loaded=loaded, task={})
    restored = restore_adapter(tmp_path / "adapter")
    assert restored.info.configuration == config
    assert torch.equal(restored.loaded.model(**batch).logits, expected)
