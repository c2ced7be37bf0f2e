"""An adapter folder of ours as what plain `peft` loads: one adapter, a prefix, or several named adapters at once.

Several methods become several adapters, each in a folder named after its method, that `peft.PeftMixedModel` keeps
active together. What it can do was compared with what we compute (peft 0.21.2): LoRA, LoHa and LoKr add up, on one map
too; OFT, SHiRA and DoRA are exact on maps that no other adapter touches; it takes no other type. The head goes with
the first adapter.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import Configuration, MethodSetting
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.bridged import AbstractBridged
from autopeft.spaces.model_shape import ModelShape
from autopeft.trainers.inject import AdapterSet, build
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.model import head_state, is_transposed
from autopeft.trainers.peft_export import PLAIN_LORA
from autopeft.trainers.peft_format import FRAMED, LORAS, check_exportable, write_single, write_tensors
from autopeft.trainers.peft_gated import check_gated
from autopeft.trainers.peft_prefix import METHODS as PREFIXES
from autopeft.trainers.peft_prefix import check_prefix, export_prefix
from autopeft.trainers.peft_prompts import check_kind
from autopeft.trainers.saved import AdapterInfo, read_adapter, read_info, restore_adapter

ADDITIVE: Final = frozenset({"LORA", "LOHA", "LOKR"})
"""Types that add to their map's output whatever else is there."""
ALONE: Final = frozenset({"OFT", "SHIRA"})
"""Types that `PeftMixedModel` computes as we do where nothing else is on their maps."""
_OUR_OWN: Final = "export in AutoPEFT's own format and load it with autopeft.load"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftFolder:
    """What was written."""

    adapters: tuple[str, ...]
    """Names of the sub-folders, one an adapter, the one with the head first; empty where the folder is the adapter."""


def expected_info(spec: ModelSpec, shape: ModelShape, configuration: Configuration, *, kind: str) -> AdapterInfo:
    """What an adapter of `configuration` will be once it is trained, as far as a format asks for it."""
    return AdapterInfo(
        configuration=configuration,
        spec=spec,
        shape=shape,
        base_prefix="",
        transposed=is_transposed(spec),
        kind=kind,
        n_labels=None,
        head_names=(),
        task={},
    )


def check_folder(info: AdapterInfo) -> None:
    """Refuse what plain peft cannot load, or would compute otherwise.

    Raises:
        ConfigurationError: With what is in the way.
        ModelError: A prefix, and the base model's configuration cannot be read.
    """
    settings = info.configuration.methods
    if len(settings) == 1 and settings[0].method in PREFIXES:
        check_prefix(settings[0], info)
    elif len(settings) < 2:
        check_exportable(info.configuration, transposed=info.transposed)
        check_kind(info.configuration, kind=info.kind)
        check_gated(info.configuration, shape=info.shape)
    else:
        _check_parts(info)


def fits_folder(info: AdapterInfo) -> bool:
    """Whether `check_folder` lets it pass."""
    try:
        check_folder(info)
    except ConfigurationError:
        return False
    return True


def write_folder(source: Path, folder: Path) -> PeftFolder:
    """Write the adapter in `source`, which `saved.save_adapter` wrote, as plain peft loads it.

    Raises:
        ConfigurationError, ModelError: As `check_folder`; or `source` is no adapter folder or is damaged.
    """
    info = read_info(source)
    check_folder(info)
    info, adapters, head = _opened(source, info)
    settings = info.configuration.methods
    if len(settings) == 1 and settings[0].method in PREFIXES:
        exported = export_prefix(adapters, info)
        heads = {f"base_model.{name}": value for name, value in head.items()}
        write_tensors(folder, {**exported.tensors, **heads}, info=info, config=exported.config)
        return PeftFolder(adapters=())
    if len(settings) < 2:
        write_single(folder, adapters, info=info, head=head)
        return PeftFolder(adapters=())
    return _write_parts(folder, adapters, info=info, head=head)


def _opened(source: Path, info: AdapterInfo) -> tuple[AdapterInfo, AdapterSet, Mapping[str, torch.Tensor]]:
    """What a folder holds; on its base model where a method's update is known only with the base's weights."""
    if not any(setting.method in FRAMED for setting in info.configuration):
        return read_adapter(source)
    restored = restore_adapter(source)
    return restored.info, restored.adapters, head_state(restored.loaded)


def _write_parts(
    folder: Path, adapters: AdapterSet, *, info: AdapterInfo, head: Mapping[str, torch.Tensor]
) -> PeftFolder:
    names = tuple(setting.method for setting in info.configuration)
    for index, setting in enumerate(info.configuration):
        rows = {layer: adapter for method, layer, adapter in adapters.adapters() if method == setting.method}
        part = replace(info, configuration=_alone(setting), head_names=info.head_names if index == 0 else ())
        alone = AdapterSet(part.configuration, {setting.method: rows})
        write_single(folder / setting.method, alone, info=part, head=head if index == 0 else {})
    return PeftFolder(adapters=names)


def _check_parts(info: AdapterInfo) -> None:
    types = {setting.method: _type(setting) for setting in info.configuration}
    for setting in info.configuration:
        check_exportable(_alone(setting), transposed=info.transposed)
        if types[setting.method] not in ADDITIVE | ALONE:
            raise ConfigurationError(
                f"{setting.method}: peft keeps no adapter of type {types[setting.method]} active beside another one",
                hint=_OUR_OWN,
            )
    touched = Counter((layer, target) for _, layer, target in _maps(info))
    for method, layer, target in _maps(info):
        if touched[layer, target] > 1 and _needs_whole_map(info, method):
            raise ConfigurationError(
                f"{method}: another method acts on {target} of layer {layer} too, where peft would compute"
                f" {types[method]} otherwise",
                hint=_OUR_OWN,
            )


def _maps(info: AdapterInfo) -> list[tuple[str, int, str]]:
    """(method, layer, linear map) of all parts."""
    built = build(info.shape, info.configuration, seed=0)
    return [(method, layer, target) for method, layer, adapter in built.adapters() for target in adapter.mergeable]


def _needs_whole_map(info: AdapterInfo, method: str) -> bool:
    setting = info.configuration.method(method)
    assert setting is not None
    dora = method == "peft_lora" and "dora" in setting.column("variant")
    return dora or _type(setting) in ALONE


def _type(setting: MethodSetting) -> str:
    """Peft's type that a method becomes, if it is exportable by itself."""
    method = METHODS[setting.method]
    if setting.method in LORAS:
        return "LORA"
    if isinstance(method, AbstractBridged):
        return "LORA" if method.peft_type in PLAIN_LORA else method.peft_type
    return setting.method.upper()


def _alone(setting: MethodSetting) -> Configuration:
    return Configuration(methods=(setting,), training=())
