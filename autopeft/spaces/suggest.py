"""The nearest known name, for error messages."""

import difflib
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Final

OTHER_NAMES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "batch": ("batch_size", ""),
        "bitfit": ("beft", ""),
        "bone": ("miss", "mode: bat"),
        "corda": ("peft_lora", "init: corda_ipm"),
        "dora": ("peft_lora", "variant: dora"),
        "eva": ("peft_lora", "init: eva"),
        "ffa": ("peft_lora", "variant: ffa"),
        "houlsby": ("serial_adapter", ""),
        "kasa": ("peft_lora", "variant: kasa"),
        "llama_adapter": ("adaption_prompt", ""),
        "lora_ga": ("peft_lora", "init: lora_ga"),
        "lr": ("learning_rate", ""),
        "mica": ("peft_lora", "variant: mica"),
        "olora": ("peft_lora", "init: olora"),
        "pego": ("lora_group", ""),
        "pfeiffer": ("serial_adapter", ""),
        "pissa": ("peft_lora", "init: pissa"),
        "r": ("rank", ""),
        "rslora": ("peft_lora", "rslora: true"),
    }
)
"""What some things are called elsewhere: the name here, and the setting that makes it that."""


def closest(name: str, known: Collection[str]) -> str | None:
    """The known name that looks most like `name`, None when none does.

    The one name that `name` begins is meant; else swapped letters are the likeliest slip.
    """
    begun = {word for word in known if word.startswith(name)} if len(name) > 2 else set()
    if len(begun) == 1:
        return begun.pop()
    close = difflib.get_close_matches(name[:100], known, n=3, cutoff=0.5)
    return min(close, key=lambda word: sorted(word) != sorted(name), default=None)


def nearest(name: str, known: Collection[str]) -> str:
    """`did you mean 'rank'?`, or an empty string when nothing known is close."""
    here, setting = OTHER_NAMES.get(name.lower(), ("", ""))
    if here in known:
        return f"did you mean {here!r} with {setting}?" if setting else f"did you mean {here!r}?"
    close = closest(name, known)
    return f"did you mean {close!r}?" if close else ""
