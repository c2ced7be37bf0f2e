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
    configuration: Configuration
    shape: ModelShape

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
        file: An AutoPEFT configuration (YAML or JSON; `front --json` and exported folders hold such).
        batch_size: Rows of a training batch.
        sequence_length: Tokens of its longest row.
        dtype: Of the frozen weights; None takes the checkpoint's.

    Raises:
        InputError: A file, model or setting that is not usable.
    """
    from autopeft.trainers.model import read_shape

    if dtype is not None and dtype not in DTYPES:
        raise SpecError(f"--dtype: got {dtype!r}; allowed: {', '.join(DTYPES)}")
    shape = read_shape(ModelSpec(name=resolve_path(model, folder=None), dtype=dtype))
    shape = shape if dtype is None else replace(shape, dtype=dtype)
    chosen = configuration(read_configuration_file(file), shape)
    memory = predict_memory(
        shape, chosen, batch_size=batch_size, length=sequence_length, n_labels=None if shape.causal else 2
    )
    return Estimate(
        parameters=count_parameters(chosen, shape).total,
        base_parameters=shape.base_parameters,
        memory=memory,
        configuration=chosen,
        shape=shape,
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
