"""Exact trainable numbers of each Hugging Face PEFT type at one linear map, from its settings alone.

The formulas follow the tensors that peft 0.21.2 makes, not the papers; tests compare every one with the built modules.
"""

from collections.abc import Callable, Mapping
from math import ceil
from types import MappingProxyType
from typing import Final

from autopeft.errors import ConfigurationError
from autopeft.spaces.model_shape import Site
from autopeft.spaces.suggest import nearest

Config = Mapping[str, object]
"""An `adapter_config.json`, or the part of one that a count reads; what is absent has peft's default."""
SiteCount = Callable[[Config, Site], int]


def whole(config: Config, name: str, default: int, *, low: int = 0) -> int:
    """The whole number `config[name]`, `default` where it is absent or null.

    Raises:
        ConfigurationError: It is something else, or below `low`.
    """
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigurationError(
            f"{name}: {value!r} is no whole number from {low}", hint=f"write a number, e.g. {max(default, low)}"
        )
    return value


def share(config: Config, name: str, default: float) -> float:
    """The number `config[name]`, `default` where it is absent or null.

    Raises:
        ConfigurationError: It is something else.
    """
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigurationError(f"{name}: {value!r} is no number", hint=f"write a number, e.g. {default}")
    return float(value)


def factorization(dimension: int, factor: int) -> tuple[int, int]:
    """LoKr's two factors of `dimension`, the smaller first: `factor` itself where it divides, else as near as can be.

    Args:
        dimension: What to factor, positive.
        factor: Upper bound of the smaller factor; -1 asks for the two nearest to the square root.
    """
    if factor > 0 and dimension % factor == 0:
        return factor, dimension // factor
    bound = dimension if factor == -1 else factor
    small = max(d for d in range(1, int(dimension**0.5) + 1) if dimension % d == 0 and (d <= bound or d == 1))
    return small, dimension // small


def nearest_divisor(dimension: int, wanted: int) -> int:
    """The divisor of `dimension` that peft's OFT takes for `wanted`: the nearest, the smaller one at equal distance."""
    if wanted >= dimension:
        return dimension
    higher = next(d for d in range(wanted, dimension + 1) if dimension % d == 0)
    lower = next(d for d in range(wanted, 0, -1) if dimension % d == 0)
    return lower if wanted - lower <= higher - wanted else higher


def _low_rank(config: Config, site: Site, *, default: int) -> int:
    return whole(config, "r", default) * (site.d_in + site.d_out)


def _lora(config: Config, site: Site) -> int:
    rank = whole(config, "r", 8)
    bias = site.d_out if config.get("lora_bias") else 0
    if config.get("init_lora_weights") == "mica":
        return rank * site.d_in
    block_a, block_b, n_blocks = _block_diagonal(config, site)
    count = rank * site.d_in // (n_blocks if block_a else 1) + rank * site.d_out // (n_blocks if block_b else 1) + bias
    if config.get("use_dora"):
        count += site.d_out
    if config.get("kasa_config"):
        count += rank
    sampler = config.get("monteclora_config")
    if isinstance(sampler, Mapping):
        count += rank + whole(sampler, "num_samples", 8)
    return count


def _block_diagonal(config: Config, site: Site) -> tuple[bool, bool, int]:
    """Whether A and B are block-diagonal at `site`, and in how many blocks (BD-LoRA)."""
    block = config.get("use_bdlora")
    if not isinstance(block, Mapping):
        return False, False, 1
    a, b = (any(str(word) in site.name for word in block.get(name) or ()) for name in _BLOCK_PATTERNS)
    return a, b and not a, whole(block, "nblocks", 1)


_BLOCK_PATTERNS: Final = ("target_modules_bd_a", "target_modules_bd_b")


def _adalora(config: Config, site: Site) -> int:
    rank = whole(config, "init_r", 12)
    return rank * (site.d_in + site.d_out) + rank


def _adamss(config: Config, site: Site) -> int:
    rank, clusters = whole(config, "subspace_rank", 1), whole(config, "num_subspaces", 5)
    if config.get("use_dynamic_rank") and rank > 1:
        raise ConfigurationError(
            "use_dynamic_rank: the ranks of ADAMSS then depend on the weights",
            hint="set it to false, or subspace_rank to 1, or count the built model",
        )
    return rank * (clusters * whole(config, "r", 100) + site.d_out)


def _boft(config: Config, site: Site) -> int:
    size, number = whole(config, "boft_block_size", 4), whole(config, "boft_block_num", 0)
    size = size or site.d_in // max(number, 1)
    return whole(config, "boft_n_butterfly_factor", 1) * (site.d_in // size) * size**2 + site.d_out


def _deft(config: Config, site: Site) -> int:
    rank = min(whole(config, "r", 8), site.d_out)
    return rank * site.d_out + (0 if config.get("para") else rank * site.d_in)


def _frod(config: Config, site: Site) -> int:
    rate, pairs = share(config, "sparse_rate", 0.01), site.d_in * (site.d_in - 1)
    values = min(int(site.d_in**2 * rate), pairs)
    return site.d_in + (max(1, values) if rate > 0 and pairs else values)


def _glora(config: Config, site: Site) -> int:
    rank = whole(config, "r", 8)
    paths = {"lora": rank * (site.d_in + site.d_out), "vector": site.d_out, "constant": 1}
    count = 2 * paths.get(str(config.get("config_A_B", "lora")), 0)
    if not site.bias:
        return count
    columns = {"lora": rank * (site.d_in + 1), "vector": site.d_in}
    shifts = {"vector": site.d_out, "constant": 1}
    count += columns.get(str(config.get("config_C", "lora")), 0)
    return count + 2 * shifts.get(str(config.get("config_D_E", "constant")), 0)


def _gralora(config: Config, site: Site) -> int:
    return (whole(config, "r", 32) + whole(config, "hybrid_r", 0)) * (site.d_in + site.d_out)


def _lokr(config: Config, site: Site) -> int:
    rank, factor = whole(config, "r", 8), whole(config, "decompose_factor", -1, low=-1)
    (out_a, out_b), (in_a, in_b) = factorization(site.d_out, factor), factorization(site.d_in, factor)
    first = rank * (out_a + in_a) if config.get("decompose_both") and rank < max(out_a, in_a) / 2 else out_a * in_a
    return first + (rank * (out_b + in_b) if rank < max(out_b, in_b) / 2 else out_b * in_b)


def _miss(config: Config, site: Site) -> int:
    rank = whole(config, "r", 64)
    return rank * (whole(config, "mini_r", 1) if config.get("init_weights") == "mini" else site.d_out)


def _oft(config: Config, site: Site) -> int:
    blocks = whole(config, "r", 0)
    size = whole(config, "oft_block_size", 32, low=0 if blocks else 1)
    if blocks:
        blocks = nearest_divisor(site.d_in, blocks)
        size = site.d_in // blocks
    else:
        size = nearest_divisor(site.d_in, size)
        blocks = site.d_in // size
    return (1 if config.get("block_share") else blocks) * (size * (size - 1) // 2)


def kept_directions(config: Config, site: Site) -> int:
    """Singular directions that OSF leaves frozen at a map: a number, a share of the narrower width, or half of it."""
    width = min(site.d_in, site.d_out)
    kept = share(config, "effective_rank", width // 2)
    if isinstance(config.get("effective_rank"), int):
        kept = int(kept)
    rank = width * kept if isinstance(kept, float) and 0 < kept <= 1 else kept
    return min(int(rank), width)


def _osf(config: Config, site: Site) -> int:
    return (min(site.d_in, site.d_out) - kept_directions(config, site)) * (site.d_in + site.d_out + 1)


def _peanut(config: Config, site: Site) -> int:
    rank = whole(config, "r", 32)
    return 2 * rank * site.d_out + 2 * whole(config, "depth", 0) * rank**2


def _poly(config: Config, site: Site) -> int:
    rank, skills = whole(config, "r", 8), whole(config, "n_skills", 4)
    splits = whole(config, "n_splits", 1, low=1)
    factors = splits * skills * rank * (site.d_in // splits + site.d_out // splits)
    return factors + whole(config, "n_tasks", 1) * splits * skills


def _psoft(config: Config, site: Site) -> int:
    rank = whole(config, "r", 32)
    core = rank * (rank - 1) // 2 if config.get("psoft_orth", True) else rank**2
    return core + rank * (bool(config.get("psoft_mag_a", True)) + bool(config.get("psoft_mag_b", True)))


def _randlora(config: Config, site: Site) -> int:
    rank, width = whole(config, "r", 32, low=1), min(site.d_in, site.d_out)
    return ceil(width / rank) * (rank + width)


def _road(config: Config, site: Site) -> int:
    angles = {"road_1": site.d_out // 2, "road_2": site.d_out, "road_4": 2 * site.d_out}
    variant = str(config.get("variant", "road_1"))
    if variant not in angles:
        raise ConfigurationError(f"variant: {variant!r} is none of {', '.join(angles)}", hint=nearest(variant, angles))
    return 2 * angles[variant]


def _supertuning(config: Config, site: Site) -> int:
    values = int(site.d_in * site.d_out * (1 - share(config, "sparsity", 0.99)))
    return values + whole(config, "r", 0) * (site.d_in + site.d_out)


def _vblora(config: Config, site: Site) -> int:
    length = whole(config, "vector_length", 256, low=1)
    return whole(config, "r", 4) * (site.d_in // length + site.d_out // length) * whole(config, "num_vectors", 256)


SITE_COUNTS: Final[Mapping[str, SiteCount]] = MappingProxyType(
    {
        "ADALORA": _adalora,
        "ADAMSS": _adamss,
        "BEFT": lambda config, site: site.d_out,
        "BOFT": _boft,
        "BONE": lambda config, site: whole(config, "r", 64) * site.d_out,
        "C3A": lambda config, site: site.d_in * site.d_out // whole(config, "block_size", 256, low=1),
        "DEFT": _deft,
        "DELORA": lambda config, site: _low_rank(config, site, default=8) + 1,
        "FOURIERFT": lambda config, site: whole(config, "n_frequency", 1000),
        "FROD": _frod,
        "GLORA": _glora,
        "GRALORA": _gralora,
        "HIRA": lambda config, site: _low_rank(config, site, default=32),
        "HRA": lambda config, site: whole(config, "r", 8) * site.d_in,
        "IA3": lambda config, site: site.d_in if config.get("is_feedforward") else site.d_out,
        "LILY": lambda config, site: whole(config, "r", 32) * whole(config, "num_B", 2),
        "LOHA": lambda config, site: 2 * _low_rank(config, site, default=8),
        "LOKR": _lokr,
        "LORA": _lora,
        "MISS": _miss,
        "OFT": _oft,
        "OSF": _osf,
        "PEANUT": _peanut,
        "POLY": _poly,
        "PSOFT": _psoft,
        "PVERA": lambda config, site: site.d_out + 2 * whole(config, "r", 256),
        "RANDLORA": _randlora,
        "ROAD": _road,
        "SHIRA": lambda config, site: _low_rank(config, site, default=32),
        "SUPERTUNING": _supertuning,
        "TINYLORA": lambda config, site: whole(config, "u", 64),
        "UNILORA": lambda config, site: 0,
        "VBLORA": _vblora,
        "VERA": lambda config, site: site.d_out + whole(config, "r", 256),
        "WAVEFT": lambda config, site: whole(config, "n_frequency", 2592),
    }
)
"""Peft type to its count at one linear map. What maps share is not in it (VB-LoRA's bank)."""
