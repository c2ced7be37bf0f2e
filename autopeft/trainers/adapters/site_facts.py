"""What an initialisation may want to know of the training rows at one linear map, and how it is gathered.

Shapes: N tokens, I and O the map's input and output width, R rank.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, final

import torch
from peft.utils.incremental_pca import IncrementalPCA

from autopeft.errors import DivergedError


class FactKind(StrEnum):
    COVARIANCE = "covariance"
    """`[I, I]` second moments of the map's inputs, as CorDA takes them."""
    COMPONENTS = "components"
    """`[R, I]` principal components of the map's inputs, the largest first (EVA); fewer rows when there are no more
    tokens."""
    GRADIENT = "gradient"
    """`[O, I]` mean gradient of the task's loss in the map's weight (LoRA-GA)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one map's adapter must be told before it meets the weight."""

    kind: FactKind
    rank: int


class AbstractInputFact(ABC):
    """Something gathered from what a map reads."""

    @abstractmethod
    def add(self, x_NI: torch.Tensor) -> None:
        """Take in the tokens of one row, float32."""

    @abstractmethod
    def result(self) -> torch.Tensor:
        """The fact, after all rows."""


@final
class Covariance(AbstractInputFact):
    """Mean over rows of X'X, each row scaled by its largest entry first, as peft does."""

    def __init__(self) -> None:
        self._sum: torch.Tensor | None = None
        self._rows = 0

    def add(self, x_NI: torch.Tensor) -> None:
        x_NI = x_NI / x_NI.max().abs().clamp_min(torch.finfo(x_NI.dtype).tiny)
        moment = x_NI.t() @ x_NI
        self._sum = moment if self._sum is None else self._sum + moment
        self._rows += 1

    def result(self) -> torch.Tensor:
        assert self._sum is not None, "a row was added"
        return finite(self._sum / self._rows)


@final
class Components(AbstractInputFact):
    """Peft's incremental principal components; tokens wait until there are as many as components."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._pca = IncrementalPCA(n_components=rank, copy=True, lowrank=True, lowrank_seed=42)
        self._waiting: list[torch.Tensor] = []
        self._fitted = False

    def add(self, x_NI: torch.Tensor) -> None:
        self._waiting.append(finite(x_NI))
        if sum(len(part) for part in self._waiting) >= max(self._rank, _CHUNK):
            self._fit()

    def result(self) -> torch.Tensor:
        waiting = sum(len(part) for part in self._waiting)
        if waiting >= self._rank:
            self._fit()
        if self._fitted:
            return self._pca.components_[: self._rank]
        x_NI = torch.cat(self._waiting)
        _, _, v_NI = torch.linalg.svd(x_NI - x_NI.mean(dim=0), full_matrices=False)
        return v_NI[: max(1, len(x_NI) - 1)]

    def _fit(self) -> None:
        self._pca.partial_fit(torch.cat(self._waiting))
        self._waiting, self._fitted = [], True


_CHUNK: Final = 1024
"""Tokens of one step of the principal components, at least."""


def gatherer(need: Need) -> AbstractInputFact:
    """What gathers an input's fact; gradients are no such."""
    return Covariance() if need.kind is FactKind.COVARIANCE else Components(need.rank)


def finite(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`.

    Raises:
        DivergedError: Something in it is not finite.
    """
    if not torch.isfinite(tensor).all():
        raise DivergedError(
            "the rows that the initialisation looks at give values that are not finite",
            hint="use float32, or an init that needs no data",
        )
    return tensor
