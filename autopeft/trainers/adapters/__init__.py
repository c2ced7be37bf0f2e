"""Adapters by method name; a row here and one in `autopeft.spaces.methods.METHODS` make a method."""

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, cast

from autopeft.spaces.methods.peft_types import PEFT_TYPES

if TYPE_CHECKING:
    from autopeft.trainers.adapters.adapter import Builder

_BRIDGE: Final = ("peft_bridge", "build_bridged")

BUILDERS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "trainable_tokens": ("tokens", "build_trainable_tokens"),
        "dept": ("prompts", "build_dept"),
        "prompt_tuning": ("prompts", "build_prompt_tuning"),
        "p_tuning": ("prompts", "build_p_tuning"),
        "multitask_prompt_tuning": ("prompts", "build_multitask_prompt_tuning"),
        **{method.name: _BRIDGE for method in PEFT_TYPES},
        "peft_lora": _BRIDGE,
        "lora": ("lora", "build_lora"),
        "lora_group": ("lora_group", "build_lora_group"),
        "mola": ("mola", "build_mola"),
        "binary_lora": ("binary", "build_binary_lora"),
        "slora": ("slora", "build_slora"),
        "s2_lora": ("s2_lora", "build_s2_lora"),
        "frod": ("frod", "build_frod"),
        "svfit": ("svfit", "build_svfit"),
        "loldu": ("loldu", "build_loldu"),
        "inttune": ("nlora", "build_inttune"),
        "nlora": ("nlora", "build_nlora"),
        "sorsa": ("sorsa", "build_sorsa"),
        "s2ft": ("s2ft", "build_s2ft"),
        "ssf": ("ssf", "build_ssf"),
        "ln_tuning": ("norms", "build_ln_tuning"),
        "linear_series": ("linear_bottleneck", "build_linear_series"),
        "linear_parallel": ("linear_bottleneck", "build_linear_parallel"),
        "serial_adapter": ("serial", "build_serial"),
        "parallel_adapter": ("parallel", "build_parallel"),
        "binary_adapter": ("binary", "build_binary_adapter"),
        "prefix_tuning": ("prefix", "build_prefix"),
        "cartridge": ("prefix", "build_cartridge"),
        "adaption_prompt": ("adaption_prompt", "build_adaption_prompt"),
    }
)
"""Method name to (module, function), in the order in which methods act where several meet at one module.

What acts at the input comes first, so that all others see the lengthened sequence and its mask; what changes the
embeddings of the tokens comes before what adds virtual ones.
At a map, what peft does comes first: its layers add what they make of the frozen map alone.
LoRA, its kin and routed experts are part of the map they update, so scales (`ssf`), adapters in series with the map and
the serial adapter see their result. What changes a map's input changes it for all that sits on that map. The serial
adapter comes before the parallel one, so it sees the feed-forward block's own output: z + SA(z) + PA(x).
"""


def builder(method: str) -> "Builder":
    """The function that builds `method` at one layer; KeyError for an unknown method. Loads torch on first use."""
    module, function = BUILDERS[method]
    return cast("Builder", getattr(import_module(f"{__name__}.{module}"), function))
