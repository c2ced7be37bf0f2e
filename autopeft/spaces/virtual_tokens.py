"""Positions that methods at the input add to every sequence: of one configuration, and at most in a space."""

from autopeft.spaces.configuration import Configuration, MethodSetting
from autopeft.spaces.counts import corner
from autopeft.spaces.methods import METHODS
from autopeft.spaces.structure import Structure


def virtual_tokens(configuration: Configuration) -> int:
    """Positions that the methods of `configuration` add to every sequence."""
    return sum(
        METHODS[setting.method].virtual_tokens(setting) for setting in configuration if setting.method in METHODS
    )


def most_virtual_tokens(structure: Structure) -> int:
    """Positions that the configurations of `structure` add to a sequence, at most, whatever their conditions say."""
    total = 0
    for method in structure.methods:
        values = corner(method, 0, high=True) if method.method.at_input else {}
        if values:
            fields = tuple((name, (value,)) for name, value in sorted(values.items()))
            total += method.method.virtual_tokens(MethodSetting(method=method.name, layers=(0,), fields=fields))
    return total
