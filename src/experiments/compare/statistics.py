"""Confidence intervals, tests and power estimates, computed with SciPy and statsmodels.

A sample holds the metric of one variant, one value per seed. All intervals are at 95 %, all tests are two-sided.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower, TTestPower
from statsmodels.stats.proportion import proportion_confint
from statsmodels.tools.sm_exceptions import ConvergenceWarning

LEVEL, POWER = 0.05, 0.8
PAIRED, WELCH, ONE_AGAINST_MANY, MCNEMAR, NO_TEST = (
    "paired t by seed", "Welch's t", "Student's t, one seed against several", "exact McNemar", "no test",
)  # fmt: skip
_ROUNDING = 1e-12  # smaller differences come from floating-point arithmetic


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % confidence interval, if there is one."""

    value: float
    low: float | None = None
    high: float | None = None
    method: str = ""  # of the interval: "t over seeds", "Wilson over images", …


@dataclass(frozen=True)
class Sample:
    """The metric of one variant for every seed."""

    values: Mapping[int, float]  # seed -> value
    #: For a single seed, bool (images,): which images were predicted correctly; empty if unknown.
    correct: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    images: str = ""  # hash of those images; only predictions for the same images can be paired

    @cached_property
    def array(self) -> np.ndarray:
        """The values in the order of their seeds, float64 of shape (seeds,)."""
        return np.array([self.values[seed] for seed in sorted(self.values)], float)


@dataclass(frozen=True)
class Difference:
    """The difference of the means of two samples."""

    estimate: Estimate
    p: float  # unadjusted; NaN if no test is possible
    test: str


def estimate(sample: Sample) -> Estimate:
    """The mean over the seeds with its t interval; for a single seed, Wilson's interval over its images, if known."""
    values = sample.array
    value = float(values.mean())
    if _varies(values):
        low, high = stats.ttest_1samp(values, 0).confidence_interval()
        return Estimate(value, float(low), float(high), "t over seeds")
    if len(sample.correct):
        low, high = proportion_confint(int(sample.correct.sum()), len(sample.correct), LEVEL, "wilson")
        return Estimate(value, float(low), float(high), "Wilson over images")
    return Estimate(value)


def difference(one: Sample, other: Sample) -> Difference:
    """The difference `one` - `other` with its confidence interval, and the p-value of the appropriate test.

    A paired t-test if the seeds are the same, else Welch's t-test. If one side has a single seed, Student's t-test,
    which assumes the variance of the other side for it. For two single seeds with predictions for the same images, the
    exact McNemar test, with the interval of Bonett and Price (2012, https://doi.org/10.3102/1076998611411915).
    """
    arrays = _SampleArrays([one, other])
    test, p = str(arrays.tests(0)[1]), float(arrays.p_values(0)[1])
    if test == MCNEMAR:
        return Difference(_bonett_price(one, other), p, test)
    left, right = one.array, other.array
    value = float(left.mean() - right.mean())
    if test == PAIRED and _varies(left - right):
        low, high = stats.ttest_rel(left, right).confidence_interval()
    elif test in (WELCH, ONE_AGAINST_MANY) and (_varies(left) or _varies(right)):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)  # if one side does not vary
            low, high = stats.ttest_ind(left, right, equal_var=test == ONE_AGAINST_MANY).confidence_interval()
    else:
        return Difference(Estimate(value), p, test)
    return Difference(Estimate(value, float(low), float(high), test), p, test)


def pairwise_p_values(samples: Sequence[Sample]) -> np.ndarray:
    """The unadjusted p-values of all pairs, in the order (0, 1), (0, 2), …, (1, 2), …; NaN if no test is possible."""
    arrays = _SampleArrays(samples)
    return np.concatenate([np.empty(0), *(arrays.p_values(one)[one + 1 :] for one in range(len(samples)))])


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjusts p-values with Holm's method (1979); NaN, where no test was possible, stays NaN."""
    adjusted = np.full(len(p_values), np.nan)
    tested = ~np.isnan(p_values)
    if tested.any():
        adjusted[tested] = multipletests(p_values[tested], LEVEL, "holm")[1]
    return adjusted


def seeds_needed(one: Sample, other: Sample, level: float) -> int | None:
    """Estimates how many seeds per sample would show their difference with 80 % power.

    Args:
        one: a sample with at least two seeds.
        other: another one.
        level: significance level.

    Returns:
        None if it cannot be estimated: a sample has a single seed, or there is no difference or no variation.
    """
    test = _SampleArrays([one, other]).tests(0)[1]
    if test not in (PAIRED, WELCH):
        return None
    values = one.array, other.array
    spread = (
        (values[0] - values[1]).std(ddof=1) if test == PAIRED else math.sqrt(sum(v.var(ddof=1) for v in values) / 2)
    )
    size = abs(values[0].mean() - values[1].mean())
    if spread <= _ROUNDING or size <= _ROUNDING:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # raised if two seeds would be more than enough
        needed = (TTestPower() if test == PAIRED else TTestIndPower()).solve_power(size / spread, None, level, POWER)
    return 2 if math.isnan(needed) else math.ceil(needed)


class _SampleArrays:
    """Samples as arrays, so that one is tested against many at once."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self.arrays = [sample.array for sample in samples]
        self.counts = np.array([len(array) for array in self.arrays])
        #: One row per sample, padded with NaN.
        self.rows = np.full((len(samples), max(self.counts, default=0)), np.nan)
        for row, array in zip(self.rows, self.arrays, strict=True):
            row[: len(array)] = array
        self.means = np.array([array.mean() for array in self.arrays])
        self.spreads = np.array([array.std(ddof=1) if _varies(array) else 0.0 for array in self.arrays])
        self.images = np.array([sample.images if len(sample.correct) else "" for sample in samples])
        numbers: dict[frozenset[int], int] = {}
        self.seeds = np.array([numbers.setdefault(frozenset(sample.values), len(numbers)) for sample in samples])

    def tests(self, one: int) -> np.ndarray:
        """The appropriate test of the sample `one` against each sample."""
        single = self.counts == 1
        both = single & single[one]
        same_images = (self.images != "") & (self.images == self.images[one])
        cases = [both & same_images, both, single != single[one], self.seeds == self.seeds[one]]
        return np.select(cases, [MCNEMAR, NO_TEST, ONE_AGAINST_MANY, PAIRED], WELCH)

    def p_values(self, one: int) -> np.ndarray:
        """The p-values of the sample `one` against each later one; NaN if no test is possible."""
        p, tests = np.full(len(self.samples), np.nan), self.tests(one)
        later = np.arange(len(self.samples)) > one
        for test, function in ((PAIRED, self._paired), (MCNEMAR, self._mcnemar)):
            if (others := np.flatnonzero(later & (tests == test))).size:
                p[others] = function(one, others)
        for test in (WELCH, ONE_AGAINST_MANY):
            others = np.flatnonzero(later & (tests == test))
            p[others] = self._unpaired(one, others, equal_variance=test == ONE_AGAINST_MANY)
        return p

    def _paired(self, one: int, others: np.ndarray) -> np.ndarray:
        differences = self.rows[others, : self.counts[one]] - self.arrays[one]
        p = np.where(np.abs(differences).max(axis=1) > _ROUNDING, np.nan, 1.0)
        tested = np.ptp(differences, axis=1) > _ROUNDING
        if tested.any():
            p[tested] = stats.ttest_1samp(differences[tested], 0, axis=1).pvalue
        return p

    def _unpaired(self, one: int, others: np.ndarray, *, equal_variance: bool) -> np.ndarray:
        p = np.where(np.abs(self.means[others] - self.means[one]) > _ROUNDING, np.nan, 1.0)
        tested = (self.spreads[others] > 0) | (self.spreads[one] > 0)
        arrays = self.means, self.spreads, self.counts
        many = [column[others[tested]] for column in arrays]
        p[tested] = stats.ttest_ind_from_stats(*(column[one] for column in arrays), *many, equal_variance).pvalue
        return p

    def _mcnemar(self, one: int, others: np.ndarray) -> np.ndarray:
        """The exact McNemar test on the images that only one of two models predicts correctly."""
        correct, others_correct = self.samples[one].correct, np.array([self.samples[other].correct for other in others])
        only_one, only_other = (~others_correct & correct).sum(axis=1), (others_correct & ~correct).sum(axis=1)
        p = 2 * stats.binom.cdf(np.minimum(only_one, only_other), only_one + only_other, 0.5)
        return np.minimum(p, 1.0)


def _bonett_price(one: Sample, other: Sample) -> Estimate:
    """The difference of two accuracies on the same images, with a Wald interval that adds 1 to both counts."""
    total = len(one.correct)
    more, less = (int((a & ~b).sum()) for a, b in ((one.correct, other.correct), (other.correct, one.correct)))
    up, down = (more + 1) / (total + 2), (less + 1) / (total + 2)
    half = stats.norm.ppf(1 - LEVEL / 2) * math.sqrt((up + down - (up - down) ** 2) / (total + 2))
    return Estimate((more - less) / total, up - down - half, up - down + half, "Bonett and Price over images")


def _varies(values: np.ndarray) -> bool:
    """Whether values differ by more than rounding errors."""
    return bool(np.ptp(values) > _ROUNDING)
