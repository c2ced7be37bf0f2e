"""Compresses a trained adapter folder: settings chosen on validation rows, quality told on held-out rows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from autopeft.errors import DivergedError
from autopeft.objectives.objective import METRICS
from autopeft.trainers.compression import Packed, constant_start, pack_levels, pack_ternary, unpack
from autopeft.trainers.inject import AdapterSet
from autopeft.trainers.job import COMPEFT, CompressionSpec
from autopeft.trainers.model import head_state
from autopeft.trainers.saved import read_info, save_packed
from autopeft.trainers.scores import Scores
from autopeft.trainers.trainer import Trainer

DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5)
ALPHAS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
"""The grids of the paper's search, alpha's a little coarser."""
_DEVIATIONS = 1.96
"""Half a 95 % interval in standard errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """What came of it."""

    method: str
    density: float | None
    alpha: float | None
    n_numbers: int
    """Trained numbers that were compressed."""
    bytes_before: int
    """Of those numbers, in fp32."""
    bytes_after: int
    validation: tuple[float, float]
    """The task's metric before and after on the rows that the settings were chosen by."""

    @property
    def bits(self) -> float:
        """A number's share of the bytes."""
        return 8.0 * self.bytes_after / self.n_numbers

    def to_json(self) -> dict[str, object]:
        return {
            "method": self.method,
            "density": self.density,
            "alpha": self.alpha,
            "numbers": self.n_numbers,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "bits_a_number": self.bits,
            "validation_before": self.validation[0],
            "validation_after": self.validation[1],
        }


def compress_folder(
    trainer: Trainer, source: Path, folder: Path, wanted: CompressionSpec, *, metric: str
) -> Compressed:
    """Write the adapter of `source` into `folder`, compressed; nothing is trained.

    ComPEFT's density and alpha are chosen on the validation rows: the smallest density at which some alpha loses no
    more than one standard error of the metric; where none does, what loses least.

    Raises:
        ModelError: As `Trainer.attached`.
    """
    info = read_info(source)
    with trainer.attached(source) as adapters:
        before = trainer.score(adapters, "validation")
        if wanted.method == COMPEFT:
            start = constant_start(info.shape, info.configuration)
            packed = _search(trainer, adapters, before, start, wanted, metric=metric)
        else:
            packed = pack_levels(adapters)
        save_packed(folder, adapters, packed, info=info, head=head_state(trainer.loaded))
    after = trainer.score(folder, "validation")
    return Compressed(
        method=wanted.method,
        density=packed.facts.get("density"),
        alpha=packed.facts.get("alpha"),
        n_numbers=packed.n_numbers,
        bytes_before=4 * packed.n_numbers,
        bytes_after=packed.n_bytes,
        validation=(before.values[metric], after.values[metric]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Try:
    packed: Packed
    loss: float
    """Of the metric, smaller is better; infinite where a prediction was."""


def _search(
    trainer: Trainer,
    adapters: AdapterSet,
    before: Scores,
    start: Mapping[str, torch.Tensor],
    wanted: CompressionSpec,
    *,
    metric: str,
) -> Packed:
    """What is chosen; the set holds its own values again afterwards."""
    own = {name: parameter.detach().clone() for name, parameter in adapters.named_parameters()}
    interval = before.interval(metric)
    allowed = METRICS[metric].to_loss(before.values[metric]) + (interval.high - interval.low) / (2.0 * _DEVIATIONS)
    best: _Try | None = None
    for density in DENSITIES if wanted.density is None else (wanted.density,):
        for alpha in ALPHAS if wanted.alpha is None else (wanted.alpha,):
            packed = pack_ternary(adapters, start, density=density, alpha=alpha)
            unpack(adapters, packed.tensors, packed.facts, start=start)
            tried = _tried(packed, trainer.score(adapters, "validation"), metric=metric)
            _restore(adapters, own)
            best = tried if best is None or tried.loss < best.loss else best
        assert best is not None
        if best.loss <= allowed:
            break
    assert best is not None
    return best.packed


def _tried(packed: Packed, scores: Scores, *, metric: str) -> _Try:
    try:
        loss = METRICS[metric].to_loss(scores.values[metric])
    except DivergedError:
        loss = math.inf
    return _Try(packed=packed, loss=loss)


@torch.no_grad()
def _restore(adapters: AdapterSet, own: Mapping[str, torch.Tensor]) -> None:
    for name, parameter in adapters.named_parameters():
        parameter.copy_(own[name])
