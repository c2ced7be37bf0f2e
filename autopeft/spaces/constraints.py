"""Limits on what is known before training: `parameters <= 2%`, `memory <= 8 GiB`."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import final

from autopeft.errors import SpaceError
from autopeft.spaces.condition import OPERATORS
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.suggest import nearest

_COUNTS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}
_AMOUNTS = {
    "": 1,
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)},
    "kB": 1000,
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", start=1)},
    "s": 1,
}
_TEXT = re.compile(
    r"\s*(?P<name>[A-Za-z_][\w-]*)\s*(?P<operator><=|>=|<|>)\s*"
    r"(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)\s*(?P<unit>%|[A-Za-z]*)\s*"
)
_HINT = "write parameters <= 2%, parameters <= 300k or memory <= 8 GiB"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """One limit, in parameters, bytes or whatever the quantity's unit is."""

    text: str
    quantity: str
    operator: str
    limit: float

    def holds(self, value: float) -> bool:
        return OPERATORS[self.operator](value, self.limit)

    def excess(self, value: float) -> float:
        """How far `value` is beyond the limit, relative to it; 0 where it holds."""
        return 0.0 if self.holds(value) else max(abs(value - self.limit) / max(abs(self.limit), 1e-12), 1e-12)


def parse_constraint(text: object, *, quantities: Collection[str], shape: ModelShape) -> Constraint:
    """The limit that `text` spells; a percentage of parameters is one of the base model's.

    Raises:
        SpaceError: Not of that form, a quantity that is not known before training, or a wrong unit.
    """
    match = _TEXT.fullmatch(text) if isinstance(text, str) and len(text) < 200 else None
    if match is None or not isinstance(text, str):
        shown = repr(text) if len(repr(text)) < 100 else f"{repr(text)[:97]}..."
        raise SpaceError(f"constraints: {shown} is no limit", hint=_HINT)
    name, unit = match["name"], match["unit"]
    if name not in quantities:
        raise SpaceError(
            f"constraints: {text!r}: {name!r} is not known before training; known are {', '.join(sorted(quantities))}",
            hint=nearest(name, quantities) or "make it an objective instead",
        )
    units = _COUNTS | {"%": shape.base_parameters / 100} if name == "parameters" else _AMOUNTS
    if unit not in units:
        known = ", ".join(filter(None, units))
        raise SpaceError(f"constraints: {text!r}: unknown unit {unit!r}; known are {known}", hint=_HINT)
    limit = float(match["number"]) * units[unit]
    return Constraint(text=text.strip(), quantity=name, operator=match["operator"], limit=limit)


def read_amount(text: str, *, place: str) -> int:
    """The bytes that `text` spells, such as `24GiB` or `16 GB`.

    Raises:
        SpaceError: No number with a unit of bytes, or none above 0.
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([A-Za-z]*)\s*", text)
    units = {name: factor for name, factor in _AMOUNTS.items() if name.endswith("B")}
    if match is None or match[2] not in units or float(match[1]) <= 0:
        raise SpaceError(f"{place}: got {text!r}; an amount of memory is needed", hint="write it as 24GiB or 16 GB")
    return int(float(match[1]) * units[match[2]])
