"""A training between two epochs as one file, from which it goes on as if it had never stopped.

Data order, dropout and rates follow from seed and epoch; what else the next epoch depends on is here: the trained
tensors, the optimizer's moments, what moves ranks and draws layers, and what was measured so far. Nothing in it says
whether others trained beside: what was alone goes on in a pack, and the other way round.
"""

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from autopeft.objectives.measurement import Measurement
from autopeft.trainers.course import Course, Run
from autopeft.trainers.layer_sampling import LayerSampler
from autopeft.trainers.meter import MemoryMeter
from autopeft.trainers.model import fill_head

_FORMAT: Final = 1
_UNREADABLE: Final = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError)
"""What is raised for a file that is not there, cut short or something else."""


def save_snapshot(
    path: Path,
    course: Course,
    *,
    measured: tuple[Measurement, ...],
    meter: MemoryMeter,
    sampler: LayerSampler | None = None,
) -> None:
    """Write how `course` stands after the epochs of `measured`; the file appears whole or not at all."""
    run = course.run
    content = {
        "of": _identity(run),
        "measurements": json.dumps([row.to_json() for row in measured]),
        "adapters": {name: tensor.detach().cpu() for name, tensor in run.adapters.state_dict().items()},
        "head": {name: parameter.detach().cpu() for name, parameter in course.head.items()},
        "course": course.state(),
        "peak_bytes": meter.peak_bytes(course.optimizer),
        "sampler": None if sampler is None else sampler.state(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def restore_snapshot(
    path: Path, course: Course, *, meter: MemoryMeter, sampler: LayerSampler | None = None
) -> tuple[Measurement, ...]:
    """Put `course` where the file at `path` says that it was; what had been measured until then.

    Nothing, and nothing is changed, where there is no such file, where it is damaged, or where it is of another
    training: then the training begins anew.
    """
    run = course.run
    content = _read(path, device=run.loaded.model.device)
    if content is None or content["of"] != _identity(run):
        return ()
    run.adapters.load_state_dict(content["adapters"])
    fill_head(course.head, content["head"])
    course.restore(content["course"])
    meter.earlier_bytes = content["peak_bytes"]
    if sampler is not None:
        sampler.restore(content["sampler"])
    return tuple(Measurement.from_json(row) for row in json.loads(content["measurements"]))


def _read(path: Path, *, device: torch.device) -> Mapping[str, Any] | None:
    """The content of a snapshot; only tensors, numbers and texts are ever read."""
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except _UNREADABLE:
        return None
    return content if isinstance(content, dict) and "of" in content else None


def _identity(run: Run) -> str:
    """What must be the same for a training to go on."""
    facts = {
        "format": _FORMAT,
        "configuration": run.adapters.configuration.id,
        "seed": run.seed,
        "epochs": run.epochs,
        "rows": len(run.train.widths),
        "settings": repr(run.settings),
        "tensors": [(name, list(tensor.shape)) for name, tensor in run.adapters.state_dict().items()],
    }
    return json.dumps(facts)
