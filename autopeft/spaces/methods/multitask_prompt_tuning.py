"""Virtual tokens times a low-rank matrix of the task."""

from collections.abc import Mapping
from typing import final

from autopeft.spaces.configuration import FieldValue, MethodSetting
from autopeft.spaces.methods.inputs import INIT, check_input, embedding_width
from autopeft.spaces.methods.method import AbstractMethod, Field, FieldKind
from autopeft.spaces.methods.rules import positive, size_of
from autopeft.spaces.model_shape import ModelShape


@final
class MultitaskPromptTuning(AbstractMethod):
    """[P * (C R); E]: `length` virtual tokens P, each number times one of the low-rank matrix of the only task."""

    name = "multitask_prompt_tuning"
    source = "Wang et al. 2023 (arXiv 2303.02861), by Hugging Face PEFT"
    at_input = True
    shares_base = False
    suppressible = False
    fields = (
        Field(name="length", kind=FieldKind.SIZE, default=None, low=0, help="virtual tokens"),
        Field(
            name="ranks",
            kind=FieldKind.INTEGER,
            default=1,
            low=1,
            high=65536,
            help="columns of C, rows of R",
        ),
        INIT,
    )

    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        length, width = size_of(self.name, "length", values), embedding_width(shape)
        return length * width + positive(self.name, "ranks", values) * (length + width)

    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        size_of(self.name, "length", values)
        check_input(self.name, shape, layer=layer)

    def virtual_tokens(self, setting: MethodSetting) -> int:
        return size_of(self.name, "length", setting.at(0) or {})
