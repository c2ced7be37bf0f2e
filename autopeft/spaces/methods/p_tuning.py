"""Virtual tokens that a small trained network makes."""

from collections.abc import Mapping
from typing import final

from autopeft.spaces.configuration import FieldValue, MethodSetting
from autopeft.spaces.methods.inputs import check_input, embedding_width
from autopeft.spaces.methods.method import AbstractMethod, Field, FieldKind
from autopeft.spaces.methods.rules import positive, size_of
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.peft_config import count_p_tuning


@final
class PTuning(AbstractMethod):
    """[f(Q); E]: `length` trained rows Q go through an MLP or an LSTM f before they stand before the embeddings."""

    name = "p_tuning"
    source = "Liu et al. 2021 (arXiv 2103.10385), by Hugging Face PEFT"
    at_input = True
    shares_base = False
    suppressible = False
    fields = (
        Field(name="length", kind=FieldKind.SIZE, default=None, low=0, help="virtual tokens"),
        Field(
            name="encoder",
            kind=FieldKind.CATEGORY,
            default="mlp",
            choices=("mlp", "lstm"),
            help="what makes the tokens",
        ),
        Field(name="width", kind=FieldKind.INTEGER, default=128, low=1, high=65536, help="hidden width of the encoder"),
    )

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        return count_p_tuning(self.peft_config(shape, values), shape)

    def peft_config(self, shape: ModelShape, values: Mapping[str, FieldValue]) -> dict[str, object]:
        """The fields of peft's configuration that say how large the encoder is."""
        return {
            "num_virtual_tokens": size_of(self.name, "length", values),
            "num_transformer_submodules": 1,
            "token_dim": embedding_width(shape),
            "encoder_hidden_size": positive(self.name, "width", values),
            "encoder_reparameterization_type": str(values["encoder"]).upper(),
        }

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        size_of(self.name, "length", values)
        check_input(self.name, shape, layer=layer)

    def virtual_tokens(self, setting: MethodSetting) -> int:
        return size_of(self.name, "length", setting.at(0) or {})
