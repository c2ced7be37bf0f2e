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
from autopeft.trainers.compression import Packed, start_of, unpack
from autopeft.trainers.inject import AdapterSet, build
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.model import LoadedModel, head_state, load_head_state, load_model, name_labels
from autopeft.trainers.sites import Conv1D, layers_of

FORMAT_VERSION: Final = 1
PACKED_VERSION: Final = 2
"""Of folders whose trained tensors are compressed, so that an older AutoPEFT says that it cannot read them."""
INFO_FILE: Final = "autopeft.json"
TENSORS_FILE: Final = "adapter.safetensors"

_ADAPTER: Final = "adapter."
_HEAD: Final = "head."
_PACKED: Final = "packed."
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
        return self.in_model(f"{self.shape.path_of(layer)}.{target}")

    def in_model(self, path: str) -> str:
        """Dotted name in the model with its task head of what is called `path` in the base."""
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
    info = describe(adapters, loaded=loaded, task=task)
    return _write(folder, tensors, info.to_json() | {"format_version": FORMAT_VERSION})


def save_packed(
    folder: Path, adapters: AdapterSet, packed: Packed, *, info: AdapterInfo, head: Mapping[str, torch.Tensor]
) -> Path:
    """Write an adapter whose trained tensors are compressed, as `read_adapter` reads it.

    Args:
        folder: Where; made when absent.
        adapters: The set; what it holds beside the packed tensors is written as it is.
        packed: Of its trained tensors.
        info: What is to be known of it.
        head: The head's tensors, not compressed.

    Returns:
        `folder`.
    """
    rest = {name: value for name, value in adapters.state_dict().items() if name not in packed.names}
    tensors = {_PACKED + name: _plain(value) for name, value in packed.tensors.items()}
    tensors |= {_ADAPTER + name: _plain(value) for name, value in rest.items()}
    tensors |= {_HEAD + name: _plain(value) for name, value in head.items()}
    facts = {"format_version": PACKED_VERSION, "compression": dict(packed.facts)}
    return _write(folder, tensors, info.to_json() | facts)


def _write(folder: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, object]) -> Path:
    data = save_tensors(dict(tensors), metadata={"format": "pt"})
    facts = {**facts, "sha256": hashlib.sha256(data).hexdigest()}
    write_atomically(folder / TENSORS_FILE, data)
    write_atomically(folder / INFO_FILE, (json.dumps(facts, indent=2, sort_keys=True) + "\n").encode())
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
    return _info_in(_read_json(folder), folder)


def read_adapter(folder: Path) -> tuple[AdapterInfo, AdapterSet, dict[str, torch.Tensor]]:
    """What a folder holds: facts, adapters (on the CPU, attached to nothing) and the head's tensors.

    Raises:
        ModelError: Besides `read_info`'s reasons: the tensors file is absent, differs from its checksum, or does
            not fit the configuration.
    """
    facts = _read_json(folder)
    info, expected = _info_in(facts, folder), str(facts["sha256"])
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
        _fill(adapters, tensors, facts.get("compression"))
    except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise ModelError(f"{file}: does not fit {INFO_FILE}: {_first_line(error)}", hint=_REPEAT) from None
    return info, adapters, _under(_HEAD, tensors)


def _fill(adapters: AdapterSet, tensors: Mapping[str, torch.Tensor], compression: Mapping[str, Any] | None) -> None:
    """Put a file's tensors into a freshly built set.

    Raises:
        RuntimeError, KeyError, ValueError: They are not those of the set.
    """
    rows = _under(_ADAPTER, tensors)
    if compression is None:
        adapters.load_state_dict(rows, strict=True)
        return
    start = start_of(adapters, compression)
    packed = {str(row[0]) for row in compression["tensors"]}
    adapters.load_state_dict(rows | {name: adapters.get_parameter(name).detach() for name in packed}, strict=True)
    unpack(adapters, _under(_PACKED, tensors), compression, start=start)


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


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
    name_labels(loaded.model.config, info.kind, info.task.get("labels"))
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


def _read_json(folder: Path) -> dict[str, Any]:
    """What `autopeft.json` holds, of a version that can be read."""
    file = folder / INFO_FILE
    if not file.is_file():
        raise ModelError(
            f"{folder}: no {INFO_FILE}, so no adapter folder",
            hint="give the folder that `autopeft export` or `autopeft train` wrote",
        )
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["format_version"] in (FORMAT_VERSION, PACKED_VERSION) and data["sha256"]:
            return data
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(file, error) from None
    raise ModelError(
        f"{file}: format version {data['format_version']!r}, this AutoPEFT reads {FORMAT_VERSION} and {PACKED_VERSION}",
        hint="upgrade AutoPEFT, or export the adapter again with this version",
    )


def _info_in(facts: Mapping[str, Any], folder: Path) -> AdapterInfo:
    file = folder / INFO_FILE
    try:
        return AdapterInfo.from_json(facts)
    except ConfigurationError as error:
        raise ModelError(f"{file}: {error.message}", hint=error.hint) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> ModelError:
    return ModelError(f"{file}: damaged: {type(error).__name__}: {_first_line(error)}", hint=_REPEAT)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()
