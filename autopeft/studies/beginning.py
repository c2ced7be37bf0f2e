"""What a study knows before its first trial: layers that another learnt to prefer, and studies that it begins from."""

from dataclasses import dataclass
from typing import final

from autopeft.search.searcher import SearchProblem
from autopeft.spaces.space import SearchSpace
from autopeft.studies.layer_prior import KEY as LAYER_PRIOR
from autopeft.studies.layer_prior import LayerPrior, find_layer_prior
from autopeft.studies.past import Past, find_past
from autopeft.studies.spec import StudySpec
from autopeft.studies.storage import StoredStudy


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """Found when a study is begun, and kept with it from then on."""

    layers: LayerPrior | None
    past: Past

    @classmethod
    def of(cls, spec: StudySpec, space: SearchSpace, *, storage: str) -> "Beginning":
        """What `spec` asks for.

        Raises:
            SpecError: Something of it is not there or not usable.
        """
        return cls(
            layers=find_layer_prior(spec, space.shape, storage=storage), past=find_past(spec, space, storage=storage)
        )

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
        return ({LAYER_PRIOR: self.layers.to_json()} if self.layers else {}) | self.past.identity

    def keep(self, study: StoredStudy) -> None:
        """Write with `study` what its definition does not hold."""
        self.past.keep(study)
