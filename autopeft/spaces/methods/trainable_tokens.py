"""Embeddings of chosen tokens, trained from where they are."""

from collections.abc import Mapping
from typing import final

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import FieldValue
from autopeft.spaces.methods.inputs import check_embeds, embedding_width
from autopeft.spaces.methods.method import AbstractMethod, Field, FieldKind
from autopeft.spaces.methods.rules import size_of
from autopeft.spaces.model_shape import ModelShape


@final
class TrainableTokens(AbstractMethod):
    """The embeddings of `tokens` tokens, numbers `first` and on, are trained; also where the output is tied to them."""

    name = "trainable_tokens"
    source = "Hugging Face PEFT, TRAINABLE_TOKENS"
    at_input = True
    shares_base = False
    suppressible = False
    coupled = True
    fields = (
        Field(name="tokens", kind=FieldKind.SIZE, default=None, low=0, help="tokens whose embedding is trained"),
        Field(
            name="first", kind=FieldKind.INTEGER, default=0, low=0, high=2**31 - 1, help="number of the first of them"
        ),
    )

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        return size_of(self.name, "tokens", values) * embedding_width(shape)

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        check_embeds(self.name, shape, layer=layer)
        tokens, first = size_of(self.name, "tokens", values), values["first"]
        assert isinstance(first, int)
        if first + tokens > shape.vocabulary_size:
            raise ConfigurationError(
                f"{self.name}.tokens: {tokens} from number {first} on end beyond the {shape.vocabulary_size} tokens of"
                " the vocabulary",
                hint=f"tokens count from 0; use up to {max(shape.vocabulary_size - first, 0)}, or a smaller first",
            )
