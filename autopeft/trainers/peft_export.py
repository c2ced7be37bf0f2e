"""What a configuration of one bridged method is in the format of Hugging Face PEFT: its settings and its tensors.

LoRA's variants become plain LoRA where they are one at inference: pissa, olora and kasa take directions out of the
weight, which is the same as adding their negative, so they become LoRA of twice the rank, exact on the unchanged base.

Shapes: I and O the map's input and output width, R rank.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import nn

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import MethodSetting
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.bridged import AbstractBridged
from autopeft.trainers.adapters.peft_bridge import ADAPTER, PeftSite
from autopeft.trainers.adapters.peft_build import Borrowed
from autopeft.trainers.adapters.peft_factors import LOW_RANK
from autopeft.trainers.adapters.site_updates import SiteUpdates
from autopeft.trainers.inject import AdapterSet
from autopeft.trainers.saved import AdapterInfo

REFUSED: Final[Mapping[str, str]] = {"TINYLORA": "peft numbers its vectors over the whole model"}
"""Types that stay in our own format, and why."""
PATTERNS: Final[Mapping[str, Mapping[str, str]]] = {
    "C3A": {"block_size": "block_size_pattern"},
    "DELORA": {"r": "rank_pattern", "delora_lambda": "lambda_pattern"},
    "FOURIERFT": {"n_frequency": "n_frequency_pattern"},
    "LOHA": {"r": "rank_pattern", "alpha": "alpha_pattern"},
    "LOKR": {"r": "rank_pattern", "alpha": "alpha_pattern"},
    "OSF": {"effective_rank": "rank_pattern"},
    "WAVEFT": {"n_frequency": "n_frequency_pattern"},
}
"""Settings that may differ by module, and where the differences go (HiRA's pattern is ignored by peft 0.21.2)."""

PLAIN_LORA: Final = ("LORA", *LOW_RANK)
"""Types that become LoRA."""
_KEY: Final = "base_model.model."
_OUR_OWN: Final = "export in AutoPEFT's own format and load it with autopeft.load"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """The part of an adapter folder that depends on the method."""

    config: Mapping[str, object]
    """Fields of `adapter_config.json`, targets and type among them."""
    tensors: Mapping[str, torch.Tensor]
    """By the full keys of `adapter_model.safetensors`."""


def export_bridged(adapters: AdapterSet, info: AdapterInfo) -> Exported:
    """The settings and tensors of the one method of `adapters` as peft writes them.

    Raises:
        ConfigurationError: Peft's format has no place for this: settings that differ by layer, or a type or a model
            whose adapter peft cannot load.
    """
    (setting,) = info.configuration.methods
    method = METHODS[setting.method]
    assert isinstance(method, AbstractBridged)
    check_exportable(setting, transposed=info.transposed)
    sites = dict(_sites(adapters, info))
    if method.peft_type in PLAIN_LORA:
        return _lora(setting, sites)
    config = _common_config(method, setting, info)
    tensors: dict[str, torch.Tensor] = {}
    for name, site in sites.items():
        tensors |= _tensors(f"{_KEY}{name}", method.peft_type, site)
    return Exported(config=config | {"target_modules": sorted(sites)}, tensors=tensors)


def check_exportable(setting: MethodSetting, *, transposed: bool) -> None:
    """Refuse what peft's format cannot hold of one bridged method.

    Raises:
        ConfigurationError: With what is in the way.
    """
    method = METHODS[setting.method]
    assert isinstance(method, AbstractBridged)
    if method.peft_type in REFUSED:
        raise ConfigurationError(
            f"{setting.method}: not in the PEFT format, {REFUSED[method.peft_type]}", hint=_OUR_OWN
        )
    if transposed and method.peft_type not in PLAIN_LORA:
        raise ConfigurationError(
            f"{setting.method}: peft's {method.peft_type} acts on linear maps, this model's are Conv1D", hint=_OUR_OWN
        )
    for name, column in setting.fields:
        if not _may_differ(method, name) and any(value != column[0] for value in column):
            raise ConfigurationError(
                f"{setting.method}.{name}: differs by layer, the PEFT format holds one for all", hint=_OUR_OWN
            )


def _may_differ(method: AbstractBridged, field: str) -> bool:
    """Whether `field` may differ by layer: it has a pattern, or means nothing at inference, or is in the tensors."""
    if method.peft_type in PLAIN_LORA:
        return field != "variant"
    patterns = PATTERNS.get(method.peft_type, {})
    return field in ("targets", "dropout", "start") or method.columns.get(field) in patterns


def _sites(adapters: AdapterSet, info: AdapterInfo) -> Iterator[tuple[str, PeftSite]]:
    """Full name of each target in the model with its head, and what is there."""
    for _, layer, adapter in adapters.adapters():
        assert isinstance(adapter, SiteUpdates)
        for target in adapter.targets:
            site = adapter.update(target)
            assert isinstance(site, PeftSite)
            yield info.module_name(layer, target), site


def _common_config(method: AbstractBridged, setting: MethodSetting, info: AdapterInfo) -> dict[str, object]:
    """Peft's fields with the most frequent value of each, the others in its pattern."""
    shape, rows = info.shape, dict[str, dict[str, object]]()
    feedforward: list[str] = []
    for layer in setting.layers:
        values = setting.at(layer) or {}
        sites = tuple(shape.site(layer, name) for name in cast("tuple[str, ...]", values["targets"]))
        config = method.peft_config(values, sites=sites)
        inner = cast("list[str]", config.pop("feedforward_modules", []))
        feedforward += [info.module_name(layer, name) for name in inner]
        rows |= {info.module_name(layer, site.name): config for site in sites}
    first = next(iter(rows.values()))
    common: dict[str, object] = {"peft_type": method.peft_type, **first}
    for field, pattern in PATTERNS.get(method.peft_type, {}).items():
        top, differing = common_and_pattern({name: config[field] for name, config in rows.items()})
        common |= {field: top, pattern: differing}
    if method.peft_type == "IA3":
        common["feedforward_modules"] = sorted(feedforward)
    dropout = next((column for field, column in method.columns.items() if field == "dropout"), None)
    if dropout and len({config[dropout] for config in rows.values()}) > 1:
        common[dropout] = 0.0
    return common


def common_and_pattern(values: Mapping[str, object]) -> tuple[object, dict[str, object]]:
    """The most frequent value, and the names whose value is another one."""
    top = Counter(values.values()).most_common(1)[0][0]
    return top, {name: value for name, value in values.items() if value != top}


def _tensors(key: str, peft_type: str, site: PeftSite) -> dict[str, torch.Tensor]:
    """The tensors of one map under the names that peft gives them in a file."""
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in site.layer.state_dict().items():
        if name.startswith("vblora_vector_bank"):
            tensors["base_model.vblora_vector_bank"] = tensor
        elif not name.startswith(("_", "base_layer")):
            tensors[f"{key}.{_plain_name(name)}"] = tensor
    for name, module in site.layer.named_modules():
        if isinstance(module, Borrowed):
            tensors[f"{key}.{_plain_name(f'{name}.weight')}"] = module.weight.detach().clone()
    if peft_type == "SHIRA":
        tensors[f"{key}.shira_indices"] = cast("dict[str, torch.Tensor]", site.layer.shira_indices)[ADAPTER]
    return tensors


def _plain_name(name: str) -> str:
    """`name` without the adapter's."""
    return name.removesuffix(f".{ADAPTER}").replace(f".{ADAPTER}.", ".")


def _lora(setting: MethodSetting, sites: Mapping[str, PeftSite]) -> Exported:
    """Any type of `PLAIN_LORA`; all but dora as plain LoRA, without the targets whose rank fell to 0."""
    dora = dict(setting.fields).get("variant", ("",))[0] == "dora"
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, object] = {}
    alphas: dict[str, object] = {}
    for name, site in sites.items():
        a, b, scale = site.low_rank()
        if not len(a):
            continue
        ranks[name], alphas[name] = a.shape[0], scale * a.shape[0]
        tensors[f"{_KEY}{name}.lora_A.weight"] = a
        tensors[f"{_KEY}{name}.lora_B.weight"] = b
        if dora:
            magnitude = site.layer.get_submodule(f"lora_magnitude_vector.{ADAPTER}")
            tensors[f"{_KEY}{name}.lora_magnitude_vector"] = cast("nn.Parameter", magnitude.weight)
    (rank, rank_pattern), (alpha, alpha_pattern) = common_and_pattern(ranks), common_and_pattern(alphas)
    config = {"peft_type": "LORA", "r": rank, "rank_pattern": rank_pattern, "use_dora": dora, "use_rslora": False}
    config |= {"lora_alpha": alpha, "alpha_pattern": alpha_pattern, "target_modules": sorted(ranks)}
    return Exported(config=config, tensors=tensors)
