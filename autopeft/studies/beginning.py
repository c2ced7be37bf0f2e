"""What a study knows before its first trial: layers that are more promising, and studies that it begins from."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from autopeft.search.searcher import SearchProblem
from autopeft.spaces.layer_prior import LayerScores
from autopeft.spaces.space import SearchSpace
from autopeft.studies.describe import human_seconds
from autopeft.studies.layer_prior import KEY as LAYER_PRIOR
from autopeft.studies.layer_prior import SCORES, LayerPrior, find_layers, prior_words
from autopeft.studies.past import Past, find_past
from autopeft.studies.spec import StudySpec
from autopeft.studies.storage import StoredStudy


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """Found when a study is begun, and kept with it from then on."""

    layers: LayerPrior | LayerScores | None
    past: Past

    @classmethod
    def of(
        cls, spec: StudySpec, space: SearchSpace, *, storage: str, say: Callable[[str], None] | None = None
    ) -> "Beginning":
        """What `spec` asks for.

        Args:
            spec: The study.
            space: Its space, bound to its model.
            storage: Where it is kept.
            say: Told of layers that were scored. None scores none, which the study then lacks if it has none yet.

        Raises:
            SpecError: Something of it is not there or not usable.
            ModelError: Layers cannot be scored.
        """
        layers = find_layers(spec, space.shape, storage=storage)
        past = find_past(spec, space, storage=storage)
        if layers is None and isinstance(spec.search.layers_from, str) and say is not None:
            layers = _scored(spec, spec.search.layers_from, say)
        return cls(layers=layers, past=past)

    def problem(self, spec: StudySpec, space: SearchSpace) -> SearchProblem:
        """What a searcher is made for."""
        return SearchProblem(
            space=space,
            objectives=spec.objectives,
            seed=spec.search.seed,
            n_trials=spec.search.trials,
            layer_weights=self.layers.weights if self.layers else {},
            past=self.past.rows,
        )

    @property
    def identity(self) -> dict[str, object]:
        """What the study's definition holds of it."""
        learnt = {LAYER_PRIOR: self.layers.to_json()} if isinstance(self.layers, LayerPrior) else {}
        return learnt | self.past.identity

    def keep(self, study: StoredStudy) -> None:
        """Write with `study` what its definition does not hold, once."""
        if isinstance(self.layers, LayerScores) and study.get_attr(SCORES) is None:
            study.set_attr(SCORES, self.layers.to_json())
        self.past.keep(study)


def _scored(spec: StudySpec, name: str, say: Callable[[str], None]) -> LayerScores:
    from autopeft.trainers.layer_scores import score_layers

    began = time.perf_counter()
    found = score_layers(name, spec.model, spec.task, spec.training)
    say(f"layers scored in {human_seconds(time.perf_counter() - began)}: {prior_words(found)}")
    return found
