"""Made-up problems whose truth is known: what configurations are worth, as a formula that the seed draws.

The space is rich (a bit and a LoRA rank a layer of twelve, targets, serial adapters, learning rate). Accuracy grows
with what is adapted, more in some layers than in others (which ones, the seed decides), less with every further
parameter, and has its best learning rate, which falls as sizes grow. An engine sees accuracy with noise of 0.01 and
parameters exactly. Counted are the noise-free values of what it tried, in accuracy from 0.5 and parameters to three
million. These are no real trainings: what holds here need not hold on a task.
"""

from collections.abc import Callable, Mapping

import numpy as np
from suggestion_time import encoder

from autopeft.objectives.measurement import Measurement
from autopeft.search.trial import Trial, TrialState
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.space import SearchSpace

N_LAYERS = 12
SPACE = {
    "layers": "subset",
    "serial_adapter": {"bottleneck": "choice(0, 4, 16, 64)"},
    "lora": {"rank": "per_layer(choice(0, 2, 8, 32))", "targets": "subset(query, key, value)"},
    "learning_rate": "log(3e-4, 1e-2)",
}
NOISE = 0.01
REFERENCE = np.array([0.5, 3e6])
"""Error and parameters."""
Truth = Callable[[Configuration], float]


def bound_space() -> SearchSpace:
    return SearchSpace.bind(SpaceDefinition.from_mapping(SPACE), encoder(N_LAYERS))


def truth_of(space: SearchSpace, seed: int) -> Truth:
    """Accuracy without noise as a function of the configuration; another one for every seed."""
    rng = np.random.default_rng([seed, 77])
    weights = np.abs(rng.normal(size=N_LAYERS)) * np.linspace(0.3, 1.5, N_LAYERS)
    weights /= weights.sum()
    worth = {"query": rng.random(), "key": 0.3 * rng.random(), "value": 0.5 + rng.random()}
    best_rate = rng.uniform(-3.2, -2.2)

    def truth(configuration: Configuration) -> float:
        spelled = space.spell(configuration)
        capacity = np.array([capacity_of(spelled, configuration, layer, worth) for layer in range(N_LAYERS)])
        learned = float(weights @ (1 - np.exp(-1.5 * capacity)))
        off = np.log10(float(spelled["learning_rate"])) - best_rate
        off += 0.15 * (np.log10(1 + space.parameters(configuration)) - 5)
        return 0.5 + 0.4 * learned * float(np.exp(-0.5 * (off / 0.5) ** 2))

    return truth


def capacity_of(
    spelled: Mapping[str, object], configuration: Configuration, layer: int, worth: Mapping[str, float]
) -> float:
    """What one layer can learn: logarithmic in rank and bottleneck, weighed by target."""
    rank, bottleneck = (
        float(str(spelled.get(name) or 0)) for name in (f"lora.rank[{layer}]", "serial_adapter.bottleneck")
    )
    targets = str(spelled.get("lora.targets") or "")
    capacity = sum(value for name, value in worth.items() if name in targets) * np.log1p(rank) / np.log(33) / 2
    return float(capacity + 0.6 * (layer in configuration.adapted_layers) * np.log1p(bottleneck) / np.log(65))


def trial_of(number: int, configuration: Configuration, accuracy: float, parameters: int) -> Trial:
    measurement = Measurement(
        epoch=1,
        metrics={"accuracy": accuracy},
        train_loss=1.0,
        train_seconds=1.0,
        evaluation_seconds=0.1,
        tokens=1,
        peak_bytes=1,
        parameters=parameters,
    )
    return Trial(
        number=number,
        configuration=configuration,
        state=TrialState.COMPLETED,
        measurements=(measurement,),
        predicted={},
    )
