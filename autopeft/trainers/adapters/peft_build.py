"""Making peft's own layers for maps of given sizes: over a scaffold that holds nothing but the maps.

Shapes: I and O the map's input and output width, R rank.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, cast, final, runtime_checkable

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType
from torch import nn

from autopeft.spaces.methods.bridged import AbstractBridged, settings_key
from autopeft.spaces.model_shape import Site
from autopeft.trainers.adapters import peft_data
from autopeft.trainers.adapters.adapter import Placement
from autopeft.trainers.adapters.site_facts import Need

ADAPTER: Final = "default"
_OWN: Final = "base_layer"
_DEFERRED: Final = "_lora_kasa_truncation_deferred"
"""Where KaSA notes that it is to cut the weight in its first pass; ours is never cut."""
SEEDED: Final[Mapping[str, str]] = {"SHIRA": "random_seed", "TINYLORA": "projection_seed"}
"""Field of a type's configuration that draws what is not saved; it differs by layer."""


@runtime_checkable
class Factors(Protocol):
    lora_A: nn.ModuleDict
    lora_B: nn.ModuleDict
    scaling: dict[str, float]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that peft needs to build its layers, and what is known of how they start."""

    peft_type: str
    config: Mapping[str, object]
    by_site: Mapping[str, Mapping[str, object]]
    """Of a target, the fields that differ by map."""
    seed: int
    rank: int
    freeze_a: bool
    from_weight: bool
    """Its tensors depend on the weight."""
    takes_out: bool
    """It starts by taking `rank` directions out of the weight."""
    mergeable: bool
    """It is a change of the map's weight and bias."""
    need: Need | None
    """What it must be told of the training rows to start."""
    orthogonality: float
    """Weight in the loss of how far A and B are from orthonormal; 0 for none."""

    def at(self, site: Site) -> "Recipe":
        """What to build one map's layer from, alone."""
        return replace(self, config={**self.config, **self.by_site[site.name]})


@final
class Borrowed(nn.Module):
    """A linear map of another module: it computes the same and owns nothing."""

    def __init__(self, owner: nn.Linear) -> None:
        super().__init__()
        self.__dict__["owner"] = owner

    @property
    def weight(self) -> torch.Tensor:
        return self.__dict__["owner"].weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.__dict__["owner"](x)


@final
class _Group(nn.Module):
    """Peft's layers for the layers of one method with equal settings; holds them until each is taken."""

    def __init__(self, layers: Mapping[str, BaseTunerLayer]) -> None:
        super().__init__()
        self.layers = dict(layers)
        self._owned: set[int] = set()

    def take(self, name: str) -> BaseTunerLayer:
        """The layer called `name`; what it shares with one taken before it refers to, but does not own."""
        layer = self.layers.pop(name)
        for key, child in list(cast("nn.Module", layer)._modules.items()):
            if id(child) in self._owned:
                del cast("nn.Module", layer)._modules[key]
                cast("nn.Module", layer).__dict__[key] = child
            elif isinstance(child, nn.ModuleDict):
                self._take_inside(child)
            self._owned.add(id(child))
        return layer

    def _take_inside(self, rows: nn.ModuleDict) -> None:
        """The same for the linear maps in one of a layer's tables."""
        for key, inner in list(rows.items()):
            if isinstance(inner, nn.Linear) and id(inner) in self._owned:
                rows[key] = Borrowed(inner)
            self._owned.add(id(inner))


def shared_layer(method: AbstractBridged, placement: Placement, recipe: Recipe, site: Site) -> BaseTunerLayer:
    key = settings_key(placement.values) + ((("layer", placement.layer),) if recipe.peft_type in SEEDED else ())
    if key not in placement.shared:
        placement.shared[key] = _Group(_group_layers(method, placement, recipe))
    group = placement.shared[key]
    assert isinstance(group, _Group)
    return group.take(f"{placement.layer}.{site.name}")


def _group_layers(method: AbstractBridged, placement: Placement, recipe: Recipe) -> dict[str, BaseTunerLayer]:
    """One peft model over the targets of every layer with the settings of `placement`."""
    wanted = settings_key(placement.values)
    only = (placement.layer,) if recipe.peft_type in SEEDED else placement.setting.layers
    maps: dict[str, nn.Linear] = {}
    feedforward: list[str] = []
    for layer in only:
        values = placement.setting.at(layer) or {}
        if settings_key(values) != wanted:
            continue
        sites = [placement.shape.site(layer, name) for name in cast("tuple[str, ...]", values["targets"])]
        maps |= {f"{layer}.{site.name}": frozen_linear(site) for site in sites}
        config = method.peft_config(values, sites=tuple(sites))
        feedforward += [f"{layer}.{name}" for name in cast("list[str]", config.get("feedforward_modules", []))]
    return tuned(recipe, maps, feedforward=feedforward)


@torch.no_grad()
def skeleton(recipe: Recipe, sites: Sequence[Site]) -> dict[str, BaseTunerLayer]:
    """Layers of the right shapes, all zero, and every buffer of them saved; no weight is looked at."""
    layers: dict[str, BaseTunerLayer] = {}
    recipe = replace(recipe, config=peft_data.without_data(recipe.config))
    for site in sites:
        with torch.device("meta"):
            layers |= tuned(recipe.at(site), {site.name: nn.Linear(site.d_in, site.d_out, bias=site.bias)})
    for layer in layers.values():
        module = cast("nn.Module", layer)
        module.base_layer = nn.Identity()
        for child in module.modules():
            child._non_persistent_buffers_set.clear()
        module._apply(lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype))
        module.__dict__.get(_DEFERRED, set()).clear()
    return layers


def tuned(
    recipe: Recipe, maps: Mapping[str, nn.Linear], *, feedforward: Sequence[str] = ()
) -> dict[str, BaseTunerLayer]:
    """Peft's layer for each of `maps`; no global random state is touched."""
    scaffold = nn.Module()
    names = _names(recipe, maps)
    for name, linear in maps.items():
        parent, _, last = names[name].rpartition(".")
        if parent and parent not in scaffold._modules:
            scaffold.add_module(parent, nn.Module())
        scaffold.get_submodule(parent).add_module(last, linear)
    fields: dict[str, Any] = {**recipe.config, "target_modules": list(names.values())}
    if recipe.peft_type == "LILY":
        fields["target_modules"] = sorted({name.rpartition(".")[2] for name in names.values()})
    if recipe.peft_type == "IA3":
        fields["feedforward_modules"] = [names[name] for name in feedforward]
    kind = PeftType(recipe.peft_type)
    with torch.random.fork_rng(devices=()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(recipe.seed)
        config: PeftConfig = PEFT_TYPE_TO_CONFIG_MAPPING[kind](**fields)
        PEFT_TYPE_TO_TUNER_MAPPING[kind](scaffold, config, ADAPTER)
    layers = {name: scaffold.get_submodule(inner) for name, inner in names.items()}
    for layer in layers.values():
        _freeze(layer, freeze_a=recipe.freeze_a)
    return cast("dict[str, BaseTunerLayer]", layers)


def _names(recipe: Recipe, maps: Mapping[str, nn.Linear]) -> dict[str, str]:
    """What each map is called in the scaffold: a name that no other ends in.

    LILY shares among maps whose names end in one target, so sites of one name in different layers have one there.
    """
    if recipe.peft_type != "LILY":
        return {name: name.replace(".", "_") for name in maps}
    sites = sorted({name.partition(".")[2] for name in maps})
    return {name: f"{name.partition('.')[0]}.t{sites.index(name.partition('.')[2])}" for name in maps}


def _freeze(layer: nn.Module, *, freeze_a: bool) -> None:
    """Turn what peft does not train into buffers, so that every parameter is trained."""
    if freeze_a:
        assert isinstance(layer, Factors)
        layer.lora_A[ADAPTER].requires_grad_(False)
    for path, module in layer.named_modules():
        if path == _OWN:
            continue
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and not parameter.requires_grad:
                del module._parameters[name]
                module.register_buffer(name, parameter.detach())


def frozen_linear(site: Site, *, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None) -> nn.Linear:
    """A frozen map of the site's sizes; without `weight` it is all zero and takes no memory."""
    linear = nn.Linear(site.d_in, site.d_out, bias=site.bias, device="meta")
    weight = torch.zeros(1, 1).expand(site.d_out, site.d_in) if weight is None else weight
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if site.bias:
        linear.bias = nn.Parameter(torch.zeros(site.d_out) if bias is None else bias, requires_grad=False)
    return linear


def named_tensors(layer: BaseTunerLayer) -> list[tuple[str, torch.Tensor]]:
    module = cast("nn.Module", layer)
    return [*module.named_parameters(), *module.named_buffers()]


def taken_out(
    whole: torch.Tensor, left: torch.Tensor, layer: BaseTunerLayer, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors A [R, I] and B [O, R] of what peft took out of the weight `whole` [O, I] to leave `left`."""
    assert isinstance(layer, Factors)
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    assert isinstance(a, torch.Tensor)
    assert isinstance(b, torch.Tensor)
    if b.abs().max() > 0:
        return a.detach().clone(), layer.scaling[ADAPTER] * b.detach()
    u, s, v = torch.linalg.svd(whole - left, full_matrices=False)
    return v[:rank], u[:, :rank] * s[:rank]
