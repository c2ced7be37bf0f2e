"""Groups of LoRAs: counts, and what cannot be built."""

import pytest

from autopeft.errors import ConfigurationError
from autopeft.spaces.canonical import configuration
from autopeft.spaces.counts import ParameterCounter
from tests.spaces.builders import shape

BASE = shape(3, hidden=48)


def test_a_group_counts_as_many_loras_as_it_has_members() -> None:
    group = configuration({"lora_group": {"rank": [2, 4, 0], "group": [3, 1, 1]}}, BASE)
    assert ParameterCounter(BASE)(group) == (2 * 3 + 4) * 2 * (48 + 48)
    lora = configuration({"lora": {"rank": 4, "targets": "mlp"}}, BASE)
    one = configuration({"lora_group": {"rank": 4, "group": 1, "targets": "mlp"}}, BASE)
    assert ParameterCounter(BASE)(one) == ParameterCounter(BASE)(lora)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"rank": 49}, r"lora_group\.rank: 49 is above the width 48 of attention\.self\.query in layer 0"),
        ({"rank": 4, "group": 0}, r"lora_group\.group: got 0, a value outside 1 to 64"),
    ],
)
def test_what_cannot_be_built_is_refused(source: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        configuration({"lora_group": source}, BASE)
