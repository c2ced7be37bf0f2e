"""The frozen-frame mechanism: a small part trained between, or away from, two frames of a frozen weight.

W is cut into left, core and right (`autopeft.trainers.adapters.frames`), and any of the three may be trained. What is
trained is held as a change from the frame, zero at the start, so the base weight stays as it is, nothing changes at
step 0, and a file holds the changes alone. With changes l, c, r of the frame L, C, R the update is

    (L + l)(C + c)(R + r) - L C R  =  (l (C + c) + L c)(R + r)  +  (L C) r,

which is summed as on the right: no difference of two large products, so nothing is lost in bf16.

Shapes: O output width, I input width, R rank.
"""

from dataclasses import dataclass
from typing import Final, final

import torch
from torch import nn
from torch.nn import functional

from autopeft.errors import ModelError
from autopeft.spaces.model_shape import Site
from autopeft.trainers.adapters.adapter import LoraFactors, Placement
from autopeft.trainers.adapters.frames import Cut, Frame, frame_of, outline_of
from autopeft.trainers.adapters.site_updates import AbstractSiteUpdate, SiteUpdates, in_layout
from autopeft.trainers.fake import has_values
from autopeft.trainers.sites import LinearLike

_TOLERANCE: Final = 1e-2
"""Relative difference of two fingerprints of one frame: float32 gives 1e-6, a file kept in bf16 4e-3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Which frame, and what of it is trained."""

    cut: Cut
    square_core: bool = False
    """The core is a matrix, else a diagonal."""
    factors: bool = False
    """Left and right are trained too."""
    gain: bool = False
    """The scale is trained too."""


@final
class FramedSite(AbstractSiteUpdate):
    """One target: the changes that are trained, and the frame once `derive` has seen the weight."""

    frame_left: torch.Tensor
    frame_core: torch.Tensor
    frame_right: torch.Tensor
    fingerprint: torch.Tensor

    def __init__(
        self, recipe: Recipe, *, d_in: int, d_out: int, rank: int, scale: float, orthonormality: float = 0.0
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.rank = rank
        self.scale = scale
        self.orthonormality = orthonormality
        self.core = nn.Parameter(torch.zeros((rank, rank) if recipe.square_core else rank))
        self.left = nn.Parameter(torch.zeros(d_out, rank)) if recipe.factors else None
        self.right = nn.Parameter(torch.zeros(rank, d_in)) if recipe.factors else None
        self.gain = nn.Parameter(torch.zeros(())) if recipe.gain else None
        for name in ("frame_left", "frame_core", "frame_right"):
            self.register_buffer(name, torch.empty(0), persistent=False)
        self.register_buffer("fingerprint", torch.full((rank,), torch.nan))

    @torch.no_grad()
    def derive(self, linear: LinearLike) -> None:
        """Take the frame from the map's weight.

        Raises:
            ModelError: The weight has no such frame, or not the one that the changes were trained in.
        """
        if not has_values(linear.weight):
            self._hold(outline_of(linear, self.rank, square_core=self.recipe.square_core))
            return
        frame = frame_of(linear, self.recipe.cut, self.rank)
        found = _fingerprint(frame.left, frame.right)
        known = self.fingerprint.to(found)
        if known.isnan().any():
            self.fingerprint = found.to(self.fingerprint)
        elif (found - known).abs().max() > _TOLERANCE * found.abs().max():
            raise ModelError(
                "the base weight is not the one this adapter was trained on",
                hint="load the base model in the dtype and revision of training",
            )
        self._hold(frame)

    def _hold(self, frame: Frame) -> None:
        device, dtype = self.core.device, self.core.dtype
        self.frame_left = frame.left.to(device, dtype)
        self.frame_core = frame.core.to(device, dtype)
        self.frame_right = frame.right.to(device, dtype)

    def forward(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """`output` [..., O] plus the update for the input `x` [..., I], in the output's dtype."""
        up, down = self.factors()
        hidden = functional.linear(x, down.to(x.dtype)).flatten(0, -2).to(output.dtype)
        up = up.to(output.dtype).t()
        return torch.addmm(output.flatten(0, -2), hidden, up, alpha=self.scale).view(output.shape)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The update without its scale as up [O, K] times down [K, I]; K is R, or 2 R where the factors train."""
        change = self._core_change()
        up = _times(self.frame_left, change)
        if self.left is None or self.right is None:
            return up, self.frame_right
        up = up + _times(self.left, self.frame_core + change)
        up = torch.cat((up, _times(self.frame_left, self.frame_core)), dim=1)
        return up, torch.cat((self.frame_right + self.right, self.right))

    def _core_change(self) -> torch.Tensor:
        """Change of the core; with a gain g, that of (1 + g / scale) core."""
        if self.gain is None:
            return self.core
        return self.core + self.gain / self.scale * (self.frame_core + self.core)

    def non_orthonormality(self) -> torch.Tensor:
        """How far left and right are from orthonormal, beyond their frame: the mean of two Frobenius norms.

        The frame itself is orthonormal up to rounding; leaving its own product out keeps that rounding, whose norm
        has a gradient of full length in a random direction, out of the start.
        """
        assert self.left is not None
        assert self.right is not None
        left = _gram_change(self.frame_left.t(), self.left.t())
        right = _gram_change(self.frame_right, self.right)
        return (torch.linalg.matrix_norm(left) + torch.linalg.matrix_norm(right)) / 2

    def penalty(self) -> torch.Tensor | None:
        return self.orthonormality * self.non_orthonormality() if self.orthonormality else None

    @torch.no_grad()
    def as_lora(self) -> LoraFactors:
        """Of rank R, or 2 R where the factors train; only once `derive` has seen the weight."""
        assert self.frame_left.numel(), "the frame is the weight's"
        up, down = self.factors()
        return LoraFactors(a=down.detach(), b=up.detach(), alpha=self.scale * len(down))

    @torch.no_grad()
    def fold(
        self, linear: LinearLike, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        up, down = self.factors()
        return weight + in_layout(linear, self.scale * (up.float() @ down.float())), bias


def build_framed(
    placement: Placement, recipe: Recipe, *, scale: float = 1.0, orthonormality: float = 0.0
) -> SiteUpdates:
    """The changes of `recipe` at every target of the layer, zero; the frames follow when it is attached.

    Raises:
        ConfigurationError: A target is no linear site of the layer.
    """
    rank = placement.size("rank")

    def made(site: Site) -> FramedSite:
        return FramedSite(
            recipe, d_in=site.d_in, d_out=site.d_out, rank=rank, scale=scale, orthonormality=orthonormality
        )

    return SiteUpdates({site.name: made(site) for site in placement.target_sites()})


def _times(left: torch.Tensor, core: torch.Tensor) -> torch.Tensor:
    """Left [O, R] times the core, a diagonal [R] or a matrix [R, R]."""
    return left * core if core.dim() == 1 else left @ core


def _gram_change(frame: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """(F + c)(F + c)^T - F F^T for rows F, c [R, D]; exactly zero for c = 0."""
    cross = frame @ change.t()
    return cross + cross.t() + change @ change.t()


def _fingerprint(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """One number [R] for each pair of a left and a right vector, by fixed uneven weights."""
    return _weights(left.shape[0], left) @ left + right @ _weights(right.shape[1], right)


def _weights(n: int, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(1, n + 1, device=like.device, dtype=like.dtype).mul(0.7).sin()
