"""Norms whose weight and bias are trained: the module computes once more, with the trained tensors in their place.

What a norm computes with a given weight is the module's own affair (some add one to it, some compute in float32), so
the module is asked, by `torch.func.functional_call`. The base's tensors are never written.
"""

from typing import final

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from autopeft.spaces.methods.ln_tuning import norms_of
from autopeft.spaces.model_shape import Part
from autopeft.trainers.adapters.adapter import AbstractAdapter, Handle, Placement
from autopeft.trainers.sites import LinearLike


@final
class _Unhooked(nn.Module):
    """A norm without the hooks on it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm.forward(x)


@final
class NormAdapter(AbstractAdapter):
    """The norms of one layer."""

    started: torch.Tensor

    def __init__(self, norms: tuple[Part, ...], *, inside: str) -> None:
        super().__init__()
        self._targets = tuple(part.name.removeprefix(inside) for part in norms)
        for target, part in zip(self._targets, norms, strict=True):
            rows = {name: nn.Parameter(torch.zeros(size)) for name, size in part.sizes}
            self.add_module(target.replace(".", "_"), nn.ParameterDict(rows))
        self.register_buffer("started", torch.zeros((), dtype=torch.uint8))

    def tensors(self, target: str) -> dict[str, torch.Tensor]:
        """The trained tensors of the norm called `target`, by name."""
        return dict(self.get_submodule(target.replace(".", "_")).named_parameters())

    def attach(self, model: PreTrainedModel, layer: nn.Module) -> list[Handle]:
        norms = {target: layer.get_submodule(target) for target in self._targets}
        self._start(norms)
        return [self._hook(target, norm) for target, norm in norms.items()]

    @torch.no_grad()
    def _start(self, norms: dict[str, nn.Module]) -> None:
        """Take over the base's tensors, the first time."""
        if self.started:
            return
        for target, norm in norms.items():
            for name, tensor in self.tensors(target).items():
                tensor.copy_(norm.get_parameter(name))
        self.started.fill_(1)

    def _hook(self, target: str, norm: nn.Module) -> Handle:
        bare = _Unhooked(norm)

        def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            rows = {name: row.to(module.get_parameter(name).dtype) for name, row in self.tensors(target).items()}
            changed = functional_call(bare, {f"norm.{name}": row for name, row in rows.items()}, args)
            assert isinstance(changed, torch.Tensor)
            return changed.to(output.dtype)

        return norm.register_forward_hook(hook)

    @property
    def mergeable(self) -> tuple[str, ...]:
        return self._targets

    def fold(
        self, target: str, linear: LinearLike, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        own = self.tensors(target)
        return own["weight"].detach().float(), own["bias"].detach().float() if "bias" in own else bias


def build_ln_tuning(placement: Placement) -> NormAdapter:
    """The norms of the layer that are asked for; their tensors are the base's once they are attached."""
    shape, layer = placement.shape, placement.layer
    return NormAdapter(norms_of(shape, layer, placement.values), inside=f"{shape.path_of(layer)}.")
