"""Trainable parameters of a plain Hugging Face `adapter_config.json` on a model that is only described."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, cast

from autopeft.errors import ConfigurationError
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.peft_counts import SITE_COUNTS, Config, share, whole
from autopeft.spaces.peft_fields import check_fields
from autopeft.spaces.peft_targets import (
    HEAD,
    Module,
    ending_in,
    head_biases,
    input_embedding,
    pattern_value,
    saved_modules,
    targeted,
)
from autopeft.spaces.suggest import nearest

Count = Callable[[Config, ModelShape], int]

_PATTERNS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "C3A": ("block_size_pattern", "block_size"),
        "DELORA": ("rank_pattern", "r"),
        "FOURIERFT": ("n_frequency_pattern", "n_frequency"),
        "LOHA": ("rank_pattern", "r"),
        "LOKR": ("rank_pattern", "r"),
        "LORA": ("rank_pattern", "r"),
        "WAVEFT": ("n_frequency_pattern", "n_frequency"),
    }
)
"""The field that differs by module, and what it overrides. AdaLoRA's rank pattern is a result, not a setting; HiRA's
is ignored by peft 0.21.2."""
_SUBMODULES: Final = {"SEQ_2_SEQ_LM": 2}
_UNCOUNTED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "SHADOW": "its size is that of a second model",
        "XLORA": "it routes adapters that are trained already; its size depends on their files",
    }
)
_CONV1D: Final = ("gpt2", "openai-gpt")
"""Families whose maps are transformers' `Conv1D`, which is no `nn.Linear`."""
_UNSUPPORTED: Final = ("arrow_config", "layer_replication", "target_parameters")


def count_peft_config(config: Config, shape: ModelShape) -> int:
    """Trainable numbers of the adapter that `config` describes, exactly as the built one has them.

    A task's own head (`classifier`, `score`) is not counted, as everywhere here; copies of modules of the base model
    in `modules_to_save` are. ADAMSS is counted for the number of clusters it asks for.

    Args:
        config: What an `adapter_config.json` holds; absent fields have peft's defaults.
        shape: The base model.

    Raises:
        ConfigurationError: No or an unknown `peft_type`, one whose size cannot be known from this, no target in the
            model, or a field that is not understood.
    """
    kind = str(config.get("peft_type") or "").rpartition(".")[2].upper()
    if kind in _UNCOUNTED:
        raise ConfigurationError(
            f"peft_type {kind} cannot be counted from its configuration: {_UNCOUNTED[kind]}",
            hint="count the parameters of the built model",
        )
    if kind not in _WHOLE_COUNTS and kind not in SITE_COUNTS:
        known = sorted({*_WHOLE_COUNTS, *SITE_COUNTS})
        raise ConfigurationError(
            f"peft_type: {config.get('peft_type')!r} is not known; known are {', '.join(known)}",
            hint=nearest(kind, known) or "give an adapter_config.json that peft wrote",
        )
    if kind == "OSF" and shape.family in _CONV1D:
        raise ConfigurationError(
            f"peft_type OSF: peft 0.21.2 trains nothing of it on {shape.family}, whose maps are no nn.Linear",
            hint='use the method osf of AutoPEFT, e.g. {"osf": {}}, or another peft_type',
        )
    check_fields(config)
    for field in _UNSUPPORTED:
        if config.get(field):
            raise ConfigurationError(
                f"{field}: the size of such an adapter is not known from its configuration",
                hint="count the parameters of the built model",
            )
    count = _WHOLE_COUNTS[kind](config, shape) if kind in _WHOLE_COUNTS else _linear_count(kind, config, shape)
    return count + _beside(config, shape)


def known_peft_types() -> tuple[str, ...]:
    """Every peft type that `count_peft_config` counts, sorted."""
    return tuple(sorted({*_WHOLE_COUNTS, *SITE_COUNTS}))


def _linear_count(kind: str, config: Config, shape: ModelShape) -> int:
    found = targeted(config, shape)
    count = sum(_site_count(kind, config_at(kind, config, module), module) for module in found)
    if kind == "VBLORA":
        count += whole(config, "num_vectors", 256) * whole(config, "vector_length", 256)
    if kind == "WAVEFT" and config.get("proportional_parameters"):
        return _proportional(config, found)
    return count


def config_at(kind: str, config: Config, module: Module) -> Config:
    """`config` as it holds at one module: patterns applied (OSF's by a search, as in peft), IA3's inputs marked."""
    if kind == "IA3":
        return {**config, "is_feedforward": _is_feedforward(config.get("feedforward_modules") or (), module)}
    if kind == "OSF":
        patterns = config.get("rank_pattern") or {}
        assert isinstance(patterns, Mapping)
        ranks = [rank for pattern, rank in patterns.items() if re.search(str(pattern), module.name)]
        return {**config, "effective_rank": ranks[0]} if ranks else config
    if kind in _PATTERNS:
        pattern, field = _PATTERNS[kind]
        return {**config, field: pattern_value(config.get(pattern), module.names, config.get(field))}
    return config


def _is_feedforward(words: object, module: Module) -> bool:
    if isinstance(words, str):
        return any(re.fullmatch(words, name) for name in module.names)
    assert isinstance(words, Sequence)
    return any(module.name.endswith(str(word)) for word in words)


def _site_count(kind: str, config: Config, module: Module) -> int:
    if module.linear is not None:
        return SITE_COUNTS[kind](config, module.linear)
    size = module.sizes[0][1]
    if kind == "LORA" and len(size) == 2:
        rows, width = size
        return whole(config, "r", 8) * (rows + width) + (width if config.get("use_dora") else 0)
    raise ConfigurationError(
        f"target_modules: {module.name} is no linear map, {kind} acts on linear maps",
        hint=f"leave {module.name} out of the targets",
    )


def _proportional(config: Config, found: Sequence[Module]) -> int:
    """WaveFT's budget shared out by the size of each map, at least one number each."""
    areas = [module.linear.d_in * module.linear.d_out for module in found if module.linear]
    budget = whole(config, "n_frequency", 2592) * len(areas)
    return sum(max(1, round(area / sum(areas) * budget)) for area in areas)


def _beside(config: Config, shape: ModelShape) -> int:
    """Copies of base modules, trained biases and trained rows of the embedding that come with the adapter."""
    count = sum(math.prod(size) for module in saved_modules(config, shape) for _, size in module.sizes)
    tokens = config.get("trainable_token_indices") or ()
    if isinstance(tokens, Mapping):
        count += sum(len(rows) * _row_width(ending_in(name, shape)) for name, rows in tokens.items())
        _check_tied("trainable_token_indices", [found.name for name in tokens for found in ending_in(name, shape)])
    elif tokens:
        count += len(cast("Sequence[int]", tokens)) * input_embedding(shape).sizes[0][1][1]
    bias = str(config.get("bias", "none"))
    if bias == "all":
        sites = [site for row in shape.layers for site in row if site.bias]
        others = [size for part in shape.parts for name, size in part.sizes if name == "bias"]
        return count + sum(site.d_out for site in sites) + sum(map(math.prod, others)) + head_biases(config, shape)
    if bias.endswith("_only"):
        linear = [module.linear for module in targeted(config, shape) if module.linear]
        return count + sum(site.d_out for site in linear if site.bias)
    return count


def _adaption_prompt(config: Config, shape: ModelShape) -> int:
    layers = whole(config, "adapter_layers", shape.n_layers)
    return layers * (whole(config, "adapter_len", 0) * shape.hidden_size + 1)


def _own_layers(shape: ModelShape) -> int:
    """Layers that peft takes a model to have: those of the encoder, where it has an encoder and a decoder."""
    return shape.n_layers - shape.decoder_layers


def _cartridge(config: Config, shape: ModelShape) -> int:
    rows = whole(config, "num_virtual_tokens", 0) - whole(config, "num_frozen_tokens", 0)
    return rows * whole(config, "num_layers", _own_layers(shape)) * 2 * whole(config, "token_dim", shape.kv_size)


def _virtual_tokens(config: Config) -> int:
    submodules = _SUBMODULES.get(str(config.get("task_type")), 1)
    return whole(config, "num_virtual_tokens", 0) * whole(config, "num_transformer_submodules", submodules)


def _cpt(config: Config, shape: ModelShape) -> int:
    return whole(config, "num_virtual_tokens", 0) * whole(config, "token_dim", shape.hidden_size)


def _prompt_tuning(config: Config, shape: ModelShape) -> int:
    return _virtual_tokens(config) * whole(config, "token_dim", shape.hidden_size)


def _multitask_prompt_tuning(config: Config, shape: ModelShape) -> int:
    tokens, width = _virtual_tokens(config), whole(config, "token_dim", shape.hidden_size)
    return tokens * width + whole(config, "num_tasks", 1) * whole(config, "num_ranks", 1) * (tokens + width)


def _prefix_tuning(config: Config, shape: ModelShape) -> int:
    tokens, width = whole(config, "num_virtual_tokens", 0), whole(config, "token_dim", shape.kv_size)
    rows = whole(config, "num_layers", _own_layers(shape)) * 2 * width
    if not config.get("prefix_projection"):
        return tokens * rows
    hidden = whole(config, "encoder_hidden_size", width)
    return tokens * width + (width + 1) * hidden + (hidden + 1) * rows


def count_p_tuning(config: Config, shape: ModelShape) -> int:
    """Virtual tokens and the network that makes them."""
    width = whole(config, "token_dim", shape.hidden_size)
    hidden = whole(config, "encoder_hidden_size", width)
    count = _virtual_tokens(config) * width
    if str(config.get("encoder_reparameterization_type", "MLP")).rpartition(".")[2] == "MLP":
        return count + (width + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * width
    depth = whole(config, "encoder_num_layers", 2)
    inputs = [width] + [2 * hidden] * (depth - 1)
    lstm = sum(2 * 4 * hidden * (size + hidden + 2) for size in inputs)
    return count + lstm + (2 * hidden + 1) * 2 * hidden + (2 * hidden + 1) * width


def _norms(config: Config, shape: ModelShape) -> int:
    return sum(math.prod(size) for module in targeted(config, shape) for _, size in module.sizes)


def _trainable_tokens(config: Config, shape: ModelShape) -> int:
    rows = cast("Sequence[int]", config.get("token_indices") or ())
    if not config.get("target_modules"):
        n_words, width = input_embedding(shape).sizes[0][1]
        beyond = [row for row in rows if not -n_words <= row < n_words]
        if beyond:
            raise ConfigurationError(
                f"token_indices: this {shape.family} model has no token {beyond[0]}, it has {n_words}",
                hint="take the configuration of this base model",
            )
        return len(rows) * width
    found = targeted(config, shape)
    _check_tied("target_modules", [module.name for module in found])
    return len(rows) * _row_width(found)


def _row_width(found: Sequence[Module]) -> int:
    """Numbers in one row of the weight, all of `found` together."""
    return sum(module.sizes[0][1][1] for module in found)


def _check_tied(field: str, names: Sequence[str]) -> None:
    """Refuse the head's rows beside others: where its weight is the embedding's, they are trained once."""
    if HEAD in names and len(names) > 1:
        raise ConfigurationError(
            f"{field}: rows of {HEAD} and of the embedding are one where the model ties them, which is not known here",
            hint=f"leave {HEAD} out where they are tied, or count the built model",
        )


def _lily(config: Config, shape: ModelShape) -> int:
    """A is shared by `stride_A` consecutive layers, B by all layers; every map has its own router."""
    rank, stride, experts = whole(config, "r", 32), whole(config, "stride_A", 1, low=1), whole(config, "num_B", 2)
    targets = config.get("target_modules")
    words = [targets] if isinstance(targets, str) else sorted((str(word) for word in targets or ()), key=len)  # type: ignore[union-attr]  # a list in JSON
    groups: dict[tuple[str, int, int], int] = {}
    for module in targeted(config, shape):
        assert module.linear is not None
        word = max((word for word in words if module.name.endswith(word)), key=len, default=words[0])
        group = (word, module.linear.d_in, module.linear.d_out)
        groups[group] = groups.get(group, 0) + 1
    return sum(
        math.ceil(n / stride) * rank * d_in + d_out * experts * rank + n * rank * experts
        for (_, d_in, d_out), n in groups.items()
    )


def _tinylora(config: Config, shape: ModelShape) -> int:
    """One vector for each group of consecutive maps."""
    n, tying = len(targeted(config, shape)), share(config, "weight_tying", 0.0)
    groups = max(1, round(n * (1.0 - tying)))
    size = max(1, n // groups)
    return whole(config, "u", 64) * len({min(index // size, groups - 1) for index in range(n)})


_WHOLE_COUNTS: Final[Mapping[str, Count]] = MappingProxyType(
    {
        "ADAPTION_PROMPT": _adaption_prompt,
        "CARTRIDGE": _cartridge,
        "CPT": _cpt,
        "LILY": _lily,
        "LN_TUNING": _norms,
        "MULTITASK_PROMPT_TUNING": _multitask_prompt_tuning,
        "P_TUNING": count_p_tuning,
        "PREFIX_TUNING": _prefix_tuning,
        "PROMPT_TUNING": _prompt_tuning,
        "TINYLORA": _tinylora,
        "TRAINABLE_TOKENS": _trainable_tokens,
        "UNILORA": lambda config, shape: whole(config, "theta_d_length", 256),
    }
)
"""Peft types whose tensors are shared between maps, or belong to no linear map."""
