"""Intervals and tests against published numbers and SciPy's and statsmodels' own."""

import gc

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar

from experiments.compare.statistics import (
    MCNEMAR,
    NO_TEST,
    ONE_AGAINST_MANY,
    PAIRED,
    WELCH,
    Sample,
    difference,
    estimate,
    holm,
    pairwise_p_values,
    seeds_needed,
)

# Student (1908): hours of sleep gained by ten patients with two drugs.
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


@pytest.fixture(scope="module", autouse=True)
def nothing_to_collect():
    """statsmodels collects garbage after every Holm adjustment: 0.3 s each in a process that has run other tests."""
    gc.collect()
    gc.freeze()


def sample(values, first_seed=0):
    return Sample(dict(enumerate(values, first_seed)))


def single(right, images="the same"):
    return Sample({0: float(np.mean(right))}, np.array(right, bool), images)


def test_paired_t_of_students_sleep_data():
    found = difference(sample(FIRST), sample(SECOND))
    assert found.test == PAIRED
    assert found.p == pytest.approx(0.002833, abs=1e-6)
    assert (found.estimate.value, found.estimate.low, found.estimate.high) == pytest.approx(
        (-1.58, -2.4598858, -0.7001142)
    )


def test_welch_of_students_sleep_data():
    found = difference(sample(FIRST), sample(SECOND, 10))
    assert found.test == WELCH
    assert found.p == pytest.approx(0.07939, abs=1e-5)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((-3.3654832, 0.2054832))


def test_one_seed_against_several_takes_their_spread():
    found = difference(sample([5.0]), sample([1.0, 2.0, 3.0]))
    assert found.test == ONE_AGAINST_MANY
    half = 4.302653 * (1 + 1 / 3) ** 0.5  # t of 2 degrees of freedom times s = 1
    assert (found.estimate.low, found.estimate.high) == pytest.approx((3 - half, 3 + half), abs=1e-5)


def test_single_seeds_are_tested_over_their_images():
    one, other = [1] * 60 + [0] * 40, [1] * 48 + [0] * 12 + [1] * 3 + [0] * 37
    found = difference(single(one), single(other))
    assert found.test == MCNEMAR
    assert found.p == pytest.approx(mcnemar([[48, 12], [3, 37]], exact=True).pvalue)
    assert found.estimate.value == pytest.approx(0.09)
    assert found.estimate.low < 0.09 < found.estimate.high


def test_answers_to_other_images_are_not_paired():
    found = difference(single([1] * 60 + [0] * 40), single([1] * 30 + [0] * 20, "others"))
    assert found.test == NO_TEST
    assert np.isnan(found.p)


def test_wilson_of_newcombe_1998():
    found = estimate(single([1] * 81 + [0] * 182))
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_a_gain_that_never_varies_proves_nothing():
    found = difference(sample([0.962, 0.972]), sample([0.960, 0.970]))
    assert np.isnan(found.p)
    assert found.estimate.low is None


def test_holm_by_hand():
    assert holm(np.array([0.01, 0.04, np.nan, 0.03, 0.005])) == pytest.approx(
        [0.03, 0.06, np.nan, 0.06, 0.02], nan_ok=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("variants", [2, 8])
@pytest.mark.parametrize("apart", [0, 100])
def test_equal_variants_are_seldom_told_apart(variants, apart):
    random = np.random.default_rng(variants + apart)
    wrong = 0
    for _ in range(2000):
        drawn = [
            sample(values, apart * place) for place, values in enumerate(random.normal(0.98, 0.002, (variants, 5)))
        ]
        drawn.sort(key=lambda one: -one.array.mean())
        wrong += bool((holm(pairwise_p_values(drawn))[: variants - 1] < 0.05).any())
    assert wrong / 2000 <= 0.06


def share_covered(intervals, truth):
    return np.mean([interval.low <= truth <= interval.high for interval in intervals])


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(0)
    paired, welch, means = [], [], []
    for _ in range(2000):
        common, own = random.normal(0, 0.001, 5), random.normal([[0.98], [0.97]], [[0.001], [0.002]], (2, 5))
        one, other = sample(own[0] + common), sample(own[1] + common)
        means.append(estimate(other))
        paired.append(difference(one, other).estimate)
        welch.append(difference(sample(own[0]), sample(own[1], 10)).estimate)
    assert 0.93 <= share_covered(means, 0.97) <= 0.97
    assert 0.93 <= share_covered(paired, 0.01) <= 0.97
    assert 0.93 <= share_covered(welch, 0.01) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(("accuracy", "images", "draws"), [(0.97, 500, 10_000), (0.99, 10_000, 2000)])
def test_intervals_over_images_hold_the_truth_as_often_as_they_say(accuracy, images, draws):
    random = np.random.default_rng(0)
    wilson, bonett_price = [], []
    for _ in range(draws):
        hard = random.random(images) < 2 * (1 - accuracy)  # that both get wrong every other time
        one, other = (single(~hard | (random.random(images) < 0.5)) for _ in range(2))
        wilson.append(estimate(one))
        bonett_price.append(difference(one, other).estimate)
    assert 0.93 <= share_covered(wilson, accuracy) <= 0.97
    assert 0.93 <= share_covered(bonett_price, 0) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("apart", [0, 100])
def test_as_many_seeds_as_are_said_to_be_needed_show_the_difference(apart):
    random = np.random.default_rng(apart)
    exactly = np.array([-1, 0, 1.0])  # standard deviation 1
    needed = seeds_needed(sample(exactly), sample(1 + exactly[::-1], apart), 0.05)
    spread = 2.0 if not apart else 1.0  # of the differences of pairs, or of each sample
    drawn = random.normal(0, 1, (1000, 2, needed)) * (spread / 2**0.5 if not apart else spread)
    shown = [difference(sample(one), sample(1 + other, apart)).p < 0.05 for one, other in drawn]
    assert 0.77 <= np.mean(shown) <= 0.83


@pytest.mark.slow
@pytest.mark.parametrize("variants", [2, 8])
def test_equal_single_seeds_are_seldom_told_apart(variants):
    random = np.random.default_rng(variants)
    wrong = 0
    for _ in range(2000):
        hard = random.random(500) < 0.06
        drawn = [single(~hard | (random.random(500) < 0.5)) for _ in range(variants)]
        drawn.sort(key=lambda one: -one.array.mean())
        wrong += bool((holm(pairwise_p_values(drawn))[: variants - 1] < 0.05).any())
    assert wrong / 2000 <= 0.06
