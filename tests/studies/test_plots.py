import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from autopeft.errors import SpecError
from autopeft.objectives.front import Front
from autopeft.objectives.objective import resolve_objectives
from autopeft.search.trial import History
from autopeft.spaces.configuration import Configuration
from autopeft.studies.charts import completed_points, front_data, front_page
from autopeft.studies.plots import plot_front, plot_hypervolume
from tests.studies.synthetic import completed, front_of, history, setting

PNG = b"\x89PNG\r\n\x1a\n"


def test_each_suffix_gets_its_format(tmp_path: Path) -> None:
    told = history(10)
    written = [
        plot_front(front_of(told), told, tmp_path / f"front.{end}", study="rte") for end in ("html", "png", "SVG")
    ]
    assert written[0].read_text().startswith("<!doctype html>")
    assert written[1].read_bytes().startswith(PNG)
    assert "<svg" in written[2].read_text()
    assert written[0].stat().st_size < 200_000


def test_the_hypervolume_is_a_picture_too(tmp_path: Path) -> None:
    told = history(10)
    assert plot_hypervolume(front_of(told), told, tmp_path / "v.png").read_bytes().startswith(PNG)
    with pytest.raises(SpecError, match=r"must end in \.png, \.svg$|must end in \.png, \.svg"):
        plot_hypervolume(front_of(told), told, tmp_path / "v.html")


def test_another_suffix_is_refused_with_those_that_work(tmp_path: Path) -> None:
    told = history(3)
    with pytest.raises(SpecError, match=r"plot: got '.*front\.pdf'; the name must end in \.html, \.png, \.svg"):
        plot_front(front_of(told), told, tmp_path / "front.pdf")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    told = history(3)
    with pytest.raises(SpecError, match=r"plot: the folder '.*none' is not there"):
        plot_front(front_of(told), told, tmp_path / "none" / "front.png")


@pytest.mark.parametrize(
    "names", [["accuracy"], ["accuracy", "train_seconds"], ["accuracy", "parameters", "memory", "train_seconds"]]
)
@pytest.mark.parametrize("n_trials", [0, 1, 4])
def test_any_number_of_objectives_and_points_can_be_drawn(tmp_path: Path, names: list[str], n_trials: int) -> None:
    objectives, told = resolve_objectives(names, metric="accuracy"), history(n_trials)
    front = Front.of(completed_points(told, objectives), objectives)
    for end in ("html", "png"):
        assert plot_front(front, told, tmp_path / f"f.{end}").stat().st_size > 1000


def page(told: History, *, study: str = "rte") -> str:
    return front_page(front_of(told), told, study=study)


def test_the_page_asks_nothing_of_any_network() -> None:
    text = page(history(10))
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'<>]*", text))
    assert addresses == {"http://www.w3.org/2000/svg"}, "the name of the SVG namespace, which is never fetched"
    assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=", text)
    assert not re.search(r"@import|url\(", text.replace("url(#ramp)", ""))
    assert "default-src 'none'" in text


def test_what_a_user_wrote_cannot_become_markup() -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    method = setting(evil, (0,), note=evil)
    config = Configuration(methods=(method,), training=((evil, evil),))
    told = History(trials=(completed(0, config, accuracy=0.9), completed(1, config, accuracy=0.8)))
    text = page(told, study=evil)
    assert text.count("<script") == 2
    assert text.count("</script>") == 2
    assert "<img" not in text


def test_the_data_in_the_page_is_json_with_every_completed_trial() -> None:
    told = history(8)
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', page(told), re.S)
    assert block is not None
    data = json.loads(block.group(1))
    assert [row["number"] for row in data["trials"]] == [n for n in range(8) if n != 3]
    assert {row["number"] for row in data["trials"] if row["front"]} == {point.trial for point in front_of(told)}
    assert sum(row["knee"] for row in data["trials"]) == 1
    assert data["n_layers"] == 6
    assert data["hypervolumes"][-1][1] == pytest.approx(100)


def test_without_javascript_the_front_is_still_a_table() -> None:
    told = history(8)
    rows = re.findall(r'<tr data-trial="(\d+)">', page(told))
    assert [int(row) for row in rows] == [point.trial for point in front_of(told)]


def test_trials_with_a_value_that_is_not_finite_are_left_out() -> None:
    told = history(2)
    bad = told.trials[0]
    broken = replace(bad.measurements[-1], metrics={"accuracy": float("nan")})
    told = History(trials=(replace(bad, measurements=(*bad.measurements[:-1], broken)), told.trials[1]))
    rows = front_data(front_of(told), told)["trials"]
    assert isinstance(rows, list)
    assert [row["number"] for row in rows] == [1]


def test_confirmed_points_bring_their_error_bars_and_say_what_they_are() -> None:
    told = history(6)
    number = front_of(told).points[0].trial
    score = {"seeds": 3, "accuracy": {"mean": 0.91, "std": 0.0125, "split": "test"}}
    rows = front_data(front_of(told), told, confirmed={number: score})["trials"]
    assert isinstance(rows, list)
    assert {row["number"]: row["confirmed"] for row in rows if row["confirmed"]} == {number: score}
    (row,) = (row for row in rows if row["number"] == number)
    assert ("accuracy, 3 seeds, test", "0.9100 ± 0.0125") in row["more"]
