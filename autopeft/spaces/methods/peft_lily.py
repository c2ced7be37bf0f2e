"""Low-rank factors that the maps of several layers share, mixed by a router: Hugging Face PEFT's LILY."""

from collections import Counter
from collections.abc import Mapping
from math import ceil
from typing import final

from autopeft.spaces.methods.bridged import (
    RANK,
    TARGETS,
    AbstractBridged,
    at_most_width,
    integer,
    peft_names,
    real,
)
from autopeft.spaces.model_shape import Site
from autopeft.spaces.peft_counts import whole


@final
class Lily(AbstractBridged):
    """A B-mixture for each map: A of `stride` neighbouring layers, `experts` B of all layers, mixed by a router.

    Among the layers of equal settings, and for each site by its name. The router's weights are averaged over all tokens
    of a batch, as PEFT has it: what a row gives depends on the rows beside it, padding included.
    """

    name = "lily"
    peft_type = "LILY"
    source = "Zhong et al. 2024 (arXiv 2407.09946), by Hugging Face PEFT"
    mergeable = False
    by_batch = True
    fields = (
        RANK,
        TARGETS,
        integer("stride", 1, text="neighbouring layers with one A"),
        integer("experts", 2, low=2, text="B that all layers have in common"),
        real("scaling", 1.0, low=1e-6, text="factor of the update"),
    )
    columns = peft_names(rank="r", stride="stride_A", experts="num_B", scaling="scaling")
    rule = staticmethod(at_most_width)

    @staticmethod
    def shared(  # type: ignore[override]  # stands for the class variable of that name
        config: Mapping[str, object], sites: tuple[Site, ...]
    ) -> int:
        rank, stride, experts = whole(config, "r", 32), whole(config, "stride_A", 1, low=1), whole(config, "num_B", 2)
        groups = Counter((site.name, site.d_in, site.d_out) for site in sites)
        return sum(rank * (ceil(n / stride) * d_in + experts * d_out) for (_, d_in, d_out), n in groups.items())
