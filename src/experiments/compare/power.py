"""What would show a difference: more seeds, or more validation images."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from scipy import special

from experiments.compare.statistics import POWER
from experiments.compare.variance import Variance

_MOST = 2**30


@dataclass(frozen=True)
class Limit:
    """Which of the two sources of chance keeps a difference of the observed size from being shown."""

    more_seeds: int | None  # per variant, with the images that there are; None if no number would do
    images: int | None  # in all, with the seeds that there are, or, if none would do, with any number of seeds
    enough_seeds: bool  # whether `images` would do with the seeds that there are
    error: float  # the standard error
    least_error: float  # that with any number of seeds


def limit(difference: float, variance: Variance, seeds: int, images: int, level: float) -> Limit | None:
    """Estimates what would show a difference with 80 % power.

    Args:
        difference: the observed one.
        variance: of it.
        seeds: the smaller number of seeds of the two variants.
        images: number of images; 0 if they are taken as given.
        level: at which it is tested.

    Returns:
        None if it cannot be estimated: there is no difference, or no variation between seeds.
    """
    of_images, both = float(variance.images), float(variance.both)
    of_seeds = max(0.0, float(variance.seeds) - both)
    groups = 2 if variance.seeds_df > seeds - 1 else 1  # each loses a degree of freedom
    if variance.seeds <= 0 or difference == 0:
        return None

    def is_shown(more_seeds: float, more_images: float) -> bool:
        """Whether so many times the seeds and the images are enough."""
        df = (float(variance.seeds_df) + groups) * more_seeds - groups
        per_seed = (of_seeds + both / more_images) / more_seeds
        parts = Variance(per_seed, df, of_images / more_images, max(1, images * more_images - 1))
        error = math.sqrt(parts.total)
        effective = parts.total**2 / (parts.seeds**2 / parts.seeds_df + parts.images**2 / parts.images_df)
        return _power(abs(difference) / error, effective, float(parts.half_width(level)) / error) >= POWER

    needed = _smallest(lambda number: is_shown(number / seeds, 1), seeds + 1)
    wanted, enough = None, True
    if needed is None and images:
        wanted = _smallest(lambda number: is_shown(1, number / images), images + 1)
        enough = wanted is not None
        if not enough:
            wanted = _smallest(lambda number: is_shown(_MOST, number / images), images + 1)
    error, least = math.sqrt(float(variance.total)), math.sqrt(of_images)
    return Limit(None if needed is None else needed - seeds, wanted, enough, error, least)


def _power(effect: float, df: float, critical: float) -> float:
    """The probability that a t-test shows an effect of so many standard errors."""
    return float(1 - special.nctdtr(min(df, 1e6), effect, critical))  # beyond, it is normal


def _smallest(condition: Callable[[int], bool], least: int) -> int | None:
    """The smallest number from `least` on for which a condition holds that holds for all larger ones, too."""
    high = least
    while not condition(high):
        if high > _MOST:
            return None
        high *= 2
    low = max(least, high // 2)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if condition(middle) else (middle + 1, high)
    return low
