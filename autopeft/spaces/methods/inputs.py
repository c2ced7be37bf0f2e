"""What methods that act on the input embeddings share: the embeddings' width, where they are, how a prompt starts."""

from typing import Final

from autopeft.errors import ConfigurationError
from autopeft.spaces.methods.method import Field, FieldKind
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.peft_targets import input_embedding

READ_TWICE: Final = "embed_tokens_per_layer"
"""A second embedding, which layers read by the numbers of the tokens; virtual tokens have none."""
VOCABULARY: Final = "vocabulary"
INIT: Final = Field(
    name="init",
    kind=FieldKind.CATEGORY,
    default=VOCABULARY,
    choices=(VOCABULARY, "random"),
    help="virtual tokens: embeddings of tokens drawn from the vocabulary, or N(0, 1)",
)


def embedding_width(shape: ModelShape) -> int:
    """Width of one token's embedding, which some architectures project to the hidden width afterwards."""
    return input_embedding(shape).sizes[0][1][1] if shape.parts else shape.hidden_size


def check_embeds(method: str, shape: ModelShape, *, layer: int) -> None:
    """Raise ConfigurationError when a method that acts at the input is on another layer than the first, or there are
    no token embeddings.
    """
    if layer != 0:
        raise ConfigurationError(
            f"{method}: acts once, at the input, and counts as part of layer 0; it is on layer {layer}",
            hint="leave its layers out",
        )
    if not shape.vocabulary_size:
        raise ConfigurationError(
            f"{method}: this {shape.family} model embeds no tokens", hint=f"leave {method} out, or use a text model"
        )


def check_input(method: str, shape: ModelShape, *, layer: int) -> None:
    """Raise ConfigurationError when the model's input has no place for a method's virtual tokens on that layer."""
    check_embeds(method, shape, layer=layer)
    if any(part.name.endswith(READ_TWICE) for part in shape.parts):
        raise ConfigurationError(
            f"{method}: layers of this {shape.family} model read the tokens' numbers again, virtual tokens have none",
            hint=f"leave {method} out of the space for this model",
        )
