"""Peft's own layers at the sites of a model that they never enter.

A peft tuner is built over a scaffold, a model of nothing but the target maps. Each layer that it makes is taken out of
there and put over a view of the real map: it reads the frozen weight, owns no tensor of it, and its own output serves
as the base's. What the layer adds to the map is added to the site's output by a hook. So a type acts as its authors
wrote it, several types meet on one map as a sum of their changes, and the base model stays as it is.

Layers with equal settings are one peft model: what a type shares between maps (VeRA's projections, VB-LoRA's bank) is
shared between them. Types that start from the weight itself are built again, with it, when they first meet it; what
they take out of the weight is kept as two frozen factors and subtracted, which costs as much memory as the adapter.

Shapes: I and O the map's input and output width, R rank.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast, final, runtime_checkable

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import KasaConfig
from peft.tuners.lora.variants import _kasa_layer_regularization_loss
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType
from torch import nn
from torch.nn import functional

from autopeft.errors import ConfigurationError
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.bridged import AbstractBridged, settings_key
from autopeft.spaces.model_shape import Site
from autopeft.trainers.adapters.adapter import Placement
from autopeft.trainers.adapters.site_updates import AbstractSiteUpdate, SiteUpdates, in_layout
from autopeft.trainers.sites import Conv1D, LinearLike

ADAPTER: Final = "default"
_OWN: Final = "base_layer"
_DEFERRED: Final = "_lora_kasa_truncation_deferred"
"""Where KaSA notes that it is to cut the weight in its first pass; ours is never cut."""
FROM_WEIGHT: Final = frozenset({"DEFT", "DELORA", "PSOFT", "SUPERTUNING", "TINYLORA"})
"""Types whose tensors depend on the weight; of LoRA, the variants and initialisations in `_starts_from_weight`."""
SEEDED: Final[Mapping[str, str]] = {"SHIRA": "random_seed", "TINYLORA": "projection_seed"}
"""Field of a type's configuration that draws what is not saved; it differs by layer."""


@runtime_checkable
class _Factors(Protocol):
    lora_A: nn.ModuleDict
    lora_B: nn.ModuleDict
    scaling: dict[str, float]


@final
class MapView(nn.Linear):
    """A linear map of the base model as peft sees it: [O, I] in every architecture, with no tensor of its own."""

    def __init__(self, site: Site) -> None:
        nn.Module.__init__(self)
        self.in_features = site.d_in
        self.out_features = site.d_out
        self.shown: list[LinearLike] = []
        self.known: tuple[torch.Tensor, torch.Tensor] | None = None
        """Input and output of the map in this pass, so that it is not computed twice."""

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]  # no parameter of ours
        """[O, I]."""
        linear = self.shown[0]
        return linear.weight.t() if isinstance(linear, Conv1D) else linear.weight

    @property
    def bias(self) -> torch.Tensor | None:  # type: ignore[override]  # no parameter of ours
        return self.shown[0].bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.known is not None and input is self.known[0]:
            return self.known[1]
        weight, bias = self.weight, self.bias
        return functional.linear(input.to(weight.dtype), weight, bias)


@final
class PeftSite(AbstractSiteUpdate):
    """One peft layer at one map."""

    taken_a: torch.Tensor
    taken_b: torch.Tensor
    started: torch.Tensor

    def __init__(self, layer: BaseTunerLayer, site: Site, recipe: "Recipe") -> None:
        super().__init__()
        assert isinstance(layer, nn.Module)
        self.view = MapView(site)
        layer.base_layer = self.view
        self.layer = layer
        self._recipe = recipe
        self._site = site
        self._alone = True
        if recipe.from_weight:
            self.register_buffer("started", torch.zeros((), dtype=torch.uint8))
        if recipe.takes_out:
            rank = recipe.rank
            self.register_buffer("taken_a", torch.zeros(rank, site.d_in))
            self.register_buffer("taken_b", torch.zeros(site.d_out, rank))

    def derive(self, linear: LinearLike) -> None:
        self.view.shown = [linear]
        self._alone = not linear._forward_hooks
        if self._recipe.from_weight and not self.started:
            self._start(linear)

    @torch.no_grad()
    def _start(self, linear: LinearLike) -> None:
        """Let peft build its layer once more, over a copy of the weight, and take over what it came to."""
        weight = self.view.weight.detach().float().clone()
        bias = None if self.view.bias is None else self.view.bias.detach().float().clone()
        copied = _linear(self._site, weight=weight, bias=bias)
        fresh = _tuned(self._recipe, {self._site.name: copied})[self._site.name]
        fresh.base_layer = nn.Identity()  # type: ignore[assignment]  # peft types it as the map it wraps
        own = dict(_named_tensors(self.layer))
        for name, tensor in _named_tensors(fresh):
            own[name].copy_(tensor)
        if self._recipe.takes_out:
            a, b = _taken_out(self.view.weight.detach().float(), copied.weight, fresh, self._recipe.rank)
            self.taken_a.copy_(a)
            self.taken_b.copy_(b)
        self.started.fill_(1)

    def forward(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        base = output if self._alone else self.view(x)
        own = base if self._alone else base.clone()  # some types add in place
        self.view.known = (x, self._without_taken(x, own))
        try:
            changed = self.layer(x)
        finally:
            self.view.known = None
        if not self._alone:
            changed = output + (changed - base)
        return changed.to(output.dtype)

    def _without_taken(self, x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        if not self._recipe.takes_out:
            return base
        hidden = functional.linear(x.to(self.taken_a.dtype), self.taken_a)
        return base - functional.linear(hidden, self.taken_b)

    @torch.no_grad()
    def low_rank(self) -> tuple[torch.Tensor, torch.Tensor, float]:
        """A [K, I], B [O, K] and scale of what a LoRA layer adds to the weight, DoRA's norms left out.

        K is R, or 2 R where the layer takes directions out of the weight.
        """
        layer = self.layer
        assert isinstance(layer, _Factors)
        a, b, scale = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer.scaling[ADAPTER]
        assert isinstance(a, torch.Tensor)
        assert isinstance(b, torch.Tensor)
        if "kasa_config" in self._recipe.config:
            b = b * layer.get_parameter(f"lora_diag.{ADAPTER}")
        if not self._recipe.takes_out:
            return a, b, scale
        return torch.cat((a, self.taken_a)), torch.cat((b, -self.taken_b / scale), dim=1), scale

    def penalty(self) -> torch.Tensor | None:
        kasa = self._recipe.config.get("kasa_config")
        if not isinstance(kasa, KasaConfig):
            return None
        return _kasa_layer_regularization_loss(self.layer, ADAPTER, kasa.beta, kasa.gamma)  # type: ignore[arg-type]  # a LoRA layer

    @torch.no_grad()
    def fold(
        self, linear: LinearLike, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the layer makes of unit inputs and of zero, less the map's own: exact for every linear type."""
        original = self.view.weight.detach().float()
        start = None if self.view.bias is None else self.view.bias.detach().float().clone()
        copy = _linear(self._site, weight=original.clone(), bias=start)
        eye = torch.eye(self._site.d_in + 1, self._site.d_in, device=original.device)
        shown, alone, training = self.view.shown, self._alone, self.layer.training
        self.view.shown, self._alone = [copy], True  # type: ignore[assignment]  # lists are invariant
        self.layer.eval()
        try:
            outputs = self(eye, copy(eye))
        finally:
            self.view.shown, self._alone = shown, alone
            self.layer.train(training)
        shift = outputs[-1]
        delta = (outputs[:-1] - shift).t() - original
        moved = shift if copy.bias is None else shift - copy.bias
        if copy.bias is None and moved.abs().max() > 0:
            raise ConfigurationError(
                "this map has no bias to take in what the adapter adds", hint="keep the adapters attached, as they are"
            )
        return weight + in_layout(linear, delta), None if bias is None else bias + moved


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that peft needs to build its layers, and what is known of how they start."""

    peft_type: str
    config: Mapping[str, object]
    seed: int
    rank: int
    freeze_a: bool
    from_weight: bool
    """Its tensors depend on the weight."""
    takes_out: bool
    """It starts by taking `rank` directions out of the weight."""


def build_bridged(placement: Placement) -> SiteUpdates:
    """Peft's layers at every target of the layer, as peft initialises them from the placement's chance.

    Raises:
        ConfigurationError: The values do not fit a target.
    """
    method = METHODS[placement.method]
    assert isinstance(method, AbstractBridged)
    method.check(placement.shape, layer=placement.layer, values=placement.values)
    sites = placement.target_sites()
    recipe = _recipe(method, placement, sites)
    if recipe.from_weight:
        layers = _skeleton(recipe, sites)
    else:
        layers = {site.name: _shared_layer(method, placement, recipe, site) for site in sites}
    return SiteUpdates({site.name: PeftSite(layers[site.name], site, recipe) for site in sites})


def _recipe(method: AbstractBridged, placement: Placement, sites: Sequence[Site]) -> Recipe:
    config = method.peft_config(placement.values, sites=tuple(sites))
    if method.peft_type in SEEDED:
        config[SEEDED[method.peft_type]] = placement.layer
    kasa = config.get("kasa_config")
    if isinstance(kasa, Mapping):
        config["kasa_config"] = KasaConfig(**kasa)
    lora = method.peft_type == "LORA"
    takes_out = lora and (config["init_lora_weights"] in ("pissa", "olora") or "kasa_config" in config)
    return Recipe(
        peft_type=method.peft_type,
        freeze_a=bool(config.pop("freeze_a", False)),
        config=config,
        seed=int(torch.randint(2**62, (1,), generator=placement.generator)),
        rank=placement.size("rank") if takes_out else 0,
        from_weight=takes_out
        or method.peft_type in FROM_WEIGHT
        or (lora and (bool(config.get("use_dora")) or config["init_lora_weights"] == "mica")),
        takes_out=takes_out,
    )


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
            self._owned.add(id(child))
        return layer


def _shared_layer(method: AbstractBridged, placement: Placement, recipe: Recipe, site: Site) -> BaseTunerLayer:
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
        maps |= {f"{layer}.{site.name}": _linear(site) for site in sites}
        config = method.peft_config(values, sites=tuple(sites))
        feedforward += [f"{layer}.{name}" for name in cast("list[str]", config.get("feedforward_modules", []))]
    return _tuned(recipe, maps, feedforward=feedforward)


@torch.no_grad()
def _skeleton(recipe: Recipe, sites: Sequence[Site]) -> dict[str, BaseTunerLayer]:
    """Layers of the right shapes, all zero, and every buffer of them saved; no weight is looked at."""
    layers: dict[str, BaseTunerLayer] = {}
    for site in sites:
        with torch.device("meta"):
            layers |= _tuned(recipe, {site.name: nn.Linear(site.d_in, site.d_out, bias=site.bias)})
    for layer in layers.values():
        module = cast("nn.Module", layer)
        module.base_layer = nn.Identity()
        for child in module.modules():
            child._non_persistent_buffers_set.clear()
        module._apply(lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype))
        module.__dict__.get(_DEFERRED, set()).clear()
    return layers


def _tuned(
    recipe: Recipe, maps: Mapping[str, nn.Linear], *, feedforward: Sequence[str] = ()
) -> dict[str, BaseTunerLayer]:
    """Peft's layer for each of `maps`; no global random state is touched."""
    scaffold = nn.Module()
    names = {name: name.replace(".", "_") for name in maps}
    for name, linear in maps.items():
        scaffold.add_module(names[name], linear)
    fields: dict[str, Any] = {**recipe.config, "target_modules": list(names.values())}
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


def _freeze(layer: nn.Module, *, freeze_a: bool) -> None:
    """Turn what peft does not train into buffers, so that every parameter is trained."""
    if freeze_a:
        assert isinstance(layer, _Factors)
        layer.lora_A[ADAPTER].requires_grad_(False)
    for path, module in layer.named_modules():
        if path == _OWN:
            continue
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and not parameter.requires_grad:
                del module._parameters[name]
                module.register_buffer(name, parameter.detach())


def _linear(site: Site, *, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None) -> nn.Linear:
    """A frozen map of the site's sizes; without `weight` it is all zero and takes no memory."""
    linear = nn.Linear(site.d_in, site.d_out, bias=site.bias, device="meta")
    weight = torch.zeros(1, 1).expand(site.d_out, site.d_in) if weight is None else weight
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if site.bias:
        linear.bias = nn.Parameter(torch.zeros(site.d_out) if bias is None else bias, requires_grad=False)
    return linear


def _named_tensors(layer: BaseTunerLayer) -> list[tuple[str, torch.Tensor]]:
    module = cast("nn.Module", layer)
    return [*module.named_parameters(), *module.named_buffers()]


def _taken_out(
    whole: torch.Tensor, left: torch.Tensor, layer: BaseTunerLayer, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors A [R, I] and B [O, R] of what peft took out of the weight `whole` [O, I] to leave `left`."""
    assert isinstance(layer, _Factors)
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    assert isinstance(a, torch.Tensor)
    assert isinstance(b, torch.Tensor)
    if b.abs().max() > 0:
        return a.detach().clone(), layer.scaling[ADAPTER] * b.detach()
    u, s, v = torch.linalg.svd(whole - left, full_matrices=False)
    return v[:rank], u[:, :rank] * s[:rank]
