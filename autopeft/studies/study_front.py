"""A study's front with what the terminal, a notebook and a chart want of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, final

from autopeft.errors import NotFoundError, SpecError
from autopeft.objectives.front import Front, FrontPoint
from autopeft.objectives.objective import Objective
from autopeft.search.trial import History, Trial, TrialState
from autopeft.studies.charts import Confirmed, front_page, point_of

if TYPE_CHECKING:
    import pandas as pd


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StudyFront:
    """The non-dominated trials of a study, best in the first objective first."""

    study: str
    front: Front
    history: History
    confirmed: Confirmed = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        study: str,
        history: History,
        objectives: Sequence[Objective],
        *,
        confirmed: Confirmed = MappingProxyType({}),
    ) -> "StudyFront":
        candidates = [
            FrontPoint.of(trial.number, trial.configuration, measurement=trial.final, objectives=objectives)
            for trial in history
            if trial.final is not None
        ]
        return cls(study=study, front=Front.of(candidates, objectives), history=history, confirmed=confirmed)

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
        """The point that `knee`, `best:OBJECTIVE`, `trial:N` or a query such as `accuracy >= 0.9, min memory` names.

        `trial:N` may be any completed trial, a dominated one too.

        Raises:
            SpecError: `text` is no pick, or names a trial that did not complete.
            NotFoundError: Nothing is named by it; the hint says what is nearest.
        """
        kind, _, value = (part.strip() for part in text.partition(":"))
        if kind != "trial" or not value.isdecimal():
            return self.front.pick(text)
        trial = next((trial for trial in self.history if trial.number == int(value)), None)
        if trial is None:
            raise NotFoundError(f"pick: the study has no trial {value}", hint=self._instead(int(value)))
        point = point_of(trial, self.front.objectives)
        if point is None:
            raise SpecError(f"pick: trial {trial.number} {_why_not(trial)}", hint=self._instead(trial.number))
        return point

    def __contains__(self, point: FrontPoint) -> bool:
        """Whether a point is on the front."""
        return any(other.trial == point.trial for other in self.front)

    def _instead(self, number: int) -> str:
        numbers = sorted(point.trial for point in self.front)
        if not numbers:
            return "no trial of this study has completed"
        near = min(numbers, key=lambda other: (abs(other - number), other))
        return f"only a completed trial can be picked; the nearest on the front is trial:{near}"

    def to_frame(self) -> "pd.DataFrame":
        """A table with a row a point."""
        return self.front.to_frame()

    def plot(self, path: str | Path) -> Path:
        """Write a chart (.html, .png or .svg); its path."""
        from autopeft.studies.plots import plot_front

        plot_front(self.front, self.history, Path(path), study=self.study, confirmed=self.confirmed)
        return Path(path)

    def _repr_html_(self) -> str:
        """The chart, where a notebook shows the front."""
        page = front_page(self.front, self.history, study=self.study, confirmed=self.confirmed)
        return f'<iframe srcdoc="{escape(page)}" style="width: 100%; height: 860px; border: 0"></iframe>'

    def to_json(self) -> dict[str, object]:
        """What `autopeft front --json` prints."""
        from autopeft.studies.tables import front_json

        return front_json(self.front, self.history, study=self.study, confirmed=self.confirmed)


def _why_not(trial: Trial) -> str:
    if trial.failure is not None:
        return f"failed ({trial.failure.kind.value}: {trial.failure.message})"
    if trial.pruning is not None:
        return f"was stopped early ({trial.pruning.because})"
    return {TrialState.PRUNED: "was stopped early", TrialState.RUNNING: "is still running"}.get(
        trial.state, "has a value that is not finite"
    )
