"""FRoD: few trained numbers between a frame of each weight and a basis of the inputs that the layers share.

W = U diag(z) V^T, exactly, for the V that PEFT finds from the maps of one name in all layers of the method. What is
trained is a change from the frame, zero at the start, so the base stays as it is:

    y += U (S + diag(c)) V^T dropout(x)

with c [I] and the entries of S at places drawn once for all layers. V and the places are in the file; U and z follow
from V and the weight when the adapter is attached.

Shapes: I and O the map's input and output width, n trained entries of S.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, final

import torch
from peft.tuners.frod.model import _projection_from_weights
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from autopeft.errors import ModelError
from autopeft.spaces.model_shape import ModelShape, Site
from autopeft.spaces.peft_counts import SITE_COUNTS
from autopeft.trainers.adapters.adapter import Placement
from autopeft.trainers.adapters.frames import matrix_of
from autopeft.trainers.adapters.site_updates import AbstractSiteUpdate, SiteUpdates, in_layout
from autopeft.trainers.fake import has_values
from autopeft.trainers.sites import LinearLike, layers_of

_KEPT: Final = "_autopeft_frod_basis"
_ABSENT: Final = 1e-5
"""Of the longest column: V is kept in float32."""
_TOLERANCE: Final = 1e-2
"""Relative difference of two frames' lengths: float32 gives 1e-6, a file kept in bf16 4e-3."""


@final
class SharedBasis(nn.Module):
    """V [I, I] and the places [2, n] of S for the maps of one name."""

    basis: torch.Tensor
    places: torch.Tensor
    started: torch.Tensor

    def __init__(self, target: str, layers: Sequence[int], *, width: int, places: torch.Tensor, ridge: float) -> None:
        super().__init__()
        self.target, self.layers, self.ridge = target, tuple(layers), ridge
        self.register_buffer("basis", torch.zeros(width, width))
        self.register_buffer("places", places)
        self.register_buffer("started", torch.zeros((), dtype=torch.uint8))

    @torch.no_grad()
    def start(self, shape: ModelShape, model: PreTrainedModel) -> None:
        """Find V from the maps of all layers, the first time; it is kept beside the first of them for later trials."""
        layers = layers_of(model.base_model, shape)
        maps = [layers[layer].get_submodule(self.target) for layer in self.layers]
        assert all(isinstance(linear, LinearLike) for linear in maps)
        if not has_values(maps[0].get_parameter("weight")) or self.started:
            return
        weights = [linear.get_parameter("weight") for linear in maps]
        key = (self.layers, self.ridge, *((weight.data_ptr(), weight._version) for weight in weights))
        kept = maps[0].__dict__.get(_KEPT)
        if kept is None or kept[0] != key:
            kept = (key, _basis_of([_exact(linear) for linear in maps], self.ridge))
            maps[0].__dict__[_KEPT] = kept
        self.basis.copy_(kept[1])
        self.started.fill_(1)


@final
class FrodSite(AbstractSiteUpdate):
    """One target: the changes that are trained, and U and z once `derive` has seen the weight."""

    left: torch.Tensor
    lengths: torch.Tensor

    def __init__(self, shared: SharedBasis, *, owner: bool, d_in: int, d_out: int, dropout: float) -> None:
        super().__init__()
        self.diagonal = nn.Parameter(torch.zeros(d_in))
        self.entries = nn.Parameter(torch.zeros(shared.places.shape[1]))
        self.dropout = dropout
        self._sizes = d_out, d_in
        self._shared = (shared,)
        if owner:
            self.shared = shared
        self.register_buffer("left", torch.empty(0), persistent=False)
        self.register_buffer("lengths", torch.full((d_in,), torch.nan))

    @torch.no_grad()
    def derive(self, linear: LinearLike) -> None:
        """U and z of the weight, in the basis that was found.

        Raises:
            ModelError: The weight is not the one that the changes were trained on.
        """
        (shared,) = self._shared
        if not has_values(linear.weight):
            self.left = shared.basis.new_empty(self._sizes)
            return
        left, lengths = _frame(shared.basis.detach().double().cpu(), _exact(linear))
        known = self.lengths.double().cpu()
        if known.isnan().any():
            self.lengths.copy_(lengths)
        elif (lengths - known).abs().max() > _TOLERANCE * lengths.abs().max():
            raise ModelError(
                "the base weight is not the one this adapter was trained on",
                hint="load the base model in the dtype and revision of training",
            )
        self.left = left.to(self.diagonal.device, self.diagonal.dtype)

    def core(self) -> torch.Tensor:
        """S + diag(c) [I, I]."""
        (shared,) = self._shared
        rows, columns = shared.places.long()
        return torch.diag(self.diagonal).index_put((rows, columns), self.entries)

    def forward(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        (shared,) = self._shared
        dropped = functional.dropout(x, self.dropout, training=self.training) if self.dropout else x
        hidden = dropped @ shared.basis.to(x.dtype)
        hidden = functional.linear(hidden, self.core().to(x.dtype)).flatten(0, -2).to(output.dtype)
        return torch.addmm(output.flatten(0, -2), hidden, self.left.to(output.dtype).t()).view(output.shape)

    @torch.no_grad()
    def fold(
        self, linear: LinearLike, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        (shared,) = self._shared
        delta = self.left.float() @ self.core().float() @ shared.basis.float().t()
        return weight + in_layout(linear, delta), bias


def build_frod(placement: Placement) -> SiteUpdates:
    """Changes of zero at every target of the layer; the basis follows when the first layer is attached.

    Raises:
        ConfigurationError: A target is no linear site of the layer.
    """
    updates: dict[str, AbstractSiteUpdate] = {}
    bases: list[SharedBasis] = []
    for site in placement.target_sites():
        key = _key(placement.values, site)
        owner = key not in placement.shared
        if owner:
            placement.shared[key] = SharedBasis(
                site.name,
                _layers_with(placement, site, key),
                width=site.d_in,
                places=_places(site, placement),
                ridge=placement.real("ridge"),
            )
        shared = placement.shared[key]
        assert isinstance(shared, SharedBasis)
        bases.append(shared)
        updates[site.name] = FrodSite(
            shared, owner=owner, d_in=site.d_in, d_out=site.d_out, dropout=placement.real("dropout")
        )
    return SiteUpdates(updates, prepare=partial(_start_all, bases, placement.shape))


def _start_all(bases: Sequence[SharedBasis], shape: ModelShape, model: PreTrainedModel) -> None:
    for basis in bases:
        basis.start(shape, model)


def _key(values: Mapping[str, object], site: Site) -> tuple[object, ...]:
    """What maps that share a basis have in common."""
    return site.name, site.d_in, values["rate"], values["ridge"]


def _layers_with(placement: Placement, site: Site, key: tuple[object, ...]) -> list[int]:
    found: list[int] = []
    for layer in placement.setting.layers:
        values = placement.setting.at(layer) or {}
        names = values["targets"]
        assert isinstance(names, tuple)
        if site.name in names and _key(values, placement.shape.site(layer, site.name)) == key:
            found.append(layer)
    return found


def _places(site: Site, placement: Placement) -> torch.Tensor:
    """[2, n] different places off the diagonal of an [I, I] matrix, drawn."""
    width = site.d_in
    n = SITE_COUNTS["FROD"]({"sparse_rate": placement.real("rate")}, site) - width
    drawn = torch.randperm(width * (width - 1), generator=placement.generator)[:n].sort().values
    rows = torch.div(drawn, max(width - 1, 1), rounding_mode="floor")
    columns = drawn - rows * (width - 1)
    return torch.stack((rows, columns + (columns >= rows))).to(torch.int32)


def _exact(linear: nn.Module) -> torch.Tensor:
    """The weight [O, I] in float64 on the CPU, with the digits that bfloat16 has.

    So a base model has the same frame in every dtype: where directions matter alike, the last digits turn them.
    """
    assert isinstance(linear, LinearLike)
    return matrix_of(linear).to(device="cpu", dtype=torch.bfloat16).double()


def _basis_of(matrices: list[torch.Tensor], ridge: float) -> torch.Tensor:
    """Peft's V [I, I].

    Raises:
        ModelError: A weight has values that are not finite.
    """
    if not all(bool(matrix.isfinite().all()) for matrix in matrices):
        raise ModelError("the weight has values that are not finite", hint="check the base model's files")
    return _projection_from_weights(matrices, ridge).float()


def _frame(basis: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """U [O, I] with columns of length one, and their lengths z [I], so that U diag(z) V^T is the weight.

    A direction that the weight does not have (fewer rows in all layers than inputs) has a column of zeros.
    """
    try:
        product = torch.linalg.solve(basis, weight.t()).t()
    except RuntimeError:
        product = weight @ torch.linalg.pinv(basis, rtol=1e-6).t()
    lengths = product.norm(dim=0)
    found = lengths > _ABSENT * lengths.max()
    return torch.where(found, product / lengths, 0.0), lengths
