"""Trained rows beside the attention of a layer, behind a gate."""

from collections.abc import Mapping
from typing import final

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.method import AbstractMethod, Field, FieldKind
from autopeft.spaces.methods.rules import check_open_attention, size_of
from autopeft.spaces.model_shape import ModelShape, Role


@final
class AdaptionPrompt(AbstractMethod):
    """attention + gate * softmax(q K^T) V; K and V are `length` rows through the layer's own maps, the gate is 0."""

    name = "adaption_prompt"
    source = "LLaMA-Adapter, Zhang et al. 2023 (arXiv 2303.16199)"
    fields = (Field(name="length", kind=FieldKind.SIZE, default=None, low=0, help="rows a layer"),)

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        return size_of(self.name, "length", values) * shape.hidden_size + 1

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        size_of(self.name, "length", values)
        check_open_attention(self.name, shape, layer=layer)
        for role in (Role.KEY, Role.VALUE):
            found = [site for site in shape.layers[layer] if site.role is role]
            if len(found) != 1 or found[0].d_in != shape.hidden_size:
                raise ConfigurationError(
                    f"adaption_prompt: layer {layer} of this {shape.family} model has {len(found)} {role} projections"
                    " of the layer's input; one is needed",
                    hint="leave adaption_prompt out of the space for this model; prefix_tuning is its nearest kin",
                )
