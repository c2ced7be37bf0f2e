"""SVFit (Sun et al. 2024, arXiv 2409.05926): the top singular values train, y += U_r diag(core) V_r^T x."""

from typing import Final

from autopeft.trainers.adapters.adapter import Placement
from autopeft.trainers.adapters.framed import Recipe, build_framed
from autopeft.trainers.adapters.frames import singular_frame
from autopeft.trainers.adapters.site_updates import SiteUpdates

RECIPE: Final = Recipe(cut=singular_frame)


def build_svfit(placement: Placement) -> SiteUpdates:
    """Changes of the top singular values, zero.

    Raises:
        ConfigurationError: A target is no linear site of the layer.
    """
    return build_framed(placement, RECIPE)
