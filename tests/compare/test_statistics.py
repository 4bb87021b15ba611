"""Intervals and tests against published numbers and SciPy's and statsmodels' own."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from experiments.compare.pairs import (
    BOTH,
    BOTH_ONE_AGAINST_MANY,
    BOTH_PAIRED,
    MCNEMAR,
    NO_TEST,
    ONE_AGAINST_MANY,
    OVER_IMAGES,
    PAIRED,
    PAIRED_SPLITS,
    WELCH,
    Pairs,
    all_tests,
)
from experiments.compare.power import limit
from experiments.compare.statistics import Sample, estimate, holm
from experiments.compare.variance import Variance, variance_of_mean

# Student (1908): hours of sleep gained by ten patients with two drugs.
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def sample(values, first_seed=0):
    return Sample(dict(enumerate(values, first_seed)))


def single(right, images="the same"):
    return scored([right], images)


def scored(scores, images="the same", first_seed=0):
    """A sample with the scores of every seed on every image; bool for right or wrong."""
    scores = np.array(scores)
    rate = set(scores.ravel().tolist()) <= {0, 1}
    scores = scores.astype(bool if rate else float)
    return Sample(dict(enumerate(scores.mean(axis=1), first_seed)), scores, images, is_rate=rate)


def difference(one, other, level=0.05):
    found = Pairs([other, one]).against(0)
    interval = found.interval(1, level)
    return SimpleNamespace(estimate=interval, p=found.p_values[1], test=found.tests[1], variance=found.variance_of(1))


def pairwise_p_values(samples):
    pairs = Pairs(samples)
    return np.concatenate([pairs.against(one).p_values[one + 1 :] for one in range(len(samples))])


def test_paired_t_of_students_sleep_data():
    found = difference(sample(FIRST), sample(SECOND))
    assert found.test == PAIRED
    assert found.p == pytest.approx(0.002833, abs=1e-6)
    assert (found.estimate.value, found.estimate.low, found.estimate.high) == pytest.approx(
        (-1.58, -2.4598858, -0.7001142)
    )


def crossed_scores(seed, seeds=5, images=40):
    """Two variants: scores that depend on the variant, the seed, the image and the pairs of them."""
    random = np.random.default_rng(seed)
    common = random.normal(0, 1, (1, 1, images)) + random.normal(0, 0.2, (1, seeds, 1))
    own = random.normal(0, 0.6, (2, 1, images)) + random.normal(0, 0.3, (2, seeds, 1))
    return common + own + random.normal(0, 0.5, (2, seeds, images))


def test_seeds_and_images_are_crossed_as_in_the_analysis_of_variance_of_statsmodels():
    one, other = crossed_scores(0)
    scores = one - other
    seeds, images = scores.shape
    seed, image = np.indices(scores.shape)
    frame = pd.DataFrame({"score": scores.ravel(), "seed": seed.ravel(), "image": image.ravel()})
    table = anova_lm(ols("score ~ C(seed) + C(image)", frame).fit())
    of_seeds, of_images, residual = (table["mean_sq"] / (seeds * images)).tolist()
    found = difference(scored(one), scored(other))
    assert found.test == BOTH_PAIRED
    assert (found.variance.seeds, found.variance.seeds_df) == pytest.approx((of_seeds, seeds - 1), rel=1e-8)
    assert (found.variance.images, found.variance.images_df) == pytest.approx(
        (of_images - residual, images - 1), rel=1e-8
    )
    assert vars(variance_of_mean(scores)) == pytest.approx(vars(found.variance), rel=1e-8)
    # Banerjee's interval
    squares = np.square(stats.t.isf(0.025, [seeds - 1, images - 1])) * [of_seeds, of_images - residual]
    ends = found.estimate.low, found.estimate.high
    assert ends == pytest.approx((scores.mean() - squares.sum() ** 0.5, scores.mean() + squares.sum() ** 0.5), rel=1e-8)
    at_p = difference(scored(one), scored(other), found.p).estimate
    assert min(abs(at_p.low), abs(at_p.high)) == pytest.approx(0, abs=1e-9)


def test_images_that_do_not_matter_leave_the_paired_t_test():
    """Where no image is special to a variant, the interval is that over the seeds."""
    one, other = (scores - scores.mean(axis=0) for scores in crossed_scores(5))
    found = difference(scored(one), scored(other))
    expected = stats.ttest_rel(one.mean(axis=1), other.mean(axis=1))
    assert found.variance.images == 0
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.estimate.low, found.estimate.high) == pytest.approx(expected.confidence_interval())


@pytest.mark.parametrize("ratio", [0, 1e-9, 0.1, 1, 10, 1e9, np.inf])
@pytest.mark.parametrize("mean", [0, 1e-6, 0.5, 3, 40])
def test_the_p_value_is_the_level_whose_interval_ends_at_0(ratio, mean):
    seeds, images = (1, ratio) if ratio < 1 else (1 / ratio, 1)
    variance = Variance(np.array([seeds]), 4, np.array([images]), 999)
    (p,) = variance.p_value(np.array([mean]))
    assert variance.half_width(p) == pytest.approx(mean, rel=1e-6, abs=1e-6)


def test_different_seeds_are_nested_in_their_variants_and_crossed_with_the_images():
    one, other = crossed_scores(1)
    other = other[:3]
    found = difference(scored(one), scored(other, first_seed=10))
    assert found.test == BOTH
    own = [variance_of_mean(scores) for scores in (one, other)]
    of_images = np.var(one.mean(axis=0) - other.mean(axis=0), ddof=1) / one.shape[1]
    assert found.variance.seeds == pytest.approx(own[0].seeds + own[1].seeds)
    assert found.variance.both == pytest.approx(own[0].both + own[1].both)
    assert found.variance.images == pytest.approx(of_images - found.variance.both)
    over_seeds = difference(sample(one.mean(axis=1)), sample(other.mean(axis=1), 10))
    assert found.variance.seeds_df == pytest.approx(over_seeds.variance.seeds_df)  # Welch's


def test_one_seed_against_several_takes_their_spread_and_has_the_images_of_both():
    one, other = crossed_scores(2)
    found = difference(scored(one[:1]), scored(other))
    own = variance_of_mean(other)
    assert found.test == BOTH_ONE_AGAINST_MANY
    assert (found.variance.seeds, found.variance.seeds_df) == pytest.approx((6 * own.seeds, 4))
    assert found.variance.both == pytest.approx(6 * own.both)
    assert found.variance.images == pytest.approx(
        np.var(one[0] - other.mean(axis=0), ddof=1) / 40 - found.variance.both
    )


def test_losses_of_single_seeds_are_tested_over_their_images():
    one, other = crossed_scores(3)
    found = difference(scored(one[:1]), scored(other[:1]))
    assert found.test == OVER_IMAGES
    expected = stats.ttest_rel(one[0], other[0])
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.estimate.low, found.estimate.high) == pytest.approx(expected.confidence_interval())


def test_many_pairs_at_once_are_tested_as_each_alone():
    random = np.random.default_rng(4)
    drawn = [
        scored(random.random((seeds, 500)) < 0.9, first_seed=first) for seeds, first in [(4, 0)] * 3 + [(3, 9), (1, 0)]
    ]
    drawn += [
        sample(random.random(4)),
        scored(random.random((1, 500)) < 0.8),
        scored(random.random((4, 300)) < 0.9, "others"),
    ]
    found = iter(pairwise_p_values(drawn))
    for place, one in enumerate(drawn):
        for other in drawn[place + 1 :]:
            assert next(found) == pytest.approx(difference(one, other).p, rel=1e-10)


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


def test_the_interval_of_a_rate_stays_between_0_and_1():
    for scores in ([[1] * 20 + [0]] * 2, [[1] * 21, [1] * 20 + [0]], [[1] * 21] * 2, [[0] * 21] * 2):
        found = estimate(scored(scores))
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert found.low < found.high
    two = estimate(Sample({0: 0.99, 1: 0.97}, is_rate=True))
    assert 0 < two.low < 0.97 < 0.99 < two.high < 1
    assert two.method == "Wilson over seeds"


@pytest.mark.parametrize("seeds", [1, 2, 5])
@pytest.mark.parametrize("variants", [2, 6])
def test_interval_p_and_verdict_agree(seeds, variants):
    random = np.random.default_rng(seeds)
    verdicts = set()
    for _ in range(300):
        hard = random.random(300) < 0.3
        rates = random.normal(0.5, 0.15, variants).clip(0, 1)
        tests = all_tests([scored(~hard | (random.random((seeds, 300)) < rate)) for rate in rates])
        for index in range(1, variants):
            found, p = tests.interval(index), tests.p_values[index]
            assert (found.low > 0 or found.high < 0) == (p < 0.05)
            verdicts.add(bool(p < 0.05))
    assert verdicts == {True, False}


def test_equal_within_is_the_pair_of_one_sided_tests_of_statsmodels():
    for margin in (0.5, 1.0, 2.0, 3.0):
        found = Pairs([sample(FIRST), sample(SECOND)]).against(0)
        expected = ttost_paired(np.array(SECOND), np.array(FIRST), -margin, margin)[0]
        assert found.p_equal(margin)[1] == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("seeds", [1, 5])
def test_what_is_equal_has_an_interval_within_the_margin(seeds):
    random = np.random.default_rng(seeds)
    equal = 0
    for _ in range(100):
        drawn = [scored(random.random((seeds, 400)) < 0.9) for _ in range(4)]
        tests = all_tests(drawn, 0.08)
        for index in np.flatnonzero(tests.equal):
            found = tests.interval(int(index))
            assert -0.08 < found.low <= found.high < 0.08
        equal += tests.equal.sum()
    assert (equal > 0) == (seeds > 1)  # single seeds show two trained models


def test_splits_are_corrected_for_the_training_images_that_they_share():
    """Nadeau and Bengio (2003): the variance is s² (1 / J + n_validation / n_train)."""
    one, other = (Sample(dict(enumerate(values)), overlap=0.25) for values in (FIRST, SECOND))
    found = difference(one, other)
    spread = np.var(np.subtract(FIRST, SECOND), ddof=1)
    assert found.test == PAIRED_SPLITS
    assert found.variance.total == pytest.approx(spread * (1 / 10 + 0.25))
    assert found.p == pytest.approx(2 * stats.t.sf(1.58 / np.sqrt(spread * 0.35), 9))


def test_holm_by_hand():
    adjusted, levels = holm(np.array([0.01, 0.04, np.nan, 0.03, 0.005]))
    assert adjusted == pytest.approx([0.03, 0.06, np.nan, 0.06, 0.02], nan_ok=True)
    assert adjusted[[0, 1, 3, 4]] == pytest.approx(multipletests([0.01, 0.04, 0.03, 0.005], method="holm")[1])
    assert levels == pytest.approx([0.05 / 3, 0.05 / 2, 0.05, 0.05 / 2, 0.05 / 4])


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
        wrong += bool((holm(pairwise_p_values(drawn))[0][: variants - 1] < 0.05).any())
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
@pytest.mark.parametrize(("accuracy", "images", "draws"), [(0.97, 500, 3000), (0.99, 10_000, 800)])
def test_intervals_over_images_hold_the_truth_as_often_as_they_say(accuracy, images, draws):
    random = np.random.default_rng(0)
    wilson, exact = [], []
    for _ in range(draws):
        hard = random.random(images) < 2 * (1 - accuracy)  # that both get wrong every other time
        one, other = (single(~hard | (random.random(images) < 0.5)) for _ in range(2))
        wilson.append(estimate(one))
        exact.append(difference(one, other).estimate)
    assert 0.93 <= share_covered(wilson, accuracy) <= 0.97
    assert 0.95 <= share_covered(exact, 0) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("apart", [0, 100])
def test_as_many_seeds_as_are_said_to_be_needed_show_the_difference(apart):
    random = np.random.default_rng(apart)
    exactly = np.array([-1, 0, 1.0])  # standard deviation 1
    found = difference(sample(exactly), sample(1 + exactly[::-1], apart))
    needed = 3 + limit(found.estimate.value, found.variance, 3, 0, 0.05).more_seeds
    spread = 2.0 if not apart else 1.0  # of the differences of pairs, or of each sample
    drawn = random.normal(0, 1, (1000, 2, needed)) * (spread / 2**0.5 if not apart else spread)
    shown = [difference(sample(one), sample(1 + other, apart)).p < 0.05 for one, other in drawn]
    assert 0.77 <= np.mean(shown) <= 0.83


@pytest.mark.slow
@pytest.mark.parametrize("variants", [2, 8])
def test_equal_single_seeds_are_seldom_told_apart(variants):
    random = np.random.default_rng(variants)
    wrong = 0
    for _ in range(1000):
        hard = random.random(500) < 0.06
        drawn = [single(~hard | (random.random(500) < 0.5)) for _ in range(variants)]
        drawn.sort(key=lambda one: -one.array.mean())
        wrong += bool((holm(pairwise_p_values(drawn))[0][: variants - 1] < 0.05).any())
    assert wrong / 1000 <= 0.06


SIMULATION = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "verdicts.py"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variants", "seeds", "idiosyncrasy"), [(2, 5, 0), (2, 5, 2), (2, 10, 1), (2, 10, 2), (8, 5, 1)]
)
def test_variants_that_are_equal_on_new_images_are_seldom_told_apart(variants, seeds, idiosyncrasy):
    """A part of benchmarks/verdicts.py, with fewer repetitions."""
    wrong, before, covered, means = SIMULATION["false_verdicts"](variants, seeds, idiosyncrasy, 1.0, 400)
    assert wrong <= 0.06
    assert covered >= 0.93
    assert 0.92 <= means <= 0.98
    if idiosyncrasy == 2:
        assert before > 2 * wrong  # tests over seeds take these images for all there are


@pytest.mark.slow
def test_where_images_do_not_matter_the_power_is_that_of_the_test_over_seeds():
    now, before = SIMULATION["power"](10, 1.0, 300)
    assert now >= 0.9 * before > 0.5


# Folds and splits


def accuracies(images, labels, split, splits, random):
    """Accuracies of two equal classifiers, the nearest mean of a class by half of the pixels, one pair per split."""
    places, found = random.permutation(len(labels)), []
    for number in range(splits):
        held_out = places[number::splits] if split == "fold" else random.permutation(len(labels))[: len(labels) // 5]
        train = np.setdiff1d(places, held_out)
        pair = []
        for half in (images[:, :10], images[:, 10:]):
            means = np.stack([half[train][labels[train] == label].mean(axis=0) for label in (0, 1)])
            nearest = np.square(half[held_out, None] - means).sum(axis=2).argmin(axis=1)
            pair.append((nearest == labels[held_out]).mean())
        found.append(pair)
    return np.transpose(found)


@pytest.mark.parametrize(("split", "splits"), [("fold", 5), ("fold", 10), ("split", 5), ("split", 10)])
def test_the_correction_for_shared_training_images_keeps_false_verdicts_rare(split, splits):
    random, labels = np.random.default_rng(0), np.arange(200) % 2
    overlap = 1 / (splits - 1) if split == "fold" else 0.25
    false = {overlap: 0, 0.0: 0}
    for _ in range(300):
        images = random.normal(size=(200, 20)) + 0.4 * labels[:, None]
        pair = accuracies(images, labels, split, splits, random)
        for shared in false:
            samples = [Sample(dict(enumerate(values.tolist())), overlap=shared) for values in pair]
            false[shared] += bool(all_tests(samples).p_values[1] < 0.05)
    assert false[overlap] / 300 <= 0.06
    assert false[0.0] > 2 * false[overlap]  # without the correction
