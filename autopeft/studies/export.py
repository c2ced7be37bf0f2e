"""Hands over one point of a front: the trained adapter in the format that fits, its configuration and a card."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from autopeft.errors import NotFoundError, SpecError
from autopeft.objectives.front import FrontPoint
from autopeft.studies.card import render_card
from autopeft.studies.runner import trial_seed
from autopeft.studies.spec import StudySpec

FACTS_FILE = "export.json"
VERSIONS = ("autopeft", "torch", "transformers", "peft")


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What was written where."""

    folder: Path
    format: str
    """`peft` (loads with plain peft) or `autopeft` (loads with autopeft.load)."""
    trial: int
    values: Mapping[str, float]
    held_out: Mapping[str, float]
    """Metrics on the split that the search never saw."""

    def to_json(self) -> dict[str, object]:
        return {
            "folder": str(self.folder),
            "format": self.format,
            "trial": self.trial,
            "values": dict(self.values),
            "held_out": dict(self.held_out),
        }


def export(spec: StudySpec, point: FrontPoint, *, source: Path, out: Path) -> Export:
    """Write the adapter of `point` into `out`, scored once on the held-out split.

    Pure LoRA is written in Hugging Face PEFT format, anything else in AutoPEFT's own.

    Args:
        spec: The study.
        point: A point of its front.
        source: Folder of the trained adapter, as the search left it.
        out: Folder to make; it appears whole or not at all.

    Raises:
        SpecError: `out` is a file, or a folder that is not empty.
        NotFoundError: The trained adapter of the trial is gone.
        ModelError: The trained adapter is damaged, or the base model is not where it was.
    """
    _check_out(out)
    if not source.is_dir():
        raise NotFoundError(
            f"study {spec.study}: the trained adapter of trial {point.trial} is not in {source}",
            hint="it stays on the machine that ran the search; run export there, or search again",
        )
    held_out = _held_out(spec, source)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        kind = _write_adapter(source, scratch)
        done = Export(folder=out, format=kind, trial=point.trial, values=dict(point.values), held_out=held_out)
        _write_facts(scratch, spec, point, source=source, done=done)
        if out.is_dir():
            out.rmdir()
        scratch.chmod(0o755)
        os.replace(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return done


def _check_out(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()):
        raise SpecError(f"--out {out}: the folder is not empty", hint="name a new folder")
    if out.exists() and not out.is_dir():
        raise SpecError(f"--out {out}: there is a file of that name", hint="name a new folder")


def _held_out(spec: StudySpec, source: Path) -> dict[str, float]:
    from autopeft.trainers.trainer import Trainer

    trainer = Trainer(spec.model, spec.task, spec.training)
    try:
        return trainer.evaluate(source, split="test")
    finally:
        trainer.close()


def _write_adapter(source: Path, folder: Path) -> str:
    from autopeft.trainers.peft_format import convert_to_peft, fits_peft

    if fits_peft(source):
        convert_to_peft(source, folder)
        return "peft"
    for file in source.iterdir():
        shutil.copy2(file, folder / file.name)
    return "autopeft"


def _write_facts(folder: Path, spec: StudySpec, point: FrontPoint, *, source: Path, done: Export) -> None:
    from autopeft.trainers.saved import read_info

    info = read_info(source)
    facts: dict[str, object] = {
        "format": done.format,
        "study": spec.study,
        "trial": point.trial,
        "seed": trial_seed(spec.search.seed, point.trial),
        "model": spec.model.name,
        "revision": spec.model.revision,
        "task": {**info.task, "kind": info.kind, "n_labels": info.n_labels},
        "configuration": point.configuration.to_json(),
        "training": spec.to_mapping()["training"],
        "objectives": [objective.to_json() for objective in spec.objectives],
        "values": dict(point.values),
        "validation": dict(point.measurement.metrics),
        "held_out": dict(done.held_out),
        "parameters": point.measurement.parameters,
        "head_parameters": point.measurement.head_parameters,
        "peak_bytes": point.measurement.peak_bytes,
        "train_seconds": point.measurement.train_seconds,
        "versions": {name: version(name) for name in VERSIONS},
    }
    (folder / FACTS_FILE).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(render_card(facts, spec, info.shape, point), encoding="utf-8")
