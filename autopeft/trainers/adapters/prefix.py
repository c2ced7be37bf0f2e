"""Trainable key and value rows before each attention's own (Li and Liang 2021, arXiv 2101.00190), without the MLP.

Shapes: N batch, K key/value heads, P prefix rows, Q queries, S keys, D head width.
"""

from typing import Final, final

import torch
from torch import nn
from torch.nn import functional

from autopeft.spaces.model_shape import ModelShape
from autopeft.trainers.adapters.adapter import Placement
from autopeft.trainers.adapters.attention import AbstractAttentionAdapter, AttentionFunction, AttentionOutput

INIT_STD: Final = 0.02


@final
class PrefixAdapter(AbstractAttentionAdapter):
    """`length` keys and values that every query of the layer sees, whatever the mask; the first `frozen` stay."""

    def __init__(self, shape: ModelShape, *, layer: int, method: str, length: int, frozen: int = 0) -> None:
        super().__init__(shape, layer=layer, method=method)
        self.length = length
        self.key = nn.Parameter(torch.zeros(shape.n_kv_heads, length - frozen, shape.head_dim))
        self.value = nn.Parameter(torch.zeros(shape.n_kv_heads, length - frozen, shape.head_dim))
        for name in ("first_key", "first_value") if frozen else ():
            self.register_buffer(name, torch.zeros(shape.n_kv_heads, frozen, shape.head_dim))

    def rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [K, P, D]."""
        kept = dict(self.named_buffers())
        if not kept:
            return self.key, self.value
        return torch.cat((kept["first_key"], self.key), dim=1), torch.cat((kept["first_value"], self.value), dim=1)

    def around(self, attend: AttentionFunction, *, fused: bool) -> AttentionFunction:
        def adapted(
            module: nn.Module,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            attention_mask: torch.Tensor | None,
            **options: object,
        ) -> AttentionOutput:
            mask = attention_mask
            if fused and mask is None and _is_causal(module, query, options):
                mask = _causal_mask(query.shape[2], key.shape[2], device=query.device)
            mask = _widen(mask, self.length)
            own_key, own_value = self.rows()
            rows = self.extend(key, own_key), self.extend(value, own_value)
            causal = {"is_causal": False} if fused else {}
            output, weights = attend(module, query, *rows, mask, **(options | causal))
            if self.response == 1.0:
                return output, weights
            return torch.lerp(
                attend(module, query, key, value, attention_mask, **options)[0], output, self.response
            ), weights

        return adapted

    def extend(self, rows: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
        """`prefix` [K, P, D], the same for every sequence, before `rows` [N, K, S, D]; [N, K, P + S, D]."""
        return torch.cat((prefix.to(rows.dtype).expand(rows.shape[0], -1, -1, -1), rows), dim=2)


def build_prefix(placement: Placement) -> PrefixAdapter:
    """Keys and values N(0, 0.02): every query starts with `length` almost neutral rows, so this is no identity."""
    length = placement.size("length")
    adapter = PrefixAdapter(placement.shape, layer=placement.layer, method=placement.method, length=length)
    for rows in (adapter.key, adapter.value):
        nn.init.normal_(rows, std=INIT_STD, generator=placement.generator)
    return adapter


def build_cartridge(placement: Placement) -> PrefixAdapter:
    """Keys and values N(0, 1), as PEFT draws them."""
    adapter = PrefixAdapter(
        placement.shape,
        layer=placement.layer,
        method=placement.method,
        length=placement.size("length"),
        frozen=placement.size("frozen"),
    )
    for rows in (*adapter.parameters(), *adapter.buffers()):
        nn.init.normal_(rows, generator=placement.generator)
    return adapter


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
