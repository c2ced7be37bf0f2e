"""How the types of Hugging Face PEFT act on a linear map; their layers compute in float32 unless a row says otherwise.

Letters: N tokens of the batch, I and O the map's input and output width, R the rank.
"""

from collections.abc import Mapping
from typing import Final

from autopeft.objectives.effects import Effect, Keeps, Use
from autopeft.spaces.model_shape import Role


def _wide(floats: float, *, x: bool = True, dropped: bool = True) -> Keeps:
    return Keeps(x=x, wide=True, floats=floats, dropped=dropped)


def _weight_sized(use: Use, floats: float = 0.0, *, own: bool = False) -> Keeps:
    """A change made as a whole matrix, which the input's gradient needs."""
    if own:
        return Keeps(own=use.back(use.weight), floats=floats)
    return _wide(floats + use.back(use.weight), dropped=False)


def _peft_lora(use: Use) -> Keeps:
    rank, hidden, variant = use.rank, use.n * use.rank, use.values.get("variant")
    if variant == "ffa":
        return _wide(hidden, x=False)
    if variant == "mica":
        return _wide(0)
    if variant == "kasa":
        return _wide(2 * hidden + 2 * rank * rank + 2)
    if variant == "dora":
        return _wide(hidden + use.d_in**2 + rank * use.d_in + (2 * use.n + 3) * use.d_out)
    return _wide(hidden)


def _boft(use: Use) -> Keeps:
    square = use.d_in**2
    own = square + use.back(square) + use.cast(square) + use.n * use.d_out
    return Keeps(own=own, floats=3 * use.d_in * use.rank + use.d_in + 2 * use.d_out, dropped=False)


def _delora(use: Use) -> Keeps:
    return _wide(use.n * (use.d_in + 2 * use.rank) + 7 * use.rank + 1, x=False)


def _gralora(use: Use) -> Keeps:
    return _wide(use.n * (use.number("blocks") * use.rank + use.number("hybrid_rank")))


def _hira(use: Use) -> Keeps:
    return _wide(use.back(use.weight))


def _hra(use: Use) -> Keeps:
    count, width = use.rank, use.d_in
    if use.values.get("orthogonalise"):
        made = width**2 + 2 * count * width + count * (count + 1) / 2 * width
    else:
        made = (count + 1) * width**2 + 2 * count * width + count
    return _weight_sized(use, made + use.cast(use.weight))


def _ia3(use: Use) -> Keeps:
    if use.site.role is Role.MLP_DOWN:
        return Keeps(own=use.back(use.cast(use.d_in)))
    return Keeps(x=False, own=use.n * use.d_out, floats=use.back(use.d_out))


def _miss(use: Use) -> Keeps:
    if use.values.get("mode") == "bat":
        return _wide(use.weight + use.back(use.weight))
    mini = use.rank * use.d_out if use.values.get("mode") == "mini" else 0.0
    return _wide(use.n * use.rank + mini, x=False)


def _oft(use: Use) -> Keeps:
    block, blocks = use.rank**2, use.d_in / use.rank
    return _wide(
        3 * block * (1 if use.values.get("shared_block") else blocks) + use.back(block * blocks), dropped=False
    )


def _peanut(use: Use) -> Keeps:
    return _weight_sized(use, (1 + 3 * use.number("depth")) * use.rank * use.d_in + use.cast(use.weight))


def _deft(use: Use) -> Keeps:
    rank = use.rank
    floats = rank * use.d_out + use.n * (use.d_out + rank)
    floats += rank**2 if use.values.get("decomposition") == "qr" else 0.0
    if use.values.get("para"):
        return _wide(floats, x=False)
    return _wide(floats + use.n * rank + use.back(rank * use.d_in))


def _psoft(use: Use) -> Keeps:
    square = use.rank**2
    return _wide(use.n * use.rank + 4 * square + use.rank + use.back(square), x=False)


def _randlora(use: Use) -> Keeps:
    narrow = min(use.d_in, use.d_out)
    inner = -(-narrow // use.rank) * use.rank
    made = use.back(inner * narrow)
    return _wide(made) if use.d_in <= use.d_out else _wide(made + use.n * inner, x=False)


def _vblora(use: Use) -> Keeps:
    mixed = use.rank * (use.d_in + use.d_out) * use.number("top_k")
    picks = 3 * mixed / max(use.number("vector_length"), 1.0)
    return _wide(picks + mixed + use.rank * (use.n + use.d_out) + use.back(use.rank * use.d_in))


def _adalora(use: Use) -> Keeps:
    """The hidden values; A with E in it; the distances of A and B from orthonormal."""
    rank = use.rank
    return _wide(use.n * rank + use.back(rank * use.d_in) + 2 * rank**2 + 3)


PEFT_EFFECTS: Final[Mapping[str, Effect]] = {
    "adalora": _adalora,
    "beft": lambda use: Keeps(x=False),
    "boft": _boft,
    "c3a": lambda use: _wide(0),
    "delora": _delora,
    "fourierft": lambda use: _weight_sized(use, 4 * use.rank),
    "glora": lambda use: _weight_sized(use, own=True),
    "gralora": _gralora,
    "hira": _hira,
    "hra": _hra,
    "ia3": _ia3,
    "loha": lambda use: _weight_sized(use, 1),
    "lokr": _weight_sized,
    "miss": _miss,
    "oft": _oft,
    "peanut": _peanut,
    "peft_deft": _deft,
    "peft_lora": _peft_lora,
    "psoft": _psoft,
    "pvera": lambda use: _wide(use.n * (4 * use.rank + use.d_out), x=False),
    "randlora": _randlora,
    "road": lambda use: _wide((4 + 2 * use.n) * use.d_out + use.back(2 * use.d_out), x=False),
    "shira": lambda use: _weight_sized(use, own=True),
    "supertuning": lambda use: _weight_sized(use, 2 * (1 - use.number("sparsity")) * use.weight, own=True),
    "tinylora": lambda use: _wide(use.n * use.number("rank") + use.back(use.number("rank") ** 2), x=False),
    "vblora": _vblora,
    "vera": lambda use: _wide(use.n * (use.rank + use.d_out), x=False),
    "waveft": lambda use: _weight_sized(use, 4.25 * use.rank + use.weight),
}
