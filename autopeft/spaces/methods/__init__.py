"""The table of PEFT methods: one file each, one row each."""

from autopeft.spaces.methods.linear_parallel import LinearParallel
from autopeft.spaces.methods.linear_series import LinearSeries
from autopeft.spaces.methods.lora import Lora
from autopeft.spaces.methods.lora_group import LoraGroup
from autopeft.spaces.methods.method import AbstractMethod
from autopeft.spaces.methods.mola import Mola
from autopeft.spaces.methods.parallel_adapter import ParallelAdapter
from autopeft.spaces.methods.prefix_tuning import PrefixTuning
from autopeft.spaces.methods.serial_adapter import SerialAdapter

METHODS: dict[str, AbstractMethod] = {
    "linear_parallel": LinearParallel(),
    "linear_series": LinearSeries(),
    "lora": Lora(),
    "lora_group": LoraGroup(),
    "mola": Mola(),
    "parallel_adapter": ParallelAdapter(),
    "prefix_tuning": PrefixTuning(),
    "serial_adapter": SerialAdapter(),
}
"""Every method by name."""

__all__ = ["METHODS"]
