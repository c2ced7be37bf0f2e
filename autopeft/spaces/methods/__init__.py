"""The table of PEFT methods: one file each, one row each."""

from autopeft.spaces.methods.lora import Lora
from autopeft.spaces.methods.method import AbstractMethod
from autopeft.spaces.methods.parallel_adapter import ParallelAdapter
from autopeft.spaces.methods.prefix_tuning import PrefixTuning
from autopeft.spaces.methods.serial_adapter import SerialAdapter

METHODS: dict[str, AbstractMethod] = {
    "lora": Lora(),
    "parallel_adapter": ParallelAdapter(),
    "prefix_tuning": PrefixTuning(),
    "serial_adapter": SerialAdapter(),
}
"""Every method by name."""

__all__ = ["METHODS"]
