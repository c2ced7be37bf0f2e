"""The lines of a card that load what was exported, by format."""

from collections.abc import Mapping, Sequence
from typing import cast

_OWN = """\
    import autopeft
    model = autopeft.load("this-folder")"""
_PEFT = """\
    from peft import PeftModel
    from transformers import {auto}
    base = {auto}.from_pretrained({arguments})
{padding}    model = PeftModel.from_pretrained(base, "this-folder").eval()"""
_MIXED = """\
    from peft import PeftMixedModel
    from transformers import {auto}
    base = {auto}.from_pretrained({arguments})
{padding}    model = PeftMixedModel.from_pretrained(base, "this-folder/{first}", adapter_name="{first}")
{others}
    model.set_adapter({names})
    model.eval()"""
_MERGED = """\
    from transformers import {auto}, {reader}
    model = {auto}.from_pretrained("this-folder")
    {name} = {reader}.from_pretrained("this-folder")"""
_MLFLOW = """\
    import mlflow
    model = mlflow.pyfunc.load_model("this-folder")
    model.predict({example})"""
_CONFIG = """\
    autopeft train configuration.yaml --task task.yaml --out my-adapter"""


def loading(facts: Mapping[str, object]) -> str:
    """Indented code, and what else is to be known."""
    form = str(facts["format"])
    if form == "autopeft":
        return _OWN
    if form == "config":
        return _CONFIG + "\n\n" + _snippet_line(str(facts["no_snippet"]))
    if form == "mlflow":
        return _mlflow(facts)
    from autopeft.trainers.kinds import AUTO_CLASSES

    auto = AUTO_CLASSES[str(_task(facts)["kind"])].__name__
    if form == "merged":
        images = bool(_task(facts).get("image"))
        reader, name = ("AutoImageProcessor", "processor") if images else ("AutoTokenizer", "tokenizer")
        return _MERGED.format(auto=auto, reader=reader, name=name)
    names = list(cast("Sequence[str]", facts["adapters"]))
    padding = _padding(facts)
    if not names:
        return _PEFT.format(auto=auto, arguments=_arguments(facts), padding=padding)
    others = "\n".join(f'    model.load_adapter("this-folder/{name}", adapter_name="{name}")' for name in names[1:])
    mixed = _MIXED.format(
        auto=auto, arguments=_arguments(facts), padding=padding, first=names[0], others=others, names=names
    )
    return mixed + "\n\nSeveral adapters act together; `autopeft.load` does the same in one line."


def _arguments(facts: Mapping[str, object]) -> str:
    task = _task(facts)
    arguments = [repr(facts["model"])]
    if facts["revision"]:
        arguments.append(f"revision={facts['revision']!r}")
    if facts.get("dtype"):
        arguments.append(f"dtype={facts['dtype']!r}")
    if task.get("n_labels"):
        # A checkpoint may have a head of its own, with other classes.
        arguments.append(f"num_labels={task['n_labels']}, ignore_mismatched_sizes=True")
    labels = cast("Sequence[str]", task.get("labels") or ())
    if labels and len(labels) == task.get("n_labels"):
        arguments.append(f"id2label={dict(enumerate(labels))!r}")
    return ", ".join(arguments)


def _padding(facts: Mapping[str, object]) -> str:
    """A decoder with a classifier needs to know which tokens are padding."""
    token = _task(facts).get("pad_token_id")
    return "" if token is None else f"    base.config.pad_token_id = {token}\n"


def _mlflow(facts: Mapping[str, object]) -> str:
    columns = cast("Sequence[str]", facts["columns"])
    example = '["a text", "another"]' if len(columns) == 1 else f"pandas.DataFrame({{{_cells(columns)}}})"
    needs = "" if facts["inner"] == "model" else " AutoPEFT must be installed where it is served."
    return _MLFLOW.format(example=example) + f"\n\nThe answer has a row for each text.{needs}"


def _cells(columns: Sequence[str]) -> str:
    return ", ".join(f'"{column}": ["a text"]' for column in columns)


def _snippet_line(reason: str) -> str:
    if reason:
        return f"There is no snippet for plain peft: {reason}."
    return "`peft_model.py` builds the same adapters, untrained, with plain peft."


def _task(facts: Mapping[str, object]) -> Mapping[str, object]:
    task = facts["task"]
    assert isinstance(task, Mapping)
    return cast("Mapping[str, object]", task)
