"""Differences between all pairs of samples, with tests over seeds and images."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from experiments.compare.statistics import LEVEL, Estimate, Sample, holm
from experiments.compare.variance import ROUNDING, SumsOfSquares, Variance, sums_of_squares

PAIRED, WELCH, ONE_AGAINST_MANY = "paired t by seed", "Welch's t", "Student's t, one seed against several"
BOTH_PAIRED, BOTH, BOTH_ONE_AGAINST_MANY = (
    "t over seeds and images, paired by seed", "t over seeds and images",
    "t over seeds and images, one seed against several",
)  # fmt: skip
PAIRED_SPLITS, SPLITS = "corrected t, paired by split", "corrected t over splits"
MCNEMAR, OVER_IMAGES, NO_TEST = "exact McNemar", "paired t over images", "no test"
_AT_ONCE = 4_000_000  # scores
_MOST_IN_DOUBLE_PRECISION = 20_000_000  # scores


@dataclass(frozen=True)
class Differences:
    """The differences of the means of all samples from that of one of them; arrays of shape (samples,)."""

    values: np.ndarray
    variance: Variance
    p_values: np.ndarray  # unadjusted; NaN where no test is possible
    tests: np.ndarray  # names
    #: For McNemar's test: images that only the other and only this sample predicts correctly, and all images.
    only: tuple[np.ndarray, np.ndarray]
    images: np.ndarray
    are_rates: bool

    def p_equal(self, margin: float) -> np.ndarray:
        """The p-values of two one-sided tests (Schuirmann 1987) that the differences are smaller than a margin.

        Those of single seeds are NaN: what is equal are two trained models.
        """
        left, total = margin - np.abs(self.values), self.variance.total
        tested = (total > ROUNDING**2) & ~np.isin(self.tests, [MCNEMAR, OVER_IMAGES, NO_TEST])
        p = np.full(len(self.values), np.nan)
        parts = Variance(*(part[tested] for part in vars(self.variance).values()))
        one_sided = parts.p_value(left[tested]) / 2
        p[tested] = np.where(left[tested] > 0, one_sided, 1 - one_sided)
        return p

    def interval(self, index: int, level: float) -> Estimate:
        """A difference with the interval that excludes 0 if and only if its p-value is below `level`."""
        value, test = float(self.values[index]), str(self.tests[index])
        if test == MCNEMAR:
            low, high = self._exact(index, level)
            return Estimate(value, low, high, "exact over the images that only one of two models predicts correctly")
        error = float(np.sqrt(self.variance.total[index]))
        if test == NO_TEST or error <= ROUNDING:
            return Estimate(value)
        half = float(self.variance_of(index).half_width(level))
        low, high = value - half, value + half
        return Estimate(value, *((max(low, -1.0), min(high, 1.0)) if self.are_rates else (low, high)), test)

    def variance_of(self, index: int) -> Variance:
        """The variance of one difference."""
        return Variance(**{name: float(values[index]) for name, values in vars(self.variance).items()})

    def _exact(self, index: int, level: float) -> tuple[float, float]:
        """The interval of Clopper and Pearson (1934) for the share of one model among the images that only one has.

        Two such images are added to their number, as Bonett and Price (2012) do, or it would be 0 if there are none.
        """
        one, other = int(self.only[0][index]), int(self.only[1][index])
        if one + other:
            low, high = stats.binomtest(other, one + other).proportion_ci(1 - level, "exact")
        else:
            low, high = 0.0, 1.0
        scale = (one + other + 2) / (int(self.images[index]) + 2)
        return (2 * float(low) - 1) * scale, (2 * float(high) - 1) * scale


@dataclass(frozen=True)
class Tests:
    """The differences of all samples from the first, tested among all pairs; arrays of shape (samples,)."""

    differences: Differences
    p_values: np.ndarray  # adjusted over all pairs; NaN where no test is possible
    levels: np.ndarray  # at which Holm's method has tested them
    num_pairs: int  # that were tested
    equal: np.ndarray  # whether the difference is smaller than the margin

    def interval(self, index: int) -> Estimate:
        """A difference with the interval that excludes 0 if and only if its adjusted p-value is below 0.05."""
        return self.differences.interval(index, float(self.levels[index]))


def all_tests(samples: Sequence[Sample], margin: float | None = None) -> Tests:
    """Tests all pairs of samples, and adjusts the p-values with Holm's method.

    Args:
        samples: the best one first.
        margin: differences that do not matter; None to look for differences alone.
    """
    pairs = Pairs(samples)
    different, alike = [np.empty(0)], [np.empty(0)]
    for one in range(len(samples)):
        found = pairs.against(one)
        different.append(found.p_values[one + 1 :])
        if margin is not None:
            alike.append(found.p_equal(margin)[one + 1 :])
    adjusted, levels = holm(np.concatenate(different))
    # The pairs with the first sample come first.
    others = slice(0, len(samples) - 1)
    p_values, levels = (np.concatenate([[np.nan], column[others]]) for column in (adjusted, levels))
    equal = np.zeros(len(samples), bool)
    num_pairs = int((~np.isnan(adjusted)).sum())
    tests = Tests(pairs.against(0), p_values, levels, num_pairs, equal)
    if margin is not None:
        p_equal = holm(np.concatenate(alike))[0][others]
        for index in np.flatnonzero(p_equal < LEVEL) + 1:
            interval = tests.interval(int(index))  # which must not contradict the verdict
            equal[index] = max(-(interval.low or 0.0), interval.high or 0.0) < margin
    return tests


class Pairs:
    """All pairs of samples."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        arrays = [sample.array for sample in samples]
        self.counts = np.array([len(array) for array in arrays])
        self.rows = np.full((len(samples), max(self.counts, default=0)), np.nan)  # padded
        for row, array in zip(self.rows, arrays, strict=True):
            row[: len(array)] = array
        self.means = np.array([array.mean() for array in arrays])
        self.overlaps = np.array([sample.overlap for sample in samples])
        self.images = np.array([0 if sample.scores is None else sample.scores.shape[1] for sample in samples])
        self.is_binary = np.array([sample.scores is not None and sample.scores.dtype == bool for sample in samples])
        self.replicates = _numbered(tuple(sample.values) for sample in samples)
        self.image_sets = np.where(self.images > 0, _numbered(sample.images for sample in samples), -1)
        #: Variance between seeds, and of it what belongs to a seed and an image together; NaN for a single seed.
        self.spreads, self.residuals = np.full((2, len(samples)), np.nan)
        for index, sample in enumerate(samples):
            if self.counts[index] > 1:
                self.spreads[index] = arrays[index].var(ddof=1)
                if sample.scores is not None:
                    sums = sums_of_squares(sample.scores)
                    self.residuals[index] = sums.residual(*sample.scores.shape) * self.counts[index]
        self.of_images, self.of_scores = self._squares_of_differences()

    def against(self, one: int) -> Differences:
        """The differences of all samples from the sample `one`, each with the appropriate test."""
        values = self.means - self.means[one]
        single = self.counts == 1
        none, some, same = single & single[one], single != single[one], self.replicates == self.replicates[one]
        crossed = (self.image_sets >= 0) & (self.image_sets == self.image_sets[one])
        split = (self.overlaps > 0) | (self.overlaps[one] > 0)
        found = self._variance(one, same & ~single, crossed)
        tests = np.select(
            [
                none & crossed & self.is_binary, none & crossed, none,
                some & crossed, some, same & crossed, same & split, same, crossed, split,
            ],
            [
                MCNEMAR, OVER_IMAGES, NO_TEST,
                BOTH_ONE_AGAINST_MANY, ONE_AGAINST_MANY, BOTH_PAIRED, PAIRED_SPLITS, PAIRED, BOTH, SPLITS,
            ],
            WELCH,
        )  # fmt: skip
        p = np.where(np.abs(values) > ROUNDING, np.nan, 1.0)
        tested = found.total > ROUNDING**2
        p[tested] = Variance(*(part[tested] for part in vars(found).values())).p_value(values[tested])
        p[tests == NO_TEST] = np.nan
        # Of two models, the number of images that only one predicts correctly is the sum of the squared differences.
        only_one = self.of_images[one] + self.images * np.square(values)
        more = self.images * values
        only = np.rint((only_one - more) / 2), np.rint((only_one + more) / 2)
        mcnemar = tests == MCNEMAR
        fewer, sum_ = (column[mcnemar] for column in (np.minimum(*only), only[0] + only[1]))
        p[mcnemar] = np.minimum(1, 2 * stats.binom.cdf(fewer, sum_, 0.5))
        return Differences(values, found, p, tests, only, self.images, all(each.is_rate for each in self.samples))

    def _variance(self, one: int, paired: np.ndarray, crossed: np.ndarray) -> Variance:
        """The variances of the differences from the sample `one`, paired by seed or not, crossed with images or not."""
        # A single seed is taken to vary as the several that it is compared with.
        spreads, residuals = (np.where(np.isnan(each), each[one], each) for each in (self.spreads, self.residuals))
        own_spread, own_residual = (
            np.where(np.isnan(each[one]), each, each[one]) for each in (self.spreads, self.residuals)
        )
        seeds = spreads * (1 / self.counts + self.overlaps)
        own_seeds = own_spread * (1 / self.counts[one] + self.overlaps[one])
        some = (self.counts == 1) != (self.counts[one] == 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            welch = np.square(seeds + own_seeds) / (
                np.square(seeds) / (self.counts - 1) + np.square(own_seeds) / (self.counts[one] - 1)
            )
        of_seeds = np.nan_to_num(seeds + own_seeds)
        of_images = self.of_images[one] / np.maximum((self.images - 1) * self.images, 1)
        residual = np.nan_to_num(residuals / self.counts + own_residual / self.counts[one])
        found = Variance(
            seeds=of_seeds,
            seeds_df=np.where(some, np.maximum(self.counts, self.counts[one]) - 1, np.where(of_seeds > 0, welch, 1)),
            images=np.where(of_seeds > ROUNDING**2, np.maximum(of_images - residual, 0), of_images),
            images_df=np.maximum(self.images - 1, 1),
            both=residual,
        )
        if paired.any():
            differences = self.rows[paired, : self.counts[one]] - self.rows[one, : self.counts[one]]
            of_seeds = np.square(differences - differences.mean(axis=1, keepdims=True)).sum(axis=1)
            sums = SumsOfSquares(self.of_scores[one, paired], of_seeds, self.of_images[one, paired])
            overlap = np.maximum(self.overlaps[paired], self.overlaps[one])
            by_seed = sums.variance(int(self.counts[one]), np.maximum(self.images[paired], 2), overlap)
            for column, values in zip(vars(found).values(), vars(by_seed).values(), strict=True):
                column[paired] = values
        return replace(found, images=np.where(crossed, found.images, 0.0))

    def _squares_of_differences(self) -> tuple[np.ndarray, np.ndarray]:
        """Sums of the squared differences of two samples, (samples, samples), as deviations from their mean.

        Returns:
            Those of the means of the images, and of all scores; 0 for samples that cannot be paired.
        """
        size = sum(sample.scores.size for sample in self.samples if sample.scores is not None)
        dtype = np.float64 if size <= _MOST_IN_DOUBLE_PRECISION else np.float32
        of_images, of_scores = np.zeros((2, len(self.samples), len(self.samples)), dtype)
        for images in set(self.image_sets.tolist()) - {-1}:
            here = self.image_sets == images
            of_images[np.ix_(here, here)] = _squared_distances(self._columns(here, dtype, mean=True))
            for replicates in set(self.replicates[here & (self.counts > 1)].tolist()):
                both = here & (self.replicates == replicates)
                of_scores[np.ix_(both, both)] = _squared_distances(self._columns(both, dtype, mean=False))
        return of_images, of_scores

    def _columns(self, chosen: np.ndarray, dtype: type, *, mean: bool) -> Iterator[np.ndarray]:
        """The scores of some samples as deviations from their means, (samples, columns), a few images at a time."""
        indices = np.flatnonzero(chosen)
        step = max(1, _AT_ONCE // int(self.counts[indices].sum()))
        for start in range(0, int(self.images[indices[0]]), step):
            scores = [self.samples[index].scores for index in indices.tolist()]
            parts = [each[:, start : start + step] for each in scores if each is not None]
            block: np.ndarray = np.stack(
                [part.mean(axis=0, dtype=dtype) if mean else part.ravel() for part in parts]
            ).astype(dtype)
            block -= self.means[indices, None].astype(dtype)
            yield block - block.mean(axis=0)  # what all have in common would only cost precision


def _numbered(keys: Iterable[Hashable]) -> np.ndarray:
    """Equal keys as equal numbers."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def _squared_distances(columns: Iterable[np.ndarray]) -> np.ndarray:
    """The squared Euclidean distances between all rows of a matrix that is given in blocks of its columns."""
    gram = sum(block @ block.T for block in columns)
    squares = gram.diagonal()
    return np.maximum(squares[:, None] + squares - 2 * gram, 0)
