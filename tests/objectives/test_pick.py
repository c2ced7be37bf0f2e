import pytest

from autopeft.errors import NotFoundError, SpecError
from autopeft.objectives.pick import parse_query
from tests.objectives.support import point

POINTS = [point(0, 0.95, parameters=5000), point(1, 0.91, parameters=900), point(2, 0.70, parameters=100)]


@pytest.mark.parametrize(
    ("query", "trials"),
    [
        ("accuracy >= 0.90, min parameters", [1, 0]),
        ("max accuracy", [0, 1, 2]),
        ("parameters < 900", [2]),
        ("parameters <= 0.9k", [1, 2]),
        ("accuracy > 0.7, accuracy < 0.95", [1]),
        ("memory <= 1 KiB , parameters = 5e3", [0]),
        ("loss <= 0.1", [0, 1]),
    ],
)
def test_a_query_keeps_what_meets_it_best_first(query: str, trials: list[int]) -> None:
    assert [chosen.trial for chosen in parse_query(query).select(POINTS)] == trials


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("cheap please", r"pick: got 'cheap please'.*knee, best:OBJECTIVE, trial:N"),
        ("", r"pick: got ''"),
        ("min parameters, max accuracy", r"2 of min and max.*at most one"),
        ("memory <= 8 parsec", r"unknown unit 'parsec'.*KiB, MiB"),
        ("accuracy >= 0.9.1", r"'0\.9\.1' in .* is no number"),
    ],
)
def test_a_malformed_query_says_what_a_pick_is(query: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_query(query)


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(NotFoundError, match=r"no value called 'latency'.*accuracy, loss, memory, parameters"):
        parse_query("min latency").select(POINTS)
    with pytest.raises(NotFoundError, match=r"no value called 'accuracy'.*there are none"):
        parse_query("min accuracy").select([])


def test_conditions_that_nothing_meets_show_the_ranges() -> None:
    with pytest.raises(NotFoundError, match=r"no point of the front meets.*accuracy 0\.7 to 0\.95"):
        parse_query("accuracy >= 0.99, min parameters").select(POINTS)
