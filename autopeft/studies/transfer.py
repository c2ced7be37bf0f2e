"""Carries a study to another task, or to another model: its front trained there as it is, or a search begun from it."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal, overload

from autopeft.errors import NotFoundError, SpecError
from autopeft.search.trial import History
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.suggest import nearest
from autopeft.studies.beginning import Beginning
from autopeft.studies.bind import BoundStudy, bind_study
from autopeft.studies.events import Listener, StopReason
from autopeft.studies.load import load_spec, spec_from_mapping
from autopeft.studies.progress import ProgressMode, choose_mode
from autopeft.studies.replay import Replay, carry_front
from autopeft.studies.schema import NAME
from autopeft.studies.session import run_session
from autopeft.studies.spec import SearchSettings, StudySpec
from autopeft.studies.storage import StudyStorage
from autopeft.studies.study import DEFAULT_STORAGE, Given, Study
from autopeft.studies.transferred import Reachable, incomparable, reachable
from autopeft.studies.warm import WarmSearch, named_past, worth

MODES: Final[Mapping[str, str]] = {
    "replay": "the front is trained on the new task; a study of its own",
    "warm": "the new task is searched, beginning from the study; a study of its own",
}
"""Mode to what it does."""


@overload
def transfer(
    study: str,
    to: str | Path | Mapping[str, object],
    *,
    mode: Literal["warm"],
    storage: str = ...,
    settings: Sequence[str] = ...,
    progress: bool = ...,
    listeners: Sequence[Listener] = ...,
) -> WarmSearch: ...
@overload
def transfer(
    study: str,
    to: str | Path | Mapping[str, object],
    *,
    mode: Literal["replay"] = ...,
    storage: str = ...,
    settings: Sequence[str] = ...,
    progress: bool = ...,
    listeners: Sequence[Listener] = ...,
) -> Replay: ...
def transfer(
    study: str,
    to: str | Path | Mapping[str, object],
    *,
    mode: str = "replay",
    storage: str = DEFAULT_STORAGE,
    settings: Sequence[str] = (),
    progress: bool = True,
    listeners: Sequence[Listener] = (),
) -> Replay | WarmSearch:
    """Carry what `study` found to the task of another study file.

    Args:
        study: A finished study of the storage (or the file it is about), on any model.
        to: The new study's file, or its content.
        mode: A key of `MODES`.
        storage: Where both studies are kept.
        settings: `key.path=value` overrides of the new study's file.
        progress: Show on stderr how it goes.
        listeners: Told of every event while it runs.

    Returns:
        What it gave.

    Raises:
        InputError: Something that was given is not usable; nothing was trained or written.
    """
    run = RUNS[check_mode(mode)]
    spec = (
        spec_from_mapping(to, settings=settings) if isinstance(to, Mapping) else load_spec(Path(to), settings=settings)
    )
    shown = choose_mode(sys.stderr, quiet=not progress)
    return run(study, spec, storage=storage, mode=shown, listeners=listeners)[0]


def check_mode(mode: str) -> str:
    """The mode, which there must be.

    Raises:
        SpecError: With those there are.
    """
    if mode not in MODES:
        raise SpecError(f"--mode: got {mode!r}; allowed: {', '.join(MODES)}", hint=nearest(mode, MODES))
    return mode


def run_replay(
    study: str, spec: StudySpec, *, storage: str, mode: ProgressMode, listeners: Sequence[Listener] = ()
) -> tuple[Replay, StopReason]:
    """`transfer` in mode `replay`, with the new study read and the way to report chosen; why it stopped, too."""
    name, shape = _source(study, storage=storage)
    source = Study.open(name, storage=storage)
    bound = bind_study(spec)
    points = carry_front(source.front().front, shape, bound.space)
    kept = {point.configuration.id: point.configuration for point in points if point.configuration is not None}
    if not kept:
        raise SpecError(
            f"study {name}: nothing of its front can be had in the space of {spec.study}: {points[0].notes[0]}",
            hint="give the new study a space with the same methods",
        )
    renamed = replace(
        spec,
        study=_name(spec, name, "replay"),
        search=SearchSettings(trials=len(kept), seed=spec.search.seed),
        confirm=replace(spec.confirm, after_search=False),
    )
    replay = Study(renamed, storage=storage)
    origin = {"study": name, "trials": [point.source.trial for point in points]}
    reason = run_session(
        replay,
        mode=mode,
        listeners=listeners,
        bound=BoundStudy(spec=renamed, space=bound.space, data=bound.data),
        given=Given(configurations=tuple(kept.values()), origin=origin),
    )
    history = replay.history()
    known, unknown = _compared(spec, replay.name, history, storage=storage)
    return Replay(
        study=replay.name,
        source=name,
        task=spec.study,
        points=points,
        history=history,
        objectives=spec.objectives,
        reachable=known,
        unknown=unknown,
    ), reason


def run_warm(
    study: str, spec: StudySpec, *, storage: str, mode: ProgressMode, listeners: Sequence[Listener] = ()
) -> tuple[WarmSearch, StopReason]:
    """`transfer` in mode `warm`, with the new study read and the way to report chosen; why it stopped, too."""
    source, _ = _source(study, storage=storage)
    past = named_past(source, spec.search.past)
    renamed = replace(spec, study=_name(spec, source, "warm"), search=replace(spec.search, past=past))
    bound = bind_study(renamed)
    warm = Study(renamed, storage=storage)
    reason = run_session(warm, mode=mode, listeners=listeners, bound=bound)
    beginning, history = Beginning.of(renamed, bound.space, storage=storage), warm.history()
    begun, share = worth(beginning.problem(renamed, bound.space), history)
    known, unknown = _compared(spec, warm.name, history, storage=storage)
    return WarmSearch(
        study=warm.name,
        source=source,
        task=spec.study,
        past=beginning.past.studies,
        begun=begun,
        share=share,
        confirmed=warm.front().confirmed,
        history=history,
        objectives=spec.objectives,
        reachable=known,
        unknown=unknown,
    ), reason


def _source(study: str, *, storage: str) -> tuple[str, ModelShape]:
    """Name and model of the source.

    Raises:
        NotFoundError: There is no such study, or none of its trials completed.
    """
    source = Study.open(study, storage=storage)
    if not len(source.front()):
        raise NotFoundError(
            f"study {source.name}: has no front, none of its {len(source.history())} trials completed",
            hint=f"autopeft trials {source.name}",
        )
    return source.name, source.shape()


def _name(spec: StudySpec, source: str, mode: str) -> str:
    name = f"{spec.study}-{mode}-{source}"
    if spec.study == source:
        raise SpecError(
            f"study: got {source!r} twice, as the source and as the new study",
            hint="name another study with --to, or with --set study=NAME",
        )
    if not NAME.match(name):
        raise SpecError(
            f"study: it would be called {name!r}, which is longer than 100 characters", hint="--set study=SHORTER"
        )
    return name


def _compared(spec: StudySpec, name: str, history: History, *, storage: str) -> tuple[Reachable | None, str]:
    """The study called `name` beside the search of its task in the same storage, or why there is nothing beside it."""
    hint = f"search it (the study {spec.study}) and run this again, which trains nothing twice"
    with StudyStorage.open(storage) as there:
        if spec.study not in {summary.name for summary in there.studies()}:
            return None, f"no study {spec.study} in the storage has searched this task; {hint}"
        searched, mine = there.study(spec.study), there.study(name)
        why = incomparable(searched.definition, mine.definition)
        if why:
            return None, f"the study {spec.study} in the storage measures otherwise: {why}"
        found = reachable(spec.study, searched.history(), history, spec.objectives)
    return found, "" if found else f"no trial of the study {spec.study} has completed; {hint}"


RUNS: Final = {"replay": run_replay, "warm": run_warm}
"""What runs each of `MODES`."""
