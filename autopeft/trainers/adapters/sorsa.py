"""SORSA (Cao 2024, arXiv 2409.00055): the top singular triples train, with a penalty that keeps them orthonormal."""

from typing import Final

from autopeft.trainers.adapters.adapter import Placement
from autopeft.trainers.adapters.framed import Recipe, build_framed
from autopeft.trainers.adapters.frames import singular_frame
from autopeft.trainers.adapters.site_updates import SiteUpdates

RECIPE: Final = Recipe(cut=singular_frame, factors=True)


def build_sorsa(placement: Placement) -> SiteUpdates:
    """Changes of the triples, zero. The penalty is the mean over all targets of all layers, as in the paper.

    Raises:
        ConfigurationError: A target is no linear site of the layer.
    """
    weight = placement.real("orthonormality") / placement.n_targets
    return build_framed(placement, RECIPE, scale=placement.real("scale"), orthonormality=weight)
