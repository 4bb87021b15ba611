"""Samples of a metric, the intervals of their means, and Holm's adjustment for many tests.

A sample holds the metric of one variant, one value per seed. All tests are two-sided.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import special

from experiments.compare.variance import ROUNDING, Variance, variance_of_mean

LEVEL, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Estimate:
    """A number with its confidence interval, if there is one."""

    value: float
    low: float | None = None
    high: float | None = None
    method: str = ""  # of the interval: "t over seeds", "Wilson over images", …


@dataclass(frozen=True)
class Sample:
    """The metric of one variant for every seed."""

    values: Mapping[Any, float]  # replicate, such as a seed -> value; of all samples in the same order
    #: The metric of every image, (seeds, images), bool for right or wrong; None to take the images as given.
    scores: np.ndarray | None = None
    images: str = ""  # hash of those images; only scores of the same images can be paired
    is_rate: bool = False  # whether the metric lies between 0 and 1
    overlap: float = 0.0  # validation images per training image if the replicates are splits, else 0
    over_all: float | None = None  # of a cross-validation: the metric over all images of all folds

    @cached_property
    def array(self) -> np.ndarray:
        """The values, float64 of shape (seeds,)."""
        return np.array(list(self.values.values()), float)


def variance(sample: Sample) -> Variance:
    """The variance of the mean of a sample, from the seeds and, if their scores are known, from the images."""
    if sample.scores is not None:
        return variance_of_mean(sample.scores)
    seeds = len(sample.values)
    if seeds == 1:
        return Variance(0.0)
    return Variance(float(sample.array.var(ddof=1)) * (1 / seeds + sample.overlap), seeds - 1)


def estimate(sample: Sample) -> Estimate:
    """The mean of a sample with its 95 % interval.

    For rates it is Wilson's interval (1927), which stays between 0 and 1, for as many images as would give the variance
    that was found; otherwise a t interval.
    """
    value, found, several = float(sample.array.mean()), variance(sample), len(sample.values) > 1
    images = 0.0 if sample.scores is None else float(sample.scores.shape[1])
    varies = found.total > ROUNDING**2
    if not varies and not (images and sample.is_rate):
        return Estimate(value)
    replicates = "splits" if sample.overlap else "seeds"
    over = f"{replicates} and images" if several and images else replicates if several else "images"
    half = float(found.half_width(LEVEL))
    if not sample.is_rate:
        return Estimate(value, value - half, value + half, f"t over {over}")
    quantile = float(special.ndtri(1 - LEVEL / 2))
    if several and varies:
        images, quantile = value * (1 - value) / float(found.total), half / float(np.sqrt(found.total))
    return Estimate(value, *_wilson(value, images, quantile), f"Wilson over {over}")


def _wilson(rate: float, number: float, quantile: float) -> tuple[float, float]:
    square = quantile**2 / number
    center = (rate + square / 2) / (1 + square)
    half = quantile * np.sqrt(rate * (1 - rate) / number + square / (4 * number)) / (1 + square)
    return max(0.0, float(center - half)), min(1.0, float(center + half))


def holm(p_values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Adjusts p-values with Holm's method (1979); NaN, where no test was possible, stays NaN.

    Returns:
        The adjusted p-values, and the level at which each p-value was tested: an interval at this level excludes 0 if
        and only if the adjusted p-value is below 0.05.
    """
    adjusted, levels = np.full(len(p_values), np.nan), np.full(len(p_values), LEVEL)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    left = np.arange(len(order), 0, -1)  # hypotheses that are not rejected yet
    adjusted[order] = np.minimum(np.maximum.accumulate(left * p_values[order]), 1)
    rejected = int((adjusted[order] < LEVEL).sum())
    levels[order] = LEVEL / np.maximum(left, max(1, len(order) - rejected))
    return adjusted, levels
