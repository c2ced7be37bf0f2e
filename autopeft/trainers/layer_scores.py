"""What the gradients of a few batches say of the base model's layers before anything is trained (zero-cost scores).

All take the base as it is, with the head that a trial begins with, and look at the linear sites of its layers. `G` is
the gradient of a batch's mean loss with respect to a site's weight `W`, `x_t` and `y_t` are the site's input and output
at a token.

Shapes: B rows, T tokens, K d_in, D d_out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from autopeft.errors import ModelError
from autopeft.spaces.layer_prior import LayerScores
from autopeft.trainers.batches import AnyBatch, Batch, batches_of, training_batches
from autopeft.trainers.course import pad_id_of, random_state
from autopeft.trainers.job import ModelSpec, TaskSpec, TrainingSettings
from autopeft.trainers.model import LoadedModel, head_parameters, reset_head, set_training
from autopeft.trainers.sites import Conv1D, LinearLike, layers_of
from autopeft.trainers.task import resolve_task
from autopeft.trainers.task_kind import Task
from autopeft.trainers.trainer import Trainer

BATCHES: Final = 8
"""Batches that are looked at, the first of the first epoch."""
BATCH_ROWS: Final = 16
"""Rows of a batch at most; the study's own batches may be smaller."""
SELECTED: Final = 0.01
"""Share of the sites' weights that sensitivity selects; the budgets of the paper are 0.06 to 1.2 % of ViT-B."""

SiteKey = tuple[int, str]
"""Layer, and the site's dotted name in it."""
Sums = Mapping[SiteKey, torch.Tensor]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One site in one batch, everything in float32."""

    gradient: torch.Tensor
    """[D, K], of the batch's mean loss."""
    weight: torch.Tensor
    """[D, K]."""
    x_NK: torch.Tensor
    """Inputs of the N real tokens of the last call."""
    y_ND: torch.Tensor


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LayerScore:
    """One row of the table of scores."""

    of_batch: Callable[[Seen], torch.Tensor]
    """What a batch adds to a site's sum."""
    of_sites: Callable[[Sums, int], Mapping[SiteKey, float]]
    """The sites' scores, from their sums over so many batches."""
    of_layer: Callable[[Sequence[float]], float]
    """A layer's score from those of its sites."""


def mean(sums: Sums, n: int) -> Mapping[SiteKey, float]:
    """Sums over `n` batches as means."""
    return {key: float(total) / n for key, total in sums.items()}


def root_mean(sums: Sums, n: int) -> Mapping[SiteKey, float]:
    """Square roots of the means over `n` batches."""
    return {key: (float(total) / n) ** 0.5 for key, total in sums.items()}


def selected_share(sums: Sums, n: int) -> Mapping[SiteKey, float]:
    """Each site's share of the `SELECTED` weights of largest sums; those equal to the least of them count in part."""
    wanted = max(1, round(SELECTED * sum(total.numel() for total in sums.values())))
    best = [torch.topk(total.flatten(), min(wanted, total.numel())).values for total in sums.values()]
    least = torch.topk(torch.cat(best), wanted).values[-1]
    above = {key: int((total > least).sum()) for key, total in sums.items()}
    equal = {key: int((total == least).sum()) for key, total in sums.items()}
    share = (wanted - sum(above.values())) / sum(equal.values())
    return {key: (above[key] + share * equal[key]) / wanted for key in sums}


def step_norm_ratio(seen: Seen) -> torch.Tensor:
    """Mean over tokens of |G x_t| / |y_t|; tokens with y_t = 0 do not count."""
    step_N, base_N = (seen.x_NK @ seen.gradient.T).norm(dim=1), seen.y_ND.norm(dim=1)
    there = base_N > 0
    return (step_N[there] / base_N[there]).sum() / max(1, int(there.sum()))


LAYER_SCORES: Final[Mapping[str, LayerScore]] = {
    # |G|, the root mean square over batches: "grad_norm" of Abdelfattah et al. 2021 (arXiv 2101.08134).
    "gradient_norm": LayerScore(
        of_batch=lambda seen: seen.gradient.square().sum(),
        of_sites=root_mean,
        of_layer=lambda sites: sum(site**2 for site in sites) ** 0.5,
    ),
    # sum |G * W|: the connection sensitivity of SNIP (Lee et al. 2019, arXiv 1810.02340), what removing weights changes
    # in the loss, to first order.
    "saliency": LayerScore(
        of_batch=lambda seen: (seen.gradient * seen.weight).abs().sum(), of_sites=mean, of_layer=sum
    ),
    # SPT (He et al. 2023, arXiv 2303.08566): what one step of a weight changes in the loss is, to first order, g dw
    # with dw = lr g, so g^2 up to a factor; the weights where its sum over batches is largest are selected.
    "sensitivity": LayerScore(of_batch=lambda seen: seen.gradient.square(), of_sites=selected_share, of_layer=sum),
    # Light-PEFT (Gu et al., Findings of ACL 2024) scores an adapter by |its output| / |the base's|. Before training an
    # adapter has no output; after one gradient step that of an unbounded rank would be -lr G x.
    "norm_ratio": LayerScore(
        of_batch=step_norm_ratio, of_sites=mean, of_layer=lambda sites: sum(sites) / max(1, len(sites))
    ),
}


def score_layers(name: str, model: ModelSpec, task: TaskSpec, settings: TrainingSettings) -> LayerScores:
    """The score called `name` of every layer and linear site of a model on a task's training rows.

    The first `BATCHES` batches of the first epoch of `settings.seed`, of at most `BATCH_ROWS` rows, through the model
    in eval mode with the head of that seed. Deterministic in the arguments, device and threads. Costs as many forward
    and backward passes; memory is that of a training step with every site's output kept and one site's gradient at a
    time, and for sensitivity a float32 number for every weight of the sites.

    Raises:
        ModelError: It cannot be loaded, or a site's gradient is NaN or infinite.
        DataError: The rows cannot be used.
    """
    trainer = Trainer(model, task, settings)
    with random_state(torch.device("cpu"), settings.seed):
        return _scored(name, trainer, resolve_task(task), settings)


def _scored(name: str, trainer: Trainer, task: Task, settings: TrainingSettings) -> LayerScores:
    try:
        split, loaded = trainer.tokens("train"), trainer.loaded
        rows = training_batches(split.lengths, min(settings.batch_size, BATCH_ROWS), seed=settings.seed, epoch=0)[
            :BATCHES
        ]
        reset_head(loaded, settings.seed)
        set_training(loaded, training=False)
        scorer = _Scorer(LAYER_SCORES[name], loaded)
        with scorer.watching():
            for batch in batches_of(split, rows, pad_id=pad_id_of(loaded)):
                scorer.begin(batch)
                task.loss(*task.outputs(loaded.model, batch, loaded.model.device)).backward()
        sites = LAYER_SCORES[name].of_sites(scorer.sums, len(rows))
    finally:
        trainer.close()
    return _arranged(name, sites, n_layers=loaded.shape.n_layers, rows=sum(map(len, rows)), seed=settings.seed)


@final
class _Scorer:
    """Adds up, batch after batch, what a score wants to know of every site; no gradient outlives its turn."""

    def __init__(self, score: LayerScore, loaded: LoadedModel) -> None:
        layers = layers_of(loaded.model.base_model, loaded.shape)
        found = {
            (layer, site.name): layers[layer].get_submodule(site.name)
            for layer, sites in enumerate(loaded.shape.layers)
            for site in sites
        }
        self._score, self._loaded = score, loaded
        self._sites = {
            key: module
            for key, module in found.items()
            if isinstance(module, LinearLike) and module.weight.is_floating_point()
        }
        self.sums: dict[SiteKey, torch.Tensor] = {
            key: torch.zeros((), device=loaded.model.device) for key in self._sites
        }
        self._passed: dict[SiteKey, tuple[torch.Tensor, torch.Tensor]] = {}
        self._real_BT: torch.Tensor | None = None

    def begin(self, batch: AnyBatch) -> None:
        """A batch is about to go through the model."""
        self._real_BT = torch.from_numpy(batch.mask_BT > 0) if isinstance(batch, Batch) else None
        self._passed.clear()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within, the sites' weights have gradients, which are taken away as soon as they are looked at."""
        handles: list[RemovableHandle] = []
        for key, module in self._sites.items():
            handles += self._watch(key, module)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module in self._sites.values():
                module.weight.requires_grad_(False)
            for parameter in head_parameters(self._loaded).values():
                parameter.grad = None

    def _watch(self, key: SiteKey, module: LinearLike) -> list[RemovableHandle]:
        def keep(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            self._passed[key] = args[0].detach(), output.detach()

        def look(weight: torch.Tensor) -> None:
            if weight.grad is None or key not in self._passed:  # a weight that two sites share, looked at before
                return
            added = self._score.of_batch(self._seen(key, module, weight.grad))
            if not bool(torch.isfinite(added).all()):
                raise ModelError(
                    f"the gradient at {key[1]} of layer {key[0]} is not finite",
                    hint="leave search.layers_from out, or set training.precision: float32",
                )
            self.sums[key] = self.sums[key] + added
            weight.grad = None

        module.weight.requires_grad_(True)
        return [module.register_forward_hook(keep), module.weight.register_post_accumulate_grad_hook(look)]

    def _seen(self, key: SiteKey, module: LinearLike, gradient: torch.Tensor) -> Seen:
        x, y = self._passed.pop(key)
        turn = isinstance(module, Conv1D)
        return Seen(
            gradient=(gradient.T if turn else gradient).float(),
            weight=(module.weight.detach().T if turn else module.weight.detach()).float(),
            x_NK=self._tokens(x),
            y_ND=self._tokens(y),
        )

    def _tokens(self, values: torch.Tensor) -> torch.Tensor:
        """The real tokens' vectors, one a row; all of them where they are not laid out as the batch is."""
        real = self._real_BT
        if real is not None and values.shape[:-1] == real.shape:
            return values[real.to(values.device)].float()
        return values.reshape(-1, values.shape[-1]).float()


def _arranged(name: str, sites: Mapping[SiteKey, float], *, n_layers: int, rows: int, seed: int) -> LayerScores:
    by_layer = [{site: value for (at, site), value in sites.items() if at == layer} for layer in range(n_layers)]
    return LayerScores(
        score=name,
        rows=rows,
        seed=seed,
        layers=tuple(LAYER_SCORES[name].of_layer(tuple(row.values())) for row in by_layer),
        sites=tuple(by_layer),
    )
