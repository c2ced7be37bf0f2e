"""Trains jobs on one real base model that stays loaded between them."""

import gc
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import final

import torch

from autopeft.errors import ModelError, SpecError, TrialError
from autopeft.objectives.measurement import Measurement
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.virtual_tokens import virtual_tokens
from autopeft.trainers import loop
from autopeft.trainers.adapters.quick_softmax import quicken
from autopeft.trainers.batches import EncodedSplit
from autopeft.trainers.calibration import calibrate
from autopeft.trainers.checkpoint import check_length
from autopeft.trainers.course import Run, pad_id_of
from autopeft.trainers.data import Splits
from autopeft.trainers.failures import failure_of
from autopeft.trainers.inject import AdapterSet, inject
from autopeft.trainers.job import (
    AbstractSlots,
    AbstractTrainer,
    ModelSpec,
    Report,
    TaskSpec,
    TrainingSettings,
    TrainJob,
)
from autopeft.trainers.model import LoadedModel, load_head_state, load_model, read_shape, reset_head
from autopeft.trainers.packed.drive import Packed
from autopeft.trainers.packed.sharing import alone_because
from autopeft.trainers.precision import fit_model
from autopeft.trainers.prefix import FrozenPrefix, lowest_layer
from autopeft.trainers.rows import Split
from autopeft.trainers.saved import read_adapter, save_adapter
from autopeft.trainers.scores import Scores
from autopeft.trainers.sites import without_cache
from autopeft.trainers.slots import Entries, Entry
from autopeft.trainers.task import load_task, read_split, resolve_task, tokenize_split
from autopeft.trainers.tokens import cache_folder


@final
class Trainer(AbstractTrainer):
    """One base model, one task; model and tokenised data are loaded on first use and kept.

    Args:
        model: The base; what it leaves open of dtype and attention is chosen for speed (`precision.fit_model`).
        task: What is learned.
        settings: How, where a configuration does not say otherwise.
        device: `cpu`, `cuda`, `cuda:1`...; None takes a CUDA device where there is one.
        cache: Folder for tokenised data; None is `tokens.cache_folder()`.
        threads: Sets torch's threads for the whole process; None leaves them.

    Raises:
        SpecError: A setting out of range, an unknown kind or metric.
        ModelError: Images are to be read, and the model's configuration cannot be.
    """

    def __init__(
        self,
        model: ModelSpec,
        task: TaskSpec,
        settings: TrainingSettings,
        *,
        device: str | None = None,
        cache: Path | None = None,
        threads: int | None = None,
    ) -> None:
        loop.check_settings(settings)
        if threads is not None:
            torch.set_num_threads(threads)
        self._named = model
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._spec = task
        self._settings = settings
        self._task = resolve_task(task)
        longest = _longest(model, settings, images=self._task.reads_images)
        self._model = fit_model(model, settings.precision, device=self._device, max_length=longest)
        self._metrics = tuple(dict.fromkeys((task.metric, *task.extra_metrics)))
        self._cache = cache or cache_folder()
        self._splits: Splits | None = None
        self._loaded: LoadedModel | None = None
        self._tokens: dict[str, EncodedSplit] = {}
        self._prefix: FrozenPrefix | None = None

    @property
    def shape(self) -> ModelShape:
        """Shape of the base as it is trained, dtype and attention among it; reads no weights.

        Raises:
            ModelError: The model cannot be read.
        """
        return self._loaded.shape if self._loaded is not None else read_shape(self._model)

    @property
    def splits(self) -> Splits:
        """The task's rows, read once.

        Raises:
            DataError: They cannot be used.
        """
        if self._splits is None:
            _, self._splits = load_task(self._spec, seed=self._settings.seed)
        return self._splits

    @property
    def loaded(self) -> LoadedModel:
        """The base model on its device, loaded once.

        Raises:
            ModelError: It cannot be loaded.
            SpecError: `max_length` is above what it takes.
        """
        if self._loaded is None:
            if not self._task.reads_images:
                check_length(self._model, self._settings.max_length)
            n_labels = self._task.n_labels(self.splits.classes)
            loaded = load_model(self._model, kind=self._spec.kind, n_labels=n_labels)
            loaded.model.to(device=self._device)  # type: ignore[arg-type]  # transformers wraps Module.to without its types
            without_cache(loaded.model)
            quicken(loaded.model, loaded.shape)
            self._loaded = loaded
        return self._loaded

    def tokens(self, split: str) -> EncodedSplit:
        """One split (`train`, `validation`, `test`) as the model reads it; each is made when it is first asked for."""
        if split not in self._tokens:
            self._tokens[split] = self._encode(self.splits.split(split))
        return self._tokens[split]

    def _encode(self, split: Split) -> EncodedSplit:
        loaded, classes = self.loaded, self.splits.classes
        if loaded.reader is not None:
            assert loaded.shape.image is not None, "a model with an image processor reads images"
            n_tokens = loaded.shape.image.n_tokens
            return read_split(
                self._task, split, classes=classes, reader=loaded.reader, n_tokens=n_tokens, cache=self._cache
            )
        assert loaded.tokenizer is not None, "a model without an image processor reads texts"
        return tokenize_split(
            self._task,
            split,
            classes=classes,
            tokenizer=loaded.tokenizer,
            max_length=self._settings.max_length,
            cache=self._cache,
        )

    def run(self, job: TrainJob, slots: AbstractSlots | None = None) -> Iterator[Report]:
        """Train the job's configurations, `job.at_once` of them at a time, and then what `slots` refills them with.

        `job.settings["deadline_seconds"]` limits each of them. The head is drawn anew from each one's seed. The test
        split is scored with the last report of each where the job says so, and is not touched otherwise. A
        configuration that diverges, runs out of memory or past its deadline yields one report with its failure.

        Raises:
            ConfigurationError: A configuration does not fit the model.
            DataError: The data cannot be used.
            ModelError: The base cannot be loaded.
        """
        entries = Entries(job, slots)
        if job.at_once > 1:
            yield from Packed(self.loaded, self, entries, at_once=job.at_once).run()
            return
        for entry in entries.in_turn():
            yield from self.alone(entry, entries)

    def alone(self, entry: Entry, entries: Entries) -> Iterator[Report]:
        """The reports of one configuration that nothing trains beside."""
        failure: tuple[str, str] | None = None
        reports = self._train_one(entry)
        try:
            for report in reports:
                yield report
                if not report.done and entries.stopped(entry.slot):
                    break
        except (TrialError, MemoryError, RuntimeError) as error:
            failure = failure_of(error)
            if failure is None:
                raise
        finally:
            reports.close()
        if failure is not None:
            self._free()
            yield Report(slot=entry.slot, measurement=None, failure=failure, done=True)

    def shares(self, entry: Entry) -> bool:
        """Whether a configuration can train beside others."""
        settings = loop.settings_of(self._settings, entry.configuration)
        return alone_because(entry.configuration, settings, kind=self._spec.kind) is None

    def evaluate(self, adapter: Path | AdapterSet, split: str = "test") -> dict[str, float]:
        """Metrics and loss of a trained adapter on a split; see `score`.

        Raises:
            DivergedError: A prediction is NaN or infinite.
            ModelError: As `score`.
        """
        return self.score(adapter, split).values

    def score(self, adapter: Path | AdapterSet, split: str = "test") -> Scores:
        """What the model with a trained adapter says of every row of a split.

        Args:
            adapter: A folder that `run` wrote (its head is loaded too), or adapters that are attached now.
            split: `train`, `validation` or `test`.

        Raises:
            ModelError: The folder is no adapter, or one of another base or task.
        """
        if isinstance(adapter, AdapterSet):
            return loop.predict(self._run_of(adapter, self._settings, epochs=0, seed=0), self.tokens(split))
        with self.attached(adapter) as adapters:
            return self.score(adapters, split)

    @contextmanager
    def attached(self, folder: Path) -> Iterator[AdapterSet]:
        """The adapter of a folder on this trainer's model, with its head, for the length of a `with` block.

        Raises:
            ModelError: The folder is no adapter, or one of another base or task.
        """
        adapters = self._attach(folder)
        try:
            yield adapters
        finally:
            adapters.remove()

    def close(self) -> None:
        """Free the model and the device memory; the next use loads them again."""
        self._loaded = self._prefix = None
        self._tokens.clear()
        self._free()

    def _train_one(self, entry: Entry) -> Generator[Report]:
        run = self.begin(entry)
        try:
            for measurement in loop.train(run):
                asked = entry.job.evaluate_test and measurement.epoch == run.epochs
                scored = loop.predict(run, self.tokens("test")) if asked else None
                yield self.report(entry, run, measurement, scored)
        finally:
            run.adapters.remove()

    def begin(self, entry: Entry) -> Run:
        """What is to be trained, its adapters on the model and its head drawn; the model is bare before."""
        configuration, seed = entry.configuration, entry.seed
        settings = loop.settings_of(self._settings, configuration)
        if not self._task.reads_images:
            check_length(self._model, settings.max_length, virtual=virtual_tokens(configuration))
        deadline, loaded = _deadline(entry.job), self.loaded
        reset_head(loaded, seed)
        cut = self._cut(entry, settings)
        began = time.perf_counter()
        adapters = inject(
            loaded.model, loaded.shape, configuration, seed=seed, prepare=partial(self._calibrate, seed=seed)
        )
        prepared = time.perf_counter() - began
        try:
            run = self._run_of(adapters, settings, epochs=entry.job.epochs, seed=seed, deadline=deadline)
        except BaseException:
            adapters.remove()
            raise
        return replace(run, prepared_seconds=prepared, prefix=self._prefix, cut=cut, checkpoint=entry.checkpoint)

    def _cut(self, entry: Entry, settings: TrainingSettings) -> int:
        """Where an entry's rows enter the model; what its layers make of them is kept where that is needed again."""
        loaded, job = self.loaded, entry.job
        if self._prefix is None:
            budget, pad_id = self._settings.prefix_bytes, pad_id_of(loaded)
            self._prefix = FrozenPrefix(loaded, self._task, budget=budget, pad_id=pad_id)
        lowest = lowest_layer(entry.configuration, settings, n_layers=loaded.shape.n_layers)
        splits = self.tokens("train"), self.tokens("validation")
        return self._prefix.prepare(lowest, splits, keep=job.epochs > 1 or job.at_once > 1)

    def report(self, entry: Entry, run: Run, measurement: Measurement, scored: Scores | None) -> Report:
        """What is said of an epoch; with the last, adapters and the model's head are written where it is asked for."""
        done = measurement.epoch == run.epochs
        if done and entry.folder is not None:
            self._save(entry.folder, run.adapters, measurement)
        return Report(
            slot=entry.slot,
            measurement=measurement,
            done=done,
            test_metrics=scored.values if scored else {},
            test_draws=scored.draws(self._spec.metric) if scored else (),
        )

    def _calibrate(self, adapters: AdapterSet, *, seed: int) -> None:
        calibrate(
            adapters,
            loaded=self.loaded,
            task=self._task,
            train=self.tokens("train"),
            pad_id=pad_id_of(self.loaded),
            seed=seed,
        )

    def _save(self, folder: Path, adapters: AdapterSet, measurement: Measurement) -> None:
        """Write adapters and head; the base is named as the user did, so that a reader picks its own attention."""
        named = replace(self.loaded, spec=replace(self._model, attention=self._named.attention))
        task = {
            "kind": self._spec.kind,
            **self._inputs(),
            "labels": list(self.splits.classes),
            "metric": self._spec.metric,
            "metrics": dict(measurement.metrics),
        }
        save_adapter(folder, adapters, loaded=named, task=task)

    def _inputs(self) -> dict[str, object]:
        """What is noted of how rows were read."""
        if self._task.reads_images:
            return {"image": self._spec.image}
        return {"text": list(self._spec.text), "max_length": self._settings.max_length}

    def _attach(self, folder: Path) -> AdapterSet:
        info, adapters, head = read_adapter(folder)
        loaded = self.loaded
        if info.shape.layers != loaded.shape.layers or info.kind != loaded.kind:
            raise ModelError(
                f"{folder}: is for {info.kind} on {info.spec.name!r}, this trainer has {loaded.kind} on "
                f"{self._model.name!r}",
                hint=f"load it on {info.spec.name!r}",
            )
        load_head_state(loaded, head)
        adapters.to(self._device)
        adapters.attach(loaded.model, loaded.shape)
        return adapters

    def _run_of(
        self, adapters: AdapterSet, settings: TrainingSettings, *, epochs: int, seed: int, deadline: float | None = None
    ) -> Run:
        return Run(
            loaded=self.loaded,
            adapters=adapters,
            task=self._task,
            metrics=self._metrics,
            train=self.tokens("train"),
            validation=self.tokens("validation"),
            settings=settings,
            epochs=epochs,
            seed=seed,
            deadline_seconds=deadline,
        )

    def _free(self) -> None:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _deadline(job: TrainJob) -> float | None:
    value = job.settings.get("deadline_seconds")
    if value is None:
        return None
    if not isinstance(value, (int, float)) or value <= 0:
        raise SpecError(f"deadline_seconds: got {value!r}; a number of seconds above 0 is needed")
    return float(value)


def _longest(model: ModelSpec, settings: TrainingSettings, *, images: bool) -> int:
    """Tokens of the longest row there may be."""
    image = read_shape(model).image if images else None
    return settings.max_length if image is None else image.n_tokens


"""Its padding's position is 1, whatever the id."""
