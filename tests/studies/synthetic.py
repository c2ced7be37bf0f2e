"""Synthetic studies for the tests of what shows a study: plausible trials with a known seed, no training."""

import math
from dataclasses import replace

import numpy as np

from autopeft.objectives.front import Front
from autopeft.objectives.measurement import Measurement
from autopeft.objectives.objective import resolve_objectives
from autopeft.search.trial import Failure, FailureKind, History, Pruning, Trial, TrialState
from autopeft.spaces.configuration import Configuration, FieldValue, MethodSetting
from autopeft.studies.charts import completed_points

HIDDEN, N_LAYERS = 384, 6
OBJECTIVES = resolve_objectives(["accuracy", "parameters", "memory"], metric="accuracy")


def setting(method: str, layers: tuple[int, ...], **columns: FieldValue | list[FieldValue]) -> MethodSetting:
    """A method with each column given whole (a list) or as one value for all layers."""
    full = {name: tuple(v) if isinstance(v, list) else (v,) * len(layers) for name, v in columns.items()}
    return MethodSetting(method=method, layers=layers, fields=tuple(sorted(full.items())))


def lora(layers: tuple[int, ...], rank: int | list[FieldValue], **rest: FieldValue) -> MethodSetting:
    fields: dict[str, FieldValue] = {
        "alpha": 16.0,
        "dropout": 0.0,
        "targets": ("attention.self.query", "attention.self.value"),
    }
    return setting("lora", layers, rank=rank, **(fields | rest))


def configuration(rng: np.random.Generator) -> Configuration:
    methods = []
    layers = tuple(int(layer) for layer in np.flatnonzero(rng.random(N_LAYERS) < 0.6)) or (0,)
    if rng.random() < 0.7:
        methods.append(lora(layers, [int(rank) for rank in rng.choice([2, 4, 8, 16], len(layers))]))
    if rng.random() < 0.6 or not methods:
        size = int(rng.choice([6, 24, 96]))
        methods.append(setting("serial_adapter", layers, bottleneck=size, activation="relu", scale=1.0))
    return Configuration(methods=tuple(methods), training=(("learning_rate", float(10 ** rng.uniform(-4, -2))),))


def parameters(config: Configuration) -> int:
    """Exact for lora on two square sites and for serial adapters; one for any other method."""
    total = 0
    for one in config:
        for layer in one.layers:
            values = one.at(layer) or {}
            rank, width = int(str(values.get("rank", 0))), int(str(values.get("bottleneck", 0)))
            total += rank * 4 * HIDDEN + (2 * HIDDEN * width + width + HIDDEN if width else 0)
    return max(1, total)


def completed(number: int, config: Configuration, *, accuracy: float, memory: int = 400 * 2**20) -> Trial:
    rows = [
        Measurement(
            epoch=epoch,
            metrics={"accuracy": accuracy - 0.1 * (0.0 if epoch == 3 else 0.5**epoch), "loss": 0.8 - 0.1 * epoch},
            train_loss=0.9 - 0.2 * epoch,
            train_seconds=9.5 * epoch,
            evaluation_seconds=0.5 * epoch,
            tokens=20_000 * epoch,
            peak_bytes=memory,
            parameters=parameters(config),
            head_parameters=770,
        )
        for epoch in (1, 2, 3)
    ]
    return Trial(
        number=number,
        configuration=config,
        state=TrialState.COMPLETED,
        predicted={"parameters": float(parameters(config))},
        measurements=tuple(rows),
        seconds=31.0,
    )


def failed(number: int, config: Configuration, *, message: str = "loss became nan in epoch 1") -> Trial:
    return Trial(
        number=number,
        configuration=config,
        state=TrialState.FAILED,
        predicted={"parameters": float(parameters(config))},
        failure=Failure(kind=FailureKind.DIVERGED, message=message),
        seconds=4.0,
    )


def history(n: int = 12, *, seed: int = 0) -> History:
    """`n` trials of which number 3 diverged."""
    rng = np.random.default_rng(seed)
    trials = []
    for number in range(n):
        config = configuration(rng)
        noise, memory = rng.normal(0, 0.01), int(180e6 + parameters(config) * 16 + rng.normal(0, 4e6))
        gain = 0.3 * (1 - math.exp(-parameters(config) / 40_000))
        accuracy = round(0.58 + gain + noise, 4)
        trials.append(
            failed(number, config) if number == 3 else completed(number, config, accuracy=accuracy, memory=memory)
        )
    return History(trials=tuple(trials))


def front_of(told: History) -> Front:
    return Front.of(completed_points(told, OBJECTIVES), OBJECTIVES)


def stopped(trial: Trial) -> Trial:
    """`trial` as it would be had it been stopped after its first epoch."""
    pruning = Pruning(rung=1, because="after epoch 1: place 4 of 9, the best 3 go on", final=False)
    return replace(trial, state=TrialState.PRUNED, measurements=trial.measurements[:1], pruning=pruning)
