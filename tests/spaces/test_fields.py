"""Domains against fields, for the kinds that no method of the table uses yet."""

import pytest

from autopeft import spaces
from autopeft.errors import ConfigurationError, SpaceError
from autopeft.spaces.canonical import configuration
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.domain import Domain, Fixed
from autopeft.spaces.fields import fit_domain
from autopeft.spaces.methods.method import Field, FieldKind
from tests.spaces.builders import shape

BOOL = Field(name="gated", kind=FieldKind.BOOL, default=False)
SWITCH = Field(name="enabled", kind=FieldKind.SIZE, default=None, low=0, high=1)
INTEGER = Field(name="experts", kind=FieldKind.INTEGER, default=4, low=1, high=64)


@pytest.mark.parametrize(
    ("field", "domain", "fitted"),
    [
        (BOOL, spaces.bool_(), spaces.bool_()),
        (BOOL, spaces.choice(True), spaces.choice(True)),
        (BOOL, Fixed(value=True), Fixed(value=True)),
        (SWITCH, spaces.bool_(), spaces.choice(0, 1)),
        (SWITCH, Fixed(value=True), Fixed(value=1)),
        (SWITCH, spaces.choice(False, True), spaces.choice(0, 1)),
        (INTEGER, spaces.choice(2.0, 8), spaces.choice(2, 8)),
        (INTEGER, spaces.int_(1, 64), spaces.int_(1, 64)),
        (INTEGER, Fixed(value="8"), Fixed(value=8)),
    ],
)
def test_values_get_the_type_of_the_field(field: Field, domain: Domain, fitted: Domain) -> None:
    assert fit_domain(field, domain) == fitted
    assert str(fit_domain(field, domain)) == str(fitted)


@pytest.mark.parametrize(
    ("field", "domain", "message"),
    [
        (BOOL, Fixed(value=1), r"got 1, but \w+ is of kind bool .write true or false"),
        (BOOL, spaces.int_(0, 1), r"got int\(0, 1\), but \w+ is of kind bool"),
        (SWITCH, spaces.real(0.0, 1.0), r"enabled is of kind size .write choice\(0, 1\), bool or 1"),
        (INTEGER, spaces.choice(2, 2.5), r"got 2\.5, but experts is a whole number"),
        (INTEGER, spaces.halvings(), r"but \w+ is of kind integer"),
        (INTEGER, spaces.int_(1, 99), "got 99, a value outside 1 to 64 .at most 64"),
        (INTEGER, Fixed(value=("a", "b")), r"got the list \['a', 'b'\]"),
    ],
)
def test_what_does_not_fit_is_refused(field: Field, domain: Domain, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        fit_domain(field, domain)
    assert str(Fixed(value=("a", "b"))) == "[a, b]"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", ["lora.rank", "lora.alpha", "batch_size", "learning_rate"])
def test_what_is_no_finite_number_is_refused_in_spaces_and_configurations(place: str, value: float) -> None:
    block, _, field = place.rpartition(".")
    mapping: dict[str, object] = {"lora": {"rank": 2, **({field: value} if block else {})}}
    mapping |= {} if block else {field: value}
    with pytest.raises(SpaceError, match=rf"space\.{place}: got {value}, no finite number"):
        SpaceDefinition.from_mapping(mapping)
    with pytest.raises(ConfigurationError, match=rf"{place}: got {value}, no finite number"):
        configuration(mapping, shape(2, hidden=48, heads=4))


@pytest.mark.parametrize("text", ["subset(query, max=1e999)", "subset(query, min=-1e999)"])
def test_limits_of_sets_are_finite(text: str) -> None:
    with pytest.raises(SpaceError, match=r"subset\(\.\.\.\) does not take these arguments"):
        SpaceDefinition.from_mapping({"lora": {"rank": 2, "targets": text}})
