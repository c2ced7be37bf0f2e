"""What may be searched: methods, domains, spaces and configurations."""

from autopeft.spaces.domain import bool_, choice, halvings, int_, log, real, subset
from autopeft.spaces.layer_sets import from_, range_, top
from autopeft.spaces.spread import groups, per_group, per_layer, ramp, shared

__all__ = [
    "bool_",
    "choice",
    "from_",
    "groups",
    "halvings",
    "int_",
    "log",
    "per_group",
    "per_layer",
    "ramp",
    "range_",
    "real",
    "shared",
    "subset",
    "top",
]
