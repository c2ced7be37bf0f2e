"""A study's front with what the terminal, a notebook and a chart want of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from autopeft.objectives.front import Front, FrontPoint
from autopeft.objectives.objective import Objective
from autopeft.search.trial import History

if TYPE_CHECKING:
    import pandas as pd


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StudyFront:
    """The non-dominated trials of a study, best in the first objective first."""

    study: str
    front: Front
    history: History

    @classmethod
    def of(cls, study: str, history: History, objectives: Sequence[Objective]) -> "StudyFront":
        candidates = [
            FrontPoint.of(trial.number, trial.configuration, measurement=trial.final, objectives=objectives)
            for trial in history
            if trial.final is not None
        ]
        return cls(study=study, front=Front.of(candidates, objectives), history=history)

    def __iter__(self) -> Iterator[FrontPoint]:
        return iter(self.front)

    def __len__(self) -> int:
        return len(self.front)

    def __getitem__(self, index: int) -> FrontPoint:
        return self.front[index]

    @property
    def hypervolume(self) -> float:
        return self.front.hypervolume

    def knee(self) -> FrontPoint:
        """The point of best compromise; see `Front.knee`."""
        return self.front.knee()

    def best(self, objective: str) -> FrontPoint:
        """The point that is best in one objective."""
        return self.front.best(objective)

    def pick(self, text: str) -> FrontPoint:
        """The point that `knee`, `best:OBJECTIVE`, `trial:N` or a query such as `accuracy >= 0.9, min memory` names."""
        return self.front.pick(text)

    def to_frame(self) -> "pd.DataFrame":
        """A table with a row a point."""
        return self.front.to_frame()

    def plot(self, path: str | Path) -> Path:
        """Write a chart (.html, .png or .svg); its path."""
        from autopeft.studies.plots import plot_front

        plot_front(self.front, self.history, Path(path), study=self.study)
        return Path(path)

    def to_json(self) -> dict[str, object]:
        """What `autopeft front --json` prints."""
        from autopeft.studies.tables import front_json

        return front_json(self.front, self.history, study=self.study)
