"""What a study begins with of its layers: importances that another study's trial learnt, or scores of the base model.

They are found when a study is begun and kept with it, so that resuming asks its own storage: the source may change or
vanish, and scores are computed once.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from autopeft.errors import NotFoundError, SpecError
from autopeft.search.trial import Trial
from autopeft.spaces.layer_prior import LayerScores, inclusion_weights, onto_depth
from autopeft.spaces.model_shape import ModelShape
from autopeft.studies.spec import PriorSource, StudySpec
from autopeft.studies.storage import StoredStudy, StudyStorage

KEY = "layer_prior"
"""Where a study's definition keeps importances."""
SCORES = "layer_scores"
"""Where a study keeps scores; its definition has their name."""
ENGINE = "bayesian"
"""The one engine whose first trials are a design that weights can lead."""
_PLACE = "search.layers_from"
_HINT = "importances come from trials with layer_sampling: importance that take more steps than sampling_interval"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPrior:
    """What a study was told about its layers before its first trial."""

    study: str
    trial: int
    n_layers: int
    """Of the source's model."""
    weights: Mapping[int, float]
    """Chance in (0, 1) by layer of this study's model; layers that the source did not adapt are missing."""

    def to_json(self) -> dict[str, object]:
        weights = {str(layer): weight for layer, weight in self.weights.items()}
        return {"study": self.study, "trial": self.trial, "n_layers": self.n_layers, "weights": weights}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> "LayerPrior":
        weights: Mapping[str, float] = data["weights"]  # type: ignore[assignment]  # written by to_json
        return cls(
            study=str(data["study"]),
            trial=data["trial"],  # type: ignore[arg-type]  # written by to_json
            n_layers=data["n_layers"],  # type: ignore[arg-type]  # same
            weights={int(layer): weight for layer, weight in weights.items()},
        )


def find_layers(spec: StudySpec, shape: ModelShape, *, storage: str) -> LayerPrior | LayerScores | None:
    """What `spec` asks to know of its layers, as far as no model must be read for it.

    Args:
        spec: The study.
        shape: Its base model.
        storage: Where this study and its source are.

    Returns:
        None when the study asks for nothing, or for scores that it does not have yet.

    Raises:
        SpecError: As `find_layer_prior`.
    """
    if not isinstance(spec.search.layers_from, str):
        return find_layer_prior(spec, shape, storage=storage)
    _check_engine(spec)
    try:
        with StudyStorage.open(storage) as there:
            known = spec.study in there.names()
            found = stored_layers(there.study(spec.study)) if known else None
    except NotFoundError:
        return None
    return found if isinstance(found, LayerScores) and found.score == spec.search.layers_from else None


def stored_layers(study: StoredStudy) -> LayerPrior | LayerScores | None:
    """What `study` keeps of its layers; None where it asked for nothing."""
    scores, learnt = study.get_attr(SCORES), study.definition.space.get(KEY)
    if isinstance(scores, Mapping):
        return LayerScores.from_json(scores)
    return LayerPrior.from_json(learnt) if isinstance(learnt, Mapping) else None


def prior_words(prior: LayerPrior | LayerScores, *, n_layers: int | None = None) -> str:
    """Where it comes from, and the most promising layers; `n_layers` are those of this study's model."""
    likely = sorted(prior.weights, key=lambda layer: (-prior.weights[layer], layer))
    best = f"most important first: {', '.join(map(str, likely[:6]))}{'...' if len(likely) > 6 else ''}"
    if isinstance(prior, LayerScores):
        return f"{prior.score} on {prior.rows} training rows; {best}"
    depth = "" if n_layers in (None, prior.n_layers) else f", of {prior.n_layers} layers, by relative depth"
    return f"trial {prior.trial} of {prior.study}{depth}; {best}"


def find_layer_prior(spec: StudySpec, shape: ModelShape, *, storage: str) -> LayerPrior | None:
    """The importances that `spec` asks for: those that the study has already, else those that its source gives now.

    Args:
        spec: The study.
        shape: Its base model.
        storage: Where this study and its source are.

    Returns:
        None when the study asks for none.

    Raises:
        SpecError: Another engine than the one that uses it, no such study or trial, or one without importances.
    """
    source = spec.search.layers_from
    if not isinstance(source, PriorSource):
        return None
    _check_engine(spec)
    try:
        with StudyStorage.open(storage) as there:
            kept = _kept(there, spec.study, source)
            return kept or _learnt(_study(there, source.study), source, shape)
    except NotFoundError as error:
        raise SpecError(f"{_PLACE}: {error.message}", hint="run the study that learns importances first") from None


def _check_engine(spec: StudySpec) -> None:
    if spec.search.engine != ENGINE:
        raise SpecError(
            f"{_PLACE}: got engine {spec.search.engine}, which has no first design to lead",
            hint=f"use search.engine: {ENGINE}, or leave layers_from out",
        )


def _kept(storage: StudyStorage, name: str, source: PriorSource) -> LayerPrior | None:
    """The prior stored with the study called `name`, when it has one that `source` could mean."""
    if name not in {summary.name for summary in storage.studies()}:
        return None
    prior = stored_layers(storage.study(name))
    if not isinstance(prior, LayerPrior):
        return None
    return prior if prior.study == source.study and source.trial in (None, prior.trial) else None


def _study(storage: StudyStorage, name: str) -> StoredStudy:
    known = [summary.name for summary in storage.studies()]
    if name not in known:
        raise SpecError(
            f"{_PLACE}.study: no study {name!r} in {storage.name}; it has {', '.join(known) or 'none'}",
            hint="name a study of the same storage",
        )
    return storage.study(name)


def _learnt(study: StoredStudy, source: PriorSource, shape: ModelShape) -> LayerPrior:
    trial = _trial(study, source)
    space = study.definition.space
    n_layers = ModelShape.from_json(space["shape"]).n_layers  # type: ignore[arg-type]  # written by the fingerprint
    weights = onto_depth(_weights(trial), n_layers, shape.n_layers)
    return LayerPrior(study=study.name, trial=trial.number, n_layers=n_layers, weights=weights)


def _trial(study: StoredStudy, source: PriorSource) -> Trial:
    """The trial that `source` names, else the best in the first objective of those that learnt importances."""
    history = study.history()
    if source.trial is not None:
        found = next((trial for trial in history.completed if trial.number == source.trial), None)
        if found is None:
            raise SpecError(
                f"{_PLACE}.trial: study {study.name!r} has no completed trial {source.trial}",
                hint=f"it has {len(history.completed)} completed ones; `autopeft trials {study.name}` lists them",
            )
        if not _weights(found):
            raise SpecError(
                f"{_PLACE}.trial: trial {source.trial} of {study.name!r} learnt no layer importances", hint=_HINT
            )
        return found
    candidates = [trial for trial in history.completed if _weights(trial)]
    if not candidates:
        raise SpecError(
            f"{_PLACE}.study: none of the {len(history.completed)} completed trials of {study.name!r} learnt layer"
            " importances",
            hint=_HINT,
        )
    return min(candidates, key=lambda trial: _loss(trial, study))


def _loss(trial: Trial, study: StoredStudy) -> float:
    first = study.objectives[0]
    assert trial.final is not None, "a completed trial"
    return first.to_loss(trial.final.value(first.name))


def _weights(trial: Trial) -> Mapping[int, float]:
    """By layer of its own model; empty where nothing was learnt, which leaves every importance at zero."""
    weights = inclusion_weights(trial.final.extra if trial.final else {})
    return weights if any(weight != 0.5 for weight in weights.values()) else {}
