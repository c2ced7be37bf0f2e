"""The card of an exported folder: what it is, how good and how sure, how large, how found, how to load it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from autopeft.spaces.canonical import read_configuration
from autopeft.spaces.model_shape import ModelShape
from autopeft.studies.describe import describe, human_bytes, human_seconds, short_path
from autopeft.studies.loading_snippets import loading

Facts = Mapping[str, object]

_LIBRARIES = {"peft": "peft", "merged": "transformers", "mlflow": "mlflow"}
_TAGS = {
    "text-classification": "text-classification",
    "token-classification": "token-classification",
    "multiple-choice": "multiple-choice",
    "causal-lm": "text-generation",
    "image-classification": "image-classification",
}
_WHAT = {
    "peft": "An adapter for `{model}` in the format of Hugging Face PEFT",
    "autopeft": "An adapter for `{model}` in AutoPEFT's own format (safetensors and JSON)",
    "merged": "`{model}` with a trained adapter merged into its weights",
    "mlflow": "`{model}` with a trained adapter, as an MLflow model",
    "config": "A configuration of adapters for `{model}`, without weights",
}


def render_card(facts: Facts, shape: ModelShape) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        facts: What `export.json` holds.
        shape: Of the base model.
    """
    configuration = read_configuration(as_mapping(facts["configuration"]))
    what = _WHAT[str(facts["format"])].format(model=facts["model"])
    sections = [
        _front_matter(facts),
        f"# {_title(facts)}",
        f"{what}{_origin(facts)}.",
        f"**Configuration**: {describe(configuration, shape)}",
        _scores(facts),
        "\n".join(_costs(facts)),
        *_compression(facts),
        *_merge(facts),
        _data(facts),
        _history(facts),
        "## Load it" if facts["format"] != "config" else "## Use it",
        loading(facts),
        "**Versions**: " + ", ".join(f"{name} {number}" for name, number in as_mapping(facts["versions"]).items()),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def as_mapping(value: object) -> Mapping[str, object]:
    """A JSON object of the facts."""
    assert isinstance(value, Mapping)
    return cast("Mapping[str, object]", value)


def _title(facts: Facts) -> str:
    return f"{facts['name']}" + ("" if facts["trial"] is None else f", trial {facts['trial']}")


def _origin(facts: Facts) -> str:
    return ", found by an AutoPEFT search" if facts["search"] is not None else ", trained by AutoPEFT"


def _front_matter(facts: Facts) -> str:
    name, task = str(facts["model"]), as_mapping(facts["task"])
    lines = ["---", f"library_name: {_LIBRARIES.get(str(facts['format']), 'autopeft')}"]
    if not Path(name).expanduser().exists():
        # A hub refuses a card whose base model is a folder.
        lines.append(f"base_model: {json.dumps(name)}")
    if facts["license"]:
        lines.append(f"license: {json.dumps(facts['license'])}")
    if str(task["kind"]) in _TAGS:
        lines.append(f"pipeline_tag: {_TAGS[str(task['kind'])]}")
    hub = as_mapping(facts["data"]).get("hub")
    if hub:
        lines.append(f"datasets: [{json.dumps(hub)}]")
    return "\n".join([*lines, "tags: [autopeft]", "---"])


def _scores(facts: Facts) -> str:
    held_out = as_mapping(facts.get("held_out") or {})
    columns = [("validation", facts["validation"])]
    if facts["searched"] is not None:
        columns = [("validation, in the search", facts["searched"]), ("validation, trained again", facts["validation"])]
    rows = ["| | " + " | ".join(head for head, _ in columns) + (" | held out (95 %) |" if held_out else " |")]
    rows.append("| --- |" + " --- |" * (len(columns) + bool(held_out)))
    for name in as_mapping(facts["validation"]):
        cells = [_number(as_mapping(values).get(name)) for _, values in columns]
        if held_out:
            cells.append(_with_interval(name, facts))
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    notes = list(_notes(facts)) if held_out else []
    return "\n".join(rows) + ("\n\n" + " ".join(notes) if notes else "")


def _notes(facts: Facts) -> Iterator[str]:
    methods = {str(as_mapping(value)["method"]) for value in as_mapping(facts["intervals"]).values()}
    rows = {as_mapping(value)["rows"] for value in as_mapping(facts["intervals"]).values()}
    words = {
        "wilson": "of accuracy Wilson's",
        "bootstrap": "of the other metrics percentiles of 1,000 bootstrap samples of the rows",
    }
    if methods:
        how = " and ".join(words[method] for method in ("wilson", "bootstrap") if method in methods)
        n_rows = max(cast("set[int]", rows))
        yield f"Intervals are over the {n_rows:,} held-out rows, {how}; they say nothing of other seeds."
    if facts["search"] is not None:
        yield (
            "The validation score chose this point among many and is therefore optimistic; the held-out rows were"
            " scored once, afterwards."
        )
    yield "All scores come from a single training run."


def _costs(facts: Facts) -> Iterator[str]:
    predicted = as_mapping(facts["predicted"])
    head = f", and {facts['head_parameters']:,} of the task head" if facts["head_parameters"] else ""
    yield f"- trainable parameters: {facts['parameters']:,}{head}"
    known = predicted.get("memory")
    before = f" (predicted {human_bytes(known)})" if isinstance(known, (int, float)) else ""
    yield f"- peak training memory: {human_bytes(float(str(facts['peak_bytes'])))} measured{before}"
    yield f"- training time: {human_seconds(float(str(facts['train_seconds'])))}"


def _compression(facts: Facts) -> Iterator[str]:
    if not facts.get("compression"):
        return
    done, metric = as_mapping(facts["compression"]), str(as_mapping(facts["task"])["metric"])
    chosen = f" ({100 * float(str(done['density'])):g} % kept, alpha {done['alpha']:g})" if done["density"] else ""
    before, after = as_mapping(facts["held_out_before"]), as_mapping(facts["held_out"])
    yield (
        f"**Compressed** with {done['method']}{chosen}: {done['numbers']:,} trained numbers from"
        f" {human_bytes(float(str(done['bytes_before'])))} to {human_bytes(float(str(done['bytes_after'])))},"
        f" {done['bits_a_number']:.2f} bits each; the task head is not compressed. Held-out {metric}"
        f" {_number(before.get(metric))} before, {_number(after.get(metric))} after."
    )


def _merge(facts: Facts) -> Iterator[str]:
    if facts.get("difference") is not None:
        yield (
            "**Merged**: of all numbers that scoring the held-out rows looks at (logits, or token losses), the most"
            f" changed one differs by {facts['difference']:.1e} from the adapter kept apart."
        )


def _data(facts: Facts) -> str:
    data, task = as_mapping(facts["data"]), as_mapping(facts["task"])
    files = [short_path(str(data[split])) for split in ("train", "validation", "test") if data.get(split)]
    source = f"{data['hub']} ({data.get('name') or 'default'})" if data.get("hub") else ", ".join(files)
    columns = [f"`{column}`" for column in cast("Sequence[str]", task.get("text") or (task.get("image"),))]
    texts = f"{'texts' if task.get('text') else 'images'} from {', '.join(columns)}"
    label = f", labels from `{task['label']}`" if task.get("label") else ""
    held = "" if data.get("test") or data.get("hub") else "; held-out rows were split off the training rows"
    return f"**Data**: {source}; {texts}{label}{held}."


def _history(facts: Facts) -> str:
    training = as_mapping(facts["training"])
    run = f"trained for {facts['epochs']} epochs with seed {facts['seed']} (data split seed {training['seed']})"
    if facts["search"] is None:
        return f"**Training**: {run}."
    search = as_mapping(facts["search"])
    where = "" if facts["on_front"] else " It is not on the front: another trial is at least as good in everything."
    again = " The weights are of a second training with the same seed and budget." if facts["searched"] else ""
    return (
        f"**Search**: `{search['engine']}`, seed {search['seed']}, {search['trials']} trials; this one was {run}."
        f"{again}{where}"
    )


def _with_interval(name: str, facts: Facts) -> str:
    value = _number(as_mapping(facts["held_out"]).get(name))
    interval = as_mapping(facts["intervals"]).get(name)
    if interval is None:
        return value
    bounds = as_mapping(interval)
    return f"{value} ({_number(bounds['low'])} to {_number(bounds['high'])})"


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else "-"
