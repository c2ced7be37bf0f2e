"""Trained embeddings before the sequence, at the input only."""

from collections.abc import Mapping
from typing import final

from autopeft.spaces.configuration import FieldValue, MethodSetting
from autopeft.spaces.methods.inputs import INIT, check_input, embedding_width
from autopeft.spaces.methods.method import AbstractMethod, Field, FieldKind, RateRange
from autopeft.spaces.methods.rules import size_of
from autopeft.spaces.model_shape import ModelShape


@final
class PromptTuning(AbstractMethod):
    """`length` virtual tokens P before the embeddings E of every sequence: [P; E]."""

    name = "prompt_tuning"
    source = "Lester et al. 2021 (arXiv 2104.08691), by Hugging Face PEFT"
    learning_rates = RateRange(low=3e-3, high=3e-1, source="DePT (arXiv 2309.05173): 0.3 for its prompt")
    at_input = True
    shares_base = False
    suppressible = False
    fields = (
        Field(name="length", kind=FieldKind.SIZE, default=None, low=0, help="virtual tokens"),
        INIT,
    )

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        return size_of(self.name, "length", values) * embedding_width(shape)

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        size_of(self.name, "length", values)
        check_input(self.name, shape, layer=layer)

    def virtual_tokens(self, setting: MethodSetting) -> int:
        return size_of(self.name, "length", setting.at(0) or {})
