"""Which types of Hugging Face PEFT are methods here, on which kinds of task, and why the others are not."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.bridged import AbstractBridged

_TEXTLESS: Final = ("image-classification",)
"""Kinds of task whose models embed no tokens."""

OWN: Final[Mapping[str, tuple[str, str, tuple[str, ...]]]] = MappingProxyType(
    {
        "ADAPTION_PROMPT": (
            "adaption_prompt",
            "a length for each layer; on models with separate key and value maps, BART but not T5",
            (),
        ),
        "CARTRIDGE": (
            "cartridge",
            "from random rows, with a length for each layer; on BART but not T5, as PREFIX_TUNING",
            (),
        ),
        "FROD": ("frod", "the basis and the places of a map's name shared by all layers of equal settings", ()),
        "LN_TUNING": ("ln_tuning", "all norms of a layer, its first or its last, by layer", ()),
        "MULTITASK_PROMPT_TUNING": (
            "multitask_prompt_tuning",
            "a study's one task; carried by layer 0, at the input",
            _TEXTLESS,
        ),
        "P_TUNING": ("p_tuning", "peft's encoder; carried by layer 0, at the input", _TEXTLESS),
        "PROMPT_TUNING": ("prompt_tuning", "peft's embedding; carried by layer 0, at the input", _TEXTLESS),
        "PREFIX_TUNING": (
            "prefix_tuning",
            "flat, with a length for each layer; on BART but not T5, whose attention has no room for a prefix",
            (),
        ),
        "TRAINABLE_TOKENS": (
            "trainable_tokens",
            "a range of tokens by number; counts as part of layer 0; with the output map where it is tied",
            _TEXTLESS,
        ),
    }
)
"""Types that have a method of our own, what differs, and the kinds of task that they do not work on."""

OUTSIDE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "CPT": "its virtual tokens are a prompt of solved examples written for one data set, told apart by part"
        " (template, input, answer), and a search space holds no texts; `prompt_tuning` trains virtual tokens without",
        "SHADOW": "it trains a second model of the base's class, whose state runs beside the hidden states through"
        " PEFT's own forward of the whole model",
        "XLORA": "it trains a gate over LoRA adapters given as folders, and a trial starts with none; `mola` trains"
        " experts and their gate together",
    }
)
"""Types that are no methods, with the reason."""


def peft_table(kinds: Sequence[str]) -> str:
    """The table in Markdown: a row for each type of peft, a column for each kind of task.

    Args:
        kinds: Names of the kinds of task; what acts on linear maps works on all of them.
    """
    head = ["PEFT type", "method", *kinds, "note"]
    lines = [_row(head), _row(["---"] * len(head))]
    lines += [_row(_cells(kind, kinds)) for kind in known_types()]
    return "\n".join(lines) + "\n"


def known_types() -> tuple[str, ...]:
    """Every type that the table speaks of, sorted."""
    return tuple(sorted({*_bridged(), *OWN, *OUTSIDE}))


def _bridged() -> dict[str, AbstractBridged]:
    return {method.peft_type: method for method in METHODS.values() if isinstance(method, AbstractBridged)}


def _cells(kind: str, kinds: Sequence[str]) -> list[str]:
    if kind in OUTSIDE:
        return [kind, "", *("no" for _ in kinds), OUTSIDE[kind]]
    if kind in OWN:
        method, note, without = OWN[kind]
        return [kind, f"`{method}`", *("no" if name in without else "yes" for name in kinds), note]
    method = _bridged()[kind]
    return [kind, f"`{method.name}`", *("yes" for _ in kinds), (method.__doc__ or "").split("\n")[0]]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
