"""Text, plain values and Python objects: the same language, without loss, and never evaluated."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft import spaces
from autopeft.errors import SpaceError
from autopeft.spaces.domain import Domain, Fixed
from autopeft.spaces.expression import MAX_DEPTH, MAX_LENGTH, parse_term
from autopeft.spaces.language import read_spread, to_plain
from autopeft.spaces.spread import PerGroup, PerLayer, Ramp, Shared, Spread

NUMBERS = st.integers(-1000, 1000) | st.floats(-1e6, 1e6).map(lambda value: float(f"{value:.6g}"))
WORDS = st.from_regex(r"[a-z][a-z0-9_]{0,8}(\.[a-z0-9]{1,5})?(-[a-z]{1,5})?", fullmatch=True)


def ordered(values: tuple[float, float]) -> tuple[float, float]:
    return min(values), max(values)


RANGES = st.tuples(st.integers(1, 500), st.integers(1, 500)).filter(lambda ends: ends[0] != ends[1]).map(ordered)
DOMAINS: st.SearchStrategy[Domain] = st.one_of(
    st.lists(NUMBERS, min_size=1, max_size=6, unique=True).map(lambda values: spaces.choice(*values)),
    st.lists(WORDS.filter(lambda word: word not in ("true", "false")), min_size=1, max_size=6, unique=True).map(
        lambda values: spaces.choice(*values)
    ),
    RANGES.map(lambda ends: spaces.int_(int(ends[0]), int(ends[1]))),
    RANGES.map(lambda ends: spaces.int_(int(ends[0]), int(ends[1]), log=True)),
    RANGES.map(lambda ends: spaces.real(ends[0] / 8, ends[1] / 8)),
    RANGES.map(lambda ends: spaces.log(ends[0] / 1e5, ends[1] / 1e5)),
    st.just(spaces.bool_()),
    st.just(spaces.choice(True)),
    st.lists(WORDS, min_size=2, max_size=5, unique=True).map(lambda items: spaces.subset(*items, min=2)),
    st.just(spaces.subset(max=4)),
    st.integers(1, 20).map(lambda steps: spaces.halvings(steps=steps)),
)
SPREADS: st.SearchStrategy[Spread] = st.one_of(
    DOMAINS.map(spaces.shared),
    DOMAINS.map(spaces.per_layer),
    st.tuples(st.integers(1, 9), DOMAINS).map(lambda pair: spaces.per_group(*pair)),
    DOMAINS.map(spaces.ramp),
    st.lists(NUMBERS, min_size=1, max_size=6).map(lambda values: spaces.groups(*values)),
    st.lists(st.booleans(), min_size=1, max_size=3).map(lambda values: spaces.groups(*values)),
)


@given(spread=SPREADS)
def test_objects_become_text_and_come_back_equal(spread: Spread) -> None:
    assert read_spread(str(spread)) == spread
    assert read_spread(to_plain(spread)) == spread


@given(value=NUMBERS | WORDS | st.booleans() | st.lists(WORDS, min_size=1, max_size=3))
def test_plain_values_stay_what_they_are(value: object) -> None:
    if value in ("bool", "subset", "choice", "int", "log", "real", "ramp", "true", "false"):
        return
    plain = to_plain(read_spread(value))
    assert plain == value
    assert type(plain) is type(value)


@pytest.mark.parametrize(
    ("text", "spread"),
    [
        ("choice(0, 8)", spaces.shared(spaces.choice(0, 8))),
        (" shared( choice( 0 ,8,) ) ", spaces.shared(spaces.choice(0, 8))),
        ("int(1, 64, log)", spaces.shared(spaces.int_(1, 64, log=True))),
        ("log(1e-4, 1e-2)", spaces.shared(spaces.log(1e-4, 1e-2))),
        ("bool", spaces.shared(spaces.bool_())),
        ("bool()", spaces.shared(spaces.bool_())),
        ("subset", spaces.shared(spaces.subset())),
        ("subset(query, 'value', min=1, max=2)", spaces.shared(spaces.subset("query", "value", max=2))),
        ("per_layer(subset(query, key))", spaces.per_layer(spaces.subset("query", "key"))),
        ("per_group(4, int(1, 8))", spaces.per_group(4, spaces.int_(1, 8))),
        ("groups(2, 4, 4)", spaces.groups(2, 4, 4)),
        ("groups(query, mlp)", spaces.groups("query", "mlp")),
        ("ramp(bool)", spaces.ramp(spaces.bool_())),
        ("halvings(hidden)", spaces.shared(spaces.halvings())),
        ("1e-4", Shared(domain=Fixed(value=1e-4))),
        ("-3", Shared(domain=Fixed(value=-3))),
        ("gelu", Shared(domain=Fixed(value="gelu"))),
        ("'bool'", Shared(domain=Fixed(value="bool"))),
        ("true", Shared(domain=Fixed(value=True))),
    ],
)
def test_text_reads_as_the_object(text: str, spread: Spread) -> None:
    assert read_spread(text) == spread


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("choise(1, 2)", r"column 1 of 'choise\(1, 2\)': 'choise' is none of .*did you mean 'choice'"),
        ("__import__('os').system('true')", "follows|no meaning|none of"),
        ("__import__('os')", "'__import__' is none of .*nothing else can be called"),
        ("choice(1, 2", 'a call without its end .*must be quoted: {rank: "choice'),
        ("choice(1 2)", "column 10 of .*expected ',', got '2'"),
        ("choice(1, 2) 3", "column 14 of .*'3' follows a complete value"),
        ("choice(, 2)", "column 8 of .*expected a value, got ','"),
        ("choice(1; 2)", "column 9 of .*';' has no meaning here"),
        ("choice(choice(1))", r"choice\(...\) is no plain value \(write choice\(0, 8, 16\)"),
        ("choice()", "no value to choose from .*list at least one"),
        ("choice(min=1)", r"choice\(...\) does not take these arguments"),
        ("choice(8, 8)", "8 is there twice"),
        ("choice(8, gelu)", "mixes numbers, words and flags"),
        ("choice", "choice needs its arguments"),
        ("int(8, 2)", "the low end 8 is above the high end 2 .*swap"),
        ("int(2, 2)", "both ends are 2, nothing is left to search .*write the value 2"),
        ("int(1, 2.5)", "the ends are not whole numbers"),
        ("int(0, 8, log)", "a logarithmic range starts above 0"),
        ("int(1, 8, lin)", r"int\(...\) does not take these arguments .*int\(1, 64, log\)"),
        ("int(0, 2000000)", "more than 1000000 values"),
        ("real(a, b)", r"real\(...\) does not take these arguments"),
        ("log(0, 1)", r"log\(0, 1\): a logarithmic range starts above 0 .*real\(lo, hi\)"),
        ("log(1e-4)", r"log\(...\) does not take these arguments"),
        ("bool(1)", r"bool\(...\) does not take these arguments"),
        ("subset(1, 2)", r"subset\(...\) does not take these arguments"),
        ("subset(a, low=1)", r"subset\(...\) does not take these arguments"),
        ("subset(a, a)", "a is there twice"),
        ("subset(a, min=2)", "min 2 and no max do not fit 1 items"),
        ("subset(min=0)", "min is 0, not a whole number from 1"),
        ("subset(min=3, max=2)", "min 3 and max 2 do not fit the items"),
        (f"subset({', '.join(f'a{i}' for i in range(17))})", "more than 16 items .*all-linear"),
        ("halvings(width)", r"halvings\(...\) does not take these arguments"),
        ("halvings(hidden, 99)", "steps are 1 to 20"),
        ("per_layer(8)", r"per_layer\(...\) takes a domain"),
        ("per_layer(gelu)", "'gelu' is no domain"),
        ("per_layer(ramp(choice(1, 2)))", r"per_layer\(...\) takes a domain"),
        ("per_layer(choice(1), 2)", r"per_layer\(...\) does not take these arguments"),
        ("per_group(choice(1, 2))", r"per_group\(...\) does not take these arguments"),
        ("per_group(x, choice(1, 2))", "the number of groups is a whole number"),
        ("per_group(0, choice(1, 2))", "the number of groups is a whole number from 1"),
        ("groups()", r"groups\(\): no value .*write one value a group"),
        ("groups(2, a)", r"groups\(2, a\): mixes numbers, words and flags .*values of one type"),
        ("groups(n=2)", r"groups\(...\) does not take these arguments .*groups\(2, 4, 6, 8\)"),
        ("groups(choice(1, 2))", r"choice\(...\) is no plain value .*groups\(2, 4, 6, 8\)"),
        ("groups", "groups needs its arguments"),
        ("per_layer(groups(1, 2))", r"per_layer\(...\) takes a domain"),
        (f"choice({'9' * 70})", "a number this long is not read"),
        ([1, 2], r"\[1, 2\] is no domain and no value"),
        (None, "None is no domain and no value"),
        (b"choice(1)", "is no domain and no value"),
        ([], "is no domain and no value"),
    ],
)
def test_malformed_values_name_the_column_and_the_fix(value: object, message: str) -> None:
    with pytest.raises(SpaceError, match=re.compile(message, re.DOTALL)) as caught:
        read_spread(value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("f(" * 500 + ")" * 500, f"more than {MAX_DEPTH} levels of brackets"),
        ("choice(" + "1, " * 400_000 + ")", f"at most {MAX_LENGTH} are read"),
        ("a" * 1_000_000, f"an expression of 1000000 characters; at most {MAX_LENGTH}"),
        ("(" * 1000 + ")" * 1000, r"expected a value, got '\('"),
    ],
)
def test_hostile_texts_are_refused_quickly(text: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message) as caught:
        parse_term(text)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("low", [float("nan"), float("inf"), "a", None, True])
def test_ranges_of_objects_need_finite_numbers(low: float) -> None:
    with pytest.raises(SpaceError, match="is not a finite number"):
        spaces.real(low, 8)


def test_choices_of_objects_need_finite_numbers() -> None:
    with pytest.raises(SpaceError, match="holds a value that is no finite number"):
        spaces.choice(1.0, float("nan"))
    with pytest.raises(SpaceError, match=r"groups\(1\.0, inf\): holds a value that is no finite number"):
        spaces.groups(1.0, float("inf"))


@pytest.mark.parametrize("build", [spaces.shared, spaces.per_layer, spaces.ramp])
def test_spreads_of_objects_take_domains(build: object) -> None:
    with pytest.raises(SpaceError, match="takes a domain, not ramp"):
        build(spaces.ramp(spaces.choice(1, 2)))  # type: ignore[operator]
    with pytest.raises(SpaceError, match="takes a domain, not 8"):
        build(8)  # type: ignore[operator]


def test_spread_classes_are_what_the_words_build() -> None:
    domain = spaces.choice(1, 2)
    assert spaces.per_layer(domain) == PerLayer(domain=domain)
    assert spaces.per_group(2, domain) == PerGroup(groups=2, domain=domain)
    assert spaces.ramp(domain) == Ramp(domain=domain)
