"""One exception tree: a message that names place, value and what is allowed, and a hint that fixes it.

Every class also inherits the built-in it refines, so `except ValueError` works too, and every instance survives
`pickle` unchanged (trials fail in worker processes).
"""

import math
from typing import Self


class AutoPeftError(Exception):
    """Anything this package raises on purpose.

    Args:
        message: What is wrong: the place, the value got, the values allowed.
        hint: The edit or command that mends it; empty when there is none.
    """

    def __init__(self, message: str, /, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.hint)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def at(self, place: str) -> Self:
        """The same error with `place` put before the message."""
        return type(self)(f"{place}: {self.message}", hint=self.hint)


def _rebuild(kind: type[AutoPeftError], message: str, hint: str) -> AutoPeftError:
    return kind(message, hint=hint)


def _infeasible(message: str, hint: str, constraint: str, closest: float) -> "InfeasibleError":
    return InfeasibleError(message, hint=hint, constraint=constraint, closest=closest)


class InputError(AutoPeftError, ValueError):
    """Something the user wrote is wrong; the command line exits with status 2."""


class SpecError(InputError):
    """A study file, option or Python argument is malformed."""


class SpaceError(SpecError):
    """A search space, domain, constraint or expression is malformed."""


class InfeasibleError(SpaceError):
    """No configuration of a space meets one of its constraints.

    Args:
        message: See `AutoPeftError`.
        hint: See `AutoPeftError`.
        constraint: As it was written.
        closest: What the configuration that comes nearest has of the quantity it limits.
    """

    def __init__(self, message: str, /, *, hint: str = "", constraint: str = "", closest: float = math.nan) -> None:
        super().__init__(message, hint=hint)
        self.constraint, self.closest = constraint, closest

    def __reduce__(self) -> tuple[object, ...]:
        return _infeasible, (self.message, self.hint, self.constraint, self.closest)


class ConfigurationError(InputError):
    """A configuration is not a network of this space or this model."""


class ModelError(InputError):
    """A base model cannot be read, or does not have what was asked for."""


class DataError(InputError):
    """A data file, column, label or split is missing or unusable."""


class StorageError(InputError):
    """A study storage cannot be used: another program's database, a locked or a different study."""


class NotFoundError(InputError, LookupError):
    """A study, trial or pick that does not exist."""


class TrialError(AutoPeftError, RuntimeError):
    """One training run failed; the study records it and goes on. `kind` is a `FailureKind` value."""

    kind = "crashed"


class DivergedError(TrialError):
    """Loss or metric became NaN or infinite."""

    kind = "diverged"


class OutOfMemoryError(TrialError, MemoryError):
    """The device had no room for this configuration."""

    kind = "oom"


class DeadlineError(TrialError, TimeoutError):
    """A trial ran past its deadline."""

    kind = "timeout"


class ExecutorError(AutoPeftError, RuntimeError):
    """What runs the trials did not start; nothing is lost, the same command goes on."""


class TrackingError(AutoPeftError, RuntimeError):
    """The tracking server did not take something; never stops a study."""


class HubError(AutoPeftError, RuntimeError):
    """The Hugging Face hub did not answer or did not take something; what was written on disk stays."""


class UnreachableError(TrackingError, InputError):
    """A tracking server that does not answer, or asks who we are."""


class MissingExtraError(AutoPeftError, ImportError):
    """An optional dependency is absent; the hint is the pip line."""
