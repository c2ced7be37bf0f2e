"""Writes trained weights in a format, and scores on the held-out rows what was written."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from autopeft.errors import ConfigurationError
from autopeft.objectives.interval import Interval
from autopeft.spaces.configuration import Configuration
from autopeft.studies.loading import FACTS_FILE
from autopeft.studies.options import ResolvedOptions
from autopeft.studies.spec import RunSpec
from autopeft.trainers.compress_folder import compress_folder
from autopeft.trainers.inject import AdapterSet
from autopeft.trainers.kinds import CLASSIFICATION
from autopeft.trainers.merged import check_merge, write_merged
from autopeft.trainers.peft_folder import fits_folder, write_folder
from autopeft.trainers.saved import AdapterInfo, read_info
from autopeft.trainers.scores import Scores
from autopeft.trainers.trainer import Trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a folder holds, and how it scores."""

    format: str
    held_out: Mapping[str, float]
    intervals: Mapping[str, Interval]
    info: AdapterInfo
    adapters: tuple[str, ...] = ()
    """Of the format peft: one a sub-folder, where it has several."""
    inner: str | None = None
    """Of the format mlflow: the folder inside that holds the weights."""
    difference: float | None = None
    """Of the format merged: how much the most changed number differs of those that scoring held-out rows looks at."""
    compression: Mapping[str, object] | None = None
    before: Mapping[str, float] = field(default_factory=dict)
    """Of compressed weights: the held-out metrics before."""
    columns: tuple[str, ...] = ()
    """Of the format mlflow: the columns that a table of texts needs."""
    pad_token_id: int | None = None
    """Of a decoder with a classifier, whose base does not say it."""

    def facts(self) -> dict[str, object]:
        """For `export.json`."""
        return {
            "format": self.format,
            "held_out": dict(self.held_out),
            "intervals": {name: interval.to_json() for name, interval in self.intervals.items()},
            "adapters": list(self.adapters),
            "inner": self.inner,
            "difference": self.difference,
            "compression": None if self.compression is None else dict(self.compression),
            "held_out_before": dict(self.before),
            "columns": list(self.columns),
            "task": {
                **self.info.task,
                "kind": self.info.kind,
                "n_labels": self.info.n_labels,
                "pad_token_id": self.pad_token_id,
            },
            "dtype": self.info.spec.dtype,
        }


class FormatWriter:
    """Writes one trained adapter; holds its base model and data until `close`.

    Args:
        spec: What it was trained with.
        source: Its folder.
        options: What was asked for.
    """

    def __init__(self, spec: RunSpec, source: Path, options: ResolvedOptions) -> None:
        self._spec, self._source, self._options = spec, source, options
        self._info = read_info(source)
        self._trainer = Trainer(spec.model, spec.task, spec.training)

    def close(self) -> None:
        self._trainer.close()

    def write(self, folder: Path) -> Written:
        """Write into the empty `folder`.

        Raises:
            ConfigurationError, ModelError: The adapter does not go into the format, or is damaged.
        """
        scores = self._trainer.score(self._source, "test")
        chosen = self._options.format
        if chosen == "auto":
            chosen = "peft" if fits_folder(self._info) else "autopeft"
        written = Written(
            format=chosen,
            held_out=scores.values,
            intervals=scores.intervals(),
            info=self._info,
            pad_token_id=self._padding(),
        )
        if chosen == "peft":
            return replace(written, adapters=write_folder(self._source, folder).adapters)
        if chosen == "merged":
            return self._merged(folder, written, scores)
        if chosen == "mlflow":
            return self._mlflow(folder, written, scores)
        return self._own(folder, written)

    def _own(self, folder: Path, written: Written) -> Written:
        wanted, metric = self._options.compression, self._spec.task.metric
        if wanted is None:
            _copy(self._source, folder)
            return written
        done = compress_folder(self._trainer, self._source, folder, wanted, metric=metric)
        scores = self._trainer.score(folder, "test")
        return replace(
            written,
            held_out=scores.values,
            intervals=scores.intervals(),
            compression=done.to_json(),
            before=written.held_out,
        )

    def _merged(self, folder: Path, written: Written, before: Scores) -> Written:
        write_merged(self._trainer, self._source, folder)
        merged = Trainer(
            replace(self._spec.model, name=str(folder), revision=None), self._spec.task, self._spec.training
        )
        try:
            scores = merged.score(AdapterSet(Configuration(methods=(), training=()), {}), "test")
        finally:
            merged.close()
        return replace(
            written,
            held_out=scores.values,
            intervals=scores.intervals(),
            difference=before.largest_difference(scores),
        )

    def _mlflow(self, folder: Path, written: Written, before: Scores) -> Written:
        """Classes of texts as a pipeline of transformers with everything in it, where the adapter merges; else code
        of ours around the folder of another format.
        """
        from autopeft.studies import mlflow_folder

        cells = self._trainer.splits.test.texts[0]
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".autopeft-mlflow.") as bench:
            inner, place = written, Path(bench) / "adapter"
            classes = self._info.kind == CLASSIFICATION and (self._info.n_labels or 0) > 1
            pipeline = classes and (self._options.merge or self._merges())
            if pipeline or self._options.merge:
                inner = self._merged(place, replace(written, format="merged"), before)
            elif fits_folder(self._info):
                inner = replace(written, format="peft", adapters=write_folder(self._source, place).adapters)
            else:
                inner = replace(written, format="autopeft")
                _copy(self._source, place)
            write_facts(place, {**base_facts(self._spec), **inner.facts()})
            write = mlflow_folder.write_pipeline if pipeline else mlflow_folder.write_code
            where, columns = write(folder, place, columns=self._spec.task.text, cells=cells, info=self._info)
        return replace(inner, format="mlflow", inner=where, columns=columns)

    def _padding(self) -> int | None:
        tokenizer = self._trainer.loaded.tokenizer
        token = None if tokenizer is None else tokenizer.pad_token_id
        needed = self._info.shape.causal and self._info.kind == CLASSIFICATION
        return token if needed and isinstance(token, int) else None

    def _merges(self) -> bool:
        try:
            check_merge(self._info)
        except ConfigurationError:
            return False
        return True


def _copy(source: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for file in source.iterdir():
        shutil.copy2(file, folder / file.name)


def base_facts(spec: RunSpec) -> dict[str, object]:
    """What `autopeft.load` needs to know of the base model."""
    model = spec.model
    return {"model": model.name, "revision": model.revision, "trust_remote_code": model.trust_remote_code}


def write_facts(folder: Path, facts: Mapping[str, object]) -> None:
    """Write `export.json`."""
    text = json.dumps(dict(facts), indent=2, sort_keys=True) + "\n"
    (folder / FACTS_FILE).write_text(text, encoding="utf-8")
