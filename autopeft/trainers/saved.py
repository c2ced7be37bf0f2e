"""A trained adapter as a folder: safetensors beside a JSON file that says what they are; nothing is ever unpickled."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from transformers import PreTrainedModel

from autopeft.errors import ConfigurationError, ModelError
from autopeft.spaces.canonical import read_configuration
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.model_shape import ModelShape
from autopeft.trainers.inject import AdapterSet, build
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.model import LoadedModel, head_state, load_head_state, load_model
from autopeft.trainers.sites import Conv1D, layers_of

FORMAT_VERSION: Final = 1
INFO_FILE: Final = "autopeft.json"
TENSORS_FILE: Final = "adapter.safetensors"

_ADAPTER: Final = "adapter."
_HEAD: Final = "head."
_REPEAT: Final = "export or train it again; a damaged adapter is never used"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInfo:
    """What `autopeft.json` says of an adapter folder."""

    configuration: Configuration
    spec: ModelSpec
    """The base model it was trained on."""
    shape: ModelShape
    base_prefix: str
    """Attribute under which a model with a task head holds its base, e.g. `bert`, `model`, `transformer`."""
    transposed: bool
    """Its linear maps keep their weights as [d_in, d_out] (GPT-2's `Conv1D`)."""
    kind: str
    n_labels: int | None
    head_names: tuple[str, ...]
    task: Mapping[str, object]
    """What the writer noted of the task: label names, metric, columns, ..."""

    def module_name(self, layer: int, target: str) -> str:
        """Dotted name of a site in the model with its task head."""
        path = f"{self.shape.path_of(layer)}.{target}"
        return f"{self.base_prefix}.{path}" if self.base_prefix else path

    def to_json(self) -> dict[str, object]:
        return {
            "configuration": self.configuration.to_json(),
            "configuration_id": self.configuration.id,
            "model": asdict(self.spec),
            "shape": self.shape.to_json(),
            "base_prefix": self.base_prefix,
            "transposed": self.transposed,
            "kind": self.kind,
            "n_labels": self.n_labels,
            "head_names": list(self.head_names),
            "task": dict(self.task),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "AdapterInfo":
        """Raises KeyError, TypeError or ValueError when `data` is not what `to_json` gave."""
        return cls(
            configuration=read_configuration(data["configuration"]),
            spec=ModelSpec(**data["model"]),
            shape=ModelShape.from_json(data["shape"]),
            base_prefix=data["base_prefix"],
            transposed=data["transposed"],
            kind=data["kind"],
            n_labels=data["n_labels"],
            head_names=tuple(data["head_names"]),
            task=data["task"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredAdapter:
    """A base model with a saved adapter and head on it, in eval mode."""

    loaded: LoadedModel
    adapters: AdapterSet
    info: AdapterInfo


def save_adapter(
    folder: Path,
    adapters: AdapterSet,
    *,
    loaded: LoadedModel,
    task: Mapping[str, object],
    head: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write the adapters and the head into `folder` (made when absent); each file appears whole or not at all.

    Args:
        folder: Where; files of an earlier save are replaced.
        adapters: Attached or not.
        loaded: The model that they were trained on.
        task: JSON values to keep: label names, metric, and the like.
        head: The head's tensors; None takes those that the model has now.

    Returns:
        `folder`.
    """
    head = head_state(loaded) if head is None else head
    tensors = {_ADAPTER + name: _plain(value) for name, value in adapters.state_dict().items()}
    tensors |= {_HEAD + name: _plain(value) for name, value in head.items()}
    data = save_tensors(tensors, metadata={"format": "pt"})
    info = describe(adapters, loaded=loaded, task=task).to_json()
    info |= {"format_version": FORMAT_VERSION, "sha256": hashlib.sha256(data).hexdigest()}
    write_atomically(folder / TENSORS_FILE, data)
    write_atomically(folder / INFO_FILE, (json.dumps(info, indent=2, sort_keys=True) + "\n").encode())
    return folder


def describe(adapters: AdapterSet, *, loaded: LoadedModel, task: Mapping[str, object]) -> AdapterInfo:
    """What is to be known of `adapters` to load them again."""
    model = loaded.model
    return AdapterInfo(
        configuration=adapters.configuration,
        spec=loaded.spec,
        shape=loaded.shape,
        base_prefix="" if model.base_model is model else model.base_model_prefix,
        transposed=any(isinstance(module, Conv1D) for module in layers_of(model.base_model, loaded.shape).modules()),
        kind=loaded.kind,
        n_labels=model.config.num_labels if loaded.head_names else None,
        head_names=loaded.head_names,
        task=task,
    )


def read_info(folder: Path) -> AdapterInfo:
    """What an adapter folder holds, without its tensors.

    Raises:
        ModelError: No adapter folder, a damaged JSON file, or one written by another version.
    """
    return _read_json(folder)[0]


def read_adapter(folder: Path) -> tuple[AdapterInfo, AdapterSet, dict[str, torch.Tensor]]:
    """What a folder holds: facts, adapters (on the CPU, attached to nothing) and the head's tensors.

    Raises:
        ModelError: Besides `read_info`'s reasons: the tensors file is absent, differs from its checksum, or does
            not fit the configuration.
    """
    info, expected = _read_json(folder)
    file = folder / TENSORS_FILE
    if not file.is_file():
        raise ModelError(f"{file}: missing", hint=_REPEAT)
    data = file.read_bytes()
    checksum = hashlib.sha256(data).hexdigest()
    if checksum != expected:
        raise ModelError(
            f"{file}: its checksum {checksum[:12]} is not {expected[:12]}, which {INFO_FILE} says", hint=_REPEAT
        )
    adapters = build(info.shape, info.configuration, seed=0)
    try:
        tensors = load_tensors(data)
        rows = {name.removeprefix(_ADAPTER): value for name, value in tensors.items() if name.startswith(_ADAPTER)}
        adapters.load_state_dict(rows, strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise ModelError(f"{file}: does not fit {INFO_FILE}: {_first_line(error)}", hint=_REPEAT) from None
    head = {name.removeprefix(_HEAD): value for name, value in tensors.items() if name.startswith(_HEAD)}
    return info, adapters, head


def restore_adapter(folder: Path, *, model_path: str | None = None) -> RestoredAdapter:
    """Load the base model of an adapter folder, attach the adapters and put the trained head on.

    Args:
        folder: What `save_adapter` wrote.
        model_path: Where the base model is now, when it is not where it was.

    Raises:
        ModelError: A damaged folder, a base model that cannot be loaded, or one of another shape.
    """
    info, adapters, head = read_adapter(folder)
    spec = info.spec if model_path is None else replace(info.spec, name=model_path, revision=None)
    loaded = load_model(spec, kind=info.kind, n_labels=info.n_labels)
    if loaded.shape.layers != info.shape.layers or loaded.shape.vocabulary_size != info.shape.vocabulary_size:
        raise ModelError(
            f"{folder}: trained on a {info.shape.family} model of {info.shape.n_layers} layers,"
            f" {spec.name!r} is a {loaded.shape.family} model of another shape",
            hint=f"load it on {info.spec.name}",
        )
    load_head_state(loaded, head)
    labels = info.task.get("labels")
    if isinstance(labels, list) and len(labels) == info.n_labels:
        loaded.model.config.id2label = {index: str(label) for index, label in enumerate(labels)}
        loaded.model.config.label2id = {str(label): index for index, label in enumerate(labels)}
    adapters.to(loaded.model.device)
    adapters.attach(loaded.model, loaded.shape)
    return RestoredAdapter(loaded=loaded, adapters=adapters, info=info)


def load_adapter(folder: Path, *, model_path: str | None = None) -> tuple[PreTrainedModel, AdapterInfo]:
    """The base model with a saved adapter and head on it, ready for inference, and what the folder says.

    Raises:
        ModelError: As for `restore_adapter`.
    """
    restored = restore_adapter(folder, model_path=model_path)
    return restored.loaded.model, restored.info


def write_atomically(file: Path, data: bytes) -> None:
    """Write `file` so that a reader sees the old or the new bytes, never a part; makes its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _read_json(folder: Path) -> tuple[AdapterInfo, str]:
    """The facts and the checksum of the tensors file."""
    file = folder / INFO_FILE
    if not file.is_file():
        raise ModelError(
            f"{folder}: no {INFO_FILE}, so no adapter folder",
            hint="give the folder that `autopeft export` or `autopeft train` wrote",
        )
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["format_version"] == FORMAT_VERSION:
            return AdapterInfo.from_json(data), str(data["sha256"])
    except ConfigurationError as error:
        raise ModelError(f"{file}: {error.message}", hint=error.hint) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{file}: damaged: {type(error).__name__}: {_first_line(error)}", hint=_REPEAT) from None
    raise ModelError(
        f"{file}: format version {data['format_version']!r}, this AutoPEFT reads {FORMAT_VERSION}",
        hint="upgrade AutoPEFT, or export the adapter again with this version",
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()
