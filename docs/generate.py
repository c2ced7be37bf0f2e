"""Writes the pages that are made from the code: `python docs/generate.py`."""

from pathlib import Path
from typing import Final

from autopeft.spaces.methods.peft_table import peft_table
from autopeft.trainers.task import TASKS

PAGE: Final = Path(__file__).parent / "methods" / "peft-types.md"
TEXT: Final = """# Types of Hugging Face PEFT

Made by `python docs/generate.py` from the table of methods and the installed `peft`. What a method of this table does,
how it starts and how it is exported is in [Methods of Hugging Face PEFT](peft.md). A type that acts on linear maps
works on every kind of task; where a type is no method here, the last column says why. `autopeft estimate` counts the
parameters of an `adapter_config.json` of every type but SHADOW and XLORA.

"""


def peft_types_page() -> str:
    """The page of PEFT types, as Markdown."""
    return TEXT + peft_table(tuple(TASKS))


if __name__ == "__main__":
    PAGE.write_text(peft_types_page(), encoding="utf-8")
