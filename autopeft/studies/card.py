"""The card of an exported adapter: what it is, how good, how large, how found, how to load it."""

from collections.abc import Mapping

from autopeft.objectives.front import FrontPoint
from autopeft.spaces.model_shape import ModelShape
from autopeft.studies.describe import describe, human_bytes, human_seconds, short_path
from autopeft.studies.spec import StudySpec

_LOAD_OWN = """\
    import autopeft
    model = autopeft.load("{folder}")"""
_LOAD_PEFT = """\
    from peft import PeftModel
    from transformers import {auto}
    base = {auto}.from_pretrained({model!r}{labels})
    model = PeftModel.from_pretrained(base, "{folder}")"""


def render_card(facts: Mapping[str, object], spec: StudySpec, shape: ModelShape, point: FrontPoint) -> str:
    """Markdown with the front matter that model hubs read."""
    data = spec.task.data
    source = (
        f"{data.hub} ({data.name})"
        if data.hub
        else ", ".join(short_path(path) for path in (data.train, data.validation) if path)
    )
    sections = [
        _front_matter(facts, spec),
        f"# {spec.study}, trial {point.trial}",
        f"An adapter for `{spec.model.name}`, found by an AutoPEFT search.",
        f"**Configuration**: {describe(point.configuration, shape)}",
        _numbers(facts, spec, point),
        f"**Data**: {source}; {_columns(spec)}.",
        f"**Search**: `{spec.search.engine}`, seed {spec.search.seed}, {spec.search.trials} trials;"
        f" this trial was trained for {point.measurement.epoch} epochs with seed {facts['seed']}. The validation score"
        " chose this point among many and is therefore optimistic; the held-out rows were scored once, afterwards."
        " Both come from a single training run.",
        "## Load it",
        _loading(facts, spec),
        "**Versions**: " + ", ".join(f"{name} {number}" for name, number in _mapping(facts["versions"]).items()),
    ]
    return "\n\n".join(sections) + "\n"


def _columns(spec: StudySpec) -> str:
    columns = spec.task.text or (spec.task.image,)
    read = f"{'texts' if spec.task.text else 'images'} from {', '.join(f'`{column}`' for column in columns)}"
    return read + (f", labels from `{spec.task.label}`" if spec.task.label else "")


def _front_matter(facts: Mapping[str, object], spec: StudySpec) -> str:
    library = "peft" if facts["format"] == "peft" else "autopeft"
    return "\n".join(["---", f"library_name: {library}", f"base_model: {spec.model.name}", "tags: [autopeft]", "---"])


def _numbers(facts: Mapping[str, object], spec: StudySpec, point: FrontPoint) -> str:
    measured, held_out = point.measurement, _mapping(facts["held_out"])
    rows = ["| | validation | held out |", "| --- | --- | --- |"]
    for name in (spec.task.metric, *spec.task.extra_metrics, "loss"):
        if name in measured.metrics:
            rows.append(f"| {name} | {measured.metrics[name]:.4f} | {_score(held_out.get(name))} |")
    costs = [
        f"- trainable parameters: {measured.parameters:,}"
        + (f", and {measured.head_parameters:,} of the task head" if measured.head_parameters else ""),
        f"- peak training memory: {human_bytes(measured.peak_bytes)}",
        f"- training time: {human_seconds(measured.train_seconds)}",
    ]
    return "\n".join(rows) + "\n\n" + "\n".join(costs)


def _loading(facts: Mapping[str, object], spec: StudySpec) -> str:
    if facts["format"] != "peft":
        return _LOAD_OWN.format(folder="this-folder")
    from autopeft.trainers.kinds import AUTO_CLASSES

    n_labels = _mapping(facts["task"]).get("n_labels")
    auto = AUTO_CLASSES[spec.task.kind].__name__
    labels = f", num_labels={n_labels}, ignore_mismatched_sizes=True" if n_labels else ""
    return _LOAD_PEFT.format(auto=auto, model=spec.model.name, labels=labels, folder="this-folder")


def _score(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "-"


def _mapping(value: object) -> Mapping[str, object]:
    assert isinstance(value, Mapping)
    return value
