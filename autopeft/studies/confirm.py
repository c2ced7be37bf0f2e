"""Trains points of a finished study's front again, and the baselines they have to beat, and scores the held-out split.

Everything is a study of its own in the same storage (`NAME/confirm`, `NAME/lora`, `NAME/lora/confirm`, ...), driven as
any other: durable, resumed where it was killed, through the same executors.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autopeft.errors import NotFoundError, SpaceError, SpecError
from autopeft.objectives.front import Front, FrontPoint
from autopeft.search.believed import believe, best_believed
from autopeft.search.searcher import SearchProblem
from autopeft.search.table import make_searcher
from autopeft.search.trial import Trial
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.space import SearchSpace
from autopeft.studies.baselines import Baseline, baselines_of, metric_of
from autopeft.studies.bind import BoundStudy, bind_study
from autopeft.studies.confirm_jobs import HeldOutSource, ListedSearcher, extend_entries
from autopeft.studies.confirmation import (
    BELIEFS,
    CHOSEN,
    ROWS,
    SERVED,
    baseline_name,
    confirm_name,
    read_confirmation,
    seed_noise,
)
from autopeft.studies.content import PLACES, content_of
from autopeft.studies.definition import HARMLESS, StudyDefinition
from autopeft.studies.drive import Plan, drive
from autopeft.studies.events import Listener, Noted, StopReason
from autopeft.studies.executor import WorkerSpec
from autopeft.studies.signals import StopRequest
from autopeft.studies.spec import TRAINER, StudySpec
from autopeft.studies.storage import StoredStudy, StudyStorage
from autopeft.studies.study_front import StudyFront

_DONE = (StopReason.BUDGET, StopReason.EXHAUSTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmer:
    """Confirms one study; every call goes on where the last one stopped."""

    bound: BoundStudy
    """The study, its model and its data."""
    storage: StudyStorage
    """Open to write."""
    listeners: tuple[Listener, ...] = ()
    stop: StopRequest | None = None
    trainer: str = TRAINER
    """What trains; see `WorkerSpec.trainer`."""

    @property
    def spec(self) -> StudySpec:
        return self.bound.spec

    def check(self) -> Front:
        """The front of the study, which is finished, unchanged, and has something to confirm.

        Raises:
            NotFoundError: No such study, or none of its trials has completed.
            SpecError: Its trials are not all done; model, rows or settings are not those of the search; there is no
                held-out split.
        """
        stored = self.storage.study(self.spec.study)
        self._check_same(stored)
        history = stored.history()
        front = StudyFront.of(self.spec.study, history, stored.objectives).front
        finished, wanted = sum(trial.state.finished for trial in history), self.spec.search.trials
        open_ = len(history) - finished
        if finished and (open_ or finished < wanted) and not self._exhausted(stored):
            raise SpecError(
                f"study {self.spec.study}: {finished} of {wanted} trials are done; a confirmation needs a search that"
                " is finished",
                hint="run `autopeft search` with its file again: it goes on where it stopped",
            )
        if not len(front):
            raise NotFoundError(
                f"study {self.spec.study}: has no front to confirm, none of its {len(history)} trials has completed",
                hint=f"`autopeft trials {self.spec.study}` says why",
            )
        if not self.bound.data.rows.get("test"):
            raise SpecError(
                f"study {self.spec.study}: there is no held-out split to score",
                hint="name one in task.data.test, or leave it out to have one made from train",
            )
        return front

    def points(self, front: Front, *, limit: int | None) -> StopReason:
        """Train at most `limit` points of the front again (None: all), each with every seed of the study."""
        metric, space = metric_of(self.spec), self.bound.space
        chosen = spread_points(front, metric=metric.name, limit=limit)
        stored = self._made(confirm_name(self.spec.study), self.spec, space)
        reason = self._retrain(stored, self.spec, space, [point.configuration for point in chosen])
        history = self.storage.study(self.spec.study).history()
        beliefs = believe(space, history, metric, noise=self._noise(), seed=self.spec.search.seed)
        stored.set_attr(BELIEFS, {str(number): list(row) for number, row in beliefs.items()})
        return reason

    def _noise(self) -> float:
        """Variance of the metric between the seeds of one point, as far as it was measured."""
        history = self.storage.study(self.spec.study).history()
        found = read_confirmation(self.storage, self.spec.study, history=history, objective=metric_of(self.spec))
        return 0.0 if found is None else seed_noise(found.points)

    def baselines(self) -> StopReason:
        """Tune the baselines and train the best of each again."""
        n_trials = self.spec.confirm.baseline_trials
        if n_trials is None:
            n_trials = sum(trial.state.finished for trial in self.storage.study(self.spec.study).history())
        rows = baselines_of(self.spec, self.bound.space.shape, n_trials=n_trials) if n_trials else ()
        for row in rows:
            reason = self._baseline(row)
            if reason not in _DONE:
                return reason
        return StopReason.BUDGET

    def _baseline(self, row: Baseline) -> StopReason:
        name = baseline_name(self.spec.study, row.kind)
        try:
            bound = bind_study(row.spec)
        except SpaceError as error:
            self._say(f"no {row.kind} baseline: {error.message}")
            return StopReason.BUDGET
        stored = self._made(name, row.spec, bound.space)
        plan = self._plan(row.spec, bound.space, n_trials=row.spec.search.trials)
        problem = SearchProblem(
            space=bound.space, objectives=row.spec.objectives, seed=plan.seed, n_trials=plan.n_trials
        )
        plan = replace(plan, searcher=make_searcher(row.spec.search.engine, problem))
        reason = self._drive(stored, plan)
        best = self._best(stored, bound.space) if reason in _DONE else None
        if best is None:
            return reason
        stored.set_attr(CHOSEN, best.number)
        again = self._made(confirm_name(name), row.spec, bound.space)
        return self._retrain(again, row.spec, bound.space, [best.configuration])

    def _best(self, stored: StoredStudy, space: SearchSpace) -> Trial | None:
        history, metric = stored.history(), metric_of(self.spec)
        beliefs = believe(space, history, metric, noise=self._noise(), seed=self.spec.search.seed)
        return best_believed(history.completed, beliefs, metric)

    def _retrain(
        self, stored: StoredStudy, spec: StudySpec, space: SearchSpace, configurations: Sequence[Configuration]
    ) -> StopReason:
        stored.set_attr(ROWS, self.bound.data.rows["test"])
        entries = extend_entries(stored, configurations, seeds=self.spec.confirm.seeds)
        plan = replace(
            self._plan(spec, space, n_trials=len(entries)),
            searcher=ListedSearcher(entries),
            source=lambda runner: HeldOutSource(runner, entries, study_seed=self.spec.search.seed),
        )
        return self._drive(stored, plan)

    def _plan(self, spec: StudySpec, space: SearchSpace, *, n_trials: int) -> Plan:
        worker = WorkerSpec(trainer=self.trainer, model=spec.model, task=spec.task, training=spec.training)
        return Plan(
            space=space,
            searcher=ListedSearcher(()),
            seed=spec.search.seed,
            n_trials=n_trials,
            epochs=spec.training.epochs,
            worker=worker,
        )

    def _drive(self, stored: StoredStudy, plan: Plan) -> StopReason:
        return drive(stored, plan, self.spec.resources, listeners=self.listeners, stop=self.stop)

    def _made(self, name: str, spec: StudySpec, space: SearchSpace) -> StoredStudy:
        identity = json.loads(space.fingerprint()) | {"content": content_of(spec)}
        written = spec.to_mapping() | {"study": name, SERVED: self.spec.study}
        definition = StudyDefinition(objectives=spec.objectives, spec=written, space=identity)
        return self.storage.create(name, definition, harmless=(*HARMLESS, *PLACES))

    def _check_same(self, stored: StoredStudy) -> None:
        there = stored.definition
        now = dict(there.space) | json.loads(self.bound.space.fingerprint()) | {"content": content_of(self.spec)}
        here = StudyDefinition(objectives=self.spec.objectives, spec=self.spec.to_mapping(), space=now)
        found = there.differences(here, harmless=(*HARMLESS, *PLACES))
        if found:
            more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
            raise SpecError(
                f"study {self.spec.study}: it is not what was searched: {'; '.join(found[:3])}{more}",
                hint="a confirmation needs the model, rows and settings of the search: put them back",
            )

    def _exhausted(self, stored: StoredStudy) -> bool:
        """Whether the search stopped before its budget because there was nothing left to try."""
        history, spec = stored.history(), self.spec
        if any(not trial.state.finished for trial in history):
            return False
        problem = SearchProblem(
            space=self.bound.space, objectives=spec.objectives, seed=spec.search.seed, n_trials=spec.search.trials
        )
        return not make_searcher(spec.search.engine, problem).ask(history, 1)

    def _say(self, message: str) -> None:
        for listener in self.listeners:
            listener(Noted(message=message))


def spread_points(front: Front, *, metric: str, limit: int | None) -> tuple[FrontPoint, ...]:
    """At most `limit` points of a front: the knee, the best in `metric`, then each the furthest along the front from
    those before it.
    """
    if not len(front):
        return ()
    named = {objective.name for objective in front.objectives}
    first = [front.knee(), front.best(metric if metric in named else front.objectives[0].name)]
    places = {point.trial: place for place, point in enumerate(front)}
    chosen = list({point.trial: point for point in first}.values())
    rest = [point for point in front if point not in chosen]
    while rest:
        taken = [places[point.trial] for point in chosen]
        next_ = max(rest, key=lambda point: min(abs(places[point.trial] - place) for place in taken))
        chosen.append(next_)
        rest.remove(next_)
    return tuple(chosen if limit is None else chosen[:limit])
