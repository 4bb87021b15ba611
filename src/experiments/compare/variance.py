"""The variance of a mean or a difference that has two sources of chance: the seeds and the images.

Every seed is measured on every image, so the two are crossed factors without repetition. The estimate is that of Gallas
et al., JOSA A 24 (2007) B70, and Chen et al., Pattern Recognition 45 (2012) 2661: the variance from the seeds plus that
from the images, minus what belongs to a seed and an image together, which is part of both.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

Numbers = Any  # a number or an array


@dataclass(frozen=True)
class Variance:
    """The variance of a mean over seeds and images, and its parts; numbers, or arrays of one shape.

    A source of chance that is not covered has variance 0.
    """

    seeds: Numbers  # mean square of the seeds / (seeds x images)
    seeds_df: Numbers = 1.0
    images: Numbers = 0.0  # mean square of the images / (seeds x images)
    images_df: Numbers = 1.0
    both: Numbers = 0.0  # residual mean square / (seeds x images)
    both_df: Numbers = 1.0

    @property
    def total(self) -> Numbers:
        """The whole variance; not less than that from one source alone."""
        return np.maximum(np.maximum(self.seeds, self.images), self.seeds + self.images - self.both)

    @property
    def df(self) -> Numbers:
        """Degrees of freedom (Satterthwaite, Biometrics 2 (1946) 110)."""
        parts = (self.seeds, self.seeds_df), (self.images, self.images_df), (self.both, self.both_df)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.square(self.total) / sum(np.square(part) / df for part, df in parts)


@dataclass(frozen=True)
class SumsOfSquares:
    """Squared deviations from the mean of scores of shape (seeds, images), summed; numbers, or arrays of one shape."""

    scores: Numbers
    seeds: Numbers  # of the means of the seeds
    images: Numbers  # of the means of the images over the seeds

    def variance(self, seeds: int, images: int, overlap: float = 0.0) -> Variance:
        """The variance of the mean over so many seeds and images; of a single seed, only that from the images.

        Args:
            seeds: number of seeds.
            images: number of images.
            overlap: validation images per training image if the seeds have drawn both anew (Nadeau and Bengio 2003).
        """
        of_images = self.images / ((images - 1) * images)
        if seeds == 1:
            return Variance(0 * of_images, images=of_images, images_df=images - 1)
        both_df = (seeds - 1) * (images - 1)
        residual = np.maximum(self.scores - images * self.seeds - seeds * self.images, 0)
        return Variance(
            seeds=self.seeds / (seeds - 1) * (1 / seeds + overlap),
            seeds_df=seeds - 1,
            images=of_images,
            images_df=images - 1,
            both=residual / (both_df * seeds * images),
            both_df=both_df,
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
