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

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast, final

import torch
from peft.tuners.adamss.layer import AdamssLayer
from peft.tuners.lora import KasaConfig
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.tuners.lora.variants import _kasa_layer_regularization_loss
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional

from autopeft.errors import ConfigurationError, ModelError
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.bridged import AbstractBridged
from autopeft.spaces.methods.peft_lora import FROM_DATA, TAKING_OUT
from autopeft.spaces.model_shape import Site
from autopeft.trainers.adapters import peft_clusters, peft_data
from autopeft.trainers.adapters.adapter import Placement
from autopeft.trainers.adapters.peft_build import (
    ADAPTER,
    SEEDED,
    Factors,
    Recipe,
    frozen_linear,
    named_tensors,
    shared_layer,
    skeleton,
    taken_out,
    tuned,
)
from autopeft.trainers.adapters.peft_factors import LOW_RANK
from autopeft.trainers.adapters.site_facts import Need
from autopeft.trainers.adapters.site_updates import AbstractSiteUpdate, SiteUpdates, in_layout
from autopeft.trainers.fake import has_values
from autopeft.trainers.sites import Conv1D, LinearLike

_NESTED: Final[Mapping[str, type]] = {
    "kasa_config": KasaConfig,
    "corda_config": CordaConfig,
    "lora_ga_config": LoraGAConfig,
}
"""Fields of LoRA's configuration that hold a configuration of their own."""
FROM_WEIGHT: Final = frozenset({"ADAMSS", "DEFT", "DELORA", "OSF", "PSOFT", "SUPERTUNING", "TINYLORA"})
"""Types whose tensors depend on the weight; of LoRA, the variants and initialisations in `_starts_from_weight`."""


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

    outputs: torch.Tensor
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
        self._fact: torch.Tensor | None = None
        if recipe.from_weight:
            self.register_buffer("started", torch.zeros((), dtype=torch.uint8))
        if recipe.peft_type == peft_clusters.TYPE:
            self.register_buffer("outputs", torch.arange(site.d_out))
        if recipe.takes_out:
            rank = recipe.rank
            self.register_buffer("taken_a", torch.zeros(rank, site.d_in))
            self.register_buffer("taken_b", torch.zeros(site.d_out, rank))

    @property
    def mergeable(self) -> bool:
        return self._recipe.mergeable

    @property
    def needs(self) -> Need | None:
        return None if self._recipe.need is None or self.started else self._recipe.need

    def tell(self, fact: torch.Tensor) -> None:
        self._fact = fact

    def derive(self, linear: LinearLike) -> None:
        self.view.shown = [linear]
        self._alone = not linear._forward_hooks
        if self._recipe.peft_type == "OSF":
            _project_gradients(self.layer)
        if not has_values(linear.weight):
            return
        if self.needs is not None and self._fact is None:
            raise ModelError(
                f"its initialisation starts from the {self.needs.kind} of training rows, which it was not told",
                hint="train it with autopeft, or use an init that needs no data",
            )
        if self._recipe.from_weight and not self.started:
            self._start(linear)
        if isinstance(self.layer, AdamssLayer):
            self.layer.scatter_index[ADAPTER] = self.outputs

    @torch.no_grad()
    def _start(self, linear: LinearLike) -> None:
        """Let peft build its layer once more, over a copy of the weight, and take over what it came to."""
        weight = self.view.weight.detach().float().clone()
        bias = None if self.view.bias is None else self.view.bias.detach().float().clone()
        copied = frozen_linear(self._site, weight=weight, bias=bias)
        if self._fact is not None:
            peft_data.prepare(copied, self._recipe.config, self._fact.to(weight.device))
        fresh = tuned(self._recipe.at(self._site), {self._site.name: copied})[self._site.name]
        if self._fact is not None:
            peft_data.finish(fresh, self._recipe.config, self._fact.to(weight.device))
            self._fact = None
        if isinstance(self.layer, AdamssLayer):
            rank = cast("int", self._recipe.config["subspace_rank"])
            self.outputs.copy_(peft_clusters.take_over(self.layer, cast("AdamssLayer", fresh), rank=rank))
            self.started.fill_(1)
            return
        fresh.base_layer = nn.Identity()  # type: ignore[assignment]  # peft types it as the map it wraps
        own = dict(named_tensors(self.layer))
        for name, tensor in named_tensors(fresh):
            own[name].copy_(tensor)
        if self._recipe.takes_out:
            a, b = taken_out(self.view.weight.detach().float(), copied.weight, fresh, self._recipe.rank)
            self.taken_a.copy_(a)
            self.taken_b.copy_(b)
        self.started.fill_(1)

    def forward(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if self._recipe.peft_type == "POLY" and x.dim() == 2:
            return self(x[None], output[None])[0]  # it mixes by row
        base = output if self._alone else self.view(x)
        own = base if self._alone else base.clone()  # some types add in place
        self.view.known = (x, self._without_taken(x, own))
        try:
            changed = self.layer(x, **self._options(x))
        finally:
            self.view.known = None
        if not self._alone:
            changed = output + (changed - base)
        return changed.to(output.dtype)

    def _options(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the layer asks for beside its input: of POLY the number of each row's task, and there is one task."""
        if self._recipe.peft_type != "POLY":
            return {}
        return {"task_ids": torch.zeros(len(x), dtype=torch.long, device=x.device)}

    def _without_taken(self, x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        if not self._recipe.takes_out:
            return base
        hidden = functional.linear(x.to(self.taken_a.dtype), self.taken_a)
        return base - functional.linear(hidden, self.taken_b)

    @torch.no_grad()
    def low_rank(self) -> tuple[torch.Tensor, torch.Tensor, float]:
        """A [K, I], B [O, K] and scale of what a layer of `LOW_RANK` adds to the weight, DoRA's norms left out.

        K is R, 2 R where the layer takes directions out of the weight, or the rank that AdaLoRA has left of R.
        """
        layer = self.layer
        if self._recipe.peft_type != "LORA":
            return LOW_RANK[self._recipe.peft_type](layer)
        assert isinstance(layer, Factors)
        a, b, scale = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer.scaling[ADAPTER]
        assert isinstance(a, torch.Tensor)
        assert isinstance(b, torch.Tensor)
        if "kasa_config" in self._recipe.config:
            b = b * layer.get_parameter(f"lora_diag.{ADAPTER}")
        if not self._recipe.takes_out:
            return a, b, scale
        return torch.cat((a, self.taken_a)), torch.cat((b, -self.taken_b / scale), dim=1), scale

    def penalty(self) -> torch.Tensor | None:
        if self._recipe.orthogonality:
            return self._recipe.orthogonality * _distance_from_orthonormal(self.layer)
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
        copy = frozen_linear(self._site, weight=original.clone(), bias=start)
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
    layers: Mapping[str, BaseTunerLayer]
    if recipe.peft_type == peft_clusters.TYPE:
        layers = {site.name: peft_clusters.blank(recipe, site) for site in sites}
    elif recipe.from_weight:
        layers = skeleton(recipe, sites)
    else:
        layers = {site.name: shared_layer(method, placement, recipe, site) for site in sites}
    return SiteUpdates({site.name: PeftSite(layers[site.name], site, recipe) for site in sites})


def _recipe(method: AbstractBridged, placement: Placement, sites: Sequence[Site]) -> Recipe:
    config = method.peft_config(placement.values, sites=tuple(sites))
    if method.peft_type in SEEDED:
        config[SEEDED[method.peft_type]] = placement.layer
    for name, kind in _NESTED.items():
        if isinstance(config.get(name), Mapping):
            config[name] = kind(**cast("dict[str, Any]", config[name]))
    lora = method.peft_type == "LORA"
    init = str(placement.values["init"]) if lora else ""
    takes_out = init in TAKING_OUT or "kasa_config" in config
    need = peft_data.need(config, rank=placement.size("rank")) if init in FROM_DATA else None
    return Recipe(
        peft_type=method.peft_type,
        freeze_a=bool(config.pop("freeze_a", False)),
        config=config,
        by_site={site.name: method.by_site(site, placement.values) for site in sites},  # type: ignore[call-arg]  # a static method held in a class variable
        seed=int(torch.randint(2**62, (1,), generator=placement.generator)),
        rank=placement.size("rank") if takes_out else 0,
        from_weight=takes_out
        or need is not None
        or method.peft_type in FROM_WEIGHT
        or (lora and (bool(config.get("use_dora")) or config["init_lora_weights"] == "mica")),
        takes_out=takes_out,
        mergeable=method.mergeable,
        need=need,
        orthogonality=_orthogonality(method, placement),
    )


def _orthogonality(method: AbstractBridged, placement: Placement) -> float:
    """Weight of one target's distance from orthonormal factors; peft takes the mean over the factors of all targets."""
    return placement.real("orthogonality") / (2 * placement.n_targets) if method.peft_type == "ADALORA" else 0.0


def _distance_from_orthonormal(layer: nn.Module) -> torch.Tensor:
    """||A A' - I|| + ||B' B - I||, Frobenius norms."""
    a, b = layer.get_parameter(f"lora_A.{ADAPTER}"), layer.get_parameter(f"lora_B.{ADAPTER}")
    eye = torch.eye(len(a), device=a.device)
    return torch.linalg.matrix_norm(a @ a.t() - eye) + torch.linalg.matrix_norm(b.t() @ b - eye)


def _project_gradients(layer: nn.Module) -> None:
    """Put OSF's hooks on the parameters that are there now: converting a module may have made new ones."""
    cast("Callable[[], None]", layer._detach_hooks)()
    cast("Callable[[str], None]", layer._attach_hooks)(ADAPTER)
