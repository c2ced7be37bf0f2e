"""Ray for the time of a run: quiet, in a folder that goes with it, off the network."""

import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import ray

from autopeft.errors import ExecutorError, SpecError
from autopeft.studies.executor import Resources
from autopeft.studies.lock import process_start

_PREFIX = "autopeft-ray-"
_STORE_BYTES = 100 * 2**20
"""Of Ray's object store: jobs and reports are a few kilobytes."""
_STARTS = 3
"""How often Ray is started before that is given up."""
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "60",
}
"""Keeps Ray and Tune quiet, in the working folder, off the network, and from taking Ctrl-C.

When a driver is killed Ray's processes die with it, but its two idle agents look for the rest for a minute first.
"""


@contextmanager
def ray_session(resources: Resources) -> Iterator[Path]:
    """A quiet Ray to run on, and a folder that is deleted with it; sessions nest, the outermost one owns Ray.

    Raises:
        SpecError: No cluster at the address.
        ExecutorError: Ray does not start on this machine.
    """
    base = _short_folder()
    _clear_leftovers(base)
    folder = TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-", dir=base, ignore_cleanup_errors=True)
    with folder as path, _environment(), _muted(), _ray(resources, Path(path)):
        yield Path(path)


@contextmanager
def _environment() -> Iterator[None]:
    """What Ray reads from the environment, set for the time of a run; all its variables are put back after."""
    before = dict(os.environ)
    os.environ.update(_SETTINGS)
    # Ray guards a cluster with a token, which it would write below the home folder if it were not given one.
    os.environ.setdefault("RAY_AUTH_TOKEN", _token())
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(("RAY_", "TUNE_"))]:
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if name not in os.environ})


@contextmanager
def _muted() -> Iterator[None]:
    """Ray's log stays below CRITICAL out of sight; failed trials are told by the study, not by Tune."""
    from ray._private import worker as core

    logger = logging.getLogger("ray")
    level, told = logger.level, core.print_to_stdstream
    logger.setLevel(logging.CRITICAL)
    # Ray 2.60 prints a dead worker's obituary on stdout, whatever log_to_driver says; data of ours goes there.
    core.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        core.print_to_stdstream = told
        logger.setLevel(level)


@cache
def _token() -> str:
    """One token a process: Ray's core reads it once."""
    return secrets.token_hex(32)


@contextmanager
def _ray(resources: Resources, folder: Path) -> Iterator[None]:
    """A Ray to run on: the process's own, the cluster at `resources.address`, or one started here and ended after."""
    if ray.is_initialized():
        yield
        return
    options: dict[str, object] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if resources.address is not None:
        options["address"] = resources.address
    else:
        options |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES, "_temp_dir": str(folder / "ray")}
        if resources.max_jobs is not None:
            options["num_cpus"] = max(resources.max_jobs * resources.cpus_per_job, os.cpu_count() or 1)
    if resources.address is not None:
        _join(resources.address, options)
    else:
        _start(options)
    try:
        yield
    finally:
        ray.shutdown()


def _join(address: str, options: Mapping[str, object]) -> None:
    try:
        ray.init(**options)  # type: ignore[arg-type]  # names and types as in its signature
    except ConnectionError as error:
        raise SpecError(
            f"resources.address: no Ray cluster answers at {address!r}",
            hint="start one with `ray start --head`, or leave the address out to use this machine",
        ) from error


def _start(options: Mapping[str, object]) -> None:
    """Start Ray here. On a busy machine its parts do not find each other within the 30 s it gives them: try again."""
    for left in reversed(range(_STARTS)):
        try:
            ray.init(**options)  # type: ignore[arg-type]  # names and types as in its signature
            return
        except Exception as error:  # Ray raises nothing narrower
            ray.shutdown()
            if not left:
                raise ExecutorError(
                    f"Ray did not start on this machine, {_STARTS} times: {error}",
                    hint="the machine may be too busy: run the same command again, or with"
                    " `--set resources.executor=local`, which needs no Ray",
                ) from error


def _short_folder() -> Path:
    """Ray's socket names have 107 bytes; a long temporary folder leaves no room for them."""
    return Path("/tmp" if len(gettempdir()) > 30 else gettempdir())


def _clear_leftovers(base: Path) -> None:
    """Remove what drivers that were killed could not."""
    for path in base.glob(f"{_PREFIX}*-*"):
        owner = path.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and process_start(int(owner)) is None:
            shutil.rmtree(path, ignore_errors=True)
