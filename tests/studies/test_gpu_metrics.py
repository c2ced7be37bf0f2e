import time
from pathlib import Path

import pytest

from autopeft.errors import TrackingError
from autopeft.studies import gpu_metrics
from autopeft.studies.gpu_metrics import GpuSampler, sample, wanted
from autopeft.studies.tracking import MlflowMirror
from tests.studies.synthetic import history
from tests.studies.test_mirror import until
from tests.studies.test_tracking import INFO, events, mlflow, runs_of


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first on the path, for a `nvidia-smi` of our own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.delenv(gpu_metrics.SWITCH, raising=False)
    return folder


def install(folder: Path, says: str) -> None:
    file = folder / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n{says}\n")
    file.chmod(0o755)


TWO = "printf '0, 87, 40000, 80000, 350.5, 700.0\\n1, [N/A], 10, 80000, [N/A], [N/A]\\n'"


def test_devices_are_read_under_mlflows_names_and_what_is_not_known_is_left_out(driver: Path) -> None:
    install(driver, TWO)
    assert wanted()
    assert sample() == {
        "system/gpu_0_utilization_percentage": 87.0,
        "system/gpu_0_memory_usage_megabytes": 41943.0,
        "system/gpu_0_memory_usage_percentage": 50.0,
        "system/gpu_0_power_usage_watts": 350.5,
        "system/gpu_0_power_usage_percentage": 50.1,
        "system/gpu_1_memory_usage_megabytes": 10.5,
        "system/gpu_1_memory_usage_percentage": 0.0,
    }


@pytest.mark.parametrize("says", ["exit 9", "echo NVIDIA-SMI has failed", "exec sleep 60"])
def test_a_driver_that_is_unwell_gives_nothing(driver: Path, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_metrics, "_TIMEOUT", 0.3)
    install(driver, says)
    assert sample() == {}


def test_nothing_is_read_without_a_driver_or_when_the_user_says_no(
    driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(driver, TWO)
    monkeypatch.setenv(gpu_metrics.SWITCH, "False")
    assert not wanted()
    monkeypatch.delenv(gpu_metrics.SWITCH)
    monkeypatch.setenv("PATH", "/nowhere")
    assert not wanted()
    assert sample() == {}


def test_a_sample_that_cannot_be_queued_is_lost_and_the_next_one_taken(
    driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(driver, TWO)
    monkeypatch.setenv(gpu_metrics.INTERVAL, "0.01")
    keys: list[str] = []

    def put(key: str, content: dict[str, object]) -> None:
        keys.append(key)
        raise TrackingError("disk full")

    sampler = GpuSampler(put)
    sampler.start()
    until(lambda: len(keys) > 1)
    sampler.close()
    assert keys[:2] == ["system/0", "system/1"]


def test_a_study_on_a_gpu_has_its_use_on_the_parent_run(
    driver: Path, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(driver, TWO)
    monkeypatch.setenv(gpu_metrics.INTERVAL, "0.2")
    mirror = MlflowMirror(uri, INFO, outbox=tmp_path / "o.db")
    for event in events(history(2)):
        mirror.on_event(event)
    time.sleep(0.5)
    assert mirror.close(30.0) == 0
    parent = runs_of(uri)["rte"]
    rows = mlflow.MlflowClient(uri).get_metric_history(parent.info.run_id, "system/gpu_0_utilization_percentage")
    assert len(rows) > 1
    assert {row.value for row in rows} == {87.0}
