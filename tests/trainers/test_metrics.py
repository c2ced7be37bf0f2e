import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as twins

from autopeft.errors import DivergedError
from autopeft.trainers import metrics

CLASSES = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 3), min_size=n, max_size=n), st.lists(st.integers(0, 3), min_size=n, max_size=n)
    )
)
NUMBERS = st.integers(2, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(-9, 9), min_size=n, max_size=n), st.lists(st.integers(-9, 9), min_size=n, max_size=n)
    )
)


@pytest.mark.filterwarnings("ignore:A single label:UserWarning")
@settings(deadline=None)
@given(CLASSES)
def test_class_metrics_equal_scikit_learn_s(pair: tuple[list[int], list[int]]) -> None:
    predicted, target = (np.array(side) for side in pair)
    assert metrics.accuracy(predicted, target) == pytest.approx(twins.accuracy_score(target, predicted))
    assert metrics.matthews(predicted, target) == pytest.approx(twins.matthews_corrcoef(target, predicted), abs=1e-12)
    expected = twins.f1_score(target, predicted, average="macro", zero_division=0.0)
    assert metrics.f1(predicted, target, 4) == pytest.approx(expected)
    second = [(side > 1).astype(int) for side in (predicted, target)]
    assert metrics.f1(second[0], second[1], 2) == pytest.approx(twins.f1_score(second[1], second[0], zero_division=0.0))


def test_f1_is_a_mean_over_classes_even_where_only_the_first_two_are_about() -> None:
    logits = np.array([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    target = np.array([0, 1, 1, 1])
    found = metrics.class_metrics(["f1"], logits, target)["f1"]
    assert found == pytest.approx(twins.f1_score(target, logits.argmax(1), average="macro"))
    assert found != pytest.approx(metrics.class_metrics(["f1"], logits[:, :2], target)["f1"])


@given(NUMBERS)
def test_correlations_equal_scipy_s(pair: tuple[list[int], list[int]]) -> None:
    x, y = (np.array(side, dtype=float) for side in pair)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert metrics.pearson(x, y) == metrics.spearman(x, y) == 0.0
    else:
        assert metrics.pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-9)
        assert metrics.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)


@given(NUMBERS, st.floats(0.1, 10.0), st.floats(-5.0, 5.0))
def test_correlations_do_not_change_with_scale_and_shift(
    pair: tuple[list[int], list[int]], scale: float, shift: float
) -> None:
    x, y = (np.array(side, dtype=float) for side in pair)
    assert metrics.pearson(scale * x + shift, y) == pytest.approx(metrics.pearson(x, y), abs=1e-6)


def test_constant_predictions_have_no_correlation() -> None:
    constant, varied = np.full(5, 0.1), np.arange(5.0)
    assert metrics.pearson(constant, varied) == 0.0
    assert metrics.spearman(varied, constant) == 0.0
    assert metrics.matthews(np.zeros(4, dtype=int), np.array([0, 1, 0, 1])) == 0.0
    assert metrics.f1(np.zeros(4, dtype=int), np.array([0, 1, 0, 1]), 2) == 0.0


def test_class_metrics_report_the_cross_entropy_beside_what_was_asked() -> None:
    logits, target = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), np.array([0, 1, 1])
    values = metrics.class_metrics(["accuracy", "f1"], logits, target)
    chosen = np.exp(logits)[np.arange(3), target] / np.exp(logits).sum(1)
    assert values == pytest.approx({"accuracy": 2 / 3, "f1": 2 / 3, "loss": float(-np.log(chosen).mean())})
    assert metrics.class_metrics([], logits * 1e4, target)["loss"] == pytest.approx(1e4)


def test_number_and_token_metrics_report_their_loss() -> None:
    assert metrics.number_metrics(["pearson"], np.array([0.0, 2.0]), np.array([0.0, 1.0])) == pytest.approx(
        {"pearson": 1.0, "loss": 0.5}
    )
    values = metrics.token_metrics(["perplexity", "accuracy"], np.array([1.0, 3.0]), np.array([1.0, 0.0]))
    assert values == pytest.approx({"perplexity": math.exp(2.0), "accuracy": 0.5, "loss": 2.0})


def test_predictions_that_are_not_finite_are_a_diverged_trial() -> None:
    bad = np.array([[0.0, np.nan], [0.0, np.inf]])
    with pytest.raises(DivergedError, match="2 of 4 predictions are not finite"):
        metrics.class_metrics(["accuracy"], bad, np.array([0, 1]))
    with pytest.raises(DivergedError, match="predictions are not finite"):
        metrics.number_metrics(["pearson"], bad[:, 1], np.array([0.0, 1.0]))
    with pytest.raises(DivergedError, match=r"validation loss is 800\.0: perplexity is infinite"):
        metrics.token_metrics(["perplexity"], np.array([800.0]), np.array([0.0]))


@settings(deadline=None)
@given(CLASSES)
def test_micro_f1_equals_scikit_learn_s_without_class_zero(pair: tuple[list[int], list[int]]) -> None:
    predicted, target = np.array(pair[0]), np.array(pair[1])
    labels = [label for label in np.union1d(predicted, target) if label > 0]
    if labels:
        expected = twins.f1_score(target, predicted, labels=labels, average="micro", zero_division=0)
        assert metrics.micro_f1(predicted, target) == pytest.approx(expected)
    else:
        assert metrics.micro_f1(predicted, target) == 0.0
