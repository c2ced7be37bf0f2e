"""AutoPEFT: searches how to fine-tune, and returns the Pareto front of quality, parameters and memory."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autopeft.errors import AutoPeftError
    from autopeft.studies.loading import load
    from autopeft.studies.session import search
    from autopeft.studies.study import Study

__version__ = "0.1.0"

__all__ = ["AutoPeftError", "Study", "__version__", "load", "search"]

_HOMES = {
    "AutoPeftError": "autopeft.errors",
    "Study": "autopeft.studies.study",
    "load": "autopeft.studies.loading",
    "search": "autopeft.studies.session",
}
"""Where each public name lives; loaded on first use, so that importing the package costs nothing."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'autopeft' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
