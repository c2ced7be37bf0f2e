"""Task metrics from predictions, numpy only.

Letters: N rows, C classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from autopeft.errors import DivergedError

IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def accuracy(predicted_N: IntArray, target_N: IntArray) -> float:
    """Share of rows predicted right, in [0, 1]."""
    return float(np.mean(predicted_N == target_N))


def f1(predicted_N: IntArray, target_N: IntArray, n_classes: int) -> float:
    """F1 in [0, 1]: of class 1 where there are two classes (as GLUE), else the mean over the classes that occur.

    A class that is neither predicted nor present counts for nothing; one that is never hit has F1 0.
    """
    if n_classes <= 2:
        return _f1_of(1, predicted_N, target_N)
    occurring = np.union1d(predicted_N, target_N)
    return float(np.mean([_f1_of(int(label), predicted_N, target_N) for label in occurring]))


def _f1_of(label: int, predicted_N: IntArray, target_N: IntArray) -> float:
    hits = int(np.sum((predicted_N == label) & (target_N == label)))
    total = int(np.sum(predicted_N == label) + np.sum(target_N == label))
    return 2.0 * hits / total if total else 0.0


def micro_f1(predicted_N: IntArray, target_N: IntArray) -> float:
    """F1 in [0, 1] over all items together that are, or are taken for, anything but class 0."""
    hits = int(np.sum((predicted_N == target_N) & (target_N > 0)))
    total = int(np.sum(predicted_N > 0) + np.sum(target_N > 0))
    return 2.0 * hits / total if total else 0.0


def matthews(predicted_N: IntArray, target_N: IntArray) -> float:
    """Matthews correlation in [-1, 1], Gorodkin's R_K for any number of classes; 0.0 when either side is constant.

    Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", eq. 8.
    """
    n_classes = int(max(predicted_N.max(), target_N.max())) + 1
    predicted_C = np.bincount(predicted_N, minlength=n_classes).astype(np.float64)
    target_C = np.bincount(target_N, minlength=n_classes).astype(np.float64)
    n, hits = float(len(target_N)), float(np.sum(predicted_N == target_N))
    spread = (n * n - predicted_C @ predicted_C) * (n * n - target_C @ target_C)
    return float((hits * n - predicted_C @ target_C) / math.sqrt(spread)) if spread > 0 else 0.0


def pearson(predicted_N: FloatArray, target_N: FloatArray) -> float:
    """Linear correlation in [-1, 1]; 0.0 when either side is constant or there is one row."""
    x_N, y_N = predicted_N - predicted_N.mean(), target_N - target_N.mean()
    scale = float(np.linalg.norm(x_N) * np.linalg.norm(y_N))
    tiny = 1e-12 * len(x_N) * max(1.0, float(np.abs(predicted_N).max()) * float(np.abs(target_N).max()))
    return float(np.clip(x_N @ y_N / scale, -1.0, 1.0)) if scale > tiny else 0.0


def spearman(predicted_N: FloatArray, target_N: FloatArray) -> float:
    """Rank correlation in [-1, 1], ties at their mean rank; 0.0 when either side is constant."""
    return pearson(_ranks(predicted_N), _ranks(target_N))


def _ranks(values_N: FloatArray) -> FloatArray:
    _, inverse_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank = last - (counts - 1) / 2.0
    return mean_rank[inverse_N]


def perplexity(mean_loss: float) -> float:
    """Exponential of the mean loss a target token, in nats; from 1 upwards.

    Raises:
        DivergedError: It is not finite.
    """
    if not math.isfinite(mean_loss) or mean_loss > 700.0:
        raise DivergedError(f"validation loss is {mean_loss}: perplexity is infinite", hint="lower the learning rate")
    return math.exp(mean_loss)


ClassMetric = Callable[[IntArray, IntArray, int], float]
"""Of predictions, targets and the number of classes that there are, of which not all need occur."""

CLASS_METRICS: dict[str, ClassMetric] = {
    "accuracy": lambda predicted_N, target_N, _: accuracy(predicted_N, target_N),
    "f1": f1,
    "matthews": lambda predicted_N, target_N, _: matthews(predicted_N, target_N),
}
"""Metrics of class predictions."""

TAG_METRICS: dict[str, ClassMetric] = {
    "accuracy": CLASS_METRICS["accuracy"],
    "f1": f1,
    "micro_f1": lambda predicted_N, target_N, _: micro_f1(predicted_N, target_N),
}
"""Metrics of word tags."""

CHOICE_METRICS: dict[str, ClassMetric] = {"accuracy": CLASS_METRICS["accuracy"]}
"""Metrics of the choice among answers."""

NUMBER_METRICS: dict[str, Callable[[FloatArray, FloatArray], float]] = {"pearson": pearson, "spearman": spearman}
"""Metrics of real predictions."""

TOKEN_METRICS = ("perplexity", "accuracy")
"""Metrics of next-token prediction."""


def class_metrics(
    names: Sequence[str],
    logits_NC: FloatArray,
    target_N: IntArray,
    *,
    known: Mapping[str, ClassMetric] = CLASS_METRICS,
) -> dict[str, float]:
    """The metrics called `names`, each one of `known`, and `loss` (mean cross-entropy, nats).

    Raises:
        DivergedError: A logit is NaN or infinite.
    """
    _check_finite(logits_NC)
    predicted_N = logits_NC.argmax(axis=1)
    shifted_NC = logits_NC - logits_NC.max(axis=1, keepdims=True)
    loss_N = np.log(np.exp(shifted_NC).sum(axis=1)) - shifted_NC[np.arange(len(target_N)), target_N]
    values = {name: known[name](predicted_N, target_N, logits_NC.shape[1]) for name in names}
    return values | {"loss": float(loss_N.mean())}


def tag_metrics(names: Sequence[str], logits_NC: FloatArray, target_N: IntArray) -> dict[str, float]:
    """`class_metrics` of `TAG_METRICS`."""
    return class_metrics(names, logits_NC, target_N, known=TAG_METRICS)


def number_metrics(names: Sequence[str], predicted_N: FloatArray, target_N: FloatArray) -> dict[str, float]:
    """The metrics called `names` and `loss` (mean squared error, in the label's unit squared).

    Raises:
        DivergedError: A prediction is NaN or infinite.
    """
    _check_finite(predicted_N)
    values = {name: NUMBER_METRICS[name](predicted_N, target_N) for name in names}
    return values | {"loss": float(np.mean((predicted_N - target_N) ** 2))}


def token_metrics(names: Sequence[str], loss_N: FloatArray, right_N: FloatArray) -> dict[str, float]:
    """The metrics called `names` and `loss` (mean nats a target token) from each target token's loss and hit (1 or 0).

    Raises:
        DivergedError: A loss is NaN or infinite, or the perplexity would be.
    """
    _check_finite(loss_N)
    loss = float(loss_N.mean())
    values = {"perplexity": perplexity(loss), "accuracy": float(right_N.mean())}
    return {name: values[name] for name in names} | {"loss": loss}


def _check_finite(values: FloatArray) -> None:
    if not np.isfinite(values).all():
        bad = int(np.size(values) - np.isfinite(values).sum())
        raise DivergedError(f"{bad} of {np.size(values)} predictions are not finite", hint="lower the learning rate")
