import csv
import json
import sys
from pathlib import Path

import pytest

from autopeft.errors import DataError, MissingExtraError
from autopeft.trainers.tables import read_table


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'text,label\n"one, ""two""\nthree",x\nfour,y\n'),
        ("a.tsv", 'text\tlabel\n"one, ""two""\nthree"\tx\nfour\ty\n'),
        ("a.json", json.dumps([{"text": 'one, "two"\nthree', "label": "x"}, {"text": "four", "label": "y"}])),
        ("a.json", '{"text": "one, \\"two\\"\\nthree", "label": "x"}\n\n{"text": "four", "label": "y"}\n'),
        ("a.jsonl", '{"text": "one, \\"two\\"\\nthree", "label": "x"}\n{"text": "four", "label": "y"}'),
    ],
)
def test_every_text_format_gives_the_same_columns(tmp_path: Path, name: str, text: str) -> None:
    table = read_table(write(tmp_path, name, text))
    assert table.columns == {"text": ['one, "two"\nthree', "four"], "label": ["x", "y"]}
    assert len(table) == 2


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", None], "label": [0, 1]}), file)
    assert read_table(file).columns == {"text": ["a", None], "label": [0, 1]}


def test_a_parquet_file_without_pyarrow_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match="pip install pyarrow"):
        read_table(write(tmp_path, "a.parquet", "x"))


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=r"a\.parquet: is not a parquet file"):
        read_table(write(tmp_path, "a.parquet", "no parquet"))


def test_a_byte_order_mark_and_blank_lines_are_no_data(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b"\xef\xbb\xbftext,label\r\n\r\na,1\r\n")
    assert read_table(file).columns == {"text": ["a"], "label": ["1"]}


def test_literal_quotes_of_a_tsv_are_text(tmp_path: Path) -> None:
    text = 'text\tlabel\n"unbalanced\t0\nplain\t1\nalso "quoted\t0\n'
    assert read_table(write(tmp_path, "a.tsv", text)).columns["text"] == ['"unbalanced', "plain", 'also "quoted']


def test_reading_leaves_the_field_limit_of_the_process(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    long = "w" * (before + 10)
    assert read_table(write(tmp_path, "a.csv", f"text\n{long}\n")).columns["text"] == [long]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "is empty; the first line must name the columns"),
        ("a.csv", "text,text\na,b\n", "every column needs a name of its own"),
        ("a.csv", "text,label\na,1\nb\n", "row 2: got 1 cells; the header has 2 columns"),
        ("a.json", "[1, 2]", "row 1: got int; every row must be an object"),
        ("a.json", "[", "is not JSON"),
        ("a.json", "", "is empty; it must hold one object a row"),
        ("a.jsonl", '{"a": 1}\n{', "line 2: is not JSON"),
        ("a.xlsx", "x", "got the file type '.xlsx'; allowed are .csv"),
        ("a", "x", "got the file type 'none'"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message.replace(".", r"\.")):
        read_table(write(tmp_path, name, text))


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes("text\ncafé\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"byte \d+ is not UTF-8.*save the file as UTF-8"):
        read_table(file)


def test_a_missing_file_is_named_with_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", "text\na\n")
    with pytest.raises(DataError, match=r"trian\.csv: no such file \(did you mean train\.csv\?\)"):
        read_table(tmp_path / "trian.csv")
    with pytest.raises(DataError, match=r"no such file \(data files there: train\.csv\)"):
        read_table(tmp_path / "zzzzzz")
    with pytest.raises(DataError, match="no such file, and no folder"):
        read_table(tmp_path / "nowhere" / "train.csv")
    with pytest.raises(DataError, match="is a folder; a data file is needed"):
        read_table(tmp_path)


def test_a_missing_column_is_named_with_the_others(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "a.csv", "sentence,label\na,1\n"))
    with pytest.raises(DataError, match=r"no column 'labels' \(task\.label\); the columns are 'sentence', 'label'"):
        table.column("labels", setting="task.label")
    with pytest.raises(DataError, match=r"set task\.text to one of them"):
        table.column("q", setting="task.text")
