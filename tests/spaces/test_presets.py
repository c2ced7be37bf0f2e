"""Presets bind on models of any depth and family, and hold the settings that their source gives."""

import pytest

from autopeft.errors import SpaceError
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.presets import preset_names
from autopeft.spaces.space import SearchSpace
from tests.spaces.builders import ENCODER, FUSED, GATED, shape

FAMILIES = {"encoder": ENCODER, "fused": FUSED, "gated": GATED}
BASELINES = sorted(name for name in preset_names() if name.startswith(("ist", "llm-adapters-", "mola-")))


def space_of(name: str, n_layers: int = 12, *, sites: str = "gated") -> SearchSpace:
    model = shape(n_layers, hidden=384, sites=FAMILIES[sites])
    return SearchSpace.bind(SpaceDefinition.from_mapping(name), model)


def only(name: str, n_layers: int = 12, *, sites: str = "gated") -> Configuration:
    space = space_of(name, n_layers, sites=sites)
    assert space.dimensions == ()
    (network,) = space.configurations()
    return network


@pytest.mark.parametrize("n_layers", [4, 6, 12, 32])
@pytest.mark.parametrize("sites", FAMILIES)
@pytest.mark.parametrize("name", preset_names())
def test_every_preset_binds(name: str, sites: str, n_layers: int) -> None:
    assert space_of(name, n_layers, sites=sites).size().configurations > 0


@pytest.mark.parametrize("name", BASELINES)
def test_a_named_baseline_is_one_network(name: str) -> None:
    assert only(name).adapted_layers == tuple(range(12))


@pytest.mark.parametrize(
    ("name", "quarters"),
    [
        ("mola-2468", (2, 4, 6, 8)),
        ("mola-5555", (5, 5, 5, 5)),
        ("mola-8642", (8, 6, 4, 2)),
        ("mola-middle", (2, 8, 8, 2)),
    ],
)
def test_the_allocations_of_mola_have_160_experts_on_32_layers(name: str, quarters: tuple[int, ...]) -> None:
    (setting,) = only(name, 32).methods
    assert setting.column("experts") == tuple(experts for experts in quarters for _ in range(8))
    assert sum(int(str(experts)) for experts in setting.column("experts")) == 160
    values = setting.at(0)
    assert values is not None
    assert [values[field] for field in ("rank", "alpha", "dropout", "top_k", "balance")] == [8, 16.0, 0.05, 2, 0.001]
    assert len(str(values["targets"]).split(",")) == 7


def test_mola_by_quarters_is_searched() -> None:
    space = space_of("mola", 10)
    assert space.size().configurations == 5**4 - 1
    assert {row.name for row in space.dimensions} >= {"mola.experts[0-2]", "mola.experts[8-9]", "learning_rate"}


@pytest.mark.parametrize(
    ("name", "method", "fields", "targets", "rate", "batch"),
    [
        ("llm-adapters-lora", "lora", {"rank": 32, "alpha": 64.0, "dropout": 0.05}, 5, 3e-4, 16),
        ("llm-adapters-series", "linear_series", {"bottleneck": 256, "activation": "tanh"}, 2, 3e-4, 16),
        ("llm-adapters-parallel", "linear_parallel", {"bottleneck": 256, "init": "bert"}, 2, 3e-4, 16),
        ("llm-adapters-prefix", "prefix_tuning", {"length": 10}, 0, 3e-2, 8),
    ],
)
def test_the_llm_adapters_have_the_settings_of_the_reported_runs(
    name: str, method: str, fields: dict[str, object], targets: int, rate: float, batch: int
) -> None:
    network = only(name)
    (setting,) = network.methods
    values = setting.at(0)
    assert values is not None
    assert setting.method == method
    assert {field: values[field] for field in fields} == fields
    sites = values.get("targets", ())
    assert isinstance(sites, tuple)
    assert len(sites) == targets
    training = dict(network.training)
    assert training["batch_size"] == batch
    assert (setting.learning_rate or training["learning_rate"]) == rate


def test_a_model_with_fewer_layers_than_quarters_is_refused() -> None:
    with pytest.raises(SpaceError, match=r"space\.mola\.experts: groups\(2, 4, 6, 8\): 4 groups of 3 layers"):
        space_of("mola-2468", 3)


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        ("ist", {"layer_sampling": "importance", "layers_kept": 0.25, "sampling_interval": 10, "suppression": 0.25}),
        ("ist-random", {"layer_sampling": "random", "layers_kept": 0.25}),
    ],
)
def test_layer_sampling_and_its_baseline_differ_in_the_policy_alone(name: str, sampling: dict[str, object]) -> None:
    network = only(name, 32)
    assert dict(network.training) == {"batch_size": 16, "learning_rate": 2e-4, **sampling}
    (setting,) = network.methods
    values = setting.at(0)
    assert values is not None
    assert (values["rank"], values["alpha"]) == (32, 64.0)
    assert [str(target).rpartition(".")[2] for target in values["targets"]] == [  # type: ignore[union-attr]  # names
        *("q_proj", "k_proj", "v_proj"),
        *("up_proj", "down_proj"),
    ]
