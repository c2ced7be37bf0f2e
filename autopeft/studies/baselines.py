"""What a front has to beat: a LoRA of one size on all layers, tuned, and the best that random draws find."""

from dataclasses import dataclass, replace

from autopeft.objectives.objective import METRICS, Objective
from autopeft.spaces.configuration import LEARNING_RATE
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.domain import Fixed
from autopeft.spaces.model_shape import ModelShape
from autopeft.studies.spec import SearchSettings, StudySpec

LORA, RANDOM = "lora", "random"
RANKS = (1, 2, 4, 8, 16, 32, 64)
RATES = "log(1e-4, 1e-2)"
"""Learning rates of the tuned LoRA where the study's space has none to search."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A contender: how it is called, and the study that tunes it."""

    kind: str
    """`lora` or `random`."""
    spec: StudySpec


def metric_of(spec: StudySpec) -> Objective:
    """The task's metric, which confirmations compare by."""
    return METRICS[spec.task.metric]


def baselines_of(spec: StudySpec, shape: ModelShape, *, n_trials: int) -> tuple[Baseline, ...]:
    """The baselines of a study, each with `n_trials` trainings to be tuned by; a random search needs no second one."""
    rows = [Baseline(kind=LORA, spec=_lora(spec, shape, n_trials=n_trials))]
    if spec.search.engine != "random":
        rows.append(Baseline(kind=RANDOM, spec=_searching(spec, "random", n_trials)))
    return tuple(rows)


def _searching(spec: StudySpec, engine: str, n_trials: int) -> StudySpec:
    """The study with another search; each of its trials is trained to the end, as the front was."""
    settings = SearchSettings(engine=engine, trials=n_trials, seed=spec.search.seed)
    return replace(spec, search=settings, fidelity=None)


def _lora(spec: StudySpec, shape: ModelShape, *, n_trials: int) -> StudySpec:
    """The study's own training dimensions, and a LoRA of one rank on all layers, on the attention's query and value
    maps or on every linear map; it looks for the best metric alone, by the model-based engine.
    """
    width = min(min(site.d_in, site.d_out) for row in shape.layers for site in row)
    ranks = ", ".join(str(rank) for rank in RANKS if rank <= width // 2) or "1"
    rate = dict(spec.space.training).get(LEARNING_RATE)
    rates = {} if rate is not None and not isinstance(rate.domain, Fixed) else {LEARNING_RATE: RATES}
    block = {"rank": f"choice({ranks})", "targets": "choice(query-value, all-linear)"}
    written = spec.space.to_mapping()
    training = {name: written[name] for name, _ in spec.space.training}
    definition = SpaceDefinition.from_mapping({"lora": block, **training, **rates})
    tuned = _searching(spec, "bayesian", n_trials)
    return replace(tuned, space=definition, objectives=(metric_of(spec),))
