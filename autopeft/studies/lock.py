"""One driver a study: who drives it is an attribute of the study, taken and kept by compare-and-set.

An owner on this machine is alive while its process is (guarded against a reused process id by the process's start
time), so that the lock of a driver that was killed is free at once. An owner elsewhere is alive while its heartbeat is.
"""

import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

from autopeft.errors import StorageError
from autopeft.studies.storage import StoredStudy

HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 90.0
"""An owner on another machine that was silent for so long is taken for dead; clocks may differ by less than this."""
_KEY = "driver"


class StudyLock:
    """Holds a study for one driver while it is open.

    Args:
        study: The study to hold.
        on_lost: Called once, from a thread, when another driver took the lock over (this one slept too long).
    """

    def __init__(self, study: StoredStudy, *, on_lost: Callable[[], None] | None = None) -> None:
        self._study = study
        self._on_lost = on_lost
        self.lost = False
        """Whether another driver took the study over."""
        self._mine = _owner()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="autopeft-lock", daemon=True)

    def __enter__(self) -> "StudyLock":
        """Take the lock.

        Raises:
            StorageError: A living driver holds it; names host, process and since when.
        """
        for _ in range(3):
            there = self._study.get_attr(_KEY)
            if isinstance(there, dict) and is_alive(there):
                raise self._refused(there)
            if self._study.swap_attr(_KEY, there, self._mine):
                self._thread.start()
                return self
        raise StorageError(f"study {self._study.name}: other drivers are starting too", hint="wait for them to end")

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._study.swap_attr(_KEY, self._mine, None)

    def _beat(self) -> None:
        while not self._done.wait(HEARTBEAT_SECONDS):
            fresh = self._mine | {"heartbeat": time.time()}
            try:
                if self._study.swap_attr(_KEY, self._mine, fresh):
                    self._mine = fresh
                    continue
            except StorageError:
                continue  # The next beat tries again; the driver's own writes will say what is wrong.
            self.lost = True
            if self._on_lost is not None:
                self._on_lost()
            return

    def _refused(self, owner: dict[str, object]) -> StorageError:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(owner["since"])))  # type: ignore[arg-type]
        here = owner["machine"] == self._mine["machine"]
        hint = (
            f"stop it first: kill {owner['pid']}"
            if here
            else f"stop it there; if that machine is gone, wait {STALE_SECONDS:.0f} seconds and try again"
        )
        return StorageError(
            f"study {self._study.name}: process {owner['pid']} on {owner['host']} drives it since {since}", hint=hint
        )


def is_driven(study: StoredStudy) -> bool:
    """Whether a living driver holds `study`."""
    there = study.get_attr(_KEY)
    return isinstance(there, dict) and is_alive(there)


def is_alive(owner: dict[str, object]) -> bool:
    """Whether the driver that wrote `owner` still runs, as far as can be told from here."""
    if owner["machine"] == _machine():
        return process_start(int(owner["pid"])) == owner["process_start"]  # type: ignore[call-overload]  # ours
    return time.time() - float(owner["heartbeat"]) < STALE_SECONDS  # type: ignore[arg-type]  # a number, ours


def process_start(pid: int) -> str | None:
    """When process `pid` began, in the kernel's ticks; None when there is no such process (or it is a zombie)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *rest = text.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]


def _owner() -> dict[str, object]:
    now = time.time()
    return {
        "host": platform.node(),
        "machine": _machine(),
        "pid": os.getpid(),
        "process_start": process_start(os.getpid()),
        "since": now,
        "heartbeat": now,
        "token": secrets.token_hex(8),
    }


def _machine() -> str:
    """One boot of one machine, as one set of process ids sees it (containers have their own)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()}/{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{platform.node()}/{secrets.token_hex(8)}"
