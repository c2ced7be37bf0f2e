"""The training settings that a space may decide beside its methods."""

from collections.abc import Container, Mapping
from types import MappingProxyType
from typing import Final

from autopeft.spaces.configuration import Scalar
from autopeft.spaces.methods.method import Field, FieldKind

OPTIMIZERS: Final = ("adamw", "lora_fa", "galore")
LAYER_SAMPLING: Final = ("none", "importance", "random")

TRAINING_FIELDS: dict[str, Field] = {
    field.name: field
    for field in (
        Field(
            name="accumulation",
            kind=FieldKind.INTEGER,
            default=None,
            low=1,
            high=1e6,
            help="parts a batch is run in, one after the other, before a step",
        ),
        Field(name="batch_size", kind=FieldKind.INTEGER, default=None, low=1, high=1e6, help="examples a step"),
        Field(
            name="checkpointing",
            kind=FieldKind.BOOL,
            default=None,
            help="layers keep only their inputs and compute the rest again for the backward pass",
        ),
        Field(
            name="layer_sampling",
            kind=FieldKind.CATEGORY,
            default=None,
            choices=LAYER_SAMPLING,
            help="which adapted layers each step trains: all, some by their importance (IST), or some at random",
        ),
        Field(
            name="layers_kept",
            kind=FieldKind.REAL,
            default=None,
            low=0.001,
            high=1,
            help="share of the adapted layers that one step trains",
        ),
        Field(name="learning_rate", kind=FieldKind.REAL, default=None, low=1e-12, high=10, help="peak, after warm-up"),
        Field(
            name="ba_consistency", kind=FieldKind.REAL, default=None, low=0, high=1e4, help="BA-LoRA: keep the outputs"
        ),
        Field(
            name="ba_diversity",
            kind=FieldKind.REAL,
            default=None,
            low=0,
            high=1e4,
            help="BA-LoRA: decorrelate features",
        ),
        Field(
            name="ba_spectrum",
            kind=FieldKind.REAL,
            default=None,
            low=0,
            high=1e4,
            help="BA-LoRA: strengthen the leading singular values of the outputs",
        ),
        Field(
            name="density", kind=FieldKind.REAL, default=None, low=0, high=1e4, help="DEFT: fewer active activations"
        ),
        Field(
            name="density_epsilon",
            kind=FieldKind.REAL,
            default=None,
            low=1e-12,
            high=1e4,
            help="DEFT: square of the activation that counts half",
        ),
        Field(
            name="ggpo_sigma", kind=FieldKind.REAL, default=None, low=0, high=1e3, help="GGPO: noise by weights' size"
        ),
        Field(
            name="ggpo_beta", kind=FieldKind.REAL, default=None, low=0, high=1e3, help="GGPO: noise by gradients' size"
        ),
        Field(
            name="optimizer",
            kind=FieldKind.CATEGORY,
            default=None,
            choices=OPTIMIZERS,
            help="adamw; lora_fa: AdamW with the first factors A frozen; galore: AdamW in projected gradients",
        ),
        Field(
            name="lora_plus_ratio",
            kind=FieldKind.REAL,
            default=None,
            low=1e-3,
            high=1e4,
            help="learning rate of the second factors B over that of all else (LoRA+)",
        ),
        Field(
            name="galore_rank", kind=FieldKind.INTEGER, default=None, low=1, high=65536, help="of projected gradients"
        ),
        Field(
            name="sampling_interval",
            kind=FieldKind.INTEGER,
            default=None,
            low=1,
            high=1e6,
            help="steps between two updates of the layers' importance",
        ),
        Field(
            name="suppression",
            kind=FieldKind.REAL,
            default=None,
            low=0,
            high=1,
            help="factor on the adapters' response in the layers whose importance is probed",
        ),
        Field(name="warmup_ratio", kind=FieldKind.REAL, default=None, low=0, high=1, help="share of the steps"),
        Field(name="weight_decay", kind=FieldKind.REAL, default=None, low=0, high=100, help="decoupled, as in AdamW"),
        Field(name="weight_decay_b", kind=FieldKind.REAL, default=None, low=0, high=100, help="of the factors B alone"),
    )
}
"""By name; none has a default here: a setting that the space leaves out is the study's."""

ACTIVE_WITH: Final[Mapping[str, tuple[str, tuple[Scalar, ...]]]] = MappingProxyType(
    {
        "galore_rank": ("optimizer", ("galore",)),
        "layers_kept": ("layer_sampling", ("importance", "random")),
        "sampling_interval": ("layer_sampling", ("importance",)),
        "suppression": ("layer_sampling", ("importance",)),
    }
)
"""A setting that means something only while another (which depends on none) has one of these values."""


def is_active(name: str, *, decided: Container[str], values: Mapping[str, object]) -> bool:
    """Whether the setting `name` means something where others have `values`.

    One that depends on a setting which is not `decided` here is active: the study's own value of that is not known.
    """
    if name not in ACTIVE_WITH:
        return True
    other, allowed = ACTIVE_WITH[name]
    return other not in decided or values.get(other) in allowed
