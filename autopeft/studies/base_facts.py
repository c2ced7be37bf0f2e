"""What is known of a base model beside its weights, without asking any network."""

import re
from pathlib import Path

from autopeft.errors import SpecError
from autopeft.studies.yaml_file import parse_yaml


def read_license(name: str, revision: str | None) -> str | None:
    """The licence that the base model's own card names; None where no card lies on this machine, or it names none."""
    card = _card(name, revision)
    found = re.match(r"---\n(.*?)\n---", card, flags=re.DOTALL)
    if found is None:
        return None
    try:
        value = parse_yaml(found[1] + "\n", source="README.md").data.get("license")
    except SpecError:
        return None
    return value if isinstance(value, str) else None


def _card(name: str, revision: str | None) -> str:
    file = Path(name).expanduser() / "README.md"
    if not file.is_file():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(name, "README.md", revision=revision)
        except HFValidationError:
            return ""
        if not isinstance(cached, str):
            return ""
        file = Path(cached)
    return file.read_text(encoding="utf-8", errors="replace")
