"""Hands over trained weights: held-out score, the format that fits, a card, and if asked a place on the hub."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from autopeft.errors import ConfigurationError, SpecError
from autopeft.objectives.interval import Interval
from autopeft.objectives.measurement import Measurement
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.model_shape import ModelShape
from autopeft.studies.base_facts import read_license
from autopeft.studies.card import as_mapping, render_card
from autopeft.studies.config_files import write_configuration
from autopeft.studies.formats import FormatWriter, Written, base_facts, write_facts
from autopeft.studies.hub import HubApi, check_hub, hub_api, push
from autopeft.studies.options import ResolvedOptions
from autopeft.studies.spec import RunSpec

VERSIONS = ("autopeft", "torch", "transformers", "peft")

Json = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is handed over: one configuration, and how it was found and trained."""

    spec: RunSpec
    configuration: Configuration
    shape: ModelShape
    seed: int
    measurement: Measurement
    """Of the training whose weights these are; of the search's where there are no weights."""
    predicted: Mapping[str, float]
    """Known before training: `parameters`, `memory`."""
    trial: int | None = None
    """Of the study called `spec.name`; None where the configuration was trained by itself."""
    values: Mapping[str, float] = field(default_factory=dict)
    """The study's objectives as the search measured them."""
    search: Mapping[str, object] | None = None
    """Engine, seed and trials of the study."""
    on_front: bool = True
    searched: Measurement | None = None
    """The search's measurement, where the weights are those of a second training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What was written where."""

    folder: Path
    format: str
    """A key of `options.FORMATS`, but `auto`."""
    trial: int | None
    """None where the configuration was trained by itself."""
    values: Mapping[str, float]
    """The study's objectives as the search measured them; empty without a study."""
    validation: Mapping[str, float]
    """Metrics on the validation rows, of the training whose weights these are."""
    held_out: Mapping[str, float]
    """Metrics on the split that the search never saw; empty where no weights were written."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """95 % intervals of them."""
    compression: Mapping[str, object] | None = None
    address: str | None = None
    """On the hub."""

    def to_json(self) -> Json:
        return {
            "folder": str(self.folder),
            "format": self.format,
            "trial": self.trial,
            "values": dict(self.values),
            "validation": dict(self.validation),
            "held_out": dict(self.held_out),
            "intervals": {name: interval.to_json() for name, interval in self.intervals.items()},
            "compression": None if self.compression is None else dict(self.compression),
            "address": self.address,
        }


class Handover:
    """A hand-over that was asked for; everything that can be refused without weights is refused at once.

    Args:
        out: Folder to make; it appears whole or not at all.
        options: What was asked for.
        model_shape: Of the base.
        configuration: What is handed over.
        spec: How it is or was trained.
        api: The hub; None is the real one.

    Raises:
        SpecError: `out` is a file or a folder that is not empty; the hub does not know this user.
        ConfigurationError: The format cannot hold the configuration, or it cannot be merged.
        HubError: The hub does not answer.
    """

    def __init__(
        self,
        out: Path,
        options: ResolvedOptions,
        *,
        shape: ModelShape,
        configuration: Configuration,
        spec: RunSpec,
        api: HubApi | None = None,
    ) -> None:
        self._out, self._options = out, options
        check_out(out)
        check_format(options, spec=spec, shape=shape, configuration=configuration)
        self._api = None
        if options.repository is not None:
            self._api = api or hub_api()
            check_hub(options.repository, self._api)

    def finish(self, subject: Subject, source: Path | None) -> Export:
        """Write the folder, and put it on the hub.

        Args:
            subject: What is handed over.
            source: Folder of the trained adapter; None for the format that has no weights.

        Raises:
            ConfigurationError, ModelError: The adapter does not go into the format, or is damaged.
            HubError: The folder is there, the hub did not take it.
        """
        with scratch_for(self._out) as scratch:
            written = None if source is None else _written(subject, source, scratch, self._options)
            facts = subject_facts(subject)
            if written is not None:
                own = written.facts()
                facts |= own | {"task": {**as_mapping(facts["task"]), **as_mapping(own["task"])}}
            else:
                reason = write_configuration(scratch, subject.configuration, subject.shape, subject.spec)
                facts |= {"format": "config", "no_snippet": reason}
            write_facts(scratch, facts)
            (scratch / "README.md").write_text(render_card(facts, subject.shape), encoding="utf-8")
        address = None
        if self._options.repository is not None:
            assert self._api is not None
            title = f"Export of {subject.spec.name}"
            address = push(self._out, self._options.repository, self._api, message=title)
        return Export(
            folder=self._out,
            format="config" if written is None else written.format,
            trial=subject.trial,
            values=dict(subject.values),
            validation=dict(subject.measurement.metrics),
            held_out={} if written is None else written.held_out,
            intervals={} if written is None else written.intervals,
            compression=None if written is None else written.compression,
            address=address,
        )


def check_out(out: Path) -> None:
    """Refuse a place that is taken.

    Raises:
        SpecError: A file, or a folder that is not empty.
    """
    if out.is_dir() and any(out.iterdir()):
        raise SpecError(f"--out {out}: the folder is not empty", hint="name a new folder")
    if out.exists() and not out.is_dir():
        raise SpecError(f"--out {out}: there is a file of that name", hint="name a new folder")


def check_format(options: ResolvedOptions, *, spec: RunSpec, shape: ModelShape, configuration: Configuration) -> None:
    """Refuse what the format asked for cannot hold, before anything is trained or loaded.

    Raises:
        ConfigurationError: With what is in the way.
    """
    if options.format == "mlflow" and spec.task.kind == "image-classification":
        raise ConfigurationError(
            "--format mlflow: answers texts, this study's rows are images",
            hint="use --merge, and log the folder with mlflow.transformers",
        )
    if not options.merge and options.format != "peft":
        return
    from autopeft.trainers.merged import check_merge
    from autopeft.trainers.peft_folder import check_folder, expected_info

    info = expected_info(spec.model, shape, configuration, kind=spec.task.kind)
    try:
        check_merge(info) if options.merge else check_folder(info)
    except ConfigurationError as error:
        hint = "leave --merge out: --format auto keeps the adapter apart from the base"
        if not options.merge:
            hint = "use --format autopeft, or leave the format out"
        raise ConfigurationError(error.message, hint=hint) from None


def _written(subject: Subject, source: Path, folder: Path, options: ResolvedOptions) -> Written:
    writer = FormatWriter(subject.spec, source, options)
    try:
        return writer.write(folder)
    finally:
        writer.close()


def subject_facts(subject: Subject) -> Json:
    """For `export.json`, what does not depend on the format."""
    spec, measured = subject.spec, subject.measurement
    task = {
        "kind": spec.task.kind,
        "text": list(spec.task.text),
        "image": spec.task.image,
        "label": spec.task.label,
        "metric": spec.task.metric,
        **({} if spec.task.image else {"max_length": spec.training.max_length}),
    }
    return base_facts(spec) | {
        "name": spec.name,
        "study": spec.name if subject.search is not None else None,
        "trial": subject.trial,
        "on_front": subject.on_front,
        "search": None if subject.search is None else dict(subject.search),
        "seed": subject.seed,
        "license": read_license(spec.model.name, spec.model.revision),
        "task": task,
        "data": {key: value for key, value in asdict(spec.task.data).items() if value is not None},
        "configuration": subject.configuration.to_json(),
        "training": spec.training.to_mapping(),
        "objectives": [objective.to_json() for objective in spec.objectives],
        "values": dict(subject.values),
        "validation": dict(measured.metrics),
        "searched": None if subject.searched is None else dict(subject.searched.metrics),
        "predicted": dict(subject.predicted),
        "epochs": measured.epoch,
        "parameters": measured.parameters,
        "head_parameters": measured.head_parameters,
        "peak_bytes": measured.peak_bytes,
        "train_seconds": measured.train_seconds,
        "versions": {name: version(name) for name in VERSIONS},
    }


@contextmanager
def scratch_for(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends well, and is gone otherwise."""
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield scratch
        if out.is_dir():
            out.rmdir()
        scratch.chmod(0o755)
        os.replace(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
