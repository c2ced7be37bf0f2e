"""The nearest known name: what is misspelt, begun, or called something else elsewhere."""

import pytest

from autopeft.spaces.methods import METHODS
from autopeft.spaces.suggest import OTHER_NAMES, nearest
from autopeft.spaces.training import TRAINING_FIELDS


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lroa", "did you mean 'lora'?"),
        ("serial", "did you mean 'serial_adapter'?"),
        ("DoRA", "did you mean 'peft_lora' with variant: dora?"),
        ("bitfit", "did you mean 'beft'?"),
        ("zzzzzz", ""),
    ],
)
def test_the_nearest_name_is_offered(name: str, hint: str) -> None:
    assert nearest(name, METHODS) == hint


def test_other_names_are_of_what_there_is() -> None:
    fields = {field.name for method in METHODS.values() for field in method.settings}
    for name, (here, setting) in OTHER_NAMES.items():
        assert here in {*METHODS, *TRAINING_FIELDS, *fields}, name
        if setting:
            field, _, value = setting.partition(": ")
            known = METHODS[here].field(field)
            assert value in known.choices or value == "true", name
    assert nearest("dora", ("lora", "ia3")) == "did you mean 'lora'?", "only what is known there"
