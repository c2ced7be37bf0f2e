"""Trains one configuration at full budget, logs it, and hands it over: what `autopeft train` does."""

import json
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from autopeft.errors import ConfigurationError, SpecError
from autopeft.search.trial import History, Trial, TrialState
from autopeft.spaces.canonical import configuration as read_mapping
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.virtual_tokens import virtual_tokens
from autopeft.studies.bind import bind_run
from autopeft.studies.estimate import read_configuration_file
from autopeft.studies.events import Listener, Noted, StopReason, StudyEvent, StudyOpened, StudyStopped
from autopeft.studies.handover import Export, Handover, Subject
from autopeft.studies.hub import HubApi
from autopeft.studies.load import load_run, run_from_mapping
from autopeft.studies.options import ExportOptions
from autopeft.studies.progress import ProgressMode, StudyProgress, choose_mode, event_json
from autopeft.studies.session import MIRROR_SECONDS, run_info
from autopeft.studies.spec import RunSpec
from autopeft.studies.training import EpochReporter, Training, train_into
from autopeft.trainers.checkpoint import check_length
from autopeft.trainers.loop import settings_of


def train(
    configuration: str | Path | Mapping[str, object] | Configuration,
    *,
    task: str | Path | Mapping[str, object],
    out: str | Path,
    seed: int = 0,
    epochs: int | None = None,
    settings: Sequence[str] = (),
    format: str = "auto",
    merge: bool = False,
    compress: str | None = None,
    push_to_hub: str | None = None,
    progress: bool = True,
) -> Export:
    """Train one configuration and write it into the folder `out`.

    Args:
        configuration: A file (YAML or JSON of ours, an `export.json`, or peft's `adapter_config.json`), the same as a
            mapping, or a `Configuration`.
        task: A task file or a study file, or the content of one: `model`, `task`, and if wished `training`,
            `tracking`.
        out: Folder to make; it appears whole or not at all.
        seed: Of initialisation, data order and dropout.
        epochs: Instead of the task file's `training.epochs`.
        settings: `key.path=value` overrides of the task file.
        format: A key of `options.FORMATS`.
        merge: Fold the adapter into the base weights.
        compress: See `options.parse_compression`.
        push_to_hub: A repository of the Hugging Face hub.
        progress: Show on stderr how it goes.

    Raises:
        InputError: Something that was given is not usable; nothing was trained or written.
        TrialError: The training failed; nothing was written.
    """
    if isinstance(task, Mapping):
        spec = run_from_mapping(task, settings=settings)
    else:
        spec = load_run(Path(task), settings=settings)
    options = ExportOptions(format=format, merge=merge, compress=compress, push_to_hub=push_to_hub)
    mode = choose_mode(sys.stderr, quiet=not progress)
    return run_training(configuration, spec, Path(out), seed=seed, epochs=epochs, options=options, mode=mode)


def run_training(
    configuration: str | Path | Mapping[str, object] | Configuration,
    spec: RunSpec,
    out: Path,
    *,
    seed: int,
    epochs: int | None,
    options: ExportOptions,
    mode: ProgressMode,
    api: HubApi | None = None,
) -> Export:
    """`train`, with the task read and the way to report chosen."""
    resolved = options.resolve()
    if resolved.format == "config":
        raise SpecError("--format: config has no weights", hint="leave the training out: the file is the configuration")
    if epochs is not None:
        spec = replace(spec, training=replace(spec.training, epochs=epochs))
    shape, memory = bind_run(spec)
    chosen = _read(configuration, shape)
    settings_of(spec.training, chosen)
    if shape.image is None:
        check_length(spec.model, spec.training.max_length, virtual=virtual_tokens(chosen))
    handover = Handover(out, resolved, shape=shape, configuration=chosen, spec=spec, api=api)
    trial = Trial(number=0, configuration=chosen, state=TrialState.RUNNING, predicted={"memory": memory(chosen)})
    training = Training(spec=spec, trial=trial, seed=seed, epochs=spec.training.epochs)
    with tempfile.TemporaryDirectory(prefix="autopeft-") as folder:
        source = Path(folder) / "adapter"
        trial = _watched(training, source, shape, mode=mode)
        assert trial.final is not None
        subject = Subject(
            spec=spec,
            configuration=chosen,
            shape=shape,
            seed=seed,
            measurement=trial.final,
            predicted=trial.predicted,
        )
        return handover.finish(subject, source)


def _read(given: str | Path | Mapping[str, object] | Configuration, shape: ModelShape) -> Configuration:
    """The configuration on this model.

    Raises:
        SpecError: The file cannot be read.
        ConfigurationError: It is none, or does not fit the model.
    """
    if isinstance(given, Configuration):
        return given
    data = given if isinstance(given, Mapping) else read_configuration_file(Path(given))
    try:
        if "peft_type" in data:
            from autopeft.trainers.peft_import import read_peft_config

            return read_peft_config(data, shape)
        return read_mapping(data, shape)
    except ConfigurationError as error:
        raise error if isinstance(given, Mapping) else error.at(str(given)) from None


def _watched(training: Training, source: Path, shape: ModelShape, *, mode: ProgressMode) -> Trial:
    """Train with progress on stderr and, where the task file asks for it, a run on the tracking server."""
    progress = StudyProgress()

    def as_json(event: StudyEvent) -> str:
        progress.update(event)
        return json.dumps(event_json(event, progress))

    reporter = EpochReporter(sys.stderr, mode, epochs=training.epochs, to_json=as_json)
    with ExitStack() as stack:
        stack.callback(reporter.close)
        listeners: list[Listener] = [reporter.on_event]
        if training.spec.mlflow is not None:
            listeners.append(_mirror(training, shape, reporter, stack))
        opened = StudyOpened(
            study=training.spec.name, objectives=training.spec.objectives, n_trials=1, history=History()
        )
        for listener in listeners:
            listener(opened)
        trial, reason = training.trial, StopReason.ABORTED
        try:
            trial = train_into(training, source, listeners=listeners)
            reason = StopReason.BUDGET
        except KeyboardInterrupt:
            reason = StopReason.INTERRUPTED
            raise
        finally:
            for listener in listeners:
                listener(StudyStopped(reason=reason, history=History(trials=(trial,))))
    return trial


def _mirror(training: Training, shape: ModelShape, reporter: EpochReporter, stack: ExitStack) -> Listener:
    """A listener that makes a run on the tracking server; what it does not take within a while is lost, and said."""
    from autopeft.studies.tracking import MlflowMirror

    def say(message: str) -> None:
        reporter.on_event(Noted(message=message))

    assert training.spec.mlflow is not None
    box = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="autopeft-")))
    info = run_info(training.spec, shape, identity=uuid.uuid4().hex)
    mirror = MlflowMirror(training.spec.mlflow, info, outbox=box / "outbox.db", notify=say)

    def close() -> None:
        if mirror.close(MIRROR_SECONDS):
            say("the tracking server did not take this run; the folder has all of it")

    stack.callback(close)
    return mirror.on_event
