"""The training settings that a space may decide beside its methods."""

from autopeft.spaces.methods.method import Field, FieldKind

TRAINING_FIELDS: dict[str, Field] = {
    field.name: field
    for field in (
        Field(name="batch_size", kind=FieldKind.INTEGER, default=None, low=1, high=1e6, help="examples a step"),
        Field(name="learning_rate", kind=FieldKind.REAL, default=None, low=1e-12, high=10, help="peak, after warm-up"),
        Field(name="warmup_ratio", kind=FieldKind.REAL, default=None, low=0, high=1, help="share of the steps"),
        Field(name="weight_decay", kind=FieldKind.REAL, default=None, low=0, high=100, help="decoupled, as in AdamW"),
    )
}
"""By name; none has a default here: a setting that the space leaves out is the study's."""
