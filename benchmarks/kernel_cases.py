"""What the benchmarks of the kernels run them on: the shapes that packs and single trials of three base models have.

Letters: K slots, N rows of all of them, T targets that read the same rows, R rank, D input and O output width, V
vocabulary, E experts, P parameters of a slot.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from autopeft.kernels.dispatch import OPERATIONS
from autopeft.kernels.loss import chunk_rows
from autopeft.kernels.reference.adamw import AdamW
from autopeft.kernels.slots import Slots

Tensors = dict[str, torch.Tensor]
N_EXPERTS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """Sizes of a base model, and the rows that a slot has in a step."""

    width: int
    wide: int
    """Of the feed-forward block."""
    layers: int
    vocabulary: int
    rows: int


BASES: Final[Mapping[str, Base]] = {
    "roberta-base": Base(width=768, wide=3072, layers=12, vocabulary=50265, rows=1536),
    "qwen2-1.5b": Base(width=1536, wide=8960, layers=28, vocabulary=151936, rows=512),
    "llama-7b": Base(width=4096, wide=11008, layers=32, vocabulary=32000, rows=512),
}
"""Rows a step: 32 sentences of 48 tokens, or one text of 512."""
TINY: Final = Base(width=32, wide=48, layers=1, vocabulary=50, rows=20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One operation at one size."""

    operation: str
    base: str
    slots: int
    rows: int
    d_in: int
    d_out: int
    rank: int = 16
    targets: int = 1
    dropout: float = 0.0
    dtype: torch.dtype = torch.bfloat16
    parameters: int = 0

    def table(self, device: str) -> Slots:
        return Slots.of(
            (self.rows,) * self.slots,
            scale=(2.0,) * self.slots,
            dropout=(self.dropout,) * self.slots,
            seed=range(self.slots),
            device=device,
        )

    @property
    def n_rows(self) -> int:
        return self.slots * self.rows


def cases(name: str, base: Base, *, slots: int) -> Iterator[Case]:
    """Every operation as a base model has it: a map of its width and the widest, with and without dropout."""

    def case(operation: str, **changed: Any) -> Case:
        usual = {"base": name, "slots": slots, "rows": base.rows, "d_in": base.width, "d_out": base.width}
        return Case(operation=operation, **(usual | changed))

    for operation in ("shrink", "shrink_backward"):
        yield case(operation)
        yield case(operation, d_in=base.wide)
        yield case(operation, targets=3, dropout=0.1)
        yield case(operation, rank=64)
    for operation in ("expand_add", "expand_backward"):
        yield case(operation)
        yield case(operation, d_out=base.wide)
        yield case(operation, rank=64)
    yield case("adamw_step", parameters=4 * base.layers * base.width * 16)
    rows = min(base.rows, chunk_rows(base.vocabulary, 2))
    yield case("softmax_cross_entropy", slots=1, rows=rows, d_out=base.vocabulary)
    for operation in ("route", "route_backward"):
        yield case(operation, rank=8)


def operands(case: Case, device: str) -> Tensors:
    """What `case` takes, drawn with one seed; factors and what belongs to them stay fp32."""
    n, k, dtype = case.n_rows, case.slots, case.dtype
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "x": ((n, case.d_in), dtype),
        "dx": ((n, case.d_in), dtype),
        "a": ((k, case.targets, case.rank, case.d_in), torch.float32),
        "ds": ((case.targets, n, case.rank), dtype),
        "s": ((n, case.rank), dtype),
        "b": ((k, case.d_out, case.rank), torch.float32),
        "y": ((n, case.d_out), dtype),
        "gates": ((n, N_EXPERTS), dtype),
        "experts": ((n, N_EXPERTS, case.rank), dtype),
        "dh": ((n, N_EXPERTS, case.rank), dtype),
        "dp": ((k, N_EXPERTS), torch.float32),
        **dict.fromkeys("pgmv", ((k, case.parameters), torch.float32)),
    }
    torch.manual_seed(0)
    used = {key: shapes[key] for key in _KINDS[case.operation].uses}
    tensors = {key: torch.randn(shape, device=device).to(own) for key, (shape, own) in used.items()}
    if "v" in tensors:
        tensors["v"].square_()
    return tensors


Call = Callable[[Callable[..., Any], Tensors, Slots], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """How an operation is called, and what it cannot do without."""

    uses: tuple[str, ...]
    call: Call
    traffic: Callable[[Case], int]
    """Bytes: every operand read once, every result written once."""
    products: Callable[[Case], int] = lambda _: 0
    """Multiplications and additions of its matrix products."""


def bind(case: Case, function: Callable[..., Any], tensors: Tensors, table: Slots) -> Callable[[], Any]:
    """`function`, that of `case`'s operation, ready to be called again and again on the same tensors."""
    call = _KINDS[case.operation].call
    return lambda: call(function, tensors, table)


def floor_bytes(case: Case) -> int:
    """The memory traffic that no implementation can avoid."""
    return _KINDS[case.operation].traffic(case)


def flops(case: Case) -> int:
    """Operations of the matrix products; zero where there is none."""
    return _KINDS[case.operation].products(case)


def _adamw(function: Callable[..., Any], t: Tensors, table: Slots) -> torch.Tensor:
    p, k = t["p"], len(table)
    rule = AdamW(
        learning_rate=p.new_full((k, 1), 1e-3),
        weight_decay=p.new_full((k, 1), 1e-2),
        ends=torch.tensor([p.shape[1]], dtype=torch.int32, device=p.device),
        betas=p.new_tensor([[0.9, 0.999]], dtype=torch.float64).repeat(k, 1),
        epsilon=p.new_full((k,), 1e-8),
        max_norm=p.new_full((k,), 1.0),
        active=torch.ones(k, dtype=torch.bool, device=p.device),
    )
    return function(p, t["g"], t["m"], t["v"], torch.full((k,), 3, dtype=torch.int32, device=p.device), rule)


def _cross_entropy(function: Callable[..., Any], t: Tensors, _: Slots) -> torch.Tensor:
    y = t["y"]
    return function(y, torch.arange(len(y), device=y.device) % y.shape[1])


def _routes(table: Slots) -> tuple[torch.Tensor, ...]:
    counts = torch.full((len(table),), N_EXPERTS, dtype=torch.int32, device=table.offsets.device)
    return counts, counts // 2, torch.ones(table.n_rows, dtype=torch.bool, device=table.offsets.device)


def _floats(*shape: int) -> int:
    size = 4
    for n in shape:
        size *= n
    return size


def _of(case: Case, *shape: int) -> int:
    return _floats(*shape) // 4 * case.dtype.itemsize


_KINDS: Final[Mapping[str, _Kind]] = {
    "shrink": _Kind(
        uses=("x", "a"),
        call=lambda f, t, table: f(t["x"], t["a"], table, stream=0),
        traffic=lambda c: (
            _of(c, c.n_rows, c.d_in) + _floats(c.slots, c.targets, c.rank, c.d_in) + _of(c, c.targets, c.n_rows, c.rank)
        ),
        products=lambda c: 2 * c.n_rows * c.targets * c.rank * c.d_in,
    ),
    "shrink_backward": _Kind(
        uses=("ds", "x", "a", "dx"),
        call=lambda f, t, table: f(t["ds"], t["x"], t["a"], table, stream=0, dx_ND=t["dx"]),
        traffic=lambda c: (
            3 * _of(c, c.n_rows, c.d_in)
            + 2 * _floats(c.slots, c.targets, c.rank, c.d_in)
            + _of(c, c.targets, c.n_rows, c.rank)
        ),
        products=lambda c: 4 * c.n_rows * c.targets * c.rank * c.d_in,
    ),
    "expand_add": _Kind(
        uses=("y", "s", "b"),
        call=lambda f, t, table: f(t["y"], t["s"], t["b"], table),
        traffic=lambda c: 2 * _of(c, c.n_rows, c.d_out) + _of(c, c.n_rows, c.rank) + _floats(c.slots, c.d_out, c.rank),
        products=lambda c: 2 * c.n_rows * c.rank * c.d_out,
    ),
    "expand_backward": _Kind(
        uses=("y", "s", "b"),
        call=lambda f, t, table: f(t["y"], t["s"], t["b"], table),
        traffic=lambda c: (
            _of(c, c.n_rows, c.d_out) + 2 * _of(c, c.n_rows, c.rank) + 2 * _floats(c.slots, c.d_out, c.rank)
        ),
        products=lambda c: 4 * c.n_rows * c.rank * c.d_out,
    ),
    "adamw_step": _Kind(uses=("p", "g", "m", "v"), call=_adamw, traffic=lambda c: _floats(7, c.slots, c.parameters)),
    "softmax_cross_entropy": _Kind(uses=("y",), call=_cross_entropy, traffic=lambda c: 2 * _of(c, c.n_rows, c.d_out)),
    "route": _Kind(
        uses=("gates", "experts"),
        call=lambda f, t, table: f(t["gates"], t["experts"], table, *_routes(table)),
        traffic=lambda c: _of(c, c.n_rows, N_EXPERTS, 2 * c.rank + 1),
    ),
    "route_backward": _Kind(
        uses=("dh", "dp", "gates", "experts"),
        call=lambda f, t, table: f(t["dh"], t["dp"], t["gates"], t["experts"], table, *_routes(table)),
        traffic=lambda c: _of(c, c.n_rows, N_EXPERTS, 3 * c.rank + 2),
    ),
}
assert set(_KINDS) == set(OPERATIONS), "every operation of the dispatch is measured"
