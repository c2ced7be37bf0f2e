"""Gated rows beside attention in the format of Hugging Face PEFT: its ADAPTION_PROMPT."""

from typing import Final

import torch

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.model_shape import ModelShape
from autopeft.trainers.adapters.adaption_prompt import AdaptionPromptAdapter
from autopeft.trainers.inject import AdapterSet
from autopeft.trainers.peft_export import Exported
from autopeft.trainers.saved import AdapterInfo

GATED: Final = "adaption_prompt"
_FAMILIES: Final = ("llama", "mistral")
"""Where peft computes the same; its GPT-2 leaves the output projection out, and it has no others."""
_ATTENTION: Final = "self_attn"


def check_gated(configuration: Configuration, *, shape: ModelShape) -> None:
    """Refuse gated rows that peft's ADAPTION_PROMPT has no place for.

    Raises:
        ConfigurationError: Another model, other layers than the last ones, or lengths that differ.
    """
    setting = configuration.method(GATED)
    if setting is None:
        return
    layers, lengths, problem = setting.layers, setting.column("length"), ""
    if shape.family not in _FAMILIES:
        problem = f"peft has it for {' and '.join(_FAMILIES)}, this is a {shape.family} model"
    elif layers != tuple(range(shape.n_layers - len(layers), shape.n_layers)):
        problem = f"peft puts it on the last layers, it is on {', '.join(map(str, layers))} of {shape.n_layers}"
    elif len(set(lengths)) > 1:
        problem = "length: differs by layer, the PEFT format holds one for all"
    if problem:
        raise ConfigurationError(
            f"{GATED}: {problem}", hint="export in AutoPEFT's own format and load it with autopeft.load"
        )


def export_gated(adapters: AdapterSet, info: AdapterInfo) -> Exported:
    """The rows and gates of `adapters`.

    Raises:
        ConfigurationError: As for `check_gated`.
    """
    (setting,) = info.configuration
    check_gated(info.configuration, shape=info.shape)
    tensors: dict[str, torch.Tensor] = {}
    for _, layer, adapter in adapters.adapters():
        assert isinstance(adapter, AdaptionPromptAdapter)
        place = f"base_model.model.{info.module_name(layer, _ATTENTION)}"
        tensors |= {
            f"{place}.adaption_prompt": adapter.prompt.detach()[None],
            f"{place}.adaption_gate": adapter.gate.detach(),
        }
    config = {
        "peft_type": "ADAPTION_PROMPT",
        "adapter_len": setting.column("length")[0],
        "adapter_layers": len(setting.layers),
        "target_modules": _ATTENTION,
    }
    return Exported(config=config, tensors=tensors)
