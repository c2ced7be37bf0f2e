"""Limits as text."""

import re

import pytest

from autopeft.errors import SpaceError
from autopeft.spaces.constraints import parse_constraint
from tests.spaces.builders import shape

QUANTITIES = ("parameters", "memory")


@pytest.mark.parametrize(
    ("text", "quantity", "operator", "limit"),
    [
        ("parameters <= 2%", "parameters", "<=", 2_200_000),
        ("parameters<0.5 %", "parameters", "<", 550_000),
        ("parameters >= 300k", "parameters", ">=", 300_000),
        ("parameters <= 1.5M", "parameters", "<=", 1_500_000),
        ("parameters <= 3e5", "parameters", "<=", 300_000),
        ("memory <= 8 GiB", "memory", "<=", 8 * 2**30),
        (" memory > 1.5GB ", "memory", ">", 1.5e9),
        ("memory <= 1000", "memory", "<=", 1000),
    ],
)
def test_limits_are_read_in_parameters_or_bytes(text: str, quantity: str, operator: str, limit: float) -> None:
    row = parse_constraint(text, quantities=QUANTITIES, shape=shape())
    assert (row.quantity, row.operator, row.limit) == (quantity, operator, limit)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "paramters <= 2%",
            "'paramters' is not known before training; known are memory, parameters .*did you mean 'parameters'",
        ),
        ("accuracy >= 0.9", "'accuracy' is not known before training.*make it an objective"),
        ("memory <= 2%", "unknown unit '%'; known are B, KB"),
        ("parameters <= 2 GiB", "unknown unit 'GiB'; known are k, K, M, B, %"),
        ("parameters = 2%", "'parameters = 2%' is no limit .*write parameters <= 2%"),
        ("parameters <= -2", "is no limit"),
        ("parameters <= __import__('os')", "is no limit"),
        ("parameters <= " + "9" * 1000, "is no limit"),
        (["parameters <= 2%"], "is no limit"),
        (None, "None is no limit"),
    ],
)
def test_malformed_limits_are_refused(text: object, message: str) -> None:
    with pytest.raises(SpaceError, match=re.compile(f"constraints: .*{message}", re.DOTALL)) as caught:
        parse_constraint(text, quantities=QUANTITIES, shape=shape())
    assert caught.value.hint
    assert len(str(caught.value)) < 400


def test_the_excess_is_relative_and_zero_where_the_limit_holds() -> None:
    row = parse_constraint("memory <= 1 KiB", quantities=QUANTITIES, shape=shape())
    assert (row.excess(1024), row.excess(1536)) == (0, 0.5)
    strict = parse_constraint("memory < 1 KiB", quantities=QUANTITIES, shape=shape())
    assert strict.excess(1024) > 0
