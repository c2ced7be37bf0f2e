"""Parameters and peak memory of one configuration, before any weight is loaded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from autopeft.errors import SpecError
from autopeft.objectives.memory import MemoryBreakdown, predict_memory
from autopeft.objectives.parameters import count_parameters
from autopeft.spaces.canonical import configuration
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.peft_config import count_peft_config
from autopeft.spaces.peft_targets import targeted
from autopeft.studies.describe import describe
from autopeft.studies.load import resolve_path
from autopeft.studies.yaml_file import read_yaml
from autopeft.trainers.job import ModelSpec

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a configuration costs."""

    parameters: int
    base_parameters: int
    memory: MemoryBreakdown
    described: str
    """The configuration in a line; for another library's, what its memory was predicted as."""

    def to_json(self) -> dict[str, object]:
        return {
            "parameters": self.parameters,
            "base_parameters": self.base_parameters,
            "memory": self.memory.to_json(),
        }


def estimate(model: str, file: Path, *, batch_size: int, sequence_length: int, dtype: str | None = None) -> Estimate:
    """What the configuration in `file` costs on `model`; reads the model's `config.json` only.

    Args:
        model: Hub id or folder.
        file: An AutoPEFT configuration (YAML or JSON; exported folders hold one), or a Hugging Face
            `adapter_config.json`: its parameters are exact for every type, its activations those of LoRA on the same
            modules (of prefixes where it adapts no module).
        batch_size: Rows of a training batch.
        sequence_length: Tokens of its longest row; a model that reads images makes of each as many as it does.
        dtype: Of the frozen weights; None takes the checkpoint's.

    Raises:
        InputError: A file, model or setting that is not usable.
    """
    from autopeft.trainers.model import read_shape

    if dtype is not None and dtype not in DTYPES:
        raise SpecError(f"--dtype: got {dtype!r}; allowed: {', '.join(DTYPES)}")
    shape = read_shape(ModelSpec(name=resolve_path(model, folder=None), dtype=dtype))
    shape = shape if dtype is None else replace(shape, dtype=dtype)
    written = read_configuration_file(file)
    foreign = "peft_type" in written
    chosen = _alike(written, shape) if foreign else configuration(written, shape)
    length = sequence_length if shape.image is None else shape.image.n_tokens
    memory = predict_memory(shape, chosen, batch_size=batch_size, length=length, n_labels=None if shape.causal else 2)
    counted = count_parameters(chosen, shape).total
    parameters = count_peft_config(written, shape) if foreign else counted
    line = describe(chosen, shape)
    return Estimate(
        parameters=parameters,
        base_parameters=shape.base_parameters,
        memory=_with_parameters(memory, parameters - counted),
        described=f"{written['peft_type']}, its activations as those of {line}" if foreign else line,
    )


def _alike(config: Mapping[str, object], shape: ModelShape) -> Configuration:
    """The configuration of ours whose activations stand for those of a peft adapter."""
    if not config.get("target_modules") or config["peft_type"] == "ADAPTION_PROMPT":
        length = config.get("num_virtual_tokens") or config.get("adapter_len") or 20
        return configuration({"prefix_tuning": {"length": length}}, shape)
    named = {module.bare for module in targeted(config, shape) if module.linear is not None}
    rank = config.get("r") if isinstance(config.get("r"), int) else 8
    layers = [
        (layer, [site.name for site in row if f"{shape.layer_path}.{layer}.{site.name}" in named])
        for layer, row in enumerate(shape.layers)
    ]
    adapted = [(layer, names) for layer, names in layers if names]
    if not adapted:
        return configuration({"prefix_tuning": {"length": 1}}, shape)
    widest = min(min(site.d_in, site.d_out) for row in shape.layers for site in row)
    fields = {"layers": [layer for layer, _ in adapted], "rank": min(int(str(rank)), widest)}
    return configuration({"lora": {**fields, "targets": [names for _, names in adapted]}}, shape)


def _with_parameters(memory: MemoryBreakdown, more: int) -> MemoryBreakdown:
    """`memory` with the masters, gradients and AdamW states of `more` trained numbers."""
    each = 4 * more
    return replace(
        memory,
        adapters=memory.adapters + each,
        gradients=memory.gradients + each,
        optimizer=memory.optimizer + 2 * each,
    )


def read_configuration_file(file: Path) -> Mapping[str, object]:
    """The mapping in a YAML or JSON file; of an exported folder's `export.json` its configuration."""
    if file.suffix == ".json" and file.is_file():
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SpecError(f"{file}: not valid JSON: {error}") from None
        if not isinstance(data, dict):
            raise SpecError(f"{file}: a configuration is a mapping of methods to their fields")
        inner = data.get("configuration")
        return inner if isinstance(inner, dict) else data
    return read_yaml(file).data
