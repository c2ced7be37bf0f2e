"""A configuration without weights: YAML that `autopeft train` takes, the task beside it, and a peft snippet."""

from collections.abc import Mapping
from pathlib import Path

import yaml

from autopeft.errors import ConfigurationError, InputError
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.model_shape import ModelShape
from autopeft.studies.spec import RunSpec

CONFIGURATION_FILE = "configuration.yaml"
TASK_FILE = "task.yaml"
SNIPPET_FILE = "peft_model.py"

_HEAD = '''\
"""The adapters of this configuration, untrained, by plain peft."""

{imports}

base = {auto}.from_pretrained({model})
'''


def write_configuration(folder: Path, configuration: Configuration, shape: ModelShape, spec: RunSpec) -> str:
    """Write the files; why there is no snippet where peft does not train this, else an empty text."""
    _write_yaml(folder / CONFIGURATION_FILE, configuration.to_json())
    _write_yaml(folder / TASK_FILE, spec.to_mapping())
    try:
        snippet = peft_snippet(configuration, shape, spec)
    except ConfigurationError as error:
        return error.message
    (folder / SNIPPET_FILE).write_text(snippet, encoding="utf-8")
    return ""


def peft_snippet(configuration: Configuration, shape: ModelShape, spec: RunSpec) -> str:
    """Python that builds the model with plain `transformers` and `peft`, ready to be trained.

    Raises:
        ConfigurationError: Peft does not train this.
    """
    from autopeft.trainers.kinds import AUTO_CLASSES
    from autopeft.trainers.peft_folder import check_folder, expected_info
    from autopeft.trainers.peft_format import TASK_TYPES
    from autopeft.trainers.peft_recipe import recipes

    parts = recipes(configuration, shape)
    if len(parts) != 1:
        check_folder(expected_info(spec.model, shape, configuration, kind=spec.task.kind))
    auto = AUTO_CLASSES[spec.task.kind].__name__
    names = sorted({part.class_name for part in parts} | {"get_peft_model"})
    imports = [f"from peft import {', '.join(names)}"]
    if any("kasa_config" in part.fields for part in parts):
        imports.append("from peft.tuners.lora import KasaConfig")
    imports.append(f"from transformers import {auto}")
    text = _HEAD.format(imports="\n".join(imports), auto=auto, model=_model_arguments(spec))
    common = {"task_type": TASK_TYPES.get(spec.task.kind)}
    for index, part in enumerate(parts):
        fields = {name: value for name, value in {**common, **part.fields}.items() if value is not None}
        text += f"{part.method} = {part.class_name}(\n" + "".join(_argument(*row) for row in fields.items()) + ")\n"
        if index == 0:
            mixed = f', adapter_name="{part.method}", mixed=True' if len(parts) > 1 else ""
            text += f"model = get_peft_model(base, {part.method}{mixed})\n"
        else:
            text += f'model.add_adapter("{part.method}", {part.method})\n'
    if len(parts) > 1:
        text += f"model.set_adapter({[part.method for part in parts]!r})\n"
    return text + "model.print_trainable_parameters()\n"


def _model_arguments(spec: RunSpec) -> str:
    arguments = [repr(spec.model.name)]
    if spec.model.revision:
        arguments.append(f"revision={spec.model.revision!r}")
    n_labels = _n_labels(spec)
    if n_labels is not None:
        arguments.append(f"num_labels={n_labels}, ignore_mismatched_sizes=True")
    return ", ".join(arguments)


def _n_labels(spec: RunSpec) -> int | None:
    """Outputs of the head; None for a language model, or where the data is gone."""
    from autopeft.trainers.task import load_task

    try:
        task, splits = load_task(spec.task, seed=spec.training.seed)
    except InputError:
        return None
    return task.n_labels(splits.classes)


def _argument(name: str, value: object) -> str:
    if name == "kasa_config" and isinstance(value, Mapping):
        value = _Call("KasaConfig", value)
    return f"    {name}={value!r},\n"


class _Call:
    """Prints as a call."""

    def __init__(self, name: str, arguments: Mapping[str, object]) -> None:
        self._name, self._arguments = name, arguments

    def __repr__(self) -> str:
        return f"{self._name}({', '.join(f'{key}={value!r}' for key, value in self._arguments.items())})"


def _write_yaml(file: Path, data: Mapping[str, object]) -> None:
    file.write_text(yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=100), encoding="utf-8")
