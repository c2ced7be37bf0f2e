"""BoTorch's process, which ours is compared with."""

from typing import TYPE_CHECKING

import numpy as np

from autopeft.objectives.pareto import Array

if TYPE_CHECKING:
    from botorch.models import SingleTaskGP


def botorch_model(x: Array, z: Array) -> "SingleTaskGP":
    """Matern-5/2 with the dimension-scaled prior, on outcomes as they are."""
    import torch
    from botorch.models import SingleTaskGP
    from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior

    return SingleTaskGP(
        torch.from_numpy(np.array(x, dtype=np.float64)),
        torch.from_numpy(np.array(z, dtype=np.float64)[:, None]),
        covar_module=get_covar_module_with_dim_scaled_prior(ard_num_dims=x.shape[1], use_rbf_kernel=False),
        outcome_transform=None,
    )
