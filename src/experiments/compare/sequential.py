"""Decisions after every seed: p-values that hold however often one looks, and what is settled among several variants.

A look at a difference after k seeds has the information 1 / (its variance). The differences at all looks up to the last
possible one, divided by their standard errors, are jointly normal as a Brownian motion at these informations is, so the
chance that any of them crosses a boundary is found by numerical integration from look to look (Armitage, McPherson and
Rowe, JRSS A 132 (1969) 235). The boundary is that of Wang and Tsiatis, Biometrics 43 (1987) 193, with exponent 1/4,
halfway between that of Pocock and that of O'Brien and Fleming. The images are the same at every look, so where they are
the larger source of chance, looks are nearly equal and cost little.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import combinations

import numpy as np
from scipy import special

from experiments.compare.pairs import Pairs
from experiments.compare.statistics import LEVEL, Sample, holm
from experiments.compare.variance import Variance

AT_EVERY_LOOK = "t over seeds and images, at every look of a race"
FIRST_SEEDS = 3  # of every variant, before the first look
_EXPONENT = 0.25
_WORTHWHILE = 0.97  # more seeds are not worth it if the standard error at the cap is more than this share of today's
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(160)
#: Of the seeds alone, Student's t reaches a boundary more often than the normal distribution: 1.04 to 1.25 times for 6,
#: 12 and 30 looks.
_STUDENT = 1.25
_LEAST_STEP = 0.008  # of information; looks that lie closer are one look


class Standing(StrEnum):
    """Where a variant stands in a race."""

    BEST = "best"
    WORSE = "worse"
    EQUAL = "equal"  # within the margin that was asked for
    IMAGES = "limited by the images"  # more seeds would not settle it
    CAP = "undecided"  # at the largest number of seeds
    FAILED = "failed"  # a run has failed or diverged
    OPEN = "in question"


@dataclass(frozen=True)
class Look:
    """A difference after some seeds."""

    value: float
    variance: Variance
    p: float  # two-sided, at this look alone
    p_above: float  # one-sided: of a difference above minus the margin; 1 without a margin
    p_below: float  # one-sided: of a difference below the margin


@dataclass(frozen=True)
class Decision:
    """What is known of a variant."""

    standing: Standing
    seeds: int
    difference: float | None = None  # from the best; None for the best itself
    p: float | None = None  # of that difference, adjusted over all pairs and looks
    half_width: float = 0.0  # of its interval, which excludes 0 if and only if p is below 0.05


class Race:
    """The variants of a race, and what has been decided of them after the seeds that they have.

    Args:
        max_seeds: the largest number of seeds of a variant.
        equal_within: differences that do not matter; None to look for differences alone.
    """

    def __init__(self, max_seeds: int, equal_within: float | None = None) -> None:
        self.max_seeds = max_seeds
        self.equal_within = equal_within
        self._looks: dict[tuple[int, int, int], Look] = {}

    def decide(self, samples: Mapping[int, Sample], sign: int) -> dict[int, Decision]:
        """Decides what is settled.

        Args:
            samples: number of a variant -> its values, of the same seeds in the same order as far as there are any.
            sign: 1 if a higher value is better, -1 if a lower one is.

        Returns:
            The decision of every variant that has at least `FIRST_SEEDS` seeds.
        """
        numbers = [number for number, sample in samples.items() if len(sample.values) >= FIRST_SEEDS]
        counts = {number: len(samples[number].values) for number in numbers}
        pairs = list(combinations(numbers, 2))
        known = {number: samples[number] for number in numbers}
        looks = {pair: self._history(pair, known) for pair in pairs}
        different = _by_pair(pairs, [self._p_different(looks[pair]) for pair in pairs])
        equal = _by_pair(pairs, [self._p_equal(looks[pair]) for pair in pairs]) if self.equal_within else {}

        def better(one: int, other: int) -> float:
            """How much better `one` is than `other` on the seeds that both have."""
            last = looks[min(one, other), max(one, other)][-1]
            return sign * (last.value if one < other else -last.value)

        worse = {
            number
            for number in numbers
            if any(
                different[min(number, other), max(number, other)] < LEVEL and better(other, number) > 0
                for other in numbers
                if other != number
            )
        }
        left = [number for number in numbers if number not in worse] or numbers
        best = left[0]
        for number in left[1:]:
            best = number if better(number, best) > 0 else best
        # At which Holm's method tests the next pair.
        level = LEVEL / max(1, sum(p >= LEVEL for p in different.values()))
        decisions = {best: Decision(Standing.BEST, counts[best])}
        for number in numbers:
            if number == best:
                continue
            pair = min(number, best), max(number, best)
            if different[pair] < LEVEL:
                standing = Standing.WORSE
            elif equal.get(pair, 1.0) < LEVEL:
                standing = Standing.EQUAL
            elif self._is_limited(looks[pair], level):
                standing = Standing.IMAGES
            else:
                standing = Standing.CAP if min(counts[number], counts[best]) >= self.max_seeds else Standing.OPEN
            # The level at which the last look alone would be tested.
            level_here = LEVEL * min(1.0, looks[pair][-1].p / different[pair]) if different[pair] > 0 else LEVEL
            half_width = float(looks[pair][-1].variance.half_width(level_here))
            difference = -sign * better(best, number)
            decisions[number] = Decision(standing, counts[number], difference, different[pair], half_width)
        return decisions

    def next_seeds(self, decisions: Mapping[int, Decision]) -> dict[int, int]:
        """Number of each variant that gets one more seed -> how many it then has; empty if all is settled."""
        open_ = [number for number, decision in decisions.items() if decision.standing is Standing.OPEN]
        if not open_:
            return {}
        wanted = [*open_, *(number for number, found in decisions.items() if found.standing is Standing.BEST)]
        target = min(self.max_seeds, min(decisions[number].seeds for number in wanted) + 1)
        return {number: target for number in sorted(wanted) if decisions[number].seeds < target}

    def _history(self, pair: tuple[int, int], samples: Mapping[int, Sample]) -> list[Look]:
        """The looks at a pair, one for each number of seeds that both have."""
        found = []
        for seeds in range(FIRST_SEEDS, min(len(samples[number].values) for number in pair) + 1):
            if (*pair, seeds) not in self._looks:
                self._look(seeds, {n: _first(each, seeds) for n, each in samples.items() if len(each.values) >= seeds})
            found.append(self._looks[*pair, seeds])
        return found

    def _look(self, seeds: int, samples: Mapping[int, Sample]) -> None:
        """Looks at all pairs after so many seeds."""
        numbers, pairs = list(samples), Pairs(list(samples.values()))
        for place, one in enumerate(numbers):
            differences = pairs.against(place)
            p_values = np.nan_to_num(differences.p_values, nan=1.0)
            for other_place, other in enumerate(numbers[place + 1 :], place + 1):
                value, variance = -float(differences.values[other_place]), differences.variance_of(other_place)
                above = below = 1.0
                if self.equal_within:
                    above, below = (_one_sided(variance, sign * value + self.equal_within) for sign in (1, -1))
                self._looks[one, other, seeds] = Look(value, variance, p_values[other_place], above, below)

    def _p_different(self, looks: Sequence[Look]) -> float:
        return self._over_looks(looks, [special.ndtri(1 - look.p / 2) for look in looks], sides=2)

    def _p_equal(self, looks: Sequence[Look]) -> float:
        """The p-value of two one-sided tests (Schuirmann 1987)."""
        above, below = ([-special.ndtri(getattr(look, side)) for look in looks] for side in ("p_above", "p_below"))
        return max(self._over_looks(looks, above, sides=1), self._over_looks(looks, below, sides=1))

    def _over_looks(self, looks: Sequence[Look], z: Sequence[float], sides: int) -> float:
        """The p-value over all looks up to the largest number of seeds, of the values at those there have been."""
        # A small variance by chance makes a difference look surer, and the looks more alike, than they are.
        df = FIRST_SEEDS + len(looks) - 2
        variance = self._variance(looks, np.arange(FIRST_SEEDS, self.max_seeds + 1), df / special.chdtri(df, 0.95))
        if variance[-1] <= 0:
            return 1.0
        times = variance[-1] / variance
        statistic = float((np.array(z) * times[: len(z)] ** _EXPONENT).max())
        of_seeds = 1 - looks[-1].variance.images / variance[-1]
        return min(1.0, (1 + (_STUDENT - 1) * of_seeds) * p_over_looks(times, statistic, sides))

    def _variance(self, looks: Sequence[Look], seeds: np.ndarray, at_most: float = 1.0) -> np.ndarray:
        """The variances of a difference with other numbers of seeds, whose part is `at_most` times as large."""
        per_seed = looks[-1].variance.seeds * (FIRST_SEEDS + len(looks) - 1)
        return at_most * per_seed / seeds + looks[-1].variance.images

    def _is_limited(self, looks: Sequence[Look], level: float) -> bool:
        """Whether the images are the larger source of chance, and all the seeds would hardly add to what is known."""
        now, at_cap = self._variance(looks, np.array([FIRST_SEEDS + len(looks) - 1, self.max_seeds]))
        if looks[-1].variance.images < at_cap / 2 or np.sqrt(at_cap / now) < _WORTHWHILE:
            return False
        size, error = abs(looks[-1].value), np.sqrt(at_cap)
        expected = 2 * special.ndtr(-size / error)
        if self.equal_within:
            expected = min(expected, special.ndtr((size - self.equal_within) / error))
        return bool(expected > level)


def p_over_looks(times: np.ndarray, statistic: float, sides: int = 2) -> float:
    """The chance that without a difference any look reaches a statistic.

    Args:
        times: information at each look, increasing to 1.
        statistic: z x time^(1/4), the largest of those at all looks.
        sides: 2 for a difference in either direction, 1 for one that is named.
    """
    if statistic <= 0:
        return 1.0
    kept: list[float] = []
    before = 0.0
    for time in reversed(times.tolist()):
        if not kept or kept[-1] - time >= _LEAST_STEP:
            kept.append(time)
    density = points = np.empty(0)
    for time in reversed(kept):
        high = statistic * time ** (0.5 - _EXPONENT)
        low = -high if sides == 2 else -6 * np.sqrt(time)
        moved = (high + low) / 2 + (high - low) / 2 * _NODES
        step = np.sqrt(time - before)
        if before == 0:
            reached = _normal(moved / step) / step
        else:
            reached = (_normal((moved[:, None] - points) / step) / step) @ density
        density, points, before = reached * _WEIGHTS * (high - low) / 2, moved, time
    # The last look alone reaches it with the second of these chances, which is there where the first is rounded to 0.
    return float(np.clip(1 - density.sum(), sides * special.ndtr(-statistic), 1))


def _normal(z: np.ndarray) -> np.ndarray:
    """The density of the standard normal distribution."""
    return np.exp(-np.square(z) / 2) / np.sqrt(2 * np.pi)


def _one_sided(variance: Variance, value: float) -> float:
    error = float(np.sqrt(variance.total))
    two_sided = float(variance.p_value(value)) if error > 0 else float(value == 0)
    return two_sided / 2 if value > 0 else 1 - two_sided / 2


def _by_pair(pairs: Sequence[tuple[int, int]], p_values: Sequence[float]) -> dict[tuple[int, int], float]:
    """The adjusted p-values of all pairs."""
    return dict(zip(pairs, holm(np.array(p_values))[0].tolist(), strict=True))


def _first(sample: Sample, seeds: int) -> Sample:
    """A sample with its first seeds alone."""
    scores = None if sample.scores is None else sample.scores[:seeds]
    return replace(sample, values=dict(list(sample.values.items())[:seeds]), scores=scores)
