"""What each verb of the command line does, after parsing: call the study, print tables or JSON."""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from autopeft.errors import SpecError
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.space import SearchSpace
from autopeft.studies.bind import BoundStudy, bind_study
from autopeft.studies.estimate import Conditions
from autopeft.studies.events import StopReason
from autopeft.studies.layer_prior import LayerPrior, find_layer_prior
from autopeft.studies.load import load_spec
from autopeft.studies.progress import choose_mode
from autopeft.studies.storage import StudyStorage
from autopeft.studies.study import Study
from autopeft.studies.tables import (
    CheckSummary,
    check_table,
    estimate_table,
    front_json,
    front_table,
    method_table,
    methods_table,
    print_table,
    studies_table,
    trials_json,
    trials_table,
)

N_SAMPLES = 256
"""Configurations looked at for the predicted ranges that `check` shows."""


def search(file: Path, *, storage: str, settings: Sequence[str], as_json: bool, quiet: bool, verbose: bool) -> int:
    """Run or resume; the exit status."""
    from autopeft.studies.session import run_session

    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    study = Study(load_spec(file, settings=settings), storage=storage)
    reason = run_session(study, mode=choose_mode(sys.stderr, quiet=quiet, as_json=as_json))
    show_front(study, as_json=as_json)
    return 0 if reason in (StopReason.BUDGET, StopReason.EXHAUSTED) else 1


def check(file: Path, *, storage: str, settings: Sequence[str], as_json: bool) -> None:
    """Validate and summarise a study file."""
    spec = load_spec(file, settings=settings)
    bound = bind_study(spec)
    summary = summarise(bound, find_layer_prior(spec, bound.space.shape, storage=storage))
    if as_json:
        print_json(summary.to_json())
    else:
        print_table(check_table(summary))


def summarise(bound: BoundStudy, prior: LayerPrior | None = None) -> CheckSummary:
    """Size and predicted ranges of a bound study, and what leads its first trials."""
    spec, space = bound.spec, bound.space
    size = space.size()
    parameters, memory = _range(space, "parameters"), _range(space, "memory")
    return CheckSummary(
        study=spec.study,
        model=spec.model.name,
        n_layers=space.shape.n_layers,
        objectives=spec.objectives,
        dimensions=tuple(_rows(space.definition.to_mapping())),
        configurations=size.configurations,
        continuous=size.continuous,
        parameters=(int(parameters[0]), int(parameters[1])),
        base_parameters=space.shape.base_parameters,
        memory=memory,
        n_trials=spec.search.trials,
        engine=spec.search.engine,
        rules=size.rules,
        layer_prior=prior,
    )


def _range(space: SearchSpace, quantity: str) -> tuple[float, float]:
    """Least and most of a quantity over the valid configurations: the extremes of a sample, followed downhill."""
    sample = space.sample(np.random.default_rng(0), N_SAMPLES)
    ends = [
        _descend(space, sample, lambda row, sign=sign: sign * space.quantity(quantity, row)) for sign in (1.0, -1.0)
    ]
    return space.quantity(quantity, ends[0]), space.quantity(quantity, ends[1])


def _descend(
    space: SearchSpace, sample: Sequence[Configuration], loss: Callable[[Configuration], float]
) -> Configuration:
    here = min(sample, key=loss)
    while True:
        best = min(space.neighbours(here), key=loss, default=here)
        if loss(best) >= loss(here):
            return here
        here = best


def _rows(space: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, domain as written) of everything a space says."""
    for name, value in space.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def front(name: str, *, storage: str, as_json: bool, plot: Path | None) -> None:
    """Show the front; draw it where asked."""
    study = Study.open(name, storage=storage)
    if plot is not None:
        from autopeft.studies.plots import check_plot_path, plot_front

        check_plot_path(plot)
        whole = study.front()
        plot_front(whole.front, whole.history, plot, study=study.name, shape=study.shape())
    show_front(study, as_json=as_json)


def show_front(study: Study, *, as_json: bool) -> None:
    """Print the front of a study to stdout."""
    whole = study.front()
    if as_json:
        print_json(front_json(whole.front, whole.history, study=study.name))
    else:
        print_table(front_table(whole.front, whole.history, study=study.name, shape=study.shape()))


def trials(name: str, *, storage: str, as_json: bool) -> None:
    """Show every trial."""
    study = Study.open(name, storage=storage)
    if as_json:
        print_json(trials_json(study.history(), study.spec.objectives))
    else:
        print_table(trials_table(study.history(), study.spec.objectives, shape=study.shape()))


def studies(*, storage: str, as_json: bool) -> None:
    """List the studies of a storage."""
    with StudyStorage.open(storage) as there:
        found = there.studies()
    if as_json:
        print_json(
            [
                {
                    "study": summary.name,
                    "objectives": [objective.to_json() for objective in summary.objectives],
                    "trials": {state.value: count for state, count in summary.trials.items()},
                }
                for summary in found
            ]
        )
    else:
        print_table(studies_table([(summary.name, summary.objectives, summary.trials) for summary in found]))


def export(name: str, *, pick: str, out: Path, storage: str, as_json: bool) -> None:
    """Hand over a point of the front."""
    done = Study.open(name, storage=storage).export(pick, out)
    if as_json:
        print_json(done.to_json())
        return
    scores = ", ".join(f"{metric} {value:.4f}" for metric, value in done.held_out.items())
    print(f"trial {done.trial} is in {done.folder} ({done.format} format); held-out {scores}")
    print(f"load it: autopeft.load({str(done.folder)!r})")


def methods(name: str | None, *, as_json: bool) -> None:
    """List the methods, or show one with its fields."""
    from autopeft.studies.method_list import method_row, method_rows

    if as_json:
        print_json(method_rows() if name is None else method_row(name))
    elif name is None:
        print_table(methods_table(method_rows()))
    else:
        print_table(method_table(method_row(name)))


def estimate(model: str, file: Path, conditions: Conditions, *, fit: str | None, as_json: bool) -> None:
    """Say what a configuration costs."""
    from autopeft.studies.estimate import estimate as cost

    found = cost(model, file, conditions, fit=fit)
    if as_json:
        print_json(found.to_json())
    else:
        print_table(estimate_table(found.to_json(), found.described))


def sync(name: str, *, storage: str, as_json: bool) -> None:
    """Mirror to MLflow what is not there yet."""
    from autopeft.studies.outbox import outbox_path
    from autopeft.studies.session import study_info
    from autopeft.studies.tracking import sync as mirror

    study = Study.open(name, storage=storage)
    uri = _tracking(study)
    counts = mirror(
        uri, study_info(study.spec, study.shape()), study.history(), outbox=outbox_path(storage, folder=Path())
    )
    if as_json:
        print_json({"trials": counts.trials, "queued": counts.queued, "sent": counts.sent})
    else:
        print(f"{counts.trials} trials, {counts.queued} of them new or changed, {counts.sent} notes sent")


def ui(name: str | None, *, storage: str, port: int, open_browser: bool) -> None:
    """Serve the MLflow UI until Ctrl-C."""
    from autopeft.studies.ui import start_ui

    study = None if name is None else Study.open(name, storage=storage)
    uri = "sqlite:///mlflow.db" if study is None else _tracking(study)
    with start_ui(uri, None if study is None else study.name, port=port, open_browser=open_browser) as running:
        print(f"MLflow UI: {running.url}  (Ctrl-C ends it)", flush=True)
        try:
            running.wait()
        except KeyboardInterrupt:
            print(file=sys.stderr)


def _tracking(study: Study) -> str:
    if study.spec.mlflow is None:
        raise SpecError(f"study {study.name}: tracking is off", hint="set tracking.mlflow in the study file")
    return study.spec.mlflow


def print_json(data: object) -> None:
    """One JSON document on stdout."""
    print(json.dumps(data, indent=2))
