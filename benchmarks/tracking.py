"""What tracking costs the driver: seconds that telling the mirror of one trial takes, and how long the thread needs.

A trial is told as a study tells it: started, reported `EPOCHS` times, finished, with a configuration of 24 dimensions.
Targets: nothing, a SQLite file, a server on this machine, and a server that does not answer, in one run.

Usage: `python benchmarks/tracking.py [--trials 60]`; appends rows to `benchmarks/results/tracking.jsonl`.
"""

import argparse
import os
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import write_rows
from tune_overhead import EPOCHS, OBJECTIVES, row, space

from autopeft.search.trial import History, Trial, TrialState
from autopeft.studies.events import StopReason, StudyOpened, StudyStopped, TrialFinished, TrialReported, TrialStarted
from autopeft.studies.notes import StudyInfo
from autopeft.studies.tracking import MlflowMirror
from autopeft.studies.ui import start_ui

BUSY = 1.5
"""Load average from which a row says that the machine was busy."""
PAUSE = 0.05
"""Seconds between two trials; the thread works meanwhile, as in a study."""


def trials(n: int) -> list[Trial]:
    bound = space()
    return [
        Trial(
            number=number,
            configuration=configuration,
            state=TrialState.COMPLETED,
            predicted={},
            measurements=tuple(row(epoch, number + 1) for epoch in range(1, EPOCHS + 1)),
            seconds=6.0,
        )
        for number, configuration in enumerate(bound.sample(np.random.default_rng(0), n))
    ]


def tell(listener: Callable[[object], None], told: Sequence[Trial]) -> list[float]:
    """Seconds the listener held the driver up, for each trial."""
    taken: list[float] = []
    listener(StudyOpened(study="s", objectives=OBJECTIVES, n_trials=len(told), history=History()))
    for trial in told:
        began = time.perf_counter()
        listener(TrialStarted(trial=replace(trial, state=TrialState.RUNNING, measurements=()), seed=0, attempt=1))
        for measurement in trial.measurements:
            listener(TrialReported(number=trial.number, measurement=measurement))
        listener(TrialFinished(trial=trial))
        taken.append(time.perf_counter() - began)
        time.sleep(PAUSE)
    listener(StudyStopped(reason=StopReason.BUDGET, history=History(trials=tuple(told))))
    return taken


def without(told: Sequence[Trial]) -> list[float]:
    """The same with a listener that does nothing."""
    return tell(lambda event: None, told)


def mirrored(uri: str, told: Sequence[Trial], folder: Path, *, wait: float) -> tuple[list[float], dict[str, float]]:
    """Seconds a trial; what the thread needed after the last one, and the CPU seconds a trial of driver and thread."""
    info = StudyInfo(name="s", objectives=OBJECTIVES, model="m", task="t", data="d", shape=space().shape)
    mirror = MlflowMirror(uri, info, outbox=folder / f"{len(list(folder.iterdir()))}.outbox.db", notify=print)
    cpu = time.process_time()
    taken = tell(mirror.on_event, told)
    began = time.perf_counter()
    left = mirror.close(wait)
    return taken, {
        "drain_seconds": round(time.perf_counter() - began, 2),
        "process_cpu_a_trial": round((time.process_time() - cpu) / len(told), 4),
        "left": left,
    }


def write(name: str, seconds: Sequence[float], **more: float) -> None:
    p50, p99 = np.percentile(seconds, [50, 99])
    result = {
        "name": name,
        "unit": "seconds a trial, of the driver",
        "mean": round(float(np.mean(seconds)), 6),
        "p50": round(float(p50), 6),
        "p99": round(float(p99), 6),
        "max": round(float(np.max(seconds)), 6),
        "n": len(seconds),
        "epochs": EPOCHS,
        "busy": os.getloadavg()[0] > BUSY,
        **more,
    }
    write_rows("tracking", [result])
    print(f"{name:12s} p50 {p50 * 1000:7.2f} ms   p99 {p99 * 1000:7.2f} ms   {more}")


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=60)
    told = trials(parser.parse_args().trials)
    with tempfile.TemporaryDirectory() as name, chdir(name):  # a server keeps artifacts where it was started
        folder = Path(name)
        write("none", without(told))
        taken, more = mirrored(f"sqlite:///{folder}/mlflow.db", told, folder, wait=120.0)
        write("sqlite", taken, **more)
        with start_ui(f"sqlite:///{folder}/server.db", port=0) as running:
            taken, more = mirrored(running.url, told, folder, wait=120.0)
        write("server", taken, **more)
        taken, more = mirrored(f"http://127.0.0.1:{closed_port()}", told, folder, wait=1.0)
        write("dead", taken, **more)


if __name__ == "__main__":
    main()
