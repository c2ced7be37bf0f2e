"""What an error says of the configuration that was trained when it came."""

import torch

from autopeft.errors import TrialError


def failure_of(error: BaseException) -> tuple[str, str] | None:
    """(kind, message) of an error that belongs to one configuration; None for a bug."""
    if isinstance(error, TrialError):
        return error.kind, str(error)
    text = str(error).partition("\n")[0]
    refused = isinstance(error, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text)
    if refused or isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return "oom", f"out of memory: {text}" if text else "out of memory"
    return None
