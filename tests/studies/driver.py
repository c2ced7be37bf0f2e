"""A driver in a process of its own, to be killed: `python -m tests.studies.driver FOLDER TRIALS EXECUTOR JOBS [rungs]`.

One line of JSON on stderr for each event, nothing on stdout; the reason it stopped is the last line.
"""

import json
import sys
from pathlib import Path

from autopeft.studies.drive import drive
from autopeft.studies.events import StudyEvent, TrialFinished
from autopeft.studies.executor import Resources
from tests.studies.support import halved, open_study, plan


def tell(event: StudyEvent) -> None:
    number = event.trial.number if isinstance(event, TrialFinished) else None
    print(json.dumps({"event": type(event).__name__, "number": number}), file=sys.stderr, flush=True)


def main(folder: str, trials: str, executor: str, jobs: str, *rungs: str) -> None:
    study = open_study(Path(folder))
    resources = Resources(executor=executor, max_jobs=int(jobs))  # type: ignore[arg-type]  # one of its words
    artifacts = Path(folder) / "adapters"
    what = halved(int(trials), artifacts) if rungs else plan(n_trials=int(trials), artifacts=artifacts)
    print(json.dumps({"event": drive(study, what, resources, listeners=[tell]).value}), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
