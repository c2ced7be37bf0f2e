"""NLoRA and IntTune (Guo et al. 2025, arXiv 2502.14482): factors that start as columns, corner and rows of W.

The released code adds B N A to an untouched W, so its model is another one at step 0; here the start is subtracted. The
core is the corner W[:r, :r] as released, not the pseudo-inverse of it that a Nystroem approximation has: that one's
product is several times W on ill conditioned corners.
"""

from typing import Final

from autopeft.trainers.adapters.adapter import Placement
from autopeft.trainers.adapters.framed import Recipe, build_framed
from autopeft.trainers.adapters.frames import corner_frame
from autopeft.trainers.adapters.site_updates import SiteUpdates

NLORA: Final = Recipe(cut=corner_frame, square_core=True, factors=True)
INTTUNE: Final = Recipe(cut=corner_frame, square_core=True)


def build_nlora(placement: Placement) -> SiteUpdates:
    """All three factors train.

    Raises:
        ConfigurationError: A target is no linear site of the layer.
    """
    return build_framed(placement, NLORA, scale=placement.real("scale"))


def build_inttune(placement: Placement) -> SiteUpdates:
    """Only the r by r matrix trains.

    Raises:
        ConfigurationError: A target is no linear site of the layer.
    """
    return build_framed(placement, INTTUNE, scale=placement.real("scale"))
