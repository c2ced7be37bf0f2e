"""LoLDU (Shi et al. 2024, arXiv 2410.13618): of W = P L diag(z) U the first z and a common scale s train.

y += (P L)_r diag(s z - s0 z0) U_r x. The start is subtracted, so which z the training starts from (the released code
offers several) would only change the gradient of s; it is that of W.
"""

from typing import Final

from autopeft.trainers.adapters.adapter import Placement
from autopeft.trainers.adapters.framed import Recipe, build_framed
from autopeft.trainers.adapters.frames import triangular_frame
from autopeft.trainers.adapters.site_updates import SiteUpdates

RECIPE: Final = Recipe(cut=triangular_frame, gain=True)


def build_loldu(placement: Placement) -> SiteUpdates:
    """Changes of z and s, zero; `scale` is s0.

    Raises:
        ConfigurationError: A target is no linear site of the layer.
    """
    return build_framed(placement, RECIPE, scale=placement.real("scale"))
