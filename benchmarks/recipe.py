"""The original AutoPEFT's search (Zhou et al., TACL 2024; github.com/cambridgeltl/autopeft), written anew to compare.

Half of the budget is uniform draws; from then on batches of four: a Gaussian process with a sparsity-inducing prior
(SAAS, Eriksson and Jankowiak 2021) for every objective, the parameters among them, on ranks mapped to normal quantiles,
and noisy expected hypervolume improvement, chosen greedily. The reference point is the worst value seen; theirs is one
constant for all tasks.

Theirs samples each process's hyper-parameters by NUTS. So does the engine `recipe+nuts` (`recipe_nuts.py`), which needs
the extra `bench`; `recipe` takes the likeliest ones for four sparsity levels and averages over these (BoTorch's
`EnsembleMapSaasSingleTaskGP`). Nothing else differs between the two.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import final

import numpy as np
import torch
from botorch.acquisition.multi_objective.monte_carlo import qNoisyExpectedHypervolumeImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import ModelListGP
from botorch.models.map_saas import EnsembleMapSaasSingleTaskGP
from botorch.sampling.normal import SobolQMCNormalSampler
from gpytorch.mlls import ExactMarginalLogLikelihood
from scipy.stats import norm, rankdata

from autopeft.objectives.pareto import Array
from autopeft.search.searcher import AbstractSearcher, SearchProblem
from autopeft.search.trial import History
from autopeft.search.unseen import draw_unseen
from autopeft.spaces.configuration import Configuration

BATCH = 4
DRAWS = 64
"""Of the improvement."""
STEPS = 75
"""Of a fit."""
TAUS = (1e-3, 1e-2, 0.1, 1.0)
"""Sparsity levels, which BoTorch would draw from a half-Cauchy of 0.1."""
Candidates = Callable[[History], Sequence[Configuration]]
Fit = Callable[[torch.Tensor, torch.Tensor], ModelListGP]
"""A process for every column of `[n, m]` values, larger better, at `[n, d]` points."""


@final
class RecipeSearcher(AbstractSearcher):
    """Half random, half batches by improvement.

    Args:
        problem: What is searched.
        candidates: Where the improvement is looked at; configurations that were not tried.
        fit: The processes that tell what to expect: `fitted`, or `recipe_nuts.sampled`.
    """

    def __init__(self, problem: SearchProblem, candidates: Candidates, fit: Fit) -> None:
        self._problem, self._candidates, self._fit = problem, candidates, fit
        self._batch: list[Configuration] = []

    def ask(self, history: History, n: int) -> Sequence[Configuration]:
        """One configuration; batches are chosen when the one before is used up."""
        if len(history) < self._problem.n_trials // 2:
            rng = np.random.default_rng([self._problem.seed, len(history)])
            return draw_unseen(self._problem.space, rng, 1, seen=history.ids)
        if not self._batch:
            self._batch = self._chosen(history)
        return [self._batch.pop(0)] if self._batch else []

    def _chosen(self, history: History) -> list[Configuration]:
        pool = list(self._candidates(history))
        if not pool:
            return []
        done = [trial for trial in history.completed if trial.final is not None]
        features = np.array([self._problem.space.encode(trial.configuration) for trial in done])
        losses = np.array([[o.to_loss(t.final.value(o.name)) for o in self._problem.objectives] for t in done])  # type: ignore[union-attr]  # filtered above
        x = torch.tensor(features)
        y = torch.tensor(np.column_stack([quantiles(-column) for column in losses.T]))
        points = torch.tensor(np.array([self._problem.space.encode(one) for one in pool]))
        with seeded(self._problem.seed + len(history)):
            places = greedy(self._fit(x, y), x, y, points, n=min(BATCH, len(pool)))
        return [pool[place] for place in places]


@contextmanager
def seeded(seed: int):
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        yield


def quantiles(values: Array) -> Array:
    """`[n]` normal quantiles of the ranks: the Gaussian copula of their objectives, larger better."""
    return np.asarray(norm.ppf(rankdata(values) / (len(values) + 1)))


def fitted(x: torch.Tensor, y: torch.Tensor) -> ModelListGP:
    """A SAAS process for every column of `y` `[n, m]` at `x` `[n, d]`."""
    taus = torch.tensor(TAUS, dtype=x.dtype)
    models = [EnsembleMapSaasSingleTaskGP(x, column[:, None], taus=taus) for column in y.T]
    for model in models:
        mll = ExactMarginalLogLikelihood(model.likelihood, model)
        fit_gpytorch_mll(mll, optimizer_kwargs={"options": {"maxiter": STEPS}})
    return ModelListGP(*models)


def greedy(model: ModelListGP, x: torch.Tensor, y: torch.Tensor, points: torch.Tensor, *, n: int) -> list[int]:
    """Places of `n` of `points` `[k, d]`, each the best after those before it."""
    chosen: list[int] = []
    for _ in range(n):
        improvement = qNoisyExpectedHypervolumeImprovement(
            model,
            ref_point=(y.amin(dim=0) - 0.1).tolist(),
            X_baseline=x,
            sampler=SobolQMCNormalSampler(torch.Size([DRAWS]), seed=len(chosen)),
            prune_baseline=True,
            X_pending=points[chosen] if chosen else None,
        )
        with torch.no_grad():
            values = torch.cat([improvement(part[:, None]) for part in points.split(64)])
        values[chosen] = -torch.inf
        chosen.append(int(values.argmax()))
    return chosen
