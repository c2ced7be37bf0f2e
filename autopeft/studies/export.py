"""Takes one point of a study away: its weights as the search kept them or trained again, in the format asked for."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from autopeft.errors import NotFoundError
from autopeft.objectives.front import FrontPoint
from autopeft.objectives.measurement import Measurement
from autopeft.search.trial import Trial, TrialState
from autopeft.spaces.model_shape import ModelShape
from autopeft.studies.events import Listener
from autopeft.studies.handover import Export, Handover, Subject
from autopeft.studies.hub import HubApi
from autopeft.studies.options import ExportOptions
from autopeft.studies.runner import trial_seed
from autopeft.studies.spec import RunSpec, StudySpec
from autopeft.studies.training import Training, train_into


def export(
    spec: StudySpec,
    point: FrontPoint,
    *,
    shape: ModelShape,
    predicted: Mapping[str, float],
    on_front: bool,
    source: Path,
    out: Path,
    options: ExportOptions,
    listeners: Sequence[Listener] = (),
    api: HubApi | None = None,
) -> Export:
    """Write a completed trial into `out`, scored once on the held-out split.

    Args:
        spec: The study.
        point: One of its completed trials.
        shape: Of the base model.
        predicted: What was known of the trial before it was trained.
        on_front: Whether no other trial dominates it.
        source: Folder of the trained adapter, as the search left it.
        out: Folder to make; it appears whole or not at all.
        options: The format, and what is done to the weights.
        listeners: Told how a second training goes.
        api: The hub; None is the real one.

    Raises:
        SpecError: `out` is taken, or the options contradict each other.
        NotFoundError: The trained adapter of the trial is gone.
        ConfigurationError: The format cannot hold the configuration.
        ModelError: The trained adapter is damaged, or the base model is not where it was.
        TrialError: A second training failed.
        HubError: The hub does not answer, or did not take the folder.
    """
    run, resolved = RunSpec.of_study(spec), options.resolve()
    handover = Handover(out, resolved, shape=shape, configuration=point.configuration, spec=run, api=api)
    subject = Subject(
        spec=run,
        configuration=point.configuration,
        shape=shape,
        seed=trial_seed(spec.search.seed, point.trial),
        measurement=point.measurement,
        predicted=predicted,
        trial=point.trial,
        values=point.values,
        search={"engine": spec.search.engine, "seed": spec.search.seed, "trials": spec.search.trials},
        on_front=on_front,
    )
    if resolved.format == "config":
        return handover.finish(subject, None)
    if not resolved.train:
        if not source.is_dir():
            raise NotFoundError(
                f"study {spec.study}: the trained adapter of trial {point.trial} is not in {source}",
                hint="--train trains it again with the same seed and budget",
            )
        return handover.finish(subject, source)
    with tempfile.TemporaryDirectory(prefix="autopeft-") as folder:
        again = Path(folder) / "adapter"
        measurement = _trained(subject, again, listeners)
        return handover.finish(replace(subject, measurement=measurement, searched=point.measurement), again)


def _trained(subject: Subject, folder: Path, listeners: Sequence[Listener]) -> Measurement:
    """What was measured of the configuration, trained as the search did it."""
    assert subject.trial is not None
    trial = Trial(
        number=subject.trial,
        configuration=subject.configuration,
        state=TrialState.RUNNING,
        predicted=subject.predicted,
    )
    training = Training(spec=subject.spec, trial=trial, seed=subject.seed, epochs=subject.measurement.epoch)
    final = train_into(training, folder, listeners=listeners).final
    assert final is not None
    return final
