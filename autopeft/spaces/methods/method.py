"""What a PEFT method is to the search: its fields, its validity rules and its exact parameter count."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Final

from autopeft.spaces.configuration import LEARNING_RATE, FieldValue, MethodSetting
from autopeft.spaces.model_shape import ModelShape


class FieldKind(StrEnum):
    SIZE = "size"
    """A whole number whose 0 means the module is absent; every method has exactly one."""
    INTEGER = "integer"
    REAL = "real"
    BOOL = "bool"
    CATEGORY = "category"
    TARGETS = "targets"
    """A non-empty set of linear sites of the layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One setting of a method; every field may vary by layer."""

    name: str
    kind: FieldKind
    default: FieldValue | None
    """Value when the user says nothing; None for fields that must be given (sizes)."""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    help: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateRange:
    """Peak learning rates worth searching."""

    low: float
    high: float
    source: str = ""
    """Where they come from; empty where nothing published was found."""


RATE: Final = Field(
    name=LEARNING_RATE,
    kind=FieldKind.REAL,
    default=None,
    low=1e-12,
    high=10,
    help="peak, of this method alone; left out: the common one",
)
"""The rate that every method may have of its own."""
ANY_RATES: Final = RateRange(low=1e-4, high=1e-2)


class AbstractMethod(ABC):
    """One PEFT method: a row of `autopeft.spaces.methods.METHODS`."""

    name: ClassVar[str]
    fields: ClassVar[tuple[Field, ...]]
    source: ClassVar[str]
    """Paper or code the definition follows."""
    learning_rates: ClassVar[RateRange] = ANY_RATES
    """What `learning_rate: auto` searches."""
    at_input: ClassVar[bool] = False
    """Whether it acts once, on what the first layer reads, and not in every layer: it counts as part of layer 0."""
    coupled: ClassVar[bool] = False
    """Whether `check` refuses combinations of settings, where each of them is right with others."""
    shares_base: ClassVar[bool] = True
    """Whether it can train beside other configurations on one base: its hooks act in layers, on the rows that they are
    given, and change neither the base's tensors nor how long its sequences are."""
    suppressible: ClassVar[bool] = True
    """Whether its response in one layer can be scaled down, as importance sampling of layers probes it."""

    @abstractmethod
    def parameters(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> int:
        """Trainable numbers this method adds at `layer`, exactly."""

    @abstractmethod
    def check(self, shape: ModelShape, *, layer: int, values: Mapping[str, FieldValue]) -> None:
        """Raise ConfigurationError when `values` cannot be built at `layer` (rank above the width, no such site)."""

    def shared_parameters(self, shape: ModelShape, setting: MethodSetting) -> int:
        """Trainable numbers that the layers of `setting` have in common, beside those of each layer; exactly."""
        del shape, setting
        return 0

    def virtual_tokens(self, setting: MethodSetting) -> int:
        """Positions that this method adds to every sequence."""
        del setting
        return 0

    @property
    def size_field(self) -> Field:
        return next(field for field in self.fields if field.kind is FieldKind.SIZE)

    @property
    def settings(self) -> tuple[Field, ...]:
        """What a block of a space may hold: the fields, and the learning rate."""
        return (*self.fields, RATE)

    def field(self, name: str) -> Field:
        """The setting called `name`; KeyError when there is none."""
        return {field.name: field for field in self.settings}[name]
