"""Spaces by name: one YAML file each beside this module."""

from collections.abc import Mapping
from importlib import resources
from typing import cast

from autopeft.errors import SpaceError
from autopeft.spaces.suggest import nearest


def preset_names() -> tuple[str, ...]:
    """Every preset, sorted."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


def load_preset(name: object) -> dict[str, object]:
    """The mapping of the preset called `name`.

    Raises:
        SpaceError: There is none; the message lists those there are.
    """
    import yaml  # only who uses a preset pays for it

    known = preset_names()
    if name not in known:
        hint = nearest(str(name), known) or "write a mapping of methods for a space of your own"
        raise SpaceError(f"space: unknown preset {name!r}; known are {', '.join(known)}", hint=hint)
    text = (resources.files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")
    return dict(cast(Mapping[str, object], yaml.safe_load(text)))
