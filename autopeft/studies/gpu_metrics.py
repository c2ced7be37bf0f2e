"""How busy this machine's NVIDIA devices are, under the names of MLflow's own system metrics.

Read with `nvidia-smi`, which comes with every driver, from a thread; without one there is nothing to start. The
samples go through the outbox like everything else.
"""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from autopeft.errors import TrackingError

Json = dict[str, object]

SWITCH: Final = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
INTERVAL: Final = "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"
"""MLflow's own variables: `false` turns it off; seconds between two samples."""
SECONDS: Final = 10.0
KEPT: Final = 1000
"""Samples that wait for a server at most; then newer ones take the place of the oldest."""
_FIELDS: Final = ("index", "utilization.gpu", "memory.used", "memory.total", "power.draw", "enforced.power.limit")
_TIMEOUT: Final = 5.0
_MEGABYTES: Final = 2**20 / 1e6


def wanted() -> bool:
    """Whether there is a driver to ask and the user did not say no."""
    return shutil.which("nvidia-smi") is not None and os.environ.get(SWITCH, "").lower() not in ("false", "0")


def sample() -> dict[str, float]:
    """One reading of every device; empty when the driver does not answer in five seconds."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    values: dict[str, float] = {}
    for line in told.strip().splitlines():
        index, *numbers = (_number(cell) for cell in line.split(","))
        if index is not None and len(numbers) == len(_FIELDS) - 1:
            values |= _metrics(f"system/gpu_{int(index)}", *numbers)
    return values


def _metrics(
    name: str, busy: float | None, used: float | None, total: float | None, power: float | None, limit: float | None
) -> dict[str, float]:
    """Shares in per cent, memory in megabytes (the driver says MiB), power in watts; what is not known is left out."""
    found = {
        "utilization_percentage": busy,
        "memory_usage_megabytes": None if used is None else used * _MEGABYTES,
        "memory_usage_percentage": _share(used, total),
        "power_usage_watts": power,
        "power_usage_percentage": _share(power, limit),
    }
    return {f"{name}_{key}": round(value, 1) for key, value in found.items() if value is not None}


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else 100.0 * part / whole


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


class GpuSampler:
    """Hands a note to `put` every few seconds, from a thread, until it is closed.

    Args:
        put: Takes a key and a content; a TrackingError of it loses that sample.
    """

    def __init__(self, put: Callable[[str, Json], None]) -> None:
        self._put = put
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, name="autopeft-gpu", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._done.set()
        self._thread.join(2 * _TIMEOUT)

    def _work(self) -> None:
        pause = _number(os.environ.get(INTERVAL, "")) or SECONDS
        count = 0
        while not self._done.is_set():
            values = sample()
            if not values:
                return
            with suppress(TrackingError):
                self._put(f"system/{count % KEPT}", {"at_ms": int(time.time() * 1000), "values": values})
            count += 1
            self._done.wait(pause)
