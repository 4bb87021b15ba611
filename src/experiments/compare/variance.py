"""The variance of a mean or a difference that has two sources of chance: the seeds and the images.

Every seed is measured on every image, so the two are crossed factors without repetition (Gallas et al., JOSA A 24,
2007; Chen et al., Pattern Recognition 45, 2012). The squared half-width of an interval is the sum of those from either
source alone, which covers at least as often as it says, with any number of seeds and at any level (Banerjee, Sankhya
23, 1961). Without a variance from the images it is the t interval over the seeds.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

Numbers = Any  # a number or an array
ROUNDING = 1e-12  # smaller differences come from floating-point arithmetic
_LEAST_P = 1e-250


@dataclass(frozen=True)
class Variance:
    """The variance of a mean over seeds and images, by source; numbers, or arrays of one shape.

    A source of chance that is not covered has variance 0.
    """

    seeds: Numbers
    seeds_df: Numbers = 1.0  # degrees of freedom
    images: Numbers = 0.0
    images_df: Numbers = 1.0
    both: Numbers = 0.0  # part of `seeds` that belongs to a seed and an image together, so that more images reduce it

    @property
    def total(self) -> Numbers:
        """The squared standard error."""
        return self.seeds + self.images

    def half_width(self, level: Numbers) -> Numbers:
        """Half the width of the interval around the mean at a level of significance."""
        of_seeds, of_images = (special.stdtrit(df, level / 2) for df in (self.seeds_df, self.images_df))
        return np.sqrt(of_seeds**2 * self.seeds + of_images**2 * self.images)

    def p_value(self, mean: Numbers) -> Numbers:
        """The two-sided p-value of the hypothesis that a mean is 0: the level at which its interval ends there."""
        size = np.abs(mean)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = size / np.sqrt(self.total)
        from_seeds, from_images = (2 * special.stdtr(df, -ratio) for df in (self.seeds_df, self.images_df))
        found = np.where(self.images > 0, from_images, from_seeds)
        # With both sources it lies between the two; Newton's method finds its logarithm.
        low, high = np.minimum(from_seeds, from_images), np.maximum(from_seeds, from_images)
        both = (self.seeds > 0) & (self.images > 0) & (low < high) & (high > _LEAST_P)
        if np.any(both):
            columns = np.broadcast_arrays(*vars(self).values(), size, low, high)
            *parts, size, low, high = (column[both] for column in columns)
            found[both] = np.exp(_log_level(Variance(*parts), size, np.log(np.maximum(low, _LEAST_P)), np.log(high)))
        return found


def _log_level(variance: Variance, half_width: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The logarithms of the levels at which intervals have a half-width, between two bounds."""
    found = np.log((variance.seeds * np.exp(high) + variance.images * np.exp(low)) / variance.total)  # nearly
    for _ in range(60):
        level = np.exp(found)
        square = slope = 0.0
        for part, df in ((variance.seeds, variance.seeds_df), (variance.images, variance.images_df)):
            quantile = special.stdtrit(df, level / 2)
            square += part * quantile**2
            slope += part * quantile * level / _density(df, quantile)
        # In logarithms, half-widths are nearly linear in the level.
        excess = np.log(square / half_width**2)
        low, high = np.where(excess > 0, found, low), np.where(excess > 0, high, found)
        newton = found - excess * square / slope
        moved = np.where((newton >= low) & (newton <= high), newton, (low + high) / 2)
        if np.allclose(moved, found, rtol=0, atol=1e-9):
            return moved
        found = moved
    return found


def _density(df: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The density of Student's t distribution."""
    constant = special.gammaln((df + 1) / 2) - special.gammaln(df / 2) - np.log(df * np.pi) / 2
    return np.exp(constant - (df + 1) / 2 * np.log1p(t**2 / df))


@dataclass(frozen=True)
class SumsOfSquares:
    """Squared deviations from the mean of scores of shape (seeds, images), summed; numbers, or arrays of one shape."""

    scores: Numbers
    seeds: Numbers  # of the means of the seeds
    images: Numbers  # of the means of the images over the seeds

    def residual(self, seeds: Numbers, images: Numbers) -> Numbers:
        """The variance of the mean that belongs to a seed and an image together."""
        rest = np.maximum(self.scores - images * self.seeds - seeds * self.images, 0)
        return rest / ((seeds - 1) * (images - 1) * seeds * images)

    def variance(self, seeds: int, images: Numbers, overlap: Numbers = 0.0) -> Variance:
        """The variance of the mean over so many seeds and images; of a single seed, only that from the images.

        Args:
            seeds: number of seeds.
            images: number of images.
            overlap: validation images per training image if the seeds have drawn both anew (Nadeau and Bengio 2003).
        """
        of_images = self.images / ((images - 1) * images)
        if seeds == 1:
            return Variance(0 * of_images, images=of_images, images_df=images - 1)
        residual, of_seeds = self.residual(seeds, images), self.seeds / (seeds - 1) * (1 / seeds + overlap)
        return Variance(
            seeds=of_seeds,
            seeds_df=seeds - 1,
            # Few seeds may have the same mean by chance; then there is nothing that would be counted twice.
            images=np.where(of_seeds > ROUNDING**2, np.maximum(of_images - residual, 0), of_images),
            images_df=images - 1,
            both=residual,
        )


def sums_of_squares(scores: np.ndarray) -> SumsOfSquares:
    """The sums of squares of scores of shape (seeds, images)."""
    centered = scores - scores.mean(dtype=np.float64)
    means = centered.mean(axis=1), centered.mean(axis=0)
    return SumsOfSquares(*(float(np.square(values).sum()) for values in (centered, *means)))


def variance_of_mean(scores: np.ndarray) -> Variance:
    """The variance of the mean of scores of shape (seeds, images).

    For two variants that are measured with the same seeds on the same images, `scores` are the differences.
    """
    return sums_of_squares(scores).variance(*scores.shape)
