"""Which adapters stay on disk, and under which names."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.search.trial import History, Trial, TrialState
from autopeft.studies.artifacts import Artifacts, front_numbers, safe_name
from tests.studies.support import OBJECTIVES, measurement, small_space, write_adapter


def trial(number: int, rank: int, accuracy: float, state: TrialState = TrialState.COMPLETED) -> Trial:
    configuration = small_space().assemble(
        {
            "layers[0]": True,
            "layers[1]": True,
            "lora.rank": rank,
            "lora.targets[query]": True,
            "lora.targets[value]": False,
            "learning_rate": 0.001,
        }
    )
    rows = (measurement(configuration, 1, accuracy),)
    return Trial(number=number, configuration=configuration, state=state, measurements=rows, predicted={})


def test_dominated_adapters_go_and_running_ones_stay(tmp_path: Path) -> None:
    kept = Artifacts(tmp_path, "s")
    history = History(
        trials=(
            trial(0, 4, 0.5),
            trial(1, 8, 0.4),
            trial(2, 8, 0.9),
            trial(3, 9, 0.1, TrialState.RUNNING),
            trial(4, 1, 0.99, TrialState.FAILED),
        )
    )
    for row in history:
        write_adapter(kept.prepare(row.number), row.configuration)
    kept.sweep(history, OBJECTIVES)
    assert sorted(path.name for path in kept.folder.iterdir()) == ["trial-0", "trial-2", "trial-3"]
    assert set(front_numbers(history, OBJECTIVES)) == {0, 2}


def test_an_earlier_attempt_is_cleared_away(tmp_path: Path) -> None:
    kept = Artifacts(tmp_path, "s")
    write_adapter(kept.prepare(0), trial(0, 1, 0.5).configuration)
    assert not kept.prepare(0).exists()


def test_sweeping_an_absent_folder_does_nothing(tmp_path: Path) -> None:
    Artifacts(tmp_path, "s").sweep(History(), OBJECTIVES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["rte-minilm", "a.b_c", "R2"])
def test_plain_names_are_kept(name: str) -> None:
    assert safe_name(name) == name


@given(st.text(max_size=200))
def test_no_name_leaves_its_folder(name: str) -> None:
    made = safe_name(name)
    assert made not in ("", ".", "..")
    assert not set(made) & set("/\\\0:")
    assert len(made.encode()) <= 100
    assert (Path("/root") / made).parent == Path("/root")


@given(st.text(max_size=30), st.text(max_size=30))
def test_two_names_do_not_share_a_folder(first: str, second: str) -> None:
    assert (safe_name(first) == safe_name(second)) == (first == second)
