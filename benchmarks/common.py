"""What every benchmark writes beside its numbers, and where."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from autopeft.objectives.measurement import Measurement
from autopeft.search.trial import Trial, TrialState
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.space import SearchSpace

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(os.environ.get("AUTOPEFT_RESULTS") or ROOT / "benchmarks" / "results")
"""Where rows go; `AUTOPEFT_RESULTS` names another folder."""
PACKAGES = (
    *("numpy", "torch", "triton", "transformers", "peft", "botorch", "gpytorch", "optuna", "ray", "mlflow"),
    *("jax", "numpyro"),  # of the extra bench
)


def environment() -> dict[str, object]:
    """Hardware, versions and source state that a number needs beside it."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "gpu": _gpu(),
        "driver": _driver(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES if _has(name)},
        "commit": _git("rev-parse", "--short", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_rows(name: str, rows: Iterable[Mapping[str, object]]) -> Path:
    """Append rows, each with the environment, to `results/<name>.jsonl`; its path."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path, about = RESULTS / f"{name}.jsonl", environment()
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(about | dict(row)) + "\n")
    return path


def made_up_trial(
    number: int, configuration: Configuration, space: SearchSpace, *, accuracy: float, memory_ratio: float = 1.0
) -> Trial:
    """A completed trial that nobody ran: one epoch, peak memory so many times the predicted one."""
    predicted = space.predicted(configuration)
    measured = Measurement(
        epoch=1,
        metrics={"accuracy": accuracy},
        train_loss=1 - accuracy,
        train_seconds=10.0,
        evaluation_seconds=1.0,
        tokens=1000,
        peak_bytes=round(memory_ratio * predicted.get("memory", 0.0)),
        parameters=space.parameters(configuration),
    )
    return Trial(
        number=number,
        configuration=configuration,
        state=TrialState.COMPLETED,
        measurements=(measured,),
        predicted=predicted,
    )


def spread(values: Sequence[float]) -> dict[str, float]:
    """Quantiles that stand for many values."""
    p20, p50, p80 = np.quantile(values, [0.2, 0.5, 0.8])
    return {"p20": float(p20), "p50": float(p50), "p80": float(p80)}


def _has(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _driver() -> str | None:
    return _told("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def _git(*arguments: str) -> str | None:
    return _told("git", *arguments)


def _told(program: str, *arguments: str) -> str | None:
    """What a program prints; None where there is no such program, or it fails."""
    if shutil.which(program) is None:
        return None
    found = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None if found.returncode == 0 else None
