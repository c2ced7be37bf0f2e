"""Rows that queries read through the layer's own frozen key and value maps, behind a gate that starts closed.

LLaMA-Adapter (Zhang et al. 2023, arXiv 2303.16199); on Llama and Mistral it is what peft's `AdaptedAttention` computes.
Its softmax is over the rows alone, so at a closed gate the layer is the base's, exactly.

Shapes: N batch, H heads, K key/value heads, P rows, Q queries, D head width, I hidden width.
"""

import math
from typing import final

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from autopeft.spaces.model_shape import ModelShape, Role
from autopeft.trainers.adapters.adapter import Handle, Placement
from autopeft.trainers.adapters.attention import AbstractAttentionAdapter, AttentionFunction, AttentionOutput


@final
class AdaptionPromptAdapter(AbstractAttentionAdapter):
    """gate * softmax(q K^T) V added to what attention mixes, before its output projection."""

    def __init__(self, shape: ModelShape, *, layer: int, length: int) -> None:
        super().__init__(shape, layer=layer, method="adaption_prompt")
        self.prompt = nn.Parameter(torch.zeros(length, shape.hidden_size))
        self.gate = nn.Parameter(torch.zeros(1))
        self._maps: tuple[nn.Linear, ...] = ()
        """The frozen key and value maps; read and never called, so that no other method changes them for the rows."""

    def attach(self, model: PreTrainedModel, layer: nn.Module) -> list[Handle]:
        handles = super().attach(model, layer)
        names = {site.role: site.name for site in self.shape.layers[self.layer]}
        maps = tuple(layer.get_submodule(names[role]) for role in (Role.KEY, Role.VALUE))
        object.__setattr__(self, "_maps", maps)
        return handles

    def around(self, attend: AttentionFunction, *, fused: bool) -> AttentionFunction:
        def adapted(module: nn.Module, query: torch.Tensor, *rest: object, **options: object) -> AttentionOutput:
            output, weights = attend(module, query, *rest, **options)
            scale = options.get("scaling")
            return output + self.mixed(query, scale=scale if isinstance(scale, float) else None), weights

        return adapted

    def mixed(self, query: torch.Tensor, *, scale: float | None) -> torch.Tensor:
        """[N, Q, H, D], what `query` [N, H, Q, D] reads of the rows."""
        key, value = (self._rows(linear, query.dtype) for linear in self._maps)  # [H, P, D]
        scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        shares = functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        return ((self.response * self.gate).to(query.dtype) * shares @ value).transpose(1, 2)

    def _rows(self, linear: nn.Linear, dtype: torch.dtype) -> torch.Tensor:
        """[H, P, D], the prompt through one map, its heads repeated for the query heads of their group."""
        bias = None if linear.bias is None else linear.bias.to(dtype)
        rows = functional.linear(self.prompt.to(dtype), linear.weight.to(dtype), bias)
        by_head = rows.unflatten(-1, (self.shape.n_kv_heads, self.shape.head_dim)).transpose(0, 1)
        return by_head.repeat_interleave(self.shape.n_heads // self.shape.n_kv_heads, dim=0)


def build_adaption_prompt(placement: Placement) -> AdaptionPromptAdapter:
    """Rows N(0, 1), as in peft and the authors' code, behind a closed gate.

    Raises:
        ConfigurationError: The layer has no key and value projection of its own.
    """
    placement.only_site(Role.KEY)
    placement.only_site(Role.VALUE)
    adapter = AdaptionPromptAdapter(placement.shape, layer=placement.layer, length=placement.size("length"))
    nn.init.normal_(adapter.prompt, generator=placement.generator)
    return adapter
