import itertools

import numpy as np
import pytest
from scipy import stats

from autopeft.objectives.objective import METRICS, Objective
from autopeft.studies.comparison import Panel, Score
from autopeft.studies.moderation import moderated

ACCURACY, PERPLEXITY = METRICS["accuracy"], METRICS["perplexity"]


def panel(values: list[list[float]], objective: Objective = ACCURACY) -> Panel:
    """Scores of configurations `a`, `b`, ... without rows."""
    return Panel.of(objective, {chr(97 + j): [Score(value=value) for value in row] for j, row in enumerate(values)})


def test_two_configurations_without_rows_are_the_paired_t_test() -> None:
    a, b = [0.81, 0.84, 0.86, 0.83], [0.80, 0.81, 0.82, 0.83]
    found = panel([a, b]).difference("a", "b")
    expected = stats.ttest_rel(a, b, alternative="greater")
    assert found.chance == pytest.approx(1 - expected.pvalue)
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_one_configuration_without_rows_is_the_t_interval() -> None:
    a = [0.81, 0.84, 0.86, 0.83]
    found = panel([a]).estimate("a")
    low, high = stats.t.interval(0.95, 3, loc=np.mean(a), scale=stats.sem(a))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(a), low, high))
    assert found.std == pytest.approx(np.std(a, ddof=1))


def test_a_difference_changes_sign_with_the_order_and_with_the_direction() -> None:
    values = [[0.81, 0.84, 0.86], [0.80, 0.81, 0.82]]
    there, back = panel(values).difference("a", "b"), panel(values).difference("b", "a")
    assert (there.mean, there.low, there.high) == pytest.approx((-back.mean, -back.high, -back.low))
    assert there.chance == pytest.approx(1 - back.chance)
    lower_is_better = panel([[3.0, 3.1, 3.2], [4.0, 4.2, 4.1]], PERPLEXITY).difference("a", "b")
    assert lower_is_better.mean == pytest.approx(1.0)
    assert lower_is_better.verdict == "better"


def test_what_a_seed_does_to_all_alike_does_not_blur_a_difference() -> None:
    base = np.array([[0.80, 0.81, 0.79], [0.75, 0.77, 0.76]])
    shaken = base + np.array([0.1, -0.1, 0.05])
    one, other = panel(base.tolist()).difference("a", "b"), panel(shaken.tolist()).difference("a", "b")
    assert one == other or one.chance == pytest.approx(other.chance)


def test_equal_scores_are_noise_and_a_constant_gap_is_none() -> None:
    equal = panel([[0.8, 0.8, 0.8], [0.8, 0.8, 0.8]]).difference("a", "b")
    assert (equal.chance, equal.verdict) == (0.5, "noise")
    assert equal.shown == pytest.approx(0.0, abs=1e-12)
    assert panel([[0.9, 0.9], [0.8, 0.8]]).difference("b", "a").verdict == "worse"


def test_one_seed_says_nothing_and_an_interval_stays_in_the_range_of_its_metric() -> None:
    found = panel([[0.99], [0.5]])
    assert found.difference("a", "b").verdict == "noise"
    assert (found.estimate("a").low, found.estimate("a").high) == (0.0, 1.0)


def simulated(
    rng: np.random.Generator, gaps: list[float], *, seeds: int = 3, rows: int = 150, draws: int = 100
) -> Panel:
    """Accuracies on one split of models that agree on most rows; a configuration has a skill, and each seed its own."""
    hardness = rng.normal(size=rows)
    drawn = rng.integers(rows, size=(draws, rows))
    scores: dict[str, list[Score]] = {}
    common = rng.normal(scale=0.1, size=seeds)
    for j, gap in enumerate(gaps):
        scores[chr(97 + j)] = []
        for seed in range(seeds):
            skill = 1.0 + gap + common[seed] + rng.normal(scale=0.1)
            right = skill - hardness + rng.normal(scale=0.5, size=rows) > 0
            scores[chr(97 + j)].append(Score(value=float(right.mean()), draws=tuple(right[drawn].mean(axis=1))))
    return Panel.of(ACCURACY, scores)


@pytest.mark.parametrize("n", [2, 6])
def test_intervals_cover_as_often_as_they_say(n: int) -> None:
    """True difference 0, and the true mean over seeds, rows and models: 95 % intervals, 400 repetitions."""
    rng = np.random.default_rng(0)
    truth = stats.norm.cdf(1.0 / np.sqrt(1.0 + 0.25 + 0.02))
    panels = [simulated(rng, [0.0] * n) for _ in range(400)]
    differences = [panel.difference("a", "b") for panel in panels]
    covered = np.mean([found.low <= 0 <= found.high for found in differences])
    assert 0.93 <= covered <= 1.0
    wrong = np.mean([found.verdict == "better" for found in differences])
    assert wrong <= 0.07, "a difference of 0 is called one in a twentieth of the cases at most, up to chance"
    means = [panel.estimate("a") for panel in panels]
    assert np.mean([found.low <= truth <= found.high for found in means]) >= 0.92


def test_more_seeds_and_a_larger_gap_are_told_from_noise() -> None:
    rng = np.random.default_rng(1)
    chances = [simulated(rng, [0.6, 0.0, 0.0], seeds=5, rows=400).difference("a", "b").chance for _ in range(40)]
    assert np.mean([chance > 0.95 for chance in chances]) > 0.8


def test_rows_that_are_few_blur_what_seeds_agree_on() -> None:
    rng = np.random.default_rng(2)
    right = np.array([[1] * 18 + [0] * 2, [1] * 16 + [0] * 4])
    drawn = rng.integers(20, size=(400, 20))
    scores = {
        name: [Score(value=float(row.mean()), draws=tuple(row[drawn].mean(axis=1)))] * 3
        for name, row in zip("ab", right, strict=True)
    }
    found = Panel.of(ACCURACY, scores).difference("a", "b")
    assert found.mean == pytest.approx(0.1)
    assert found.verdict == "noise"


def coverage(scales: list[float], *, repetitions: int = 400) -> tuple[float, float, float]:
    """How often 95 % intervals of differences of neighbours hold the truth, 0, with three seeds: all, those of the
    unsteadiest configuration, and the median half-width of the others.
    """
    rng = np.random.default_rng(3)
    names = [chr(97 + j) for j in range(len(scales))]
    worst = names[int(np.argmax(scales))]
    held: dict[bool, list[bool]] = {True: [], False: []}
    halves: list[float] = []
    pairs = list(itertools.pairwise(names))
    for _ in range(repetitions):
        common = rng.normal(scale=0.02, size=3)
        found = panel((0.8 + common + rng.normal(size=(len(scales), 3)) * np.array(scales)[:, None]).tolist())
        for a, b in pairs:
            one = found.difference(a, b)
            held[worst in (a, b)].append(one.low <= 0 <= one.high)
            halves += [] if worst in (a, b) else [one.shown]
    return float(np.mean(held[True] + held[False])), float(np.mean(held[True])), float(np.median(halves))


@pytest.mark.parametrize("n", [3, 6])
def test_intervals_cover_when_one_configuration_is_unsteady(n: int) -> None:
    every, unsteady, others = coverage([0.01] * (n - 1) + [0.15])
    assert every >= 0.93
    assert unsteady >= 0.92, "pooled variances hold 79 % of the differences of the unsteady one of four"
    assert others < 0.05, "an unsteady configuration does not widen the intervals of the others, 0.13 when pooled"


def test_steady_configurations_are_told_apart_by_less_than_each_pair_alone_could() -> None:
    every, worst, others = coverage([0.01] * 6)
    assert every >= 0.94
    assert worst >= 0.93
    alone = stats.t.ppf(0.975, 2) * 0.01 * np.sqrt(2 / 3)
    assert others < 0.8 * alone


def test_many_alike_variances_are_pooled_and_a_large_one_is_left_as_it_is() -> None:
    rng = np.random.default_rng(4)
    alike = rng.chisquare(2, size=2000) / 2
    drawn, freedom = moderated(alike, 2.0, most=1e9)
    assert np.allclose(drawn[alike < 0.9], 1.0, atol=0.1)
    assert (freedom[alike < 0.9] > 50).all()
    larger = alike > drawn.min() * 1.2
    assert np.array_equal(drawn[larger], alike[larger])
    assert (freedom[larger] == 2.0).all()


def test_the_prior_of_variances_is_what_they_were_drawn_from() -> None:
    """Smyth's model: 1 / variance is a scaled chi-square of 4 degrees of freedom, scores have 2."""
    rng = np.random.default_rng(5)
    variances = 3.0 * 4.0 / rng.chisquare(4, size=20_000) * rng.chisquare(2, size=20_000) / 2
    drawn, freedom = moderated(variances, 2.0, most=1e9)
    steady = freedom > 2.0
    assert freedom[steady][0] == pytest.approx(6.0, rel=0.15)
    assert drawn[steady] == pytest.approx((4.0 * 3.0 + 2.0 * variances[steady]) / 6.0, rel=0.15)


def test_no_spread_between_seeds_at_all_leaves_nothing_to_draw_from() -> None:
    drawn, freedom = moderated(np.zeros(3), 2.0, most=6.0)
    assert drawn.tolist() == [0.0] * 3
    assert freedom.tolist() == [2.0] * 3
