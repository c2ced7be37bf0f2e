"""What a study's trials say as a whole: which dimensions mattered, what the front uses, and its space as stored."""

from collections.abc import Mapping
from dataclasses import dataclass

from autopeft.errors import SpaceError
from autopeft.objectives.front import Front
from autopeft.objectives.objective import METRICS, Knowledge, Objective
from autopeft.search.sensitivity import Sensitivity, sensitivity
from autopeft.search.trial import History
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.space import SearchSpace
from autopeft.studies.definition import StudyDefinition
from autopeft.studies.describe import layer_sizes, method_word


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerUse:
    """How the points of a front use one method over depth."""

    method: str
    points: tuple[int, ...]
    """How many points adapt each layer."""
    sizes: tuple[tuple[str, ...], ...]
    """The sizes they have at each layer, ascending, each once."""


def stored_space(definition: StudyDefinition) -> SearchSpace:
    """The space of a study from what its storage holds; no model is read.

    Limits on parameters hold, those on predicted memory are left out: predicting it takes the model.
    """
    kept: Mapping[str, object] = definition.space
    mapping, shape, limits = kept["definition"], kept["shape"], kept.get("constraints")
    assert isinstance(mapping, Mapping)
    assert isinstance(shape, Mapping)
    texts = [str(text) for text in limits] if isinstance(limits, list) else []
    space, bound = SpaceDefinition.from_mapping(mapping), ModelShape.from_json(shape)
    try:
        return SearchSpace.bind(space, bound, constraints=[text for text in texts if text.startswith("parameters")])
    except SpaceError:
        return SearchSpace.bind(space, bound)


def learned(objectives: tuple[Objective, ...], metric: str) -> Objective:
    """The objective that a study's insight is about: its metric, else the first that only training tells."""
    names = {objective.name: objective for objective in objectives}
    if metric in names:
        return names[metric]
    return next((one for one in objectives if one.knowledge is Knowledge.LEARNED), METRICS[metric])


def study_sensitivity(definition: StudyDefinition, history: History, *, metric: str, seed: int) -> Sensitivity | None:
    """What mattered for the metric of a study; None where its trials say too little."""
    objective = learned(definition.objectives, metric)
    return sensitivity(stored_space(definition), history, objective, seed=seed)


def layer_use(front: Front, n_layers: int) -> list[LayerUse]:
    """Which layers the points of a front adapt, and how large, by method."""
    rows: dict[str, list[dict[str, int]]] = {}
    for point in front:
        for setting in point.configuration:
            columns = rows.setdefault(setting.method, [{} for _ in range(n_layers)])
            for layer, size in enumerate(layer_sizes(setting, n_layers)[:n_layers]):
                if size:
                    columns[layer][str(size)] = columns[layer].get(str(size), 0) + 1
    return [
        LayerUse(
            method=method_word(method),
            points=tuple(sum(column.values()) for column in columns),
            sizes=tuple(tuple(sorted(column, key=_by_number)) for column in columns),
        )
        for method, columns in sorted(rows.items())
    ]


def _by_number(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text
