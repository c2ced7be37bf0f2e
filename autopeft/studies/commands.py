"""What each verb of the command line does, after parsing: call the study, print tables or JSON."""

import logging
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from autopeft.errors import SpecError, TrialError
from autopeft.studies.bind import bind_study
from autopeft.studies.events import Listener, StopReason, StudyEvent, TrialReported
from autopeft.studies.layer_prior import find_layers
from autopeft.studies.load import load_spec
from autopeft.studies.past import find_past
from autopeft.studies.progress import choose_mode
from autopeft.studies.storage import StudyStorage
from autopeft.studies.study import Study
from autopeft.studies.summary import summarise
from autopeft.studies.tables import (
    check_table,
    front_table,
    method_table,
    methods_table,
    studies_table,
    trials_json,
    trials_table,
)
from autopeft.studies.terminal import print_json, print_table

if TYPE_CHECKING:
    from autopeft.studies.handover import Export
    from autopeft.studies.options import ExportOptions

FINISHED = (StopReason.BUDGET, StopReason.EXHAUSTED)
"""Why a study stopped that has nothing left to do."""


def search(file: Path, *, storage: str, settings: Sequence[str], as_json: bool, quiet: bool, verbose: bool) -> int:
    """Run or resume; the exit status."""
    from autopeft.studies.session import run_session

    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    study = Study(load_spec(file, settings=settings), storage=storage)
    reason = run_session(study, mode=choose_mode(sys.stderr, quiet=quiet, as_json=as_json))
    show_front(study, as_json=as_json)
    return _status(reason, study)


def _status(reason: StopReason, study: Study) -> int:
    """The exit status of a run of `study`.

    Raises:
        TrialError: It has nothing left to do, and none of its trials has completed.
    """
    history = study.history()
    if reason in FINISHED and not history.completed:
        kinds = Counter(trial.failure.kind.value for trial in history if trial.failure is not None)
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "no trial fits"
        raise TrialError(
            f"study {study.name}: none of its {len(history)} trials has completed ({found})",
            hint=f"`autopeft trials {study.name}` says why each of them failed",
        )
    return 0 if reason in FINISHED else 1


def transfer(
    study: str,
    *,
    to: Path,
    mode: str,
    storage: str,
    settings: Sequence[str],
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Carry a study to another task; the exit status."""
    from autopeft.studies.replay import Replay
    from autopeft.studies.replay_table import replay_table
    from autopeft.studies.transfer import RUNS, check_mode
    from autopeft.studies.warm import warm_table

    run = RUNS[check_mode(mode)]
    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    shown = choose_mode(sys.stderr, quiet=quiet, as_json=as_json)
    done, reason = run(study, load_spec(to, settings=settings), storage=storage, mode=shown)
    opened = Study.open(done.study, storage=storage)
    if as_json:
        print_json(done.to_json())
    else:
        shape = opened.shape()
        print_table(replay_table(done, shape=shape) if isinstance(done, Replay) else warm_table(done, shape=shape))
    return _status(reason, opened)


def check(file: Path, *, storage: str, settings: Sequence[str], as_json: bool) -> None:
    """Validate and summarise a study file."""
    spec = load_spec(file, settings=settings)
    bound = bind_study(spec)
    prior = find_layers(spec, bound.space.shape, storage=storage)
    summary = summarise(bound, prior, past=find_past(spec, bound.space, storage=storage).studies)
    if as_json:
        print_json(summary.to_json())
    else:
        print_table(check_table(summary))


def front(name: str, *, storage: str, as_json: bool, plot: Path | None) -> None:
    """Show the front; draw it where asked."""
    study = Study.open(name, storage=storage)
    if plot is not None:
        from autopeft.studies.plots import check_plot_path, plot_front
        from autopeft.studies.report import insight_sections

        check_plot_path(plot)
        whole = study.front()
        sections = insight_sections(study.report()) if plot.suffix.lower() == ".html" else ""
        plot_front(
            whole.front,
            whole.history,
            plot,
            study=study.name,
            shape=study.shape(),
            confirmed=whole.confirmed,
            sections=sections,
        )
    show_front(study, as_json=as_json)


def show_front(study: Study, *, as_json: bool) -> None:
    """Print the front of a study to stdout."""
    whole = study.front()
    if as_json:
        print_json(whole.to_json())
        return
    shape = study.shape()
    print_table(front_table(whole.front, whole.history, study=study.name, shape=shape, confirmed=whole.confirmed))


def confirm(name: str, *, storage: str, settings: Sequence[str], as_json: bool, quiet: bool, verbose: bool) -> int:
    """Confirm a finished study, or go on with it; the exit status."""
    from autopeft.studies.confirm_tables import confirm_json, confirm_table
    from autopeft.studies.session import confirm_session

    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    study = Study.open(name, storage=storage, settings=settings)
    reason = confirm_session(study, mode=choose_mode(sys.stderr, quiet=quiet, as_json=as_json))
    found = study.confirmation()
    if found is not None and as_json:
        print_json(confirm_json(found))
    elif found is not None:
        print_table(confirm_table(found, shape=study.shape()))
    return 0 if reason in FINISHED else 1


def report(name: str, *, out: Path, storage: str, as_json: bool) -> None:
    """Write the page of a study."""
    from autopeft.studies.plots import check_plot_path
    from autopeft.studies.report import report_page

    check_plot_path(out, suffixes=[".html"], place="--out")
    study = Study.open(name, storage=storage)
    out.write_text(report_page(study.report()), "utf-8")
    if as_json:
        print_json({"study": study.name, "report": str(out), "bytes": out.stat().st_size})
    else:
        print(f"the report of {study.name} is {out}")


def trials(name: str, *, storage: str, as_json: bool) -> None:
    """Show every trial."""
    study = Study.open(name, storage=storage)
    if as_json:
        print_json(trials_json(study.history(), study.spec.objectives))
    else:
        print_table(trials_table(study.history(), study.spec.objectives, shape=study.shape()))


def studies(
    names: Sequence[str], *, export: bool, out: Path | None, import_: Path | None, storage: str, as_json: bool
) -> None:
    """List the studies of a storage, write some into a file, or take in those of a file."""
    from autopeft.studies.exchange import export_studies, import_studies

    _check_studies_options(names, export=export, out=out, import_=import_)
    if import_ is not None:
        show_moved(import_studies(import_, storage=storage), import_, "imported from", as_json=as_json)
    elif out is not None:
        show_moved(names, export_studies(names, out, storage=storage), "written to", as_json=as_json)
    else:
        list_studies(storage=storage, as_json=as_json)


def _check_studies_options(names: Sequence[str], *, export: bool, out: Path | None, import_: Path | None) -> None:
    """Refuse options that do not belong together.

    Raises:
        SpecError: With the form that does what was probably meant.
    """
    form = "autopeft studies --export STUDY... --out FILE"
    if import_ is not None and (export or names or out is not None):
        raise SpecError("--import: takes every study of its file, and no other option but --storage and --json")
    if export and not (names and out is not None):
        raise SpecError(f"--export: {'--out FILE is missing' if names else 'no study is named'}", hint=form)
    if not export and (names or out is not None):
        raise SpecError(f"{'--out' if out is not None else names[0]}: goes with --export only", hint=form)


def show_moved(names: Sequence[str], file: Path, how: str, *, as_json: bool) -> None:
    """Say which studies went into, or came out of, a file."""
    if as_json:
        print_json({"file": str(file), "studies": list(names)})
    else:
        print(f"{', '.join(names)}: {how} {file}")


def list_studies(*, storage: str, as_json: bool) -> None:
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


def export(name: str, *, pick: str, out: Path, storage: str, options: "ExportOptions", as_json: bool) -> None:
    """Hand over a completed trial."""
    options.resolve()
    study = Study.open(name, storage=storage)
    fields = asdict(options)
    show_export(study.export(pick, out, **fields, listeners=_told(as_json=as_json)), as_json=as_json)


def train(
    file: Path,
    *,
    task: Path,
    out: Path,
    seed: int,
    epochs: int | None,
    settings: Sequence[str],
    options: "ExportOptions",
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Train one configuration and hand it over."""
    from autopeft.studies.load import load_run
    from autopeft.studies.train import run_training

    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    mode = choose_mode(sys.stderr, quiet=quiet, as_json=as_json)
    spec = load_run(task, settings=settings)
    done = run_training(file, spec, out, seed=seed, epochs=epochs, options=options, mode=mode)
    show_export(done, as_json=as_json)


def show_export(done: "Export", *, as_json: bool) -> None:
    """Say what was written where, and how to load it."""
    if as_json:
        print_json(done.to_json())
        return
    what = "" if done.trial is None else f"trial {done.trial} is in "
    scores = ", ".join(f"{metric} {value:.4f}" for metric, value in done.held_out.items())
    print(f"{what}{done.folder} ({done.format} format)" + (f"; held-out {scores}" if scores else ""))
    if done.compression is not None:
        print(f"compressed to {done.compression['bits_a_number']:.2f} bits a trained number")
    if done.address is not None:
        print(f"on the hub: {done.address}")
    if done.format == "config":
        print(f"train it: autopeft train {done.folder}/configuration.yaml --task {done.folder}/task.yaml --out DIR")
    elif done.format == "mlflow":
        print(f"load it: mlflow.pyfunc.load_model({str(done.folder)!r})")
    else:
        print(f"load it: autopeft.load({str(done.folder)!r})")


def _told(*, as_json: bool) -> Sequence[Listener]:
    """What shows a second training: a line an epoch on stderr, nothing under --json."""
    from autopeft.studies.training import epoch_line

    def listen(event: StudyEvent) -> None:
        if isinstance(event, TrialReported) and not as_json:
            print(epoch_line(event.measurement, None), file=sys.stderr)

    return (listen,)


def methods(name: str | None, *, as_json: bool) -> None:
    """List the methods, or show one with its fields."""
    from autopeft.studies.method_list import method_row, method_rows

    if as_json:
        print_json(method_rows() if name is None else method_row(name))
    elif name is None:
        print_table(methods_table(method_rows()))
    else:
        print_table(method_table(method_row(name)))


def sync(name: str, *, register: Sequence[str], storage: str, as_json: bool) -> None:
    """Mirror to MLflow what is not there yet; put the points asked for into its model registry."""
    from autopeft.studies.sync import open_tracked, register_point, sync_study

    study = open_tracked(name, storage=storage)
    chosen = {pick: study.front().pick(pick) for pick in register}
    counts = sync_study(study)
    models = [register_point(study, pick, point) for pick, point in chosen.items()]
    if as_json:
        data = {"trials": counts.trials, "queued": counts.queued, "sent": counts.sent}
        print_json(data | {"models": [model.to_json() for model in models]})
        return
    print(f"{counts.trials} trials, {counts.queued} of them new or changed, {counts.sent} notes sent")
    for model in models:
        how = "is" if model.made else "was already"
        print(f"trial {model.trial} {how} version {model.version} of the model {model.name}: {model.uri}")


def ui(name: str | None, *, storage: str, port: int, open_browser: bool) -> None:
    """Serve the MLflow UI until Ctrl-C, SIGTERM or the end of the terminal."""
    from autopeft.studies.signals import endings_interrupt
    from autopeft.studies.sync import open_tracked
    from autopeft.studies.ui import start_ui

    study = None if name is None else open_tracked(name, storage=storage)
    uri = "sqlite:///mlflow.db" if study is None or study.spec.mlflow is None else study.spec.mlflow
    try:
        with (
            endings_interrupt(),
            start_ui(uri, None if study is None else study.name, port=port, open_browser=open_browser) as running,
        ):
            print(f"MLflow UI: {running.url}  (Ctrl-C ends it)", flush=True)
            running.wait()
    except KeyboardInterrupt:
        print(file=sys.stderr)
