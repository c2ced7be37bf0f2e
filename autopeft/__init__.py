"""AutoPEFT: searches how to fine-tune, and returns the Pareto front of quality, parameters and memory."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

import autopeft.search

if TYPE_CHECKING:
    from autopeft.errors import AutoPeftError
    from autopeft.studies.exchange import export_studies, import_studies
    from autopeft.studies.loading import load
    from autopeft.studies.session import search
    from autopeft.studies.study import Study
    from autopeft.studies.train import train
    from autopeft.studies.transfer import transfer

__version__ = "0.1.0"

__all__ = [
    "AutoPeftError",
    "Study",
    "__version__",
    "export_studies",
    "import_studies",
    "load",
    "search",
    "train",
    "transfer",
]

_HOMES = {
    "AutoPeftError": "autopeft.errors",
    "Study": "autopeft.studies.study",
    "export_studies": "autopeft.studies.exchange",
    "import_studies": "autopeft.studies.exchange",
    "load": "autopeft.studies.loading",
    "train": "autopeft.studies.train",
    "transfer": "autopeft.studies.transfer",
}
"""Where each public name lives; loaded on first use, so that importing the package costs nothing."""


class _SearchPackage(ModuleType):
    """The sub-package `autopeft.search`, which is also the function `autopeft.search(study)`.

    Both names are public. Importing a sub-package binds it in its parent over anything of that name, so the package
    itself must be what is called.
    """

    def __call__(self, *args: object, **options: object) -> object:
        return import_module("autopeft.studies.session").search(*args, **options)


vars(autopeft)["search"].__class__ = _SearchPackage


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'autopeft' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
