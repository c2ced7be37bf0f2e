from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import SpecError
from autopeft.studies.yaml_file import MAX_BYTES, parse_scalar, parse_yaml, read_yaml

WORDS = st.from_regex(r"[a-z_]{1,6}", fullmatch=True)
TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=0xD7FF), max_size=8)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.", 1.0),
        (".5", 0.5),
        ("-3", -3),
        ("1_000", 1000),
        ("off", "off"),
        ("no", "no"),
        ("True", True),
        ("null", None),
        ("12:30", "12:30"),
        ("007", "007"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    assert parse_scalar(text) == value
    assert type(parse_scalar(text)) is type(value)


@given(st.dictionaries(WORDS, PLAIN, min_size=1, max_size=4))
def test_json_reads_back_as_itself(data: dict[str, object]) -> None:
    import json

    assert parse_yaml(json.dumps(data), source="a").data == data


def test_the_line_of_a_value_is_known() -> None:
    document = parse_yaml("study: a\ntask:\n  data: {train: x}\n  text:\n    - a\n    - b\n", source="study.yaml")
    assert document.place(("task", "data", "train")) == "study.yaml:3: task.data.train"
    assert document.place(("task", "text", 1)) == "study.yaml:6: task.text[1]"
    assert document.place(("task", "metric")) == "study.yaml:2: task.metric"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1\nb: *x", "s:1: an anchor (&) is not allowed"),
        ("b: *x", "s:1: an alias (*) is not allowed"),
        ("a: !!python/object/apply:os.system [ls]", "s:1: a tag (tag:yaml.org,2002:python/object/apply:os.system)"),
        ("a: 1\nb: 2\na: 3", "s:3: the key 'a' a second time is not allowed in a study file (line 1 has it already)"),
        ("a:\n  lora: {rank: choice(2, 8)}", 'a call must be quoted, e.g. {rank: "choice(2, 8)"}'),
        ("a: " + "[" * 3000, "nested deeper than 20 levels"),
        ("a: [" + "1," * 30000 + "1]", "more than 20000 values"),
        ("a: 1\n---\nb: 2", "s:2: a second document"),
        ("? [1, 2]\n: 3", "a key that is not a plain word"),
        ("a: b: c", "s:1: not valid YAML"),
        ("- 1", "a study file is a mapping"),
        ("", "a study file is a mapping"),
    ],
)
def test_what_could_surprise_is_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_yaml(text, source="s")
    assert message in str(caught.value)


def test_a_billion_laughs_stops_at_the_first_anchor() -> None:
    bomb = "a: &a [x, x]\n" + "\n".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]" for i in range(9)
    )
    with pytest.raises(SpecError, match="anchor"):
        parse_yaml(bomb, source="s")


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("study: a")
    with pytest.raises(SpecError, match=r"no such file \(study files in that folder: study.yaml\)"):
        read_yaml(tmp_path / "studi.yaml")


def test_a_file_that_is_not_text_or_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"study: \xff\xfe")
    with pytest.raises(SpecError, match="not UTF-8"):
        read_yaml(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(SpecError, match="at most 1000000"):
        read_yaml(tmp_path / "b.yaml")
