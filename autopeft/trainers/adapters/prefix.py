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
    """`length` keys and values that every query of the layer sees, whatever the mask."""

    def __init__(self, shape: ModelShape, *, layer: int, length: int) -> None:
        super().__init__(shape, layer=layer, method="prefix_tuning")
        self.key = nn.Parameter(torch.zeros(shape.n_kv_heads, length, shape.head_dim))
        self.value = nn.Parameter(torch.zeros(shape.n_kv_heads, length, shape.head_dim))

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
            mask = _widen(mask, self.key.shape[1])
            rows = self.extend(key, self.key), self.extend(value, self.value)
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
    adapter = PrefixAdapter(placement.shape, layer=placement.layer, length=placement.size("length"))
    for rows in (adapter.key, adapter.value):
        nn.init.normal_(rows, std=INIT_STD, generator=placement.generator)
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
