"""What a built adapter is: the tensors of one method at one layer, and the hooks by which they act."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import FieldValue, MethodSetting
from autopeft.spaces.model_shape import ModelShape, Role, Site
from autopeft.trainers.adapters.passes import stream_of
from autopeft.trainers.sites import LinearLike


class Handle(Protocol):
    """Something attached to a base model that can be taken off again."""

    def remove(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where and how one adapter is built."""

    shape: ModelShape
    layer: int
    method: str
    values: Mapping[str, FieldValue]
    generator: torch.Generator
    """On the CPU; the only source of chance, so that equal seeds give equal tensors on every device."""
    setting: MethodSetting
    """The method on all its layers; `values` are those of `layer`."""
    shared: dict[Hashable, nn.Module] = field(default_factory=dict)
    """What the layers of this method have in common; the layer that adds a module owns its parameters."""

    @property
    def n_targets(self) -> int:
        """Targets of this method on all its layers."""
        return sum(len(targets) for targets in self.setting.column("targets") if isinstance(targets, tuple))

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.shape.layers[self.layer]

    def size(self, field: str) -> int:
        """A whole number of `values`."""
        value = self.values[field]
        assert isinstance(value, int)
        return value

    def real(self, field: str) -> float:
        """A number of `values`."""
        value = self.values[field]
        assert isinstance(value, (int, float))
        return float(value)

    def stream(self, site: Site, *, kind: int = 0) -> int:
        """What tells apart the masks that kernels draw at `site`; see `passes.stream_of`."""
        return stream_of(self.layer, self.sites.index(site), kind=kind)

    def target_sites(self) -> tuple[Site, ...]:
        """The sites named in `values["targets"]`, in that order.

        Raises:
            ConfigurationError: One of them is no linear site of the layer.
        """
        names = self.values["targets"]
        assert isinstance(names, tuple)
        by_name = {site.name: site for site in self.sites}
        for name in names:
            if name not in by_name:
                raise ConfigurationError(
                    f"{self.method}: layer {self.layer} has no linear site {name!r}",
                    hint=f"its sites are {', '.join(by_name)}",
                )
        return tuple(by_name[name] for name in names)

    def only_site(self, role: Role) -> Site:
        """The one site of this layer with `role`.

        Raises:
            ConfigurationError: The layer has none, or several (a mixture of experts).
        """
        found = [site for site in self.sites if site.role is role]
        if len(found) != 1:
            names = ", ".join(site.name for site in found[:4]) or "none"
            raise ConfigurationError(
                f"{self.method}: layer {self.layer} of this {self.shape.family} model needs exactly one {role} site,"
                f" it has {len(found)} ({names})",
                hint="use lora with explicit targets on this architecture",
            )
        return found[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFactors:
    """An update of one linear map as LoRA: y += alpha / K * b a dropout(x)."""

    a: torch.Tensor
    """[K, d_in]."""
    b: torch.Tensor
    """[d_out, K]."""
    alpha: float
    dropout: float = 0.0


class AbstractAdapter(nn.Module, ABC):
    """One method at one layer. The base model's modules and state dict stay as they are: only hooks are added."""

    suppressible: ClassVar[bool] = True
    """Whether layer sampling can scale its response: all it does is in (pre-)hooks inside its layer, or it reads
    `response` itself."""
    response: float = 1.0
    """For an adapter that does not act by hooks: the factor that its part now counts with."""

    @abstractmethod
    def attach(self, model: PreTrainedModel, layer: nn.Module) -> list[Handle]:
        """Make this adapter act on `layer` of `model`; removing every returned handle undoes it exactly.

        Raises:
            ModelError: The layer works in a way this method cannot act on.
        """

    def penalty(self) -> torch.Tensor | None:
        """What this adapter adds to the training loss after a forward pass, weighted; None for nothing."""
        return None

    def as_lora(self, target: str) -> LoraFactors | None:
        """What it does at the site called `target` as a LoRA, exactly; None for what is none."""
        del target
        return None

    @property
    def mergeable(self) -> tuple[str, ...]:
        """Sites of the layer whose weights can take this adapter in; empty for a method that cannot be merged."""
        return ()

    def fold(
        self, target: str, linear: LinearLike, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias with this adapter's part in them, so that the map alone computes what both did.

        Args:
            target: One of `mergeable`.
            linear: The module there.
            weight: Its weight with what acted before this adapter, fp32, in the module's layout.
            bias: Its bias in the same way; None where it has none.

        Raises:
            ConfigurationError: This map cannot take it in.
        """
        del target, linear
        return weight, bias


Builder = Callable[[Placement], AbstractAdapter]
