"""A small encoder, spaces over it, and histories whose objectives are known functions of the configuration."""

import math
from collections.abc import Callable, Mapping, Sequence

from autopeft.objectives.measurement import Measurement
from autopeft.objectives.objective import Objective, resolve_objectives
from autopeft.search.searcher import AbstractSearcher, SearchProblem
from autopeft.search.trial import Failure, FailureKind, History, Trial, TrialState
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.model_shape import ModelShape, Role, Site
from autopeft.spaces.space import SearchSpace

HIDDEN = 32


def encoder(n_layers: int = 4) -> ModelShape:
    """A BERT-like shape of width 32."""
    sites = (
        Site(name="attention.self.query", d_in=HIDDEN, d_out=HIDDEN, bias=True, role=Role.QUERY),
        Site(name="attention.self.key", d_in=HIDDEN, d_out=HIDDEN, bias=True, role=Role.KEY),
        Site(name="attention.self.value", d_in=HIDDEN, d_out=HIDDEN, bias=True, role=Role.VALUE),
        Site(name="attention.output.dense", d_in=HIDDEN, d_out=HIDDEN, bias=True, role=Role.ATTENTION_OUTPUT),
        Site(name="intermediate.dense", d_in=HIDDEN, d_out=4 * HIDDEN, bias=True, role=Role.MLP_UP),
        Site(name="output.dense", d_in=4 * HIDDEN, d_out=HIDDEN, bias=True, role=Role.MLP_DOWN),
    )
    return ModelShape(
        family="bert",
        layer_path="encoder.layer",
        layers=(sites,) * n_layers,
        hidden_size=HIDDEN,
        n_heads=4,
        n_kv_heads=4,
        head_dim=8,
        vocabulary_size=100,
        base_parameters=n_layers * 12 * HIDDEN**2 + 100 * HIDDEN,
        embedding_parameters=100 * HIDDEN,
        causal=False,
    )


def memory_of(configuration: Configuration, shape: ModelShape) -> float:
    """A made-up prediction of peak bytes: a base, and something for every layer from the lowest adapted one up."""
    lowest = min(configuration.adapted_layers)
    return 1e6 + 2e5 * (shape.n_layers - lowest) + 3e4 * sum(len(setting.layers) for setting in configuration)


SPACES: dict[str, Mapping[str, object]] = {
    "mixed": {
        "layers": "subset",
        "serial_adapter": {"bottleneck": "choice(0, 1, 2, 4, 8, 16, 32)"},
        "lora": {"rank": "per_layer(choice(0, 1, 2, 4, 8))"},
        "prefix_tuning": {"length": "choice(0, 2, 8, 32)"},
        "learning_rate": "log(1e-4, 1e-2)",
    },
    "sizes": {
        "layers": "subset",
        "serial_adapter": {"bottleneck": "choice(0, 1, 2, 4, 8, 16, 32)"},
        "parallel_adapter": {"bottleneck": "choice(0, 1, 2, 4, 8, 16, 32)"},
        "prefix_tuning": {"length": "choice(0, 1, 2, 4, 8, 16, 32)"},
    },
    "per-layer": {
        "lora": {"rank": "per_layer(choice(0, 1, 2, 4, 8))", "targets": "subset(query, value, mlp_up)"},
    },
    "tiny": {"layers": "subset", "lora": {"rank": "choice(0, 2)"}},
}


def space_of(name: str, *, n_layers: int = 4, constraints: Sequence[str] = ()) -> SearchSpace:
    shape = encoder(n_layers)
    return SearchSpace.bind(
        SpaceDefinition.from_mapping(SPACES[name]),
        shape,
        constraints=tuple(constraints),
        quantities={"memory": lambda configuration: memory_of(configuration, shape)},
    )


def problem_of(
    space: SearchSpace,
    names: Sequence[str] = ("accuracy", "parameters", "memory"),
    *,
    seed: int = 0,
    n_trials: int = 40,
) -> SearchProblem:
    objectives: tuple[Objective, ...] = resolve_objectives(names, metric="accuracy")
    return SearchProblem(space=space, objectives=objectives, seed=seed, n_trials=n_trials)


def accuracy_of(configuration: Configuration, space: SearchSpace) -> float:
    """Between 0.5 and 0.9: later layers and more parameters help with falling returns, some learning rates hurt."""
    gain = 0.0
    depth = space.shape.n_layers
    for setting in configuration:
        strength = {"lora": 1.0, "serial_adapter": 0.8, "parallel_adapter": 0.9, "prefix_tuning": 0.3}[setting.method]
        sizes = setting.column({"lora": "rank", "prefix_tuning": "length"}.get(setting.method, "bottleneck"))
        for layer, size in zip(setting.layers, sizes, strict=True):
            assert isinstance(size, int)
            gain += strength * math.log2(1 + size) * (0.3 + layer / depth) / depth
    rate = float(dict(configuration.training).get("learning_rate", 1e-3))
    return 0.5 + 0.4 * (1 - math.exp(-gain)) - 0.05 * (math.log10(rate) + 3) ** 2


def measured(configuration: Configuration, space: SearchSpace) -> Measurement:
    accuracy = accuracy_of(configuration, space)
    return Measurement(
        epoch=1,
        metrics={"accuracy": accuracy, "loss": 1 - accuracy},
        train_loss=1 - accuracy,
        train_seconds=1.0 + 0.1 * len(configuration.adapted_layers),
        evaluation_seconds=0.1,
        tokens=1000,
        peak_bytes=round(1.1 * memory_of(configuration, space.shape)),
        parameters=space.parameters(configuration),
    )


def trial_of(
    number: int,
    configuration: Configuration,
    space: SearchSpace,
    *,
    state: TrialState = TrialState.COMPLETED,
    kind: FailureKind = FailureKind.DIVERGED,
) -> Trial:
    failed = state is TrialState.FAILED
    unfinished = failed or state is TrialState.RUNNING
    return Trial(
        number=number,
        configuration=configuration,
        state=state,
        measurements=() if unfinished else (measured(configuration, space),),
        predicted=space.predicted(configuration),
        failure=Failure(kind=kind, message="on purpose") if failed else None,
    )


def history_of(
    configurations: Sequence[Configuration],
    space: SearchSpace,
    *,
    state: Callable[[int], TrialState] = lambda _: TrialState.COMPLETED,
) -> History:
    """A history of `configurations` in order; `state` of each by number."""
    rows = [trial_of(number, one, space, state=state(number)) for number, one in enumerate(configurations)]
    return History(trials=tuple(rows))


def run(searcher: AbstractSearcher, space: SearchSpace, *, n: int, batch: int = 1) -> History:
    """`n` trials asked for in batches and completed in order; fewer when the searcher has no more."""
    history = History()
    while len(history) < n:
        asked = searcher.ask(history, min(batch, n - len(history)))
        if not asked:
            break
        rows = [trial_of(len(history) + place, one, space) for place, one in enumerate(asked)]
        history = History(trials=(*history.trials, *rows))
    return history
