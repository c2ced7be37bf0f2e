"""Adapters as a folder that plain Hugging Face `peft` loads: low-rank, virtual tokens, or what peft implements."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save as save_tensors

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.bridged import AbstractBridged
from autopeft.spaces.peft_targets import input_embedding
from autopeft.trainers import peft_export, peft_gated, peft_prompts
from autopeft.trainers.adapters.adapter import LoraFactors
from autopeft.trainers.adapters.norms import NormAdapter
from autopeft.trainers.adapters.tokens import TokensAdapter
from autopeft.trainers.inject import AdapterSet
from autopeft.trainers.kinds import CAUSAL, CLASSIFICATION, SEQUENCES, TOKENS
from autopeft.trainers.model import LoadedModel, head_state
from autopeft.trainers.saved import AdapterInfo, describe, write_atomically

FRAMED: Final = ("inttune", "loldu", "nlora", "sorsa", "svfit")
"""Methods whose update is a LoRA in a frame that only the base weights tell."""
LORAS: Final = (*FRAMED, "binary_lora", "lora", "lora_group", "s2_lora", "slora")
"""Methods of our own that are plain LoRA at inference."""
NORMS: Final = "ln_tuning"
EMBEDDINGS: Final = "trainable_tokens"
CONFIG_FILE: Final = "adapter_config.json"
TENSORS_FILE: Final = "adapter_model.safetensors"
TASK_TYPES: Final[Mapping[str, str]] = {
    CLASSIFICATION: "SEQ_CLS",
    TOKENS: "TOKEN_CLS",
    CAUSAL: "CAUSAL_LM",
    SEQUENCES: "SEQ_2_SEQ_LM",
}
"""By kind of task; peft has no name for the others, which it loads as plain models."""

_KEY: Final = "base_model.model."
"""What peft puts before the name that a module has in the wrapped model."""


def save_peft(folder: Path, adapters: AdapterSet, *, loaded: LoadedModel) -> Path:
    """Write an adapter of one method that the format can hold, and the head of `loaded`, for `peft.PeftModel`.

    Ranks, alphas and targets that differ by layer become `rank_pattern`, `alpha_pattern` and full module names. Peft
    knows one dropout: where it differs by layer, 0 is written (it does nothing at inference).

    Args:
        folder: Made when absent.
        adapters: Attached or not.
        loaded: The model that they were trained on; its head goes into `modules_to_save`.

    Returns:
        `folder`.

    Raises:
        ConfigurationError: As for `check_exportable`.
    """
    return write_single(folder, adapters, info=describe(adapters, loaded=loaded, task={}), head=head_state(loaded))


def check_exportable(configuration: Configuration, *, transposed: bool = False) -> None:
    """Refuse what the PEFT format cannot hold: it is one type for the whole model.

    Args:
        configuration: What is to be written.
        transposed: The model keeps its weights as [d_in, d_out].

    Raises:
        ConfigurationError: Several methods, none, one that peft does not have, or one whose settings differ by layer
            in a way that the format has no place for.
    """
    methods = [setting.method for setting in configuration]
    if len(methods) == 1 and methods[0] in (NORMS, EMBEDDINGS, peft_gated.GATED, *peft_prompts.METHODS_AT_INPUT):
        return
    if len(methods) == 1 and isinstance(METHODS.get(methods[0]), AbstractBridged):
        peft_export.check_exportable(configuration.methods[0], transposed=transposed)
    elif len(methods) != 1 or methods[0] not in LORAS:
        raise ConfigurationError(
            f"the PEFT format holds one low-rank method, one bridged or one prompt, this configuration has"
            f" {', '.join(methods) or 'no adapters'}",
            hint="export in AutoPEFT's own format and load it with autopeft.load; `autopeft methods` marks what is"
            " bridged",
        )


def write_single(folder: Path, adapters: AdapterSet, *, info: AdapterInfo, head: Mapping[str, torch.Tensor]) -> Path:
    """The same with the facts and the head given.

    Raises:
        ConfigurationError: As for `check_exportable`.
    """
    check_exportable(info.configuration, transposed=info.transposed)
    method, key = info.configuration.methods[0].method, _KEY
    if method in LORAS:
        pairs = _pairs(adapters, info)
        tensors: dict[str, torch.Tensor] = {f"{_KEY}{name}.lora_A.weight": pair.a for name, pair in pairs.items()}
        tensors |= {f"{_KEY}{name}.lora_B.weight": pair.b for name, pair in pairs.items()}
        config = _config(pairs)
    elif method == NORMS:
        tensors, config = _norms(adapters, info)
    elif method == EMBEDDINGS:
        tensors, config = _embeddings(adapters, info)
    elif method in peft_prompts.METHODS_AT_INPUT:
        exported, key = peft_prompts.export_prompt(adapters, info), peft_prompts.KEY
        tensors, config = dict(exported.tensors), exported.config
    elif method == peft_gated.GATED:
        exported = peft_gated.export_gated(adapters, info)
        tensors, config = dict(exported.tensors), exported.config
    else:
        exported = peft_export.export_bridged(adapters, info)
        tensors, config = dict(exported.tensors), exported.config
    tensors |= {f"{key}{name}": value for name, value in head.items()}
    return write_tensors(folder, tensors, info=info, config=config)


def write_tensors(
    folder: Path, tensors: Mapping[str, torch.Tensor], *, info: AdapterInfo, config: Mapping[str, object]
) -> Path:
    """The two files of a peft adapter; `config` goes over the fields that every type has."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(folder / TENSORS_FILE, save_tensors(plain, metadata={"format": "pt"}))
    text = json.dumps({**_common(info), **config}, indent=2, sort_keys=True) + "\n"
    write_atomically(folder / CONFIG_FILE, text.encode())
    return folder


def _norms(adapters: AdapterSet, info: AdapterInfo) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Tensors and settings of trained norms."""
    tensors: dict[str, torch.Tensor] = {}
    names: list[str] = []
    for _, layer, adapter in adapters.adapters():
        assert isinstance(adapter, NormAdapter)
        for target in adapter.mergeable:
            names.append(info.module_name(layer, target))
            tensors |= {
                f"{_KEY}{names[-1]}.ln_tuning_layers.{key}": row for key, row in adapter.tensors(target).items()
            }
    return tensors, {"peft_type": "LN_TUNING", "target_modules": sorted(names)}


def _embeddings(adapters: AdapterSet, info: AdapterInfo) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Rows and numbers of trained tokens."""
    ((_, _, adapter),) = adapters.adapters()
    assert isinstance(adapter, TokensAdapter)
    place = info.in_model(input_embedding(info.shape).name)
    numbers = range(adapter.first, adapter.first + len(adapter.rows))
    config = {"peft_type": "TRAINABLE_TOKENS", "token_indices": [*numbers], "target_modules": [place]}
    return {f"{_KEY}{place}.trainable_tokens_delta": adapter.rows.detach()}, config


def _pairs(adapters: AdapterSet, info: AdapterInfo) -> dict[str, LoraFactors]:
    """The factors by the full name of their module in the model with its task head."""
    pairs: dict[str, LoraFactors] = {}
    for _, layer, adapter in adapters.adapters():
        for target in adapter.mergeable:
            factors = adapter.as_lora(target)
            assert factors is not None, "a method of LORAS"
            pairs[info.module_name(layer, target)] = factors
    return pairs


def _common(info: AdapterInfo) -> dict[str, object]:
    """Fields that every type of peft has."""
    common: dict[str, object] = {
        "task_type": TASK_TYPES.get(info.kind),
        "base_model_name_or_path": info.spec.name,
        "revision": info.spec.revision,
        "inference_mode": True,
        "modules_to_save": list(info.head_names) or None,
    }
    return common | ({"fan_in_fan_out": True} if info.transposed else {})


def _config(pairs: Mapping[str, LoraFactors]) -> dict[str, object]:
    """The fields of `peft.LoraConfig` that say something; peft fills in the rest."""
    ranks = {name: pair.a.shape[0] for name, pair in pairs.items()}
    alphas = {name: pair.alpha for name, pair in pairs.items()}
    dropouts = {pair.dropout for pair in pairs.values()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "target_modules": sorted(pairs),
        "lora_dropout": dropouts.pop() if len(dropouts) == 1 else 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }
