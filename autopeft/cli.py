"""The verbs of the command line: parse, call one function, print. No logic lives here.

Data goes to stdout, logs and progress to stderr. Exit status: 0 done, 1 failed, 2 wrong usage or wrong input.
"""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from autopeft.errors import AutoPeftError, InputError

DEFAULT_STORAGE = "sqlite:///autopeft.db"

app = typer.Typer(
    name="autopeft",
    help="Searches how to fine-tune, and returns the Pareto front of quality, parameters and memory.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="A study file.", show_default=False)]
StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study's name in the storage, or its file.", show_default=False)
]
Storage = Annotated[str, typer.Option("--storage", metavar="URL", help="Where studies are kept.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a field of the study file; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Data on stdout as JSON, nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say what the libraries underneath say.")]

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="A new or empty folder.", show_default=False)]
Format = Annotated[
    str, typer.Option("--format", metavar="FORMAT", help="auto, peft, autopeft, merged, mlflow or config.")
]
Merge = Annotated[bool, typer.Option("--merge", help="Fold the adapter into the base weights.")]
Compress = Annotated[
    str | None, typer.Option("--compress", metavar="HOW", help="compeft, compeft:k=10,alpha=2 or 1bit.")
]
PushToHub = Annotated[
    str | None, typer.Option("--push-to-hub", metavar="REPO", help="Put it on the Hugging Face hub as owner/name.")
]


@app.command()
def search(
    study: StudyFile,
    storage: Storage = DEFAULT_STORAGE,
    settings: Settings = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run (or resume) a study to its trial budget; Ctrl-C leaves it resumable."""
    from autopeft.studies.commands import search as run

    raise typer.Exit(
        run(study, storage=storage, settings=settings or (), as_json=as_json, quiet=quiet, verbose=verbose)
    )


@app.command()
def check(
    study: StudyFile, storage: Storage = DEFAULT_STORAGE, settings: Settings = None, as_json: Json = False
) -> None:
    """Validate a study file; print its dimensions, size, predicted costs and budget. Trains nothing."""
    from autopeft.studies.commands import check as run

    run(study, storage=storage, settings=settings or (), as_json=as_json)


@app.command()
def front(
    study: StudyName,
    storage: Storage = DEFAULT_STORAGE,
    as_json: Json = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write a chart: .html, .png or .svg.")
    ] = None,
) -> None:
    """The Pareto front."""
    from autopeft.studies.commands import front as run

    run(study, storage=storage, as_json=as_json, plot=plot)


@app.command()
def confirm(
    study: StudyName,
    storage: Storage = DEFAULT_STORAGE,
    settings: Settings = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train the front and tuned baselines on further seeds; score them on the held-out split."""
    from autopeft.studies.commands import confirm as run

    raise typer.Exit(
        run(study, storage=storage, settings=settings or (), as_json=as_json, quiet=quiet, verbose=verbose)
    )


@app.command()
def report(
    study: StudyName,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.html", help="The page to write.", show_default=False)],
    storage: Storage = DEFAULT_STORAGE,
    as_json: Json = False,
) -> None:
    """One self-contained page: the front, what was confirmed, what mattered, what was run."""
    from autopeft.studies.commands import report as run

    run(study, out=out, storage=storage, as_json=as_json)


@app.command()
def trials(study: StudyName, storage: Storage = DEFAULT_STORAGE, as_json: Json = False) -> None:
    """Every trial with state, values, seconds and failure kind."""
    from autopeft.studies.commands import trials as run

    run(study, storage=storage, as_json=as_json)


@app.command()
def export(
    study: StudyName,
    out: Out,
    pick: Annotated[
        str,
        typer.Option("--pick", metavar="PICK", help="knee, best:OBJECTIVE, trial:N or 'accuracy >= 0.9, min memory'."),
    ] = "knee",
    format_: Format = "auto",
    merge: Merge = False,
    train: Annotated[
        bool, typer.Option("--train", help="Train it again (same seed and budget) instead of taking the kept weights.")
    ] = False,
    compress: Compress = None,
    push_to_hub: PushToHub = None,
    storage: Storage = DEFAULT_STORAGE,
    as_json: Json = False,
) -> None:
    """Hand over a point of the front: configuration, trained weights and card."""
    from autopeft.studies.commands import export as run
    from autopeft.studies.options import ExportOptions

    options = ExportOptions(format=format_, merge=merge, train=train, compress=compress, push_to_hub=push_to_hub)
    run(study, pick=pick, out=out, storage=storage, options=options, as_json=as_json)


@app.command()
def train(
    configuration: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG", help="A configuration (YAML, JSON), or peft's adapter_config.json.", show_default=False
        ),
    ],
    task: Annotated[
        Path,
        typer.Option("--task", metavar="TASK.yaml", help="Model, task and training; or a study.", show_default=False),
    ],
    out: Out,
    format_: Format = "auto",
    merge: Merge = False,
    compress: Compress = None,
    push_to_hub: PushToHub = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of weights, row order, dropout.")] = 0,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Instead of training.epochs.")] = None,
    settings: Settings = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train one configuration at full budget; write weights and card."""
    from autopeft.studies.commands import train as run
    from autopeft.studies.options import ExportOptions

    options = ExportOptions(format=format_, merge=merge, compress=compress, push_to_hub=push_to_hub)
    run(
        configuration,
        task=task,
        out=out,
        seed=seed,
        epochs=epochs,
        settings=settings or (),
        options=options,
        as_json=as_json,
        quiet=quiet,
        verbose=verbose,
    )


@app.command()
def transfer(
    study: StudyName,
    to: Annotated[
        Path, typer.Option("--to", metavar="STUDY2.yaml", help="The study file of the new task.", show_default=False)
    ],
    mode: Annotated[
        str,
        typer.Option(
            "--mode", metavar="MODE", help="replay: train the front as it is; warm: search, beginning from it."
        ),
    ] = "replay",
    storage: Storage = DEFAULT_STORAGE,
    settings: Settings = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Carry a study to another task, or to another model."""
    from autopeft.studies.commands import transfer as run

    raise typer.Exit(
        run(
            study,
            to=to,
            mode=mode,
            storage=storage,
            settings=settings or (),
            as_json=as_json,
            quiet=quiet,
            verbose=verbose,
        )
    )


@app.command()
def studies(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[STUDY]...", help="With --export: which ones.", show_default=False)
    ] = None,
    export: Annotated[bool, typer.Option("--export", help="Write the studies named into one file, --out.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The file that --export makes.", show_default=False)
    ] = None,
    import_: Annotated[
        Path | None,
        typer.Option("--import", metavar="FILE", help="Take in the studies of an exported file.", show_default=False),
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
    as_json: Json = False,
) -> None:
    """The studies in a storage; with --export and --import they move between storages as one file."""
    from autopeft.studies.commands import studies as run

    run(names or (), export=export, out=out, import_=import_, storage=storage, as_json=as_json)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this method's fields.")] = None,
    as_json: Json = False,
) -> None:
    """The methods a space may hold, with their fields, ranges and sources."""
    from autopeft.studies.commands import methods as run

    run(name, as_json=as_json)


@app.command()
def estimate(
    model: Annotated[str, typer.Option("--model", metavar="M", help="Hub id or folder.", show_default=False)],
    config: Annotated[
        Path, typer.Option("--config", metavar="FILE", help="A configuration, YAML or JSON.", show_default=False)
    ],
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows of a training batch.")] = 32,
    sequence_length: Annotated[
        int | None,
        typer.Option("--sequence-length", min=1, help="Tokens of its longest row; default 128, or what the model has."),
    ] = None,
    optimizer: Annotated[str, typer.Option("--optimizer", help="adamw, lora_fa or galore.")] = "adamw",
    dtype: Annotated[str | None, typer.Option("--dtype", help="Of the frozen weights; default the model's.")] = None,
    attention: Annotated[str | None, typer.Option("--attention", help="sdpa or eager; default the model's.")] = None,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Layers compute activations twice.")] = False,
    task: Annotated[
        str | None, typer.Option("--task", help="Task kind; default causal-lm, seq2seq or text-classification.")
    ] = None,
    trials_per_job: Annotated[
        int, typer.Option("--trials-per-job", min=1, help="Such trials that train at once on one base.")
    ] = 1,
    device: Annotated[
        str, typer.Option("--device", help="cuda: all that is allocated; cpu: as a trial is measured there.")
    ] = "cuda",
    fit: Annotated[
        str | None, typer.Option("--fit", metavar="MEMORY", help="Also the largest batch that fits, e.g. 24GiB.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Exact trainable parameters and predicted peak memory, without weights or a GPU."""
    from autopeft.studies.estimate import Conditions
    from autopeft.studies.estimate_command import estimate as run

    conditions = Conditions(
        batch_size=batch_size,
        sequence_length=sequence_length,
        optimizer=optimizer,
        dtype=dtype,
        attention=attention,
        checkpointing=checkpointing,
        task=task,
        trials_per_job=trials_per_job,
        device=device,
    )
    run(model, config, conditions, fit=fit, as_json=as_json)


@app.command()
def sync(
    study: StudyName,
    register: Annotated[
        list[str] | None,
        typer.Option("--register", metavar="PICK", help="Put this point into MLflow's model registry; repeatable."),
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
    as_json: Json = False,
) -> None:
    """Mirror to MLflow what is not there yet; put chosen points into its model registry."""
    from autopeft.studies.commands import sync as run

    run(study, register=register or (), storage=storage, as_json=as_json)


@app.command()
def ui(
    study: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="Open on this study's front.")] = None,
    storage: Storage = DEFAULT_STORAGE,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on this machine.")] = 5000,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open a browser on it.")] = True,
) -> None:
    """Start the MLflow UI on the study's tracking store, opened on the front."""
    from autopeft.studies.commands import ui as run

    run(study, storage=storage, port=port, open_browser=open_browser)


def _version(value: bool) -> None:
    if value:
        from autopeft import __version__

        typer.echo(f"autopeft {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def fail(error: AutoPeftError) -> NoReturn:
    """Print one message and its hint to stderr; leave with 2 for wrong input, 1 for anything else."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f" hint: {error.hint}", file=sys.stderr)
    sys.exit(2 if isinstance(error, InputError) else 1)


def main() -> None:
    """The entry point `autopeft`."""
    try:
        app()
    except AutoPeftError as error:
        fail(error)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
