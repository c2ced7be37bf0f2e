"""Trainable key and value rows before each attention's own (Li and Liang 2021, arXiv 2101.00190), without the MLP.

The rows enter through transformers' attention interface: while a prefix is attached, the model's configuration names
an attention function of ours, which adds them and calls the implementation the model had. They come after position
encoding and after the key/value cache, so positions, masks of other layers and generation are untouched.

Shapes: N batch, H heads, K key/value heads, P prefix rows, Q queries, S keys, D head width.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Final, final

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from autopeft.errors import ModelError
from autopeft.spaces.model_shape import ModelShape, Role
from autopeft.trainers.adapters.adapter import AbstractAdapter, Handle, Placement
from autopeft.trainers.sites import attention_of, uses_attention_interface

AttentionOutput = tuple[torch.Tensor, torch.Tensor | None]
AttentionFunction = Callable[..., AttentionOutput]

INIT_STD: Final = 0.02
SUPPORTED: Final = ("sdpa", "eager")
_NAME: Final = "autopeft_prefix_"
_SLOT: Final = "_autopeft_prefix"


@final
class PrefixAdapter(AbstractAdapter):
    """`length` keys and values that every query of the layer sees, whatever the mask."""

    def __init__(self, shape: ModelShape, *, layer: int, length: int) -> None:
        super().__init__()
        self.shape = shape
        self.layer = layer
        self.key = nn.Parameter(torch.zeros(shape.n_kv_heads, length, shape.head_dim))
        self.value = nn.Parameter(torch.zeros(shape.n_kv_heads, length, shape.head_dim))

    def attach(self, model: PreTrainedModel, layer: nn.Module) -> list[Handle]:
        attention = self._attention(layer)
        _switch(model, attention)
        attention.__dict__[_SLOT] = self
        return [_PrefixHandle(model, attention)]

    def extend(self, rows: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
        """`prefix` [K, P, D], the same for every sequence, before `rows` [N, K, S, D]; [N, K, P + S, D]."""
        return torch.cat((prefix.to(rows.dtype).expand(rows.shape[0], -1, -1, -1), rows), dim=2)

    def _attention(self, layer: nn.Module) -> nn.Module:
        """The layer's attention module, checked to be one that a prefix can be added to."""
        sites = self.shape.layers[self.layer]
        attention = attention_of(layer, sites)
        if attention is None or not uses_attention_interface(attention):
            raise ModelError(
                f"prefix_tuning: {self.shape.family} models compute attention in their own way,"
                " not through transformers' attention interface",
                hint="leave prefix_tuning out of the space for this model; the other methods work",
            )
        widths = {site.role: site.d_out for site in sites}
        fused = (self.shape.n_heads + 2 * self.shape.n_kv_heads) * self.shape.head_dim
        expected = {Role.KEY: self.shape.kv_size, Role.VALUE: self.shape.kv_size, Role.QUERY_KEY_VALUE: fused}
        wrong = [(role, widths[role], width) for role, width in expected.items() if widths.get(role, width) != width]
        if wrong:
            role, got, width = wrong[0]
            raise ModelError(
                f"prefix_tuning: layer {self.layer} has a {role} projection of width {got}, the model's heads say"
                f" {width}",
                hint="leave prefix_tuning out of the space for this model; the other methods work",
            )
        return attention


@final
class _PrefixHandle:
    """Takes one prefix off; with the last one the model's own attention implementation comes back."""

    def __init__(self, model: PreTrainedModel, attention: nn.Module) -> None:
        self.model = model
        self.attention = attention

    def remove(self) -> None:
        self.attention.__dict__.pop(_SLOT, None)
        if not any(_SLOT in module.__dict__ for module in self.model.modules()):
            for config in _configs(self.model):
                name = config._attn_implementation or ""
                if name.startswith(_NAME):
                    config._attn_implementation_internal = name.removeprefix(_NAME)


def build_prefix(placement: Placement) -> PrefixAdapter:
    """Keys and values N(0, 0.02): every query starts with `length` almost neutral rows, so this is no identity."""
    adapter = PrefixAdapter(placement.shape, layer=placement.layer, length=placement.size("length"))
    for rows in (adapter.key, adapter.value):
        nn.init.normal_(rows, std=INIT_STD, generator=placement.generator)
    return adapter


def _configs(model: PreTrainedModel) -> Iterator[PretrainedConfig]:
    """Every distinct configuration object that modules of `model` read their attention implementation from."""
    seen: set[int] = set()
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig) and id(config) not in seen:
            seen.add(id(config))
            yield config


def _switch(model: PreTrainedModel, attention: nn.Module) -> None:
    """Make `model` use our attention function; does nothing when it already does.

    Raises:
        ModelError: The model runs with an implementation that no prefix can be added to.
    """
    current = str(model.config._attn_implementation or "eager")
    if current.startswith(_NAME):
        return
    if current not in SUPPORTED or (current == "eager" and _eager(attention) is None):
        raise ModelError(
            f"prefix_tuning: attention implementation {current!r} takes no prefix",
            hint=f"load the model with attention {' or '.join(SUPPORTED)}",
        )
    name = _NAME + current
    AttentionInterface.register(name, _FUNCTIONS[current])
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[current])
    for config in _configs(model):
        if (config._attn_implementation or "eager") == current:
            config._attn_implementation_internal = name


def _eager(attention: nn.Module) -> AttentionFunction | None:
    """The eager attention function of the model's own source file."""
    return getattr(sys.modules[type(attention).__module__], "eager_attention_forward", None)


def _sdpa_with_prefix(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: object,
) -> AttentionOutput:
    """SDPA over the prefix and the keys [N, K, S, D]; the same call as without for modules that have no prefix."""
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    prefix: PrefixAdapter | None = module.__dict__.get(_SLOT)
    if prefix is None:
        return attend(module, query, key, value, attention_mask, **options)
    mask = attention_mask
    if mask is None and _is_causal(module, query, options):
        mask = _causal_mask(query.shape[2], key.shape[2], device=query.device)
    mask = _widen(mask, prefix.key.shape[1])
    rows = prefix.extend(key, prefix.key), prefix.extend(value, prefix.value)
    adapted = attend(module, query, *rows, mask, **(options | {"is_causal": False}))
    return _respond(prefix, adapted, lambda: attend(module, query, key, value, attention_mask, **options))


def _eager_with_prefix(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: object,
) -> AttentionOutput:
    """The model's own eager attention over the prefix and the keys [N, K, S, D]."""
    eager = _eager(module)
    assert eager is not None
    prefix: PrefixAdapter | None = module.__dict__.get(_SLOT)
    if prefix is None:
        return eager(module, query, key, value, attention_mask, **options)
    mask = _widen(attention_mask, prefix.key.shape[1])
    rows = prefix.extend(key, prefix.key), prefix.extend(value, prefix.value)
    adapted = eager(module, query, *rows, mask, **options)
    return _respond(prefix, adapted, lambda: eager(module, query, key, value, attention_mask, **options))


def _respond(prefix: PrefixAdapter, adapted: AttentionOutput, bare: Callable[[], AttentionOutput]) -> AttentionOutput:
    """`adapted`; while the prefix's response is scaled, its output moved back towards that of `bare`."""
    if prefix.response == 1.0:
        return adapted
    return torch.lerp(bare()[0], adapted[0], prefix.response), adapted[1]


def _is_causal(module: nn.Module, query: torch.Tensor, options: dict[str, object]) -> bool:
    """Whether SDPA would have been causal without a mask (the rule of transformers' `sdpa_attention_forward`)."""
    flag = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if flag is None else flag) and query.shape[2] > 1


def _causal_mask(n_queries: int, n_keys: int, *, device: torch.device) -> torch.Tensor:
    """[1, 1, Q, S], True where a query may look; aligned to the first key, as SDPA's own flag is."""
    queries, keys = torch.arange(n_queries, device=device), torch.arange(n_keys, device=device)
    return (queries[:, None] >= keys[None, :])[None, None]


def _widen(mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
    """`mask` [N, 1, Q, S] with `length` always visible columns before it; additive masks get zeros."""
    if mask is None:
        return None
    return functional.pad(mask, (length, 0), value=True if mask.dtype == torch.bool else 0.0)


_FUNCTIONS: Final[dict[str, AttentionFunction]] = {"sdpa": _sdpa_with_prefix, "eager": _eager_with_prefix}
