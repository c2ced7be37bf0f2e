"""Prefixes as peft's PREFIX_TUNING and CARTRIDGE: exact on models with rotary positions, impossible on others.

Peft puts a prefix of P rows into the key/value cache, so the model takes every token to stand P positions later than it
does. Learned positions then differ, and nothing can mend that. Rotary positions enter scores only as differences: with
R the rotation by P positions, (R_{t+P} q) . (R_P k) = (R_t q) . k, so keys rotated once by P give the scores that our
prefix, which comes after position encoding, has given in training.

Shapes: K key/value heads, P prefix rows, D head width.
"""

import math
from collections.abc import Mapping
from typing import Final

import torch
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from autopeft.errors import ConfigurationError
from autopeft.spaces.configuration import MethodSetting
from autopeft.trainers.adapters.prefix import PrefixAdapter
from autopeft.trainers.checkpoint import read_config
from autopeft.trainers.inject import AdapterSet
from autopeft.trainers.peft_export import Exported
from autopeft.trainers.saved import AdapterInfo

METHODS: Final = ("cartridge", "prefix_tuning")
ROTARY: Final = ("gemma", "gpt_neox", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3", "starcoder2")
"""Families that rotate the first half of a head's width against the second; others were not compared."""
ROPES: Final = ("default", "linear", "llama3")
"""Kinds of rotary positions whose frequencies do not depend on the length of a text."""
TASK_TYPES: Final[Mapping[str, str]] = {
    "text-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "causal-lm": "CAUSAL_LM",
}
"""Kinds of task for which peft has a model that passes a prefix on."""
_OUR_OWN: Final = "export in AutoPEFT's own format and load it with autopeft.load"


def check_prefix(setting: MethodSetting, info: AdapterInfo) -> None:
    """Refuse a prefix that peft would compute otherwise.

    Raises:
        ConfigurationError: With what is in the way.
        ModelError: The base model's configuration cannot be read.
    """
    method, kind = setting.method, setting.method.upper()
    if len(setting.layers) < info.shape.n_layers or any(len(set(column)) > 1 for _, column in setting.fields):
        raise _refused(method, f"differs by layer, peft's {kind} has one length for all layers")
    if info.kind not in TASK_TYPES:
        raise _refused(method, f"peft passes no prefix to a model for {info.kind}")
    if info.shape.family not in ROTARY:
        raise _refused(method, f"in a {info.shape.family} model peft's {kind} would move the position of every token")
    config = read_config(info.spec).get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    if getattr(config, "sliding_window", None) is not None or set(kinds) != {"full_attention"}:
        raise _refused(method, "this model's attention has a window, out of which peft's prefix would slide")
    rope = _rope(config)
    if rope.get("rope_type", "default") not in ROPES:
        raise _refused(
            method, f"rotary positions of the kind {rope.get('rope_type')!r} change with the length of a text"
        )


def export_prefix(adapters: AdapterSet, info: AdapterInfo) -> Exported:
    """The settings and tensors of a prefix as peft writes them.

    Raises:
        ConfigurationError, ModelError: As for `check_prefix`.
    """
    (setting,) = info.configuration.methods
    check_prefix(setting, info)
    length = setting.column("length")[0]
    assert isinstance(length, int)
    cos, sin = _rotation(read_config(info.spec).get_text_config(), head_dim=info.shape.head_dim, positions=length)
    rows: list[torch.Tensor] = []
    for _, _, adapter in adapters.adapters():
        assert isinstance(adapter, PrefixAdapter)
        key, value = (row.detach() for row in adapter.rows())
        for tensor in (rotate(key, cos, sin), value):
            rows.append(tensor.transpose(0, 1).flatten(1))
    config: dict[str, object] = {
        "peft_type": setting.method.upper(),
        "task_type": TASK_TYPES[info.kind],
        "num_virtual_tokens": length,
        "num_layers": info.shape.n_layers,
        "num_attention_heads": info.shape.n_kv_heads,
        "num_transformer_submodules": 1,
        "token_dim": info.shape.kv_size,
    }
    config |= (
        {"num_frozen_tokens": setting.column("frozen")[0]}
        if setting.method == "cartridge"
        else {"prefix_projection": False}
    )
    return Exported(config=config, tensors={"prompt_embeddings": torch.cat(rows, dim=1)})


def rotate(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`keys` [K, P, D] with the pairs (i, i + n) of their first 2n numbers turned; `cos` and `sin` are [n]."""
    n = len(cos)
    first, second, rest = keys[..., :n], keys[..., n : 2 * n], keys[..., 2 * n :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def _rotation(config: PretrainedConfig, *, head_dim: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    rope = _rope(config)
    kind = str(rope.get("rope_type", "default"))
    if kind == "default":
        width = int(head_dim * float(str(rope.get("partial_rotary_factor", 1.0))))
        exponents = torch.arange(0, width, 2, dtype=torch.float32) / width
        frequencies = torch.exp(-math.log(float(str(rope["rope_theta"]))) * exponents)
    else:
        frequencies, _ = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    angles = frequencies.float() * positions
    return angles.cos(), angles.sin()


def _rope(config: PretrainedConfig) -> Mapping[str, object]:
    found = getattr(config, "rope_parameters", None)
    return found if isinstance(found, Mapping) else {}


def _refused(method: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"{method}: not in the PEFT format, {reason}", hint=_OUR_OWN)
