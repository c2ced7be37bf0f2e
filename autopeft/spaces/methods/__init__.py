"""The table of PEFT methods: one file each, one row each."""

from autopeft.spaces.methods.adaption_prompt import AdaptionPrompt
from autopeft.spaces.methods.binary_adapter import BinaryAdapter
from autopeft.spaces.methods.binary_lora import BinaryLora
from autopeft.spaces.methods.cartridge import Cartridge
from autopeft.spaces.methods.dept import Dept
from autopeft.spaces.methods.frod import Frod
from autopeft.spaces.methods.inttune import IntTune
from autopeft.spaces.methods.linear_parallel import LinearParallel
from autopeft.spaces.methods.linear_series import LinearSeries
from autopeft.spaces.methods.ln_tuning import LnTuning
from autopeft.spaces.methods.loldu import Loldu
from autopeft.spaces.methods.lora import Lora
from autopeft.spaces.methods.lora_group import LoraGroup
from autopeft.spaces.methods.method import AbstractMethod
from autopeft.spaces.methods.mola import Mola
from autopeft.spaces.methods.multitask_prompt_tuning import MultitaskPromptTuning
from autopeft.spaces.methods.nlora import Nlora
from autopeft.spaces.methods.p_tuning import PTuning
from autopeft.spaces.methods.parallel_adapter import ParallelAdapter
from autopeft.spaces.methods.peft_lora import PeftLora
from autopeft.spaces.methods.peft_types import PEFT_TYPES
from autopeft.spaces.methods.prefix_tuning import PrefixTuning
from autopeft.spaces.methods.prompt_tuning import PromptTuning
from autopeft.spaces.methods.s2_lora import S2Lora
from autopeft.spaces.methods.s2ft import S2ft
from autopeft.spaces.methods.serial_adapter import SerialAdapter
from autopeft.spaces.methods.slora import Slora
from autopeft.spaces.methods.sorsa import Sorsa
from autopeft.spaces.methods.ssf import Ssf
from autopeft.spaces.methods.svfit import Svfit
from autopeft.spaces.methods.trainable_tokens import TrainableTokens

METHODS: dict[str, AbstractMethod] = {
    "adaption_prompt": AdaptionPrompt(),
    "binary_adapter": BinaryAdapter(),
    "binary_lora": BinaryLora(),
    "cartridge": Cartridge(),
    "dept": Dept(),
    "frod": Frod(),
    "inttune": IntTune(),
    "linear_parallel": LinearParallel(),
    "linear_series": LinearSeries(),
    "ln_tuning": LnTuning(),
    "loldu": Loldu(),
    "lora": Lora(),
    "lora_group": LoraGroup(),
    "mola": Mola(),
    "multitask_prompt_tuning": MultitaskPromptTuning(),
    "nlora": Nlora(),
    "p_tuning": PTuning(),
    "parallel_adapter": ParallelAdapter(),
    "peft_lora": PeftLora(),
    "prefix_tuning": PrefixTuning(),
    "prompt_tuning": PromptTuning(),
    "s2_lora": S2Lora(),
    "s2ft": S2ft(),
    "serial_adapter": SerialAdapter(),
    "slora": Slora(),
    "sorsa": Sorsa(),
    "ssf": Ssf(),
    "svfit": Svfit(),
    "trainable_tokens": TrainableTokens(),
    **{method.name: method for method in PEFT_TYPES},
}
"""Every method by name."""

__all__ = ["METHODS"]
