"""`autopeft.load`: an exported folder as a model that is ready for inference."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from autopeft.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from autopeft.trainers.job import ModelSpec
    from autopeft.trainers.predict import Predictor

FACTS_FILE: Final = "export.json"


def load(folder: str | Path, *, model: str | None = None) -> "PreTrainedModel":
    """The base model with the adapter and head of an exported folder, in eval mode.

    Args:
        folder: What `autopeft export` or `autopeft train` wrote, in any format with weights.
        model: Where the base model is now, when it is not where it was; a merged folder has its own.

    Raises:
        ModelError: No exported folder, a damaged one, one without weights, or a base model that cannot be loaded or has
            another shape.
    """
    place = Path(folder)
    if (place / "autopeft.json").is_file():
        from autopeft.trainers.saved import load_adapter

        return load_adapter(place, model_path=model)[0]
    facts = read_facts(place)
    if facts["format"] == "config":
        raise ModelError(
            f"{place}: the format config has no weights", hint="train it: autopeft train, or export in another format"
        )
    if facts["format"] == "mlflow":
        return load(place / str(facts["inner"]), model=model)
    if facts["format"] == "merged":
        return _load_merged(place, facts)
    return _load_peft(place, facts, model=model)


def load_predictor(folder: Path, *, model: str | None = None) -> "Predictor":
    """The same as something that answers texts.

    Raises:
        ModelError: As for `load`.
    """
    from autopeft.trainers.model import load_tokenizer
    from autopeft.trainers.predict import Predictor

    facts = read_facts(folder)
    task = facts["task"]
    spec = _base(facts, model=str(folder) if facts["format"] == "merged" else model)
    return Predictor(
        load(folder, model=model),
        load_tokenizer(spec),
        kind=task["kind"],
        metric=task["metric"],
        columns=task["text"],
        labels=task["labels"],
        max_length=task["max_length"],
    )


def read_facts(folder: Path) -> dict[str, Any]:
    """What an exported folder says of itself.

    Raises:
        ModelError: It is no exported folder, or its `export.json` is damaged.
    """
    file = folder / FACTS_FILE
    if not file.is_file():
        foreign = (folder / "adapter_config.json").is_file()
        raise ModelError(
            f"{folder}: a PEFT folder that AutoPEFT did not export"
            if foreign
            else f"{folder}: no {FACTS_FILE} in it, so no exported adapter",
            hint="load it with peft.PeftModel.from_pretrained"
            if foreign
            else "give the folder that `autopeft export --out` wrote",
        )
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        if {"format", "model", "task"} <= set(facts):
            return facts
    except (ValueError, TypeError):
        pass
    raise ModelError(f"{file}: damaged", hint="export it again")


def _base(facts: Mapping[str, Any], *, model: str | None) -> "ModelSpec":
    from autopeft.trainers.job import ModelSpec

    return ModelSpec(
        name=model or facts["model"],
        revision=None if model else facts["revision"],
        dtype=facts.get("dtype"),
        trust_remote_code=bool(facts.get("trust_remote_code")),
    )


def _load_merged(folder: Path, facts: Mapping[str, Any]) -> "PreTrainedModel":
    from autopeft.trainers.model import load_model

    task = facts["task"]
    return load_model(_base(facts, model=str(folder)), kind=task["kind"], n_labels=task["n_labels"]).model


def _load_peft(folder: Path, facts: Mapping[str, Any], *, model: str | None) -> "PreTrainedModel":
    from peft import PeftMixedModel, PeftModel

    from autopeft.trainers.model import load_model, name_labels

    task = facts["task"]
    base = load_model(_base(facts, model=model), kind=task["kind"], n_labels=task["n_labels"]).model
    name_labels(base.config, task["kind"], task.get("labels"))
    names: list[str] = list(facts.get("adapters") or ())
    if not names:
        return PeftModel.from_pretrained(base, str(folder)).eval()  # type: ignore[return-value]  # wraps the model
    mixed = PeftMixedModel.from_pretrained(base, str(folder / names[0]), adapter_name=names[0])
    for name in names[1:]:
        mixed.load_adapter(str(folder / name), adapter_name=name)
    mixed.set_adapter(names)
    return mixed.eval()  # type: ignore[return-value]  # wraps the model
