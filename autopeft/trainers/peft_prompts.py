"""Virtual tokens in the format of Hugging Face PEFT, which keeps the rows and not what made them."""

from typing import Final

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.methods.inputs import embedding_width
from autopeft.trainers.adapters.prompts import PromptAdapter
from autopeft.trainers.inject import AdapterSet
from autopeft.trainers.kinds import CAUSAL, CLASSIFICATION, SEQUENCES, TOKENS
from autopeft.trainers.peft_export import Exported
from autopeft.trainers.saved import AdapterInfo

METHODS_AT_INPUT: Final = ("multitask_prompt_tuning", "p_tuning", "prompt_tuning")
KEY: Final = "base_model."
"""What peft puts before the name that a module has in a model with virtual tokens, which it does not wrap further."""
_KINDS: Final = (CAUSAL, CLASSIFICATION, SEQUENCES, TOKENS)
"""Kinds of task whose model class in peft puts virtual tokens before a sequence."""


def check_kind(configuration: Configuration, *, kind: str) -> None:
    """Raise ConfigurationError when peft would leave the virtual tokens of `configuration` out on a task of `kind`."""
    found = [setting.method for setting in configuration if setting.method in METHODS_AT_INPUT]
    if found and kind not in _KINDS:
        raise ConfigurationError(
            f"{found[0]}: peft has no model with virtual tokens for {kind}",
            hint="export in AutoPEFT's own format and load it with autopeft.load",
        )


def export_prompt(adapters: AdapterSet, info: AdapterInfo) -> Exported:
    """The rows of the one prompt of `adapters`, and what peft must know of the model to place them.

    Raises:
        ConfigurationError: As for `check_kind`.
    """
    check_kind(info.configuration, kind=info.kind)
    ((_, _, adapter),) = adapters.adapters()
    assert isinstance(adapter, PromptAdapter)
    shape = info.shape
    config: dict[str, object] = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": adapter.length,
        "token_dim": embedding_width(shape),
        "num_transformer_submodules": 1,
        "num_attention_heads": shape.n_heads,
        "num_layers": shape.n_layers,
    }
    (setting,) = info.configuration
    values = setting.at(0) or {}
    if setting.method == "p_tuning":
        encoder = {
            "encoder_reparameterization_type": str(values["encoder"]).upper(),
            "encoder_hidden_size": values["width"],
        }
        config |= {"peft_type": "P_TUNING"} | encoder
    return Exported(config=config, tensors={"prompt_embeddings": adapter.rows().detach()})
