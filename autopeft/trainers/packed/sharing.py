"""Which configurations may train beside others on one base, and which train alone."""

from typing import Final

from autopeft.spaces.configuration import Configuration
from autopeft.spaces.methods import METHODS
from autopeft.trainers.job import TrainingSettings
from autopeft.trainers.kinds import SEQUENCES

TERMS: Final = ("ba_consistency", "ba_diversity", "ba_spectrum", "density", "ggpo_sigma", "ggpo_beta")
"""Settings that look into the whole model's pass, or run it again without its adapters."""


def alone_because(configuration: Configuration, settings: TrainingSettings, *, kind: str) -> str | None:
    """Why `configuration` cannot share the base with others; None where it can.

    Args:
        configuration: Whose methods are asked.
        settings: With the configuration's own entries applied.
        kind: Of the task.
    """
    methods = [row.method for row in configuration if not METHODS[row.method].shares_base]
    if methods:
        return f"{methods[0]} changes what the whole base computes"
    if kind == SEQUENCES:
        return "an encoder and a decoder have rows of two lengths"
    wanted = [name for name in TERMS if getattr(settings, name)]
    if settings.measure_density:
        wanted.append("measure_density")
    if settings.layer_sampling != "none":
        wanted.append("layer_sampling")
    if settings.checkpointing:
        wanted.append("checkpointing")
    return f"{wanted[0]} acts on the whole model's pass" if wanted else None
