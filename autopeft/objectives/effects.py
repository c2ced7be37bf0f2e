"""How each method acts on a linear map: what one training step keeps there for its backward pass.

A method is one row of `EFFECTS`: a function of the place it is put at. A method without a row is taken for a low-rank
branch of its size, so that gradients flow from there on and nothing below it is forgotten.

Letters: N tokens of the batch, I and O the map's input and output width, R the rank.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.linear_series import series_width
from autopeft.spaces.methods.s2ft import COLUMN_ROLES
from autopeft.spaces.model_shape import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One method at one linear map of one step."""

    site: Site
    values: Mapping[str, FieldValue]
    size: str
    """The method's size field."""
    n: int
    """Tokens of the batch."""
    grad: bool
    """A gradient must flow back to the map's input."""
    low: bool
    """Activations are narrower than float32, so trained weights are cast to their dtype."""
    frozen_a: bool = False
    """The first factors of low-rank pairs are not trained."""

    def number(self, name: str) -> float:
        """A number of `values`; 0 where it is absent."""
        value = self.values.get(name, 0)
        return float(value) if isinstance(value, (int, float)) else 0.0

    @property
    def rank(self) -> float:
        return self.number(self.size)

    @property
    def d_in(self) -> int:
        return self.site.d_in

    @property
    def d_out(self) -> int:
        return self.site.d_out

    @property
    def weight(self) -> int:
        return self.d_in * self.d_out

    def back(self, n_values: float) -> float:
        """`n_values` where a gradient must flow back to the input, else nothing."""
        return n_values if self.grad else 0.0

    def cast(self, n_values: float) -> float:
        """`n_values` where a trained float32 weight needs a narrower copy, else nothing."""
        return n_values if self.low else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeps:
    """Numbers that a method keeps at one map; `x` is kept apart, because maps that read the same value share it."""

    x: bool = True
    """The map's input is kept."""
    wide: bool = False
    """The method computes in float32: where activations are narrower it keeps an input's copy of its own."""
    own: float = 0.0
    """Numbers in the activations' dtype."""
    floats: float = 0.0
    """Numbers in float32."""
    dropped: bool = True
    """A dropout among the values is one of the input."""


Effect = Callable[[Use], Keeps]


def branch(use: Use, *, hidden: float | None = None, floats: float = 0.0) -> Keeps:
    """Low-rank pair x -> A -> B: the input, the hidden values and, where weights are cast, both factors."""
    rank = use.rank if hidden is None else hidden
    up = use.cast(rank * use.d_out) if use.grad or not use.frozen_a else 0.0
    own = use.n * rank + use.back(use.cast(rank * use.d_in)) + up
    return Keeps(x=not use.frozen_a, own=own, floats=floats)


def _lora_group(use: Use) -> Keeps:
    rank, group = use.rank, use.number("group")
    pairs, width = group * (group - 1) / 2, use.d_out
    through = group * width * (rank + width) + use.cast(use.weight)
    between = pairs * (4 + rank * (2 * use.d_in + rank + 3 * width) + width * width)
    return branch(use, hidden=rank * group, floats=through + between if use.number("orthogonality") else 0.0)


def _mola(use: Use) -> Keeps:
    """The experts' hidden values before and after the gates; the router's choices; softmax and mask of the balance."""
    experts, n = use.rank, use.n
    hidden = experts * use.number("rank")
    own = n * (experts + 2 * hidden) + use.cast(hidden * use.d_out) + use.back(use.cast((experts + hidden) * use.d_in))
    balance = n * (experts + 1) + experts + 1 if use.number("balance") else 0.0
    return Keeps(own=own, floats=3 * n * use.number("top_k") + balance)


def _framed(use: Use, *, floats: float = 0.0) -> Keeps:
    """A core between two frozen frames: the input is not kept, the core times the left frame is."""
    rank = use.rank
    return Keeps(x=False, own=use.n * rank + use.back(rank * use.d_out + use.cast(rank * use.d_in)), floats=floats)


def _framed_factors(use: Use, *, floats: float) -> Keeps:
    """A core between two trained frames: twice the rank, both factors are made anew in every step."""
    rank = 2 * use.rank
    return Keeps(own=use.n * rank + rank * use.d_out + use.back(rank * use.d_in), floats=floats)


def _slora(use: Use) -> Keeps:
    rank = use.rank
    return Keeps(own=use.n * rank + use.cast(rank * use.d_out) + use.back(rank * use.d_in))


def _s2_lora(use: Use) -> Keeps:
    rank = use.rank
    own = use.n * rank + rank * use.d_out + use.back(use.cast(rank * use.d_in))
    return Keeps(x=not use.frozen_a, own=own)


def _binary_lora(use: Use) -> Keeps:
    rank = use.rank
    own = use.n * rank + rank * use.d_out + use.back(rank * use.d_in)
    return Keeps(x=not use.frozen_a, own=own, floats=2 * rank * (use.d_in + use.d_out) + 4)


def _bottleneck(use: Use, width: int, *, read: float = 0.0) -> Keeps:
    """`read`: numbers of the value it reads where that is not the map's input."""
    hidden = use.rank * (2 if use.values.get("activation") in ("gelu", "silu") else 1)
    own = use.n * hidden + read + use.cast(use.rank * width) + use.back(use.cast(use.rank * use.d_in))
    return Keeps(x=not read, own=own)


def _linear_series(use: Use) -> Keeps:
    width = series_width(use.site)
    return _bottleneck(use, width, read=0.0 if width == use.d_in != use.d_out else float(use.n * width))


def _linear_parallel(use: Use) -> Keeps:
    return _bottleneck(use, use.d_out)


def _s2ft(use: Use) -> Keeps:
    channels = use.rank
    own = use.n * channels
    if use.site.role in COLUMN_ROLES:
        return Keeps(x=False, own=own + use.back(use.cast(channels * use.d_out)))
    return Keeps(own=own + use.back(use.cast(channels * use.d_in)))


def _ssf(use: Use) -> Keeps:
    return Keeps(x=False, own=use.n * use.d_out + use.back(use.cast(use.d_out)))


OWN_EFFECTS: Final[Mapping[str, Effect]] = {
    "binary_lora": _binary_lora,
    "inttune": _framed,
    "linear_parallel": _linear_parallel,
    "linear_series": _linear_series,
    "loldu": lambda use: _framed(use, floats=use.rank + 1),
    "lora": branch,
    "lora_group": _lora_group,
    "mola": _mola,
    "nlora": lambda use: _framed_factors(use, floats=use.rank**2),
    "s2_lora": _s2_lora,
    "s2ft": _s2ft,
    "slora": _slora,
    "sorsa": lambda use: _framed_factors(use, floats=2 * use.rank**2 + use.rank + 2),
    "ssf": _ssf,
    "svfit": _framed,
}
"""Our own methods that act on linear maps."""
