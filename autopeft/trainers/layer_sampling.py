"""Training some adapted layers in each step: by importance (IST, Yao et al. 2024, arXiv 2410.11772) or by chance.

Adapters of the layers that a step leaves out act as ever, but their tensors have no gradient, so that the optimizer
does not move them and backward ends at the lowest layer that trains.

Importance is learnt by response suppression: the adapters of a random half of the layers are scaled down for one
forward pass, and the layers whose suppression costs most gain importance. It has the sign that its name says: a high
one is trained more often. (The authors' code keeps the negative of it.)

Shapes: L adapted layers.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.hooks import RemovableHandle

from autopeft.errors import ConfigurationError
from autopeft.trainers.adapters.adapter import AbstractAdapter
from autopeft.trainers.inject import AdapterSet
from autopeft.trainers.job import TrainingSettings

PROBES: Final = 3
"""Sets of layers that are suppressed for one update of the importances."""
PROBE_ROWS: Final = 16
"""Training rows of a probe; all probes of an update see the same."""
SUPPRESSED_SHARE: Final = 0.5
"""Of the adapted layers, in each probe."""
RATE: Final = 10.0
"""Learning rate of the importances."""
_DRAWS: Final = 100
"""Draws after which an update does with the distinct sets it has found: weights may allow few."""

Scores = NDArray[np.float64]
Rows = NDArray[np.int64]


@final
class LayerSampler:
    """Decides which adapted layers train in each step of one run; `importance` is what it has learnt.

    A tensor that several layers use is trained when the layer that owns it is.

    Args:
        adapters: Attached to the model; tensors that are frozen already stay frozen.
        layers: All layers of the base model.
        settings: Policy, share, interval and suppression.
        n_rows: Training rows; probes are made of them.
        seed: The draws are a function of it.

    Raises:
        ConfigurationError: Importance is asked for, and a method's response cannot be scaled.
    """

    def __init__(
        self, adapters: AdapterSet, layers: nn.ModuleList, settings: TrainingSettings, *, n_rows: int, seed: int
    ) -> None:
        self._tensors: dict[int, list[nn.Parameter]] = {}
        self._adapters: dict[int, list[AbstractAdapter]] = {}
        for method, layer, adapter in adapters.adapters():
            if settings.layer_sampling == "importance" and not adapter.suppressible:
                raise ConfigurationError(
                    f"layer_sampling: got importance, which scales the response of every adapter; that of {method} "
                    "cannot be scaled",
                    hint=f"use layer_sampling: random, or leave {method} out",
                )
            self._tensors.setdefault(layer, []).extend(row for row in adapter.parameters() if row.requires_grad)
            self._adapters.setdefault(layer, []).append(adapter)
        self.layers = tuple(sorted(self._tensors))
        self._modules = [layers[layer] for layer in self.layers]
        self._settings = settings
        self._n_rows = n_rows
        self._rng = np.random.default_rng([seed, 2])
        self._step = 0
        self.importance: Scores = np.zeros(len(self.layers))
        self.active: tuple[int, ...] = self.layers
        """Layers that train in this step, ascending."""

    def begin_step(self, probe: Callable[[Rows], float]) -> None:
        """Draw the layers of the next step; before that, when it is time, update the importances.

        Args:
            probe: The loss of training rows, without gradient and dropout.
        """
        learns = self._settings.layer_sampling == "importance" and len(self.layers) > 1
        if learns and self._step and self._step % self._settings.sampling_interval == 0:
            self._learn(probe)
        chosen = draw(self._rng, self.importance, kept(len(self.layers), self._settings.layers_kept))
        self.active = tuple(self.layers[index] for index in chosen)
        for layer, tensors in self._tensors.items():
            for tensor in tensors:
                tensor.requires_grad_(layer in self.active)
        self._step += 1

    def release(self) -> None:
        """Let all layers have gradients again."""
        for tensors in self._tensors.values():
            for tensor in tensors:
                tensor.requires_grad_(True)

    def state(self) -> dict[str, object]:
        """What the draws to come depend on."""
        return {
            "rng": json.dumps(self._rng.bit_generator.state),
            "step": self._step,
            "importance": [float(one) for one in self.importance],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from where a sampler of the same run had this `state`."""
        self._rng.bit_generator.state = json.loads(state["rng"])
        self._step, self.importance = state["step"], np.array(state["importance"])

    def extra(self) -> dict[str, float]:
        """`importance/LAYER` for every adapted layer; empty where none is learnt."""
        if self._settings.layer_sampling != "importance":
            return {}
        return {f"importance/{layer}": float(row) for layer, row in zip(self.layers, self.importance, strict=True)}

    def _learn(self, probe: Callable[[Rows], float]) -> None:
        rows = self._rng.choice(self._n_rows, min(PROBE_ROWS, self._n_rows), replace=False)
        sets = distinct_sets(self._rng, -self.importance, kept(len(self.layers), SUPPRESSED_SHARE))
        losses: list[float] = []
        for indices in sets:
            with self.suppressed(indices):
                losses.append(probe(rows))
        self.importance = updated(self.importance, sets, losses)

    @contextmanager
    def suppressed(self, indices: Sequence[int]) -> Iterator[None]:
        """Inside, the adapters of the adapted layers at `indices` respond with `suppression` times their strength.

        No tensor of model or adapters is written to, so what they compute afterwards is the same bit for bit.
        """
        factor = self._settings.suppression
        handles: list[RemovableHandle] = []
        adapters = [adapter for index in indices for adapter in self._adapters[self.layers[index]]]
        for index in indices:
            handles += _blend(self._modules[index], factor)
        for adapter in adapters:
            adapter.response = factor
        try:
            yield
        finally:
            for adapter in adapters:
                adapter.response = 1.0
            for handle in handles:
                handle.remove()


def kept(n: int, share: float) -> int:
    """How many of `n` layers a share is: rounded down, at least one."""
    return max(1, int(n * share + 1e-9))


def draw(rng: np.random.Generator, scores: Scores, n: int) -> tuple[int, ...]:
    """`n` of L indices without replacement, ascending; each draw has weights sigmoid(score) over those that are left.

    The `n` largest of log weight + Gumbel noise are such a sample, whatever the scale of the weights.
    """
    keys = -np.logaddexp(0.0, -scores) + rng.gumbel(size=len(scores))
    return tuple(sorted(int(index) for index in np.argsort(-keys, kind="stable")[:n]))


def distinct_sets(rng: np.random.Generator, scores: Scores, n: int) -> list[tuple[int, ...]]:
    """`PROBES` different draws of `n` indices, fewer where there are no more; see `draw`."""
    wanted = min(PROBES, math.comb(len(scores), n))
    sets: dict[tuple[int, ...], None] = {}
    for _ in range(_DRAWS):
        if len(sets) == wanted:
            break
        sets[draw(rng, scores, n)] = None
    return list(sets)


def updated(importance: Scores, sets: Sequence[Sequence[int]], losses: Sequence[float]) -> Scores:
    """Importances [L] after one update: I_l -= rate (r_k - mean r) p_l (1 - p_l) for every l in every set k.

    r = exp(-loss) is the reward of suppressing the set and p = sigmoid(I) before the update. A loss that is not finite
    teaches nothing.
    """
    if not all(math.isfinite(loss) for loss in losses):
        return importance
    rewards = np.exp(-np.asarray(losses))
    slope = np.exp(-np.logaddexp(0.0, importance) - np.logaddexp(0.0, -importance))  # p (1 - p)
    change = np.zeros_like(importance)
    for indices, advantage in zip(sets, rewards - rewards.mean(), strict=True):
        change[list(indices)] -= RATE * advantage
    return importance + change * slope


def _blend(layer: nn.Module, factor: float) -> list[RemovableHandle]:
    """Hooks by which whatever adapters' hooks add to inputs and outputs inside `layer` counts `factor` times."""
    return [handle for module in layer.modules() for handle in _Blend(module, factor).attach(module)]


@final
class _Blend:
    """On one module: its first hooks see what is computed without adapters, its last ones what they made of it."""

    def __init__(self, module: nn.Module, factor: float) -> None:
        self._factor = factor
        self._copies = next(module.children(), None) is None
        self._inputs: tuple[object, ...] = ()
        self._output: object = None

    def attach(self, module: nn.Module) -> list[RemovableHandle]:
        return [
            module.register_forward_pre_hook(self._begin, prepend=True),
            module.register_forward_pre_hook(self._blend_inputs),
            module.register_forward_hook(self._keep, prepend=True),
            module.register_forward_hook(self._blend_output),
        ]

    def _begin(self, _: nn.Module, args: tuple[object, ...]) -> None:
        self._inputs = args

    def _blend_inputs(self, _: nn.Module, args: tuple[object, ...]) -> tuple[object, ...] | None:
        bare, self._inputs = self._inputs, ()
        return None if args is bare else _between(bare, args, self._factor)

    def _keep(self, _: nn.Module, args: object, output: object) -> None:
        """A linear map's output is copied, for some adapters add to it in place."""
        self._output = output.clone() if self._copies and isinstance(output, torch.Tensor) else output

    def _blend_output(self, _: nn.Module, args: object, output: object) -> object:
        bare, self._output = self._output, None
        return None if output is bare else _between((bare,), (output,), self._factor)[0]


def _between(bare: Sequence[object], adapted: Sequence[object], factor: float) -> tuple[object, ...]:
    """Bare + factor (adapted - bare) where they are different tensors; tuples element by element."""
    rows: list[object] = []
    for old, new in zip(bare, adapted, strict=True):
        if old is new or not isinstance(old, (torch.Tensor, tuple)):
            rows.append(new)
        elif isinstance(old, tuple) and isinstance(new, tuple):
            rows.append(_between(old, new, factor))
        else:
            assert isinstance(old, torch.Tensor)
            assert isinstance(new, torch.Tensor)
            rows.append(torch.lerp(old, new, factor))
    return tuple(rows)
