"""Terms of the training loss beside the task's and the adapters' own, and the density of activations they act on.

Letters: B rows, T tokens, F feed-forward width, D width of the head's input, N scored items, C classes or vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import ClassVar, Final, final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from autopeft.errors import ConfigurationError
from autopeft.spaces.model_shape import Role
from autopeft.spaces.virtual_tokens import virtual_tokens
from autopeft.trainers.adapters.adapter import Handle
from autopeft.trainers.batches import AnyBatch
from autopeft.trainers.inject import AdapterSet
from autopeft.trainers.job import TrainingSettings
from autopeft.trainers.model import LoadedModel
from autopeft.trainers.perturbation import WeightNoise
from autopeft.trainers.sites import layers_of

SPECTRUM_VALUES: Final = 3
"""Singular values that `ba_spectrum` calls the leading ones."""
SPECTRUM_ROWS: Final = 128
"""Rows of the outputs that `ba_spectrum` looks at."""
DENSE_ABOVE: Final = 1e-3
"""An activation is active from this magnitude: smooth ones such as GELU are never quite zero."""

Pair = tuple[torch.Tensor, torch.Tensor]


class AbstractRegularizer(ABC):
    """One term of the loss, weighted by the training setting of its name; 0 switches it off."""

    needs_frozen: ClassVar[bool] = False
    """Whether it asks what the model says without its adapters."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def watch(self, batch: AnyBatch) -> list[Handle]:
        """Hooks for the coming forward pass of `batch`."""
        del batch
        return []

    @abstractmethod
    def term(self, outputs: torch.Tensor, frozen: torch.Tensor | None) -> torch.Tensor:
        """The unweighted term after the forward pass.

        Args:
            outputs: What the task scores, `[N, C]`.
            frozen: The same without the adapters, when asked for.
        """


@final
class Consistency(AbstractRegularizer):
    """BA-LoRA: the outputs stay near those of the model without its adapters (Chang et al. 2024, arXiv 2408.04556).

    Classes: mean squared difference of the logits, each row scaled to length one. Language: mean KL(frozen || adapted).
    """

    needs_frozen = True

    def __init__(self, weight: float, *, language: bool) -> None:
        super().__init__(weight)
        self._language = language

    def term(self, outputs: torch.Tensor, frozen: torch.Tensor | None) -> torch.Tensor:
        assert frozen is not None
        if self._language:
            given, wanted = functional.log_softmax(outputs, -1), functional.log_softmax(frozen, -1)
            return functional.kl_div(given, wanted, reduction="batchmean", log_target=True)
        return functional.mse_loss(functional.normalize(outputs, dim=-1), functional.normalize(frozen, dim=-1))


@final
class Diversity(AbstractRegularizer):
    """BA-LoRA: features are uncorrelated. Classes: squared off-diagonal covariance of the head's input, over D.

    Language: minus the mean entropy of the predicted distributions.
    """

    def __init__(self, weight: float, *, head: nn.Module | None) -> None:
        super().__init__(weight)
        self._head = head
        self._features: torch.Tensor | None = None

    def watch(self, batch: AnyBatch) -> list[Handle]:
        if self._head is None:
            return []

        def keep(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            self._features = _real(args[0], batch)

        return [self._head.register_forward_pre_hook(keep)]

    def term(self, outputs: torch.Tensor, frozen: torch.Tensor | None) -> torch.Tensor:
        if self._head is None:
            spread = functional.log_softmax(outputs, -1)
            return (spread.exp() * spread).sum(-1).mean()
        assert self._features is not None, "the head was called"
        return off_diagonal_covariance(self._features.float())


@final
class Spectrum(AbstractRegularizer):
    """BA-LoRA: minus the share of the leading singular values of the outputs `[N, C]` in their sum.

    The leading ones are three, or as many as leave one out (all of them always have the share one).
    """

    def term(self, outputs: torch.Tensor, frozen: torch.Tensor | None) -> torch.Tensor:
        rows = outputs[:SPECTRUM_ROWS].float()
        leading = min(SPECTRUM_VALUES, min(rows.shape) - 1)
        if not torch.isfinite(rows).all():
            return rows.sum() * float("nan")
        if leading < 1:
            return rows.sum() * 0.0
        values = torch.linalg.svdvals(rows)
        return -values[:leading].sum() / values.sum().clamp_min(torch.finfo(values.dtype).tiny)


@final
class Density(AbstractRegularizer):
    """DEFT: the mean of o^2 / (o^2 + epsilon) over the activations o in every feed-forward block [R: IBM/DEFT].

    Padding and virtual tokens are left out. An encoder and a decoder each have a mean of their own, which are added.
    """

    def __init__(
        self, weight: float, *, blocks: Sequence[Sequence[nn.Module]], epsilon: float, virtual: int = 0
    ) -> None:
        super().__init__(weight)
        self._virtual = virtual
        self._blocks = blocks
        self._epsilon = epsilon
        self._terms: list[list[torch.Tensor]] = []

    def watch(self, batch: AnyBatch) -> list[Handle]:
        self._terms = [[] for _ in self._blocks]
        handles: list[Handle] = []
        for part, (terms, downs) in enumerate(zip(self._terms, self._blocks, strict=True)):
            for down in downs:

                def keep(
                    _: nn.Module,
                    args: tuple[torch.Tensor, ...],
                    terms: list[torch.Tensor] = terms,
                    decoder: bool = part > 0,
                ) -> None:
                    square = _real(args[0], batch, virtual=self._virtual, decoder=decoder).float().square()
                    terms.append((square / (square + self._epsilon)).mean())

                handles.append(down.register_forward_pre_hook(keep))
        return handles

    def term(self, outputs: torch.Tensor, frozen: torch.Tensor | None) -> torch.Tensor:
        return torch.stack([torch.stack(terms).mean() for terms in self._terms]).sum()


@final
class Regularizers:
    """All terms of one run; with none of them switched on, a pass costs nothing more.

    Raises:
        ConfigurationError: A term that this model or task has nothing for.
    """

    def __init__(
        self, loaded: LoadedModel, adapters: AdapterSet, settings: TrainingSettings, *, regression: bool
    ) -> None:
        self._loaded = loaded
        self._adapters = adapters
        virtual = virtual_tokens(adapters.configuration)
        self._terms = _chosen(loaded, settings, regression=regression, virtual=virtual)
        self._noise = WeightNoise(loaded, adapters, sigma=settings.ggpo_sigma, beta=settings.ggpo_beta)
        self._last: torch.Tensor | None = None

    def outputs(self, ask: Callable[[], Pair], batch: AnyBatch) -> Pair:
        """`ask()`, the model's outputs and their targets on `batch`, watched by every term."""
        frozen: torch.Tensor | None = None
        if any(term.needs_frozen for term in self._terms):
            with torch.no_grad(), self._bare():
                frozen, _ = ask()
        handles = [handle for term in self._terms for handle in term.watch(batch)] + self._noise.watch()
        try:
            outputs, targets = ask()
        finally:
            for handle in handles:
                handle.remove()
        weighted = [term.weight * term.term(outputs, frozen) for term in self._terms]
        self._last = torch.stack(weighted).sum() if weighted else None
        return outputs, targets

    @property
    def read_outputs(self) -> bool:
        """Whether any term may look at what the task scores."""
        return bool(self._terms)

    def penalty(self) -> torch.Tensor | None:
        """The weighted sum of the terms after the last `outputs`; None when none is switched on."""
        return self._last

    def observe(self) -> None:
        """What the next step needs of the gradients, after the backward pass."""
        self._noise.observe()

    @contextmanager
    def _bare(self) -> Iterator[None]:
        """The model without its adapters, nothing dropped out."""
        training = self._adapters.training
        heads = [
            module for name in self._loaded.head_names for module in self._loaded.model.get_submodule(name).modules()
        ]
        modes = [module.training for module in heads]
        self._adapters.remove()
        for module in heads:
            module.training = False
        try:
            yield
        finally:
            for module, mode in zip(heads, modes, strict=True):
                module.training = mode
            self._adapters.attach(self._loaded.model, self._loaded.shape)
            self._adapters.train(training)


@final
class DensityMeter:
    """Inside `with`, counts the active feed-forward activations of real tokens."""

    def __init__(self, loaded: LoadedModel, *, virtual: int = 0) -> None:
        self._virtual = virtual
        self._downs = [(down, part > 0) for part, downs in enumerate(feed_forwards(loaded)) for down in downs]
        self._active, self._nonzero, self._total = 0, 0, 0

    @contextmanager
    def watch(self, batch: AnyBatch) -> Iterator[None]:
        """Around a forward pass of `batch`."""

        def count(_: nn.Module, args: tuple[torch.Tensor, ...], *, decoder: bool) -> None:
            active = _real(args[0], batch, virtual=self._virtual, decoder=decoder)
            self._active += (active.abs() > DENSE_ABOVE).sum()
            self._nonzero += (active != 0).sum()
            self._total += active.numel()

        handles = [down.register_forward_pre_hook(partial(count, decoder=decoder)) for down, decoder in self._downs]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def values(self) -> dict[str, float]:
        """`activation_density`, the share above `DENSE_ABOVE`, and `activation_nonzero`, that of exact non-zeros."""
        total = max(self._total, 1)
        return {"activation_density": int(self._active) / total, "activation_nonzero": int(self._nonzero) / total}


def feed_forwards(loaded: LoadedModel) -> list[list[nn.Module]]:
    """The maps that read the feed-forward activations: of all layers, or of the encoder's and the decoder's apart.

    Raises:
        ConfigurationError: The model has none.
    """
    shape = loaded.shape
    layers = layers_of(loaded.model.base_model, shape)
    found: list[list[nn.Module]] = [[], []]
    for index, (layer, sites) in enumerate(zip(layers, shape.layers, strict=True)):
        downs = [layer.get_submodule(site.name) for site in sites if site.role is Role.MLP_DOWN]
        found[index >= shape.n_layers - shape.decoder_layers] += downs
    if not any(found):
        raise ConfigurationError(
            f"training.density: this {shape.family} model has no feed-forward block whose activations can be read",
            hint="set density to 0 and leave activation_density out of the objectives",
        )
    return [part for part in found if part]


def off_diagonal_covariance(features_ND: torch.Tensor) -> torch.Tensor:
    """Sum of the squared off-diagonal entries of the covariance of D features, over D; 0 for a single row."""
    n, width = features_ND.shape
    if n < 2:
        return features_ND.sum() * 0.0
    centred = features_ND - features_ND.mean(0)
    covariance = centred.t() @ centred / (n - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / width


def _real(values: torch.Tensor, batch: AnyBatch, *, virtual: int = 0, decoder: bool = False) -> torch.Tensor:
    """`values` as rows; of `[B, T, F]`, where as many as `virtual` may stand before T, only those of real tokens.

    A decoder's are real where the batch has a target.
    """
    real_BT = batch.targets != -100 if decoder else batch.mask_BT
    n, length = real_BT.shape
    if virtual and values.dim() == 3 and tuple(values.shape[:2]) == (n, virtual + length):
        values = values[:, virtual:]
    if values.dim() == 3 and tuple(values.shape[:2]) == real_BT.shape:
        chosen = torch.from_numpy(np.flatnonzero(real_BT.reshape(-1)))
        return values.flatten(0, 1).index_select(0, chosen.to(values.device, non_blocking=True))
    return values.flatten(0, -2)


def _chosen(
    loaded: LoadedModel, settings: TrainingSettings, *, regression: bool, virtual: int
) -> list[AbstractRegularizer]:
    language = not loaded.head_names
    for name in ("ba_consistency", "ba_spectrum"):
        if regression and getattr(settings, name):
            raise ConfigurationError(
                f"training.{name}: got {getattr(settings, name)}; a single number has no distribution to keep",
                hint=f"set {name} to 0 for metrics pearson and spearman",
            )
    terms: list[AbstractRegularizer] = []
    if settings.ba_consistency:
        terms.append(Consistency(settings.ba_consistency, language=language))
    if settings.ba_diversity:
        terms.append(Diversity(settings.ba_diversity, head=None if language else _last_map(loaded)))
    if settings.ba_spectrum:
        terms.append(Spectrum(settings.ba_spectrum))
    if settings.density:
        blocks, epsilon = feed_forwards(loaded), settings.density_epsilon
        terms.append(Density(settings.density, blocks=blocks, epsilon=epsilon, virtual=virtual))
    return terms


def _last_map(loaded: LoadedModel) -> nn.Module:
    """The map that gives the logits of a new head."""
    head = loaded.model.get_submodule(loaded.head_names[-1])
    return [module for module in head.modules() if isinstance(module, nn.Linear)][-1]
