"""Methods that change linear maps one by one: a module for each target, and the adapter that hooks them in."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import nn
from transformers import PreTrainedModel

from autopeft.errors import AutoPeftError
from autopeft.trainers.adapters.adapter import AbstractAdapter, Handle, LoraFactors
from autopeft.trainers.adapters.site_facts import Need
from autopeft.trainers.sites import Conv1D, LinearLike


class AbstractSiteUpdate(nn.Module, ABC):
    """What one method does to one linear map.

    Shapes: I and O the map's input and output width.
    """

    @abstractmethod
    def forward(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """`output` [..., O] of the map for `x` [..., I], as this method changes it, in the output's dtype."""

    @abstractmethod
    def fold(
        self, linear: LinearLike, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same as a new weight and bias; see `AbstractAdapter.fold`."""

    @property
    def needs(self) -> Need | None:
        """What it must be told of the training rows before `derive`; None for nothing."""
        return None

    def tell(self, fact: torch.Tensor) -> None:
        """Take the fact that it needs, float32."""
        raise AssertionError(f"{type(self).__name__} needs nothing, and was told {tuple(fact.shape)}")

    def derive(self, linear: LinearLike) -> None:
        """Take what is needed from the frozen weight; called before the first forward pass on `linear`.

        Raises:
            ModelError: The weight does not allow it.
        """
        del linear

    @property
    def mergeable(self) -> bool:
        """Whether it is a change of weight and bias, which `fold` gives."""
        return True

    def as_lora(self) -> LoraFactors | None:
        """The same as a LoRA, exactly; None for what is none."""
        return None

    def penalty(self) -> torch.Tensor | None:
        """This map's part of the training loss, weighted; None for nothing."""
        return None


@final
class SiteUpdates(AbstractAdapter):
    """One method on the target sites of one layer."""

    def __init__(
        self, updates: Mapping[str, AbstractSiteUpdate], *, prepare: Callable[[PreTrainedModel], None] | None = None
    ) -> None:
        super().__init__()
        self.targets = tuple(updates)
        self._prepare = prepare
        """Called with the model before the updates see their maps, where they need more of it than these."""
        for name, update in updates.items():
            self.add_module(name.replace(".", "_"), update)

    def update(self, target: str) -> AbstractSiteUpdate:
        """What is done at the site called `target`."""
        update = self.get_submodule(target.replace(".", "_"))
        assert isinstance(update, AbstractSiteUpdate)
        return update

    def attach(self, model: PreTrainedModel, layer: nn.Module) -> list[Handle]:
        maps: list[tuple[LinearLike, AbstractSiteUpdate]] = []
        if self._prepare is not None:
            self._prepare(model)
        for target in self.targets:
            linear, update = layer.get_submodule(target), self.update(target)
            assert isinstance(linear, LinearLike)
            try:
                update.derive(linear)
            except AutoPeftError as error:
                raise error.at(target) from None
            maps.append((linear, update))
        return [_hook(linear, update) for linear, update in maps]

    def penalty(self) -> torch.Tensor | None:
        terms = [term for target in self.targets if (term := self.update(target).penalty()) is not None]
        return torch.stack(terms).sum() if terms else None

    def as_lora(self, target: str) -> LoraFactors | None:
        return self.update(target).as_lora()

    @property
    def mergeable(self) -> tuple[str, ...]:
        return self.targets if all(self.update(target).mergeable for target in self.targets) else ()

    def fold(
        self, target: str, linear: LinearLike, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        try:
            return self.update(target).fold(linear, weight, bias)
        except AutoPeftError as error:
            raise error.at(target) from None


def _hook(linear: LinearLike, update: AbstractSiteUpdate) -> Handle:
    def hook(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return update(args[0], output)

    return linear.register_forward_hook(hook)


def in_layout(linear: LinearLike, delta: torch.Tensor) -> torch.Tensor:
    """`delta` [O, I] as `linear` keeps its weight."""
    return delta.t() if isinstance(linear, Conv1D) else delta
