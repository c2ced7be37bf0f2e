"""What may be searched: methods, domains, spaces and configurations."""

from autopeft.spaces.domain import bool_, choice, halvings, int_, log, real, subset
from autopeft.spaces.spread import groups, per_group, per_layer, ramp, shared

__all__ = [
    "bool_",
    "choice",
    "groups",
    "halvings",
    "int_",
    "log",
    "per_group",
    "per_layer",
    "ramp",
    "real",
    "shared",
    "subset",
]
