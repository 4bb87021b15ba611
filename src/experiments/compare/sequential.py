"""Decisions after every seed: p-values that hold however often one looks, and what is settled among several variants.

A look at a difference after k seeds has the information 1 / (its variance). The differences at all looks up to the last
possible one, divided by their standard errors, are jointly normal as a Brownian motion at these informations is, so the
chance that any of them crosses a boundary is found by numerical integration from look to look (Armitage, McPherson and
Rowe, JRSS A 132 (1969) 235). The boundary is that of Wang and Tsiatis, Biometrics 43 (1987) 193, with exponent 0.3,
between those of Pocock (0.5) and of O'Brien and Fleming (0). The images are the same at every look, so where they are
the larger source of chance, looks are nearly equal and cost little.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from itertools import combinations

import numpy as np
from scipy import special

from experiments.compare.pairs import Pairs
from experiments.compare.statistics import LEVEL, Sample, holm
from experiments.compare.variance import Variance

AT_EVERY_LOOK = "t over seeds and images, at every look of a race"
FIRST_SEEDS = 3  # of every variant, before the first look
_EXPONENT = 0.2  # of the information, by which z is weighted
_WORTHWHILE = 0.97  # more seeds are not worth it if the standard error at the cap is more than this share of today's
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(160)
#: Of the seeds alone, Student's t reaches a boundary more often than the normal distribution: 1.13 to 1.26 times for up
#: to 6, 12 and 30 seeds.
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
    difference: float | None = None  # from the best one; None for the best itself
    best: int | None = None  # number of that best one, which may itself have been beaten since
    p: float | None = None  # of that difference, adjusted over all pairs and looks
    half_width: float = 0.0  # of its interval, which excludes 0 if and only if p is below 0.05


@dataclass(frozen=True)
class Looks:
    """The looks at a pair of variants, one for each number of seeds from `FIRST_SEEDS` on."""

    looks: tuple[Look, ...]
    max_seeds: int

    @property
    def last(self) -> Look:
        """What is known now."""
        return self.looks[-1]

    @property
    def seeds(self) -> int:
        """The number of seeds at the last look."""
        return FIRST_SEEDS + len(self.looks) - 1

    @cached_property
    def p_different(self) -> float:
        """The p-value of a difference, over all looks up to the largest number of seeds."""
        return self._over_looks([special.ndtri(1 - look.p / 2) for look in self.looks], sides=2)

    @cached_property
    def p_equal(self) -> float:
        """The p-value of two one-sided tests (Schuirmann 1987) of a difference smaller than the margin."""
        above, below = ([-special.ndtri(getattr(look, side)) for look in self.looks] for side in ("p_above", "p_below"))
        return max(self._over_looks(above, sides=1), self._over_looks(below, sides=1))

    def _over_looks(self, z: Sequence[float], sides: int) -> float:
        """The p-value over all looks, of the values at those there have been."""
        # A small variance by chance makes a difference look surer, and the looks more alike, than they are.
        df = self.seeds - 1
        variance = self._variance(np.arange(FIRST_SEEDS, self.max_seeds + 1), df / special.chdtri(df, 0.95))
        if variance[-1] <= 0:
            return 1.0
        times = variance[-1] / variance
        statistic = float((np.array(z) * times[: len(z)] ** _EXPONENT).max())
        of_seeds = 1 - self.last.variance.images / variance[-1]
        return min(1.0, (1 + (_STUDENT - 1) * of_seeds) * p_over_looks(times, statistic, sides))

    def _variance(self, seeds: np.ndarray, at_most: float = 1.0) -> np.ndarray:
        """The variances of the difference with other numbers of seeds, whose part is `at_most` times as large."""
        return at_most * self.last.variance.seeds * self.seeds / seeds + self.last.variance.images

    def is_limited(self, level: float, equal_within: float | None) -> bool:
        """Whether the images are the larger source of chance, and all the seeds would hardly add to what is known."""
        now, at_cap = self._variance(np.array([self.seeds, self.max_seeds]))
        if self.last.variance.images < at_cap / 2 or np.sqrt(at_cap / now) < _WORTHWHILE:
            return False
        size, error = abs(self.last.value), np.sqrt(at_cap)
        expected = 2 * special.ndtr(-size / error)
        if equal_within:
            expected = min(expected, special.ndtr((size - equal_within) / error))
        return bool(expected > level)


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
        self._known: dict[tuple[int, int, int], Looks] = {}

    def decide(self, samples: Mapping[int, Sample], sign: int) -> dict[int, Decision]:
        """Decides what is settled, look by look: a variant that was worse than the best at one of them stays out.

        Args:
            samples: number of a variant -> its values, of the same seeds in the same order as far as there are any.
            sign: 1 if a higher value is better, -1 if a lower one is.

        Returns:
            The decision of every variant that has at least `FIRST_SEEDS` seeds.
        """
        samples = {number: sample for number, sample in samples.items() if len(sample.values) >= FIRST_SEEDS}
        seeds, worse = dict.fromkeys(samples, FIRST_SEEDS), dict[int, Decision]()
        while True:
            decisions = self._decide(samples, seeds, worse, sign)
            wanted = self.next_seeds(decisions)
            if not wanted or any(len(samples[number].values) < more for number, more in wanted.items()):
                return decisions
            seeds |= wanted
            worse = {number: found for number, found in decisions.items() if found.standing is Standing.WORSE}

    def next_seeds(self, decisions: Mapping[int, Decision]) -> dict[int, int]:
        """Number of each variant that gets one more seed -> how many it then has; empty if all is settled."""
        open_ = [number for number, decision in decisions.items() if decision.standing is Standing.OPEN]
        if not open_:
            return {}
        wanted = [*open_, *(number for number, found in decisions.items() if found.standing is Standing.BEST)]
        target = min(self.max_seeds, min(decisions[number].seeds for number in wanted) + 1)
        return {number: target for number in sorted(wanted) if decisions[number].seeds < target}

    def _decide(
        self, samples: Mapping[int, Sample], seeds: Mapping[int, int], worse: Mapping[int, Decision], sign: int
    ) -> dict[int, Decision]:
        """What one look settles of variants with so many seeds, some of which are out of the race.

        Every remaining variant is tested against the best one, with p multiplied by the number of remaining pairs. The
        smallest p-value is tested first; a variant that is worse is removed, and then the others are tested among fewer
        pairs. Like Holm's method, this is a step-down test.
        """

        def looks_at(one: int, other: int) -> Looks:
            return self._looks_at(one, other, min(seeds[one], seeds[other]), samples)

        def decided(standing: Standing, number: int) -> Decision:
            last = others[number].last
            # The level at which the last look alone would be tested.
            level = LEVEL * min(1.0, last.p / p[number]) if p[number] > 0 else LEVEL
            half_width = float(last.variance.half_width(level))
            return Decision(standing, seeds[number], last.value, best, p[number], half_width)

        decisions = dict(worse)
        while True:
            left = [number for number in seeds if number not in decisions]
            if not left:
                return decisions
            best = left[0]
            for number in left[1:]:
                best = number if sign * looks_at(number, best).last.value > 0 else best
            pairs = list(combinations(left, 2))
            others = {number: looks_at(number, best) for number in left if number != best}
            p = {number: min(1.0, len(pairs) * looks.p_different) for number, looks in others.items()}
            surest = min(p, key=p.__getitem__, default=best)
            if surest == best or p[surest] >= LEVEL:
                break
            decisions[surest] = decided(Standing.WORSE, surest)
        p_equal = holm(np.array([looks_at(*pair).p_equal for pair in pairs]))[0] if self.equal_within else ()
        equal = {pair for pair, of_pair in zip(pairs, p_equal, strict=False) if of_pair < LEVEL}
        decisions[best] = Decision(Standing.BEST, seeds[best])
        for number, looks in others.items():
            if (min(number, best), max(number, best)) in equal:
                standing = Standing.EQUAL
            elif looks.is_limited(LEVEL / len(pairs), self.equal_within):
                standing = Standing.IMAGES
            else:
                standing = Standing.CAP if looks.seeds >= self.max_seeds else Standing.OPEN
            decisions[number] = decided(standing, number)
        return decisions

    def _looks_at(self, one: int, other: int, seeds: int, samples: Mapping[int, Sample]) -> Looks:
        """The looks at the difference of one variant from another, up to so many seeds of both."""
        if (one, other, seeds) not in self._known:
            numbers = range(FIRST_SEEDS, seeds + 1)
            for number in numbers:
                if (one, other, number) not in self._looks:
                    self._look(number, {n: _first(e, number) for n, e in samples.items() if len(e.values) >= number})
            looks = tuple(self._looks[one, other, number] for number in numbers)
            self._known[one, other, seeds] = Looks(looks, self.max_seeds)
        return self._known[one, other, seeds]

    def _look(self, seeds: int, samples: Mapping[int, Sample]) -> None:
        """Looks at all pairs after so many seeds."""
        numbers, pairs = list(samples), Pairs(list(samples.values()))
        for place, one in enumerate(numbers):
            differences = pairs.against(place)
            p_values = np.nan_to_num(differences.p_values, nan=1.0)
            for other_place, other in enumerate(numbers):
                value, variance = -float(differences.values[other_place]), differences.variance_of(other_place)
                above = below = 1.0
                if self.equal_within and other != one:
                    above, below = (_one_sided(variance, sign * value + self.equal_within) for sign in (1, -1))
                self._looks[one, other, seeds] = Look(value, variance, p_values[other_place], above, below)


def p_over_looks(times: np.ndarray, statistic: float, sides: int = 2) -> float:
    """The chance that without a difference any look reaches a statistic.

    Args:
        times: information at each look, increasing to 1.
        statistic: z x time^0.2, the largest of those at all looks.
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


def _first(sample: Sample, seeds: int) -> Sample:
    """A sample with its first seeds alone."""
    scores = None if sample.scores is None else sample.scores[:seeds]
    return replace(sample, values=dict(list(sample.values.items())[:seeds]), scores=scores)
