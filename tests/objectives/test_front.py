import json
import subprocess
import sys

import numpy as np
import pytest

from autopeft.errors import NotFoundError, SpecError
from autopeft.objectives.front import Front, FrontPoint, hypervolume_curve, losses_of
from autopeft.objectives.hypervolume import hypervolume
from tests.objectives.support import ACCURACY, OBJECTIVES, PARAMETERS, measurement, point, setting

TRIALS = [
    point(0, 0.60, parameters=100, memory=1000),
    point(1, 0.90, parameters=1000, memory=1200),
    point(2, 0.92, parameters=100_000, memory=3000),
    point(3, 0.80, parameters=2000, memory=1500),
    point(4, 0.90, parameters=1000, memory=1200),
]
FRONT = Front.of(TRIALS, OBJECTIVES)
EMPTY = Front.of([], OBJECTIVES)


def test_it_holds_the_non_dominated_trials_best_first_and_one_of_equals() -> None:
    assert [found.trial for found in FRONT] == [2, 1, 0]
    assert len(FRONT) == 3
    assert FRONT[0].trial == 2


def test_its_volume_is_that_of_its_losses_and_reference() -> None:
    reference = np.array([objective.to_loss(FRONT.reference[objective.name]) for objective in OBJECTIVES])
    assert FRONT.hypervolume == pytest.approx(hypervolume(FRONT.losses, reference))
    assert FRONT.reference["accuracy"] == pytest.approx(0.60 - 0.032)
    assert FRONT.reference["parameters"] == pytest.approx(100_000 + 9990)


def test_a_given_reference_is_used() -> None:
    pair = (ACCURACY, PARAMETERS)
    front = Front.of(TRIALS, pair, reference={"accuracy": 0.5, "parameters": 1100})
    assert front.hypervolume == pytest.approx(0.1 * 900 + 0.4 * 100)
    with pytest.raises(SpecError, match="reference: no value for parameters"):
        Front.of(TRIALS, pair, reference={"accuracy": 0.5})


def test_trials_without_finite_values_are_left_out() -> None:
    broken = point(9, float("nan"), parameters=1)
    assert 9 not in [found.trial for found in Front.of([*TRIALS, broken], OBJECTIVES)]


def test_the_knee_weighs_costs_by_ratio() -> None:
    assert FRONT.knee().trial == 1


def test_costs_together_weigh_as_much_as_the_metric() -> None:
    ends = Front.of([TRIALS[0], TRIALS[2]], OBJECTIVES)
    assert ends.knee().trial == 2


def test_best_takes_the_end_of_the_front() -> None:
    assert FRONT.best("accuracy").trial == 2
    assert FRONT.best("parameters").trial == 0


def test_best_of_several_equals_is_their_knee() -> None:
    tied = [point(0, 0.9, parameters=10, memory=900), point(1, 0.9, parameters=900, memory=10), TRIALS[0]]
    assert Front.of(tied, OBJECTIVES).best("accuracy").trial == 0


@pytest.mark.parametrize(
    ("pick", "trial"),
    [
        ("knee", 1),
        ("best:accuracy", 2),
        ("best: memory", 0),
        ("trial:0", 0),
        ("accuracy >= 0.85, min parameters", 1),
        ("accuracy >= 0.91", 2),
        ("parameters <= 1k", 1),
    ],
)
def test_a_pick_chooses_one_point(pick: str, trial: int) -> None:
    assert FRONT.pick(pick).trial == trial


@pytest.mark.parametrize(
    ("pick", "error", "message"),
    [
        ("best:speed", NotFoundError, "no objective called 'speed'.*accuracy, parameters, memory"),
        ("trial:3", NotFoundError, "trial 3 is not on the front.*its trials are 0, 1, 2"),
        ("trial:x", SpecError, "got 'trial:x'.*knee, best:OBJECTIVE, trial:N"),
        ("worst:accuracy", SpecError, "got 'worst:accuracy'"),
        ("elbow", SpecError, "got 'elbow'"),
    ],
)
def test_a_pick_that_cannot_be_met_says_what_exists(pick: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FRONT.pick(pick)


@pytest.mark.parametrize("pick", ["knee", "best:accuracy", "trial:0", "min parameters"])
def test_an_empty_front_has_nothing_to_pick(pick: str) -> None:
    assert EMPTY.to_json() == {
        "objectives": [objective.to_json() for objective in OBJECTIVES],
        "hypervolume": 0.0,
        "reference": {},
        "front": [],
    }
    with pytest.raises(NotFoundError, match="front is empty: no trial has completed"):
        EMPTY.pick(pick)


def test_json_has_whole_numbers_for_counts_and_survives_a_round_trip() -> None:
    data = json.loads(json.dumps(FRONT.to_json()))
    assert list(data) == ["objectives", "hypervolume", "reference", "front"]
    assert data["objectives"][0] == {"name": "accuracy", "direction": "maximize", "unit": ""}
    assert data["front"][1] == {
        "trial": 1,
        "values": {"accuracy": 0.9, "parameters": 1000, "memory": 1200},
        "configuration": setting(2).to_json(),
    }
    assert isinstance(data["front"][1]["values"]["parameters"], int)


def test_the_table_has_a_row_a_point() -> None:
    table = FRONT.to_frame()
    assert list(table.columns) == ["trial", "accuracy", "parameters", "memory", "configuration"]
    assert table["trial"].tolist() == [2, 1, 0]
    assert EMPTY.to_frame().empty


def test_the_curve_never_falls_and_ends_at_the_fronts_volume() -> None:
    curve = hypervolume_curve(reversed(TRIALS), OBJECTIVES)
    assert [trial for trial, _ in curve] == [0, 1, 2, 3, 4]
    volumes = [volume for _, volume in curve]
    assert volumes == sorted(volumes)
    assert volumes[-1] == pytest.approx(FRONT.hypervolume)
    assert hypervolume_curve([], OBJECTIVES) == []


def test_each_entry_of_the_curve_is_the_volume_so_far() -> None:
    reference = np.array([objective.to_loss(FRONT.reference[objective.name]) for objective in OBJECTIVES])
    for count, (_, volume) in enumerate(hypervolume_curve(TRIALS, OBJECTIVES, reference=FRONT.reference), start=1):
        assert volume == pytest.approx(hypervolume(losses_of(TRIALS[:count], OBJECTIVES), reference))


def test_a_point_lacks_no_objective() -> None:
    with pytest.raises(KeyError):
        FrontPoint.of(
            0,
            setting(),
            measurement=measurement(0.9, parameters=1),
            objectives=(
                ACCURACY.__class__(name="f1", direction=ACCURACY.direction, unit="", knowledge=ACCURACY.knowledge),
            ),
        )


def test_importing_it_imports_no_pandas() -> None:
    code = "import sys, autopeft.objectives.front; sys.exit('pandas' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
