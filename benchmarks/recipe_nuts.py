"""The original AutoPEFT's processes as they are there: hyper-parameters drawn by NUTS (extra `bench`).

What BoTorch's `fit_fully_bayesian_model_nuts` does, with one difference: the data are arguments of the compiled chain.
There they are constants in it, and every process is compiled anew.
"""

from functools import partial
from typing import NamedTuple

import jax  # type: ignore[import-not-found]  # of the extra
import torch
from botorch.models import ModelListGP
from botorch.models.fully_bayesian import SaasFullyBayesianSingleTaskGP, SaasPyroModel
from numpyro.infer import MCMC, NUTS  # type: ignore[import-not-found]  # of the extra


class Chain(NamedTuple):
    """How long a chain is."""

    warmup: int
    """Steps in which step size and masses are adapted."""
    samples: int
    """Steps after these."""
    thinning: int
    """One in so many of the samples is kept."""
    depth: int
    """Of the tree of a step, which has at most 2^depth - 1 gradients."""


CHAIN = Chain(warmup=128, samples=64, thinning=4, depth=6)
"""The original's (github.com/cambridgeltl/autopeft), of which 16 samples are left."""


def sampled(x: torch.Tensor, y: torch.Tensor) -> ModelListGP:
    """A SAAS process for every column of `y` `[n, m]` at `x` `[n, d]`, each an average over draws by NUTS.

    Seeds are of torch's generator.
    """
    seeds = torch.randint(2**31, (y.shape[1],)).tolist()
    return ModelListGP(*(process(x, column[:, None], seed) for column, seed in zip(y.T, seeds, strict=True)))


def process(x: torch.Tensor, y: torch.Tensor, seed: int) -> SaasFullyBayesianSingleTaskGP:
    """The process of `y` `[n, 1]` at `x` `[n, d]`."""
    with jax.enable_x64(True):
        model = SaasFullyBayesianSingleTaskGP(x, y)
        prior = model.pyro_model
        drawn = draws(jax.random.PRNGKey(seed), prior.train_X_jax, prior.train_Y_jax, chain=CHAIN)
        kept = {name: values[:: CHAIN.thinning] for name, values in prior.postprocess_mcmc_samples(drawn).items()}
    model.load_mcmc_samples(kept)
    return model.eval()


@partial(jax.jit, static_argnames="chain")
def draws(key: jax.Array, x: jax.Array, y: jax.Array, *, chain: Chain) -> dict[str, jax.Array]:
    """`[samples, ...]` of every hyper-parameter; compiled once for a shape of `x` `[n, d]` and `y` `[n, 1]`."""
    prior = SaasPyroModel()
    prior.train_X_jax, prior.train_Y_jax, prior.train_Yvar_jax = x, y, None
    prior.ard_num_dims = x.shape[-1]
    kernel = NUTS(prior.sample, dense_mass=True, max_tree_depth=chain.depth)
    mcmc = MCMC(kernel, num_warmup=chain.warmup, num_samples=chain.samples, progress_bar=False)
    mcmc.run(key)
    return mcmc.get_samples()
