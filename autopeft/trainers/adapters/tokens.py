"""Trained embeddings of some tokens, in the place of the base's, wherever the model uses that matrix.

The embedding's weight is never written or copied: its output is exchanged at those tokens, and the logits of those
tokens where the map to the vocabulary has the same weight.

Shapes: n trained tokens, E embedding width, V vocabulary.
"""

from typing import cast, final

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from autopeft.errors import ModelError
from autopeft.spaces.methods.inputs import check_embeds, embedding_width
from autopeft.trainers.adapters.adapter import AbstractAdapter, Handle, Placement


@final
class TokensAdapter(AbstractAdapter):
    """Rows [n, E] for the tokens `first` to `first` + n - 1; they start as the base's."""

    suppressible = False
    started: torch.Tensor

    def __init__(self, *, n: int, first: int, width: int) -> None:
        super().__init__()
        self.first = first
        self.rows = nn.Parameter(torch.zeros(n, width))
        self.register_buffer("started", torch.zeros((), dtype=torch.uint8))

    def attach(self, model: PreTrainedModel, layer: nn.Module) -> list[Handle]:
        embedding = cast("PreTrainedModel", model.base_model).get_input_embeddings()
        if not isinstance(embedding, nn.Embedding):
            raise ModelError(f"trainable_tokens: {type(model).__name__} embeds no tokens", hint="use a text model")
        self._start(embedding)
        handles: list[Handle] = []
        for module in model.modules():
            if getattr(module, "weight", None) is not embedding.weight:
                continue
            if isinstance(module, nn.Embedding):
                handles.append(module.register_forward_hook(self._embedded, with_kwargs=True))
            elif isinstance(module, nn.Linear):
                handles.append(module.register_forward_hook(self._scored))
        return handles

    @torch.no_grad()
    def _start(self, embedding: nn.Embedding) -> None:
        """Take over the base's rows, the first time."""
        if self.started or embedding.weight.is_meta:
            return
        self.rows.copy_(embedding.weight[self.first : self.first + len(self.rows)])
        self.started.fill_(1)

    def _embedded(
        self, module: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor], output: torch.Tensor
    ) -> torch.Tensor:
        """The embedding's output with the trained rows at their tokens; some embeddings scale what they look up."""
        places = (args[0] if args else kwargs["input"]) - self.first
        inside = (places >= 0) & (places < len(self.rows))
        rows = functional.embedding(places.clamp(0, len(self.rows) - 1), self.rows)
        scale = getattr(module, "embed_scale", None)
        if scale is not None:
            rows = rows * (scale.to(rows.dtype) if isinstance(scale, torch.Tensor) else scale)
        return torch.where(inside[..., None], rows.to(output.dtype), output)

    def _scored(self, module: nn.Linear, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] with those of the trained tokens by their rows.

        What the rows have moved is scored and added: a product of a few rows alone is rounded otherwise than the same
        rows of the whole product on some processors, and what has not moved must change nothing.
        """
        last = self.first + len(self.rows)
        moved = self.rows - module.weight[self.first : last].to(self.rows.dtype)
        own = output[..., self.first : last] + functional.linear(args[0], moved.to(args[0].dtype)).to(output.dtype)
        return torch.cat((output[..., : self.first], own, output[..., last:]), dim=-1)


def build_trainable_tokens(placement: Placement) -> TokensAdapter:
    """Rows of the sizes asked for; the base's once the adapter is attached.

    Raises:
        ConfigurationError: The model embeds no tokens, or this is not its first layer.
    """
    check_embeds(placement.method, placement.shape, layer=placement.layer)
    return TokensAdapter(
        n=placement.size("tokens"), first=placement.size("first"), width=embedding_width(placement.shape)
    )
