"""A study as its user holds it: run it, look at its front, take a point away."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from autopeft.errors import NotFoundError
from autopeft.objectives.front import FrontPoint
from autopeft.objectives.objective import METRICS
from autopeft.search.searcher import AbstractSearcher
from autopeft.search.trial import History
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.model_shape import ModelShape
from autopeft.studies.artifacts import Artifacts
from autopeft.studies.confirmation import Confirmation, confirmed_scores, read_confirmation
from autopeft.studies.content import PLACES, content_of
from autopeft.studies.definition import HARMLESS, StudyDefinition
from autopeft.studies.events import Listener, Noted, StopReason
from autopeft.studies.executor import WorkerSpec
from autopeft.studies.load import load_spec, override, spec_from_mapping, to_spec
from autopeft.studies.signals import StopRequest
from autopeft.studies.spec import TRAINER, StudySpec
from autopeft.studies.storage import StudyStorage
from autopeft.studies.study_front import StudyFront
from autopeft.studies.yaml_file import Document

if TYPE_CHECKING:
    from autopeft.studies.bind import BoundStudy
    from autopeft.studies.export import Export
    from autopeft.studies.report import StudyReport

DEFAULT_STORAGE = "sqlite:///autopeft.db"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Configurations that a study trains in this order instead of searching."""

    configurations: tuple[Configuration, ...]
    origin: Mapping[str, object]
    """Where they come from; a part of the study's definition."""


@final
class _InOrder(AbstractSearcher):
    """Proposes each of the given configurations once."""

    def __init__(self, configurations: Sequence[Configuration]) -> None:
        self._configurations = tuple(configurations)

    def ask(self, history: History, n: int) -> Sequence[Configuration]:
        return [row for row in self._configurations if row.id not in history.ids][:n]

    def foreseen(self, history: History) -> int:
        return max(0, len(self._configurations) - len(history))


@final
class Study:
    """One study in a storage. Make one with `create` (or `autopeft.search`), find one with `open`."""

    def __init__(self, spec: StudySpec, *, storage: str) -> None:
        self.spec = spec
        self.storage = storage

    @classmethod
    def create(
        cls,
        *,
        model: str | Mapping[str, object],
        task: Mapping[str, object],
        space: str | Mapping[str, object] | SpaceDefinition,
        study: str = "study",
        storage: str = DEFAULT_STORAGE,
        **sections: object,
    ) -> "Study":
        """A study from Python values, keys and values as in a study file; nothing is written until it runs.

        Args:
            model: Hub id, folder, or a mapping with `name`, `dtype`, `revision`, ...
            task: As the file's `task`.
            space: A preset's name, a mapping (strings or `autopeft.spaces` objects), or a definition.
            study: Name of the study.
            storage: Where it is kept.
            **sections: The file's other keys: `constraints`, `objectives`, `search`, `training`, `resources`,
                `tracking`.

        Raises:
            SpecError: The first thing that is wrong.
        """
        written = space.to_mapping() if isinstance(space, SpaceDefinition) else space
        data = {"study": study, "model": model, "task": task, "space": written, **sections}
        return cls(spec_from_mapping(data), storage=storage)

    @classmethod
    def open(cls, name: str, *, storage: str = DEFAULT_STORAGE, settings: Sequence[str] = ()) -> "Study":
        """The study called `name` (or the one that the study file `name` is about) in `storage`.

        Args:
            name: The study, or its file, of which only the name is read.
            storage: Where it is kept.
            settings: `key.path=value` overrides of what the storage holds of it.

        Raises:
            NotFoundError: No such study, or no such storage.
            StorageError: The storage is not ours.
            SpecError: A setting is not usable.
        """
        if name.endswith((".yaml", ".yml")):
            name = load_spec(Path(name)).study
        with StudyStorage.open(storage) as there:
            definition = there.study(name).definition
        document = Document(data=dict(definition.spec), source=f"study {name}")  # type: ignore[arg-type]  # plain JSON
        return cls(to_spec(override(document, settings), folder=None), storage=storage)

    @property
    def name(self) -> str:
        return self.spec.study

    @property
    def artifacts_root(self) -> Path:
        """Where trained adapters of the front are kept: beside the storage if that is a file, else where we work."""
        prefix = "sqlite:///"
        folder = Path(self.storage.removeprefix(prefix)).parent if self.storage.startswith(prefix) else Path()
        return folder / "autopeft-artifacts"

    def adapter_folder(self, trial: int) -> Path:
        """Where the trained adapter of a trial on the front is."""
        return Artifacts(self.artifacts_root, self.name).trial(trial)

    def run(
        self,
        *,
        bound: "BoundStudy | None" = None,
        given: Given | None = None,
        listeners: Sequence[Listener] = (),
        stop: StopRequest | None = None,
    ) -> StopReason:
        """Run (or resume) until the trial budget is spent; one Ctrl-C finishes what runs, two stop at once.

        Args:
            bound: The study as bound to its model and data already; None binds it now.
            given: What to train instead of searching.
            listeners: Told of every event.
            stop: Raised by the caller to stop it; None when only signals do.

        Raises:
            InputError: The file, the data, the model or the storage are not usable; nothing was written.
        """
        from autopeft.search.scheduler import RunAll
        from autopeft.search.schedulers import make_scheduler
        from autopeft.search.table import make_searcher
        from autopeft.studies.beginning import Beginning
        from autopeft.studies.bind import bind_study
        from autopeft.studies.drive import Plan, drive
        from autopeft.studies.past_sources import PLACE as PAST_PLACE

        spec = self.spec
        space = (bound or bind_study(spec)).space

        def say(message: str) -> None:
            for listener in listeners:
                listener(Noted(message=message))

        beginning = Beginning.of(spec, space, storage=self.storage, say=None if given else say)
        problem = beginning.problem(spec, space)
        plan = Plan(
            space=space,
            searcher=_InOrder(given.configurations) if given else make_searcher(spec.search.engine, problem),
            seed=spec.search.seed,
            n_trials=spec.search.trials,
            epochs=spec.training.epochs,
            scheduler=RunAll()
            if given
            else make_scheduler(spec.fidelity, spec.objectives, epochs=spec.training.epochs),
            worker=WorkerSpec(trainer=TRAINER, model=spec.model, task=spec.task, training=spec.training),
            artifacts=self.artifacts_root,
        )
        identity = json.loads(space.fingerprint()) | {"content": content_of(spec)}
        identity |= beginning.identity
        identity |= {"given": dict(given.origin)} if given else {}
        definition = StudyDefinition(objectives=spec.objectives, spec=spec.to_mapping(), space=identity)
        with StudyStorage.open(self.storage, create=True) as storage:
            stored = storage.create(self.name, definition, harmless=(*HARMLESS, *PLACES, PAST_PLACE))
            beginning.keep(stored)
            return drive(stored, plan, spec.resources, listeners=listeners, stop=stop)

    def is_running(self) -> bool:
        """Whether a living process runs the study now."""
        from autopeft.studies.lock import is_driven

        with StudyStorage.open(self.storage) as storage:
            return is_driven(storage.study(self.name))

    def history(self) -> History:
        """Every trial that the storage knows; empty before the first run."""
        try:
            with StudyStorage.open(self.storage) as storage:
                return storage.study(self.name).history()
        except NotFoundError:
            return History()

    def shape(self) -> ModelShape:
        """The base model as the study was bound to it.

        Raises:
            NotFoundError: The study has not run yet.
        """
        with StudyStorage.open(self.storage) as storage:
            space = storage.study(self.name).definition.space
        shape = space["shape"]
        assert isinstance(shape, Mapping)
        return ModelShape.from_json(shape)

    def front(self) -> StudyFront:
        """The Pareto front of the completed trials, with what was confirmed of it."""
        found = self.confirmation()
        scores = {} if found is None else confirmed_scores(found)
        return StudyFront.of(self.name, self.history(), self.spec.objectives, confirmed=scores)

    def confirmation(self) -> Confirmation | None:
        """What confirmations found (see `confirm`); None before there is any."""
        try:
            with StudyStorage.open(self.storage) as storage:
                history = storage.study(self.name).history()
                return read_confirmation(storage, self.name, history=history, objective=METRICS[self.spec.task.metric])
        except NotFoundError:
            return None

    def report(self) -> "StudyReport":
        """Everything that the page of the study shows; fits the surrogate, which takes seconds.

        Raises:
            NotFoundError: The study has not run yet.
        """
        from autopeft.studies.insight import study_sensitivity
        from autopeft.studies.layer_prior import stored_layers
        from autopeft.studies.report import StudyReport
        from autopeft.studies.tracking_settings import public_uri

        with StudyStorage.open(self.storage) as storage:
            stored = storage.study(self.name)
            definition, layers = stored.definition, stored_layers(stored)
        front, spec = self.front(), self.spec
        return StudyReport(
            study=self.name,
            front=front.front,
            history=front.history,
            shape=self.shape(),
            spec=spec.to_mapping() | {"tracking": {"mlflow": spec.mlflow and public_uri(spec.mlflow)}},
            confirmed=front.confirmed,
            confirmation=self.confirmation(),
            layers=layers,
            sensitivity=study_sensitivity(definition, front.history, metric=spec.task.metric, seed=spec.search.seed),
        )

    def confirm(
        self,
        *,
        bound: "BoundStudy | None" = None,
        listeners: Sequence[Listener] = (),
        stop: StopRequest | None = None,
        points: int | None = None,
        baselines: bool = True,
    ) -> StopReason:
        """Train points of the front again on further seeds, and tuned baselines; score all on the held-out split.

        What is there already is not trained again, and what was interrupted goes on.

        Args:
            bound: The study as bound to its model and data already; None binds it now.
            listeners: Told of every event.
            stop: Raised by the caller to stop it; None when only signals do.
            points: At most so many points: knee, best, then along the front. None takes what the study's file says.
            baselines: Also tune and train the baselines.

        Raises:
            NotFoundError: No such study, or it has no front.
            SpecError: The search is not finished, or its model, rows or settings have changed.
        """
        from autopeft.studies.bind import bind_study
        from autopeft.studies.confirm import Confirmer

        with StudyStorage.open(self.storage) as storage:
            storage.study(self.name)
        bound = bound or bind_study(self.spec)
        with StudyStorage.open(self.storage, create=True) as storage:
            confirmer = Confirmer(bound=bound, storage=storage, listeners=tuple(listeners), stop=stop, trainer=TRAINER)
            front = confirmer.check()
            reason = confirmer.points(front, limit=self.spec.confirm.points if points is None else points)
            done = reason in (StopReason.BUDGET, StopReason.EXHAUSTED)
            return confirmer.baselines() if done and baselines else reason

    def export(
        self,
        point: FrontPoint | str,
        out: str | Path,
        *,
        format: str = "auto",
        merge: bool = False,
        train: bool = False,
        compress: str | None = None,
        push_to_hub: str | None = None,
        listeners: Sequence[Listener] = (),
    ) -> "Export":
        """Write a completed trial (a point, or the pick that a text names) into the folder `out`.

        Args:
            point: E.g. `study.front().knee()`, `"knee"`, `"trial:7"`.
            out: A new or empty folder.
            format: A key of `autopeft.studies.options.FORMATS`.
            merge: Fold the adapter into the base weights.
            train: Train it again instead of taking the weights that the search kept.
            compress: `compeft`, `compeft:k=10,alpha=2` or `1bit`.
            push_to_hub: A repository of the Hugging Face hub to put it into.
            listeners: Told how a second training goes.

        Raises:
            SpecError: The folder is taken, the text is no pick, the options contradict each other.
            NotFoundError: No such point, or its adapter is gone.
            ConfigurationError: The format cannot hold the configuration.
            TrialError: A second training failed.
            HubError: The hub does not answer, or did not take the folder.
        """
        from autopeft.studies.export import export
        from autopeft.studies.options import ExportOptions

        front = self.front()
        chosen = front.pick(point) if isinstance(point, str) else point
        predicted = {trial.number: trial.predicted for trial in front.history}
        return export(
            self.spec,
            chosen,
            shape=self.shape(),
            predicted=predicted.get(chosen.trial, {}),
            on_front=chosen in front,
            source=self.adapter_folder(chosen.trial),
            out=Path(out),
            options=ExportOptions(format=format, merge=merge, train=train, compress=compress, push_to_hub=push_to_hub),
            listeners=listeners,
        )
