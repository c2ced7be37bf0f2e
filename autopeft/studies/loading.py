"""`autopeft.load`: an exported folder as a model that is ready for inference."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from autopeft.errors import ModelError

if TYPE_CHECKING:
    from torch import nn


def load(folder: str | Path, *, model: str | None = None) -> "nn.Module":
    """The base model with the adapter and head of an exported folder, in eval mode.

    Args:
        folder: What `autopeft export` wrote, in either format.
        model: Where the base model is now, when it is not where it was.

    Raises:
        ModelError: No exported folder, a damaged one, or a base model that cannot be loaded or has another shape.
    """
    place = Path(folder)
    if (place / "autopeft.json").is_file():
        from autopeft.trainers.saved import load_adapter

        return load_adapter(place, model_path=model)[0]
    if (place / "adapter_config.json").is_file():
        return _load_peft(place, model=model)
    raise ModelError(
        f"{place}: neither autopeft.json nor adapter_config.json in it, so no exported adapter",
        hint="give the folder that `autopeft export --out` wrote",
    )


def _load_peft(folder: Path, *, model: str | None) -> "nn.Module":
    from peft import PeftModel

    from autopeft.trainers.job import ModelSpec
    from autopeft.trainers.model import load_model

    facts_file = folder / "export.json"
    if not facts_file.is_file():
        raise ModelError(
            f"{folder}: a PEFT folder that AutoPEFT did not export", hint="load it with peft.PeftModel.from_pretrained"
        )
    facts = json.loads(facts_file.read_text(encoding="utf-8"))
    spec = ModelSpec(name=model or facts["model"], revision=None if model else facts["revision"])
    task = facts["task"]
    base = load_model(spec, kind=task["kind"], n_labels=task["n_labels"]).model
    return PeftModel.from_pretrained(base, str(folder)).eval()
