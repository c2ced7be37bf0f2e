"""ADAMSS, whose clusters of outputs only the weight tells: a layer before that, and what it takes over then.

Shapes: O the map's output width, R the frame's rank, r a cluster's rank, n the outputs of a cluster.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, cast

import torch
from peft.tuners.adamss.layer import AdamssLayer
from torch import nn

from autopeft.errors import ModelError
from autopeft.spaces.model_shape import Role, Site
from autopeft.trainers.adapters.peft_build import ADAPTER, Recipe, frozen_linear, tuned

TYPE: Final = "ADAMSS"
_FRAME: Final = f"adamss_newB.{ADAPTER}"
_TINY: Final = Site(name="tiny", d_in=2, d_out=2, bias=False, role=Role.OTHER)


def blank(recipe: Recipe, site: Site) -> AdamssLayer:
    """A layer with clusters of equal size, all zero: as many numbers as the weight will give it."""
    rank, n_clusters, own = (cast("int", recipe.config[name]) for name in ("r", "num_subspaces", "subspace_rank"))
    least = replace(recipe, config={**recipe.config, "r": 1, "num_subspaces": 1, "subspace_rank": 1})
    layer = tuned(least, {_TINY.name: frozen_linear(_TINY, weight=torch.eye(2))})[_TINY.name]
    assert isinstance(layer, AdamssLayer)
    rows = torch.arange(site.d_out).tensor_split(n_clusters)
    layer.num_subspaces[ADAPTER] = n_clusters
    layer.adamss_A[ADAPTER] = nn.ParameterList(nn.Parameter(torch.zeros(own, rank)) for _ in rows)
    layer.adamss_B[ADAPTER] = nn.ParameterList(nn.Parameter(torch.zeros(len(row), own)) for row in rows)
    layer.adamss_newB[ADAPTER] = torch.zeros(rank, site.d_in + site.bias)
    return layer


def take_over(layer: AdamssLayer, fresh: AdamssLayer, *, rank: int) -> torch.Tensor:
    """Give `layer` the tensors of `fresh`, which was built over the weight; [O] the outputs, cluster by cluster.

    Raises:
        ModelError: A cluster has fewer outputs than `rank`, so the adapter would be smaller than it was counted.
    """
    if any(len(tensor) < rank for tensor in cast("nn.ParameterList", fresh.adamss_A[ADAPTER])):
        raise ModelError(
            f"adamss.subspace_rank: a cluster of this map's outputs has fewer than {rank}",
            hint="use fewer subspaces, or a subspace_rank of 1",
        )
    for mine, theirs in ((layer.adamss_A, fresh.adamss_A), (layer.adamss_B, fresh.adamss_B)):
        rows, given = (cast("nn.ParameterList", table[ADAPTER]) for table in (mine, theirs))
        for index, tensor in enumerate(given):
            rows[index] = nn.Parameter(tensor.detach().to(rows[index]))
    cast("nn.Module", layer).get_buffer(_FRAME).copy_(cast("nn.Module", fresh).get_buffer(_FRAME))
    return cast("Mapping[str, torch.Tensor]", fresh.scatter_index)[ADAPTER]
