"""Conditions: parsing, printing, truth, and what they may speak of."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import SpaceError
from autopeft.spaces.condition import (
    OPERATORS,
    And,
    Comparison,
    Condition,
    Membership,
    Not,
    Or,
    Present,
    atoms,
    parse_condition,
)
from autopeft.spaces.definition import SpaceDefinition

NAMES = st.sampled_from(["lora", "lora.rank", "serial_adapter.activation", "batch_size"])
VALUES = st.integers(-9, 99) | st.booleans() | st.sampled_from(["gelu", "relu"]) | st.just(0.5)
ATOMS: st.SearchStrategy[Condition] = st.one_of(
    NAMES.map(lambda name: Present(name=name)),
    st.builds(Comparison, name=NAMES, operator=st.sampled_from(sorted(OPERATORS)), value=VALUES),
    st.builds(Membership, name=NAMES, values=st.lists(VALUES, min_size=1, max_size=3).map(tuple)),
)
CONDITIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.builds(Not, term=inner),
        st.builds(And, terms=st.lists(inner, min_size=2, max_size=3).map(tuple)),
        st.builds(Or, terms=st.lists(inner, min_size=2, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)


@given(condition=CONDITIONS)
def test_a_printed_condition_parses_to_an_equal_one(condition: Condition) -> None:
    assert parse_condition(str(condition)) == condition


@pytest.mark.parametrize(
    ("text", "known", "truth"),
    [
        ("lora", {"lora": True}, True),
        ("lora", {"lora": False}, False),
        ("not lora", {}, True),
        ("lora.rank > 4", {"lora.rank": 8}, True),
        ("lora.rank > 4", {}, False),
        ("not lora.rank > 4", {}, True),
        ("lora.rank != 4", {}, False),
        ("lora.rank in (2, 8)", {"lora.rank": 8}, True),
        ("lora.rank not in (2, 8)", {"lora.rank": 8}, False),
        ("a.act == 'gelu'", {"a.act": "gelu"}, True),
        ("a.act != gelu", {"a.act": "relu"}, True),
        ("a.act < gelu", {"a.act": "relu"}, False),
        ("a == true and b == False", {"a": True, "b": False}, True),
        ("a > 1 and b > 1 or c > 1", {"a": 0, "b": 2, "c": 2}, True),
        ("a > 1 and (b > 1 or c > 1)", {"a": 0, "b": 2, "c": 2}, False),
    ],
)
def test_conditions_are_read_as_python_would(text: str, known: dict[str, object], truth: bool) -> None:
    assert parse_condition(text).holds(known.get) is truth  # type: ignore[arg-type]


def test_atoms_are_given_from_left_to_right() -> None:
    condition = parse_condition("a or not (b == 1 and c in (1, 2))")
    assert [atom.name for atom in atoms(condition)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "column 1 of '': expected a dimension or method, got 'the end'"),
        ("lora.rank = 4", "column 11 of .*'=' does not compare .*write =="),
        ("lora.rank > ", "expected a value, got 'the end'"),
        ("lora rank", "column 6 of .*'rank' follows a complete condition"),
        ("(lora", r"expected '\)', got 'the end' .*close the bracket"),
        ("lora and or", "expected a dimension or method, got 'or'"),
        ("lora.rank in 4", r"expected '\(', got '4' .*round brackets"),
        ("lora.rank in (4", r"expected '\)', got 'the end' .*close the list"),
        ("lora.rank not 4", "expected 'in', got '4'"),
        ("lora.rank > choice(1)", r"choice\(...\) is no value to compare with"),
        ("__import__('os')", "'__import__' cannot be called in a condition"),
        ("not " * 900 + "a", "more than 24 levels of brackets"),
        ("(" * 900 + "a" + ")" * 900, "more than 24 levels of brackets"),
    ],
)
def test_malformed_conditions_name_the_column(text: str, message: str) -> None:
    with pytest.raises(SpaceError, match=re.compile(message, re.DOTALL)) as caught:
        parse_condition(text)
    assert caught.value.hint


BASE = {
    "serial_adapter": {
        "bottleneck": "per_layer(choice(0, 8))",
        "activation": "choice(relu, gelu)",
        "scale": "real(1, 2)",
    },
    "lora": {"rank": "choice(0, 8)", "targets": "subset(query, key)"},
    "batch_size": "choice(16, 32)",
}


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("lora.rnk > 1", r"space\.prefix_tuning\.when: 'lora\.rnk' is no dimension .*did you mean 'lora\.rank'"),
        ("parallel_adapter", "'parallel_adapter' is no dimension of this space"),
        ("parallel_adapter.bottleneck > 1", "'parallel_adapter.bottleneck' is no dimension of this space"),
        ("learning_rate > 1", "'learning_rate' is no dimension of this space"),
        ("serial_adapter.bottleneck > 1", "differs from layer to layer .*compare a shared dimension"),
        ("serial_adapter.scale > 1", "has no single levels to compare with"),
        ("lora.targets == query", "has no single levels to compare with"),
        ("lora.rank == gelu", r"lora\.rank is compared with 'gelu' .*compare it with a number"),
        ("serial_adapter.activation == 3", "is compared with '3' .*compare it with a word of relu"),
        ("serial_adapter.activation == glu", "is compared with 'glu'"),
        ("serial_adapter.activation > gelu", "serial_adapter.activation > gelu has no order .*use == or !="),
        ("prefix_tuning", "the conditions of prefix_tuning depend on each other"),
        (3, r"space\.prefix_tuning\.when: got 3"),
        ("lora or", r"space\.prefix_tuning\.when: column 8"),
    ],
)
def test_conditions_on_what_cannot_be_compared_are_refused(when: object, message: str) -> None:
    with pytest.raises(SpaceError, match=re.compile(message, re.DOTALL)):
        SpaceDefinition.from_mapping(BASE | {"prefix_tuning": {"length": 4, "when": when}})


def test_blocks_that_wait_for_each_other_are_refused() -> None:
    with pytest.raises(SpaceError, match="the conditions of lora, prefix_tuning depend on each other"):
        SpaceDefinition.from_mapping(
            {"lora": {"rank": 8, "when": "prefix_tuning"}, "prefix_tuning": {"length": 4, "when": "not lora"}}
        )


def test_condition_objects_are_taken_as_they_are() -> None:
    condition = Not(term=Present(name="lora"))
    mapping = {"lora": {"rank": "choice(0, 8)"}, "prefix_tuning": {"length": 4, "when": condition}}
    definition = SpaceDefinition.from_mapping(mapping)
    assert definition.methods[1].when == condition
    assert definition.to_mapping()["prefix_tuning"] == {"when": "not lora", "length": 4}
