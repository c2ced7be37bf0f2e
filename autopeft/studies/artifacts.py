"""Trained adapters of a study on disk: those on the current front are kept, dominated ones are deleted."""

import hashlib
import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from autopeft.objectives.objective import Objective
from autopeft.objectives.pareto import non_dominated
from autopeft.search.trial import History


class Artifacts:
    """The folder `<root>/<study>` with one `trial-<number>` for each adapter.

    Args:
        root: Folder of all studies; on a cluster one that every node sees.
        study: Its name; characters that are no good in file names are replaced.
    """

    def __init__(self, root: Path, study: str) -> None:
        self.folder = root.absolute() / safe_name(study)

    def trial(self, number: int) -> Path:
        """Where the adapter of that trial is, or would be."""
        return self.folder / f"trial-{number}"

    def checkpoint(self, number: int) -> Path:
        """Where the state of that trial between two epochs is, or would be."""
        return self.folder / f"checkpoint-{number}.pt"

    def prepare(self, number: int, *, again: bool = False) -> Path:
        """An absent folder for a trial that is about to run; what an earlier attempt left is deleted.

        Args:
            number: The trial.
            again: Whether it has run before, so that its checkpoint is its own and stays.
        """
        path = self.trial(number)
        shutil.rmtree(path, ignore_errors=True)
        if not again:
            self.checkpoint(number).unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def sweep(self, history: History, objectives: Sequence[Objective]) -> None:
        """Delete adapters of finished trials that are not on the front of `history`, and checkpoints of those that will
        not go on; what belongs to running ones stays.

        Raises:
            OSError: A folder could not be read.
        """
        if not self.folder.is_dir():
            return
        keep = front_numbers(history, objectives)
        for trial in history:
            path = self.trial(trial.number)
            if trial.state.finished and trial.number not in keep and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            if trial.state.finished and (trial.pruning is None or trial.pruning.final):
                self.checkpoint(trial.number).unlink(missing_ok=True)


def front_numbers(history: History, objectives: Sequence[Objective]) -> Collection[int]:
    """Numbers of the completed trials that no other completed trial dominates."""
    rows = [(trial.number, final) for trial in history.completed if (final := trial.final) is not None]
    if not rows:
        return frozenset()
    losses = np.array([[axis.to_loss(final.value(axis.name)) for axis in objectives] for _, final in rows])
    return frozenset(rows[index][0] for index in np.flatnonzero(non_dominated(losses)))


def safe_name(name: str) -> str:
    """`name` where it is a plain file name; otherwise a readable, distinct one that cannot leave its folder."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[:80] or "study"
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
