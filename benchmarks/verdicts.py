"""How often verdicts are wrong: simulated variants that are equal on new images, as `experiments compare` tests them.

    .venv/bin/python benchmarks/verdicts.py [--repeats 2000]

Prints the tables of benchmarks/README.md. The probability that a variant predicts an image wrongly has a logit that is
the sum of the image's difficulty, an idiosyncrasy of the variant and the image, and an effect of the seed.
"""

import argparse
import itertools
from collections.abc import Iterator

import numpy as np
from scipy import optimize, special

from experiments.compare.pairs import all_tests
from experiments.compare.statistics import LEVEL, Sample, estimate

IMAGES = 10_000
ERRORS = (0.007, 0.009, 0.011)
SPREAD = 0.0006  # standard deviation of the accuracy between seeds, on given images
IDIOSYNCRASIES = (0, 0.5, 1, 2)  # standard deviations of logits
SEEDS = (5, 10, 30)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(201)


class Recipe:
    """A distribution of images and seeds with a given error and spread.

    Args:
        error: the mean error on new images and with new seeds.
        by_image: share of the variance between seeds that is independent from image to image.
    """

    def __init__(self, error: float, by_image: float) -> None:
        def misses(values: np.ndarray) -> list[float]:
            rate, variance = self._moments(*values)
            return [rate / error - 1, variance / (by_image * SPREAD**2 * IMAGES) - 1]

        self.error = error
        self.mean, self.difficulty = optimize.fsolve(misses, [-18, 7])
        shift = 0.001
        slope = (self._moments(self.mean + shift, self.difficulty)[0] - error) / shift
        self.seed = np.sqrt(1 - by_image) * SPREAD / slope

    @staticmethod
    def _moments(mean: float, deviation: float) -> tuple[float, float]:
        rates = special.expit(mean + deviation * NODES)
        return tuple(float((WEIGHTS * values).sum() / WEIGHTS.sum()) for values in (rates, rates * (1 - rates)))

    def mean_for(self, error: float) -> float:
        """The mean of the logits that gives another error."""
        return optimize.brentq(
            lambda mean: self._moments(mean, self.difficulty)[0] - error, self.mean - 2, self.mean + 2
        )

    def draw(self, random: np.random.Generator, means: np.ndarray, seeds: int, idiosyncrasy: float) -> list[Sample]:
        """Samples of variants with these means of their logits, on new images and with new seeds."""
        common = np.sqrt(self.difficulty**2 - idiosyncrasy**2) * random.standard_normal(IMAGES)
        logits = means[:, None] + common + idiosyncrasy * random.standard_normal((len(means), IMAGES))
        hard = np.flatnonzero(logits.max(axis=0) > -14)  # the others are never wrong
        logits = logits[:, None, hard] + self.seed * random.standard_normal((len(means), seeds, 1))
        right = np.ones((len(means), seeds, IMAGES), bool)
        right[:, :, hard] = random.random(logits.shape) >= special.expit(logits)
        return [Sample(dict(enumerate(scores.mean(axis=1))), scores, "the same", is_rate=True) for scores in right]


def draws(repeats: int, by_image: float) -> Iterator[Recipe]:
    """Recipes with all errors in turn."""
    recipes = [Recipe(error, by_image) for error in ERRORS]
    yield from itertools.islice(itertools.cycle(recipes), repeats)


def false_verdicts(variants: int, seeds: int, idiosyncrasy: float, by_image: float, repeats: int) -> list[float]:
    """Shares of comparisons of equal variants: with a verdict now, with one by t-tests over seeds, and covered."""
    random = np.random.default_rng([variants, seeds, int(10 * idiosyncrasy), int(10 * by_image)])
    now, before, covered, means = [], [], [], []
    for recipe in draws(repeats, by_image):
        samples = recipe.draw(random, np.full(variants, recipe.mean), seeds, idiosyncrasy)
        samples.sort(key=lambda sample: -sample.array.mean())
        tests = all_tests(samples)
        now.append(bool((tests.p_values[1:] < LEVEL).any()))
        before.append(is_wrong([Sample(sample.values) for sample in samples]))
        intervals = [tests.interval(index) for index in range(1, variants)]
        covered.append(all(found.low <= 0 <= found.high for found in intervals))
        chosen = estimate(samples[random.integers(variants)])
        means.append(chosen.low <= 1 - recipe.error <= chosen.high)
    return [float(np.mean(values)) for values in (now, before, covered, means)]


def is_wrong(samples: list[Sample]) -> bool:
    """Whether one of equal variants is called worse than the first."""
    return bool((all_tests(samples).p_values[1:] < LEVEL).any())


def power(seeds: int, by_image: float, repeats: int) -> tuple[float, float]:
    """Shares of comparisons that show a difference of three standard errors, now and by t-tests over seeds."""
    random = np.random.default_rng(seeds)
    now, before = [], []
    for recipe in draws(repeats, by_image):
        better = recipe.mean_for(recipe.error - 3 * SPREAD * np.sqrt(2 / seeds))
        samples = recipe.draw(random, np.array([better, recipe.mean]), seeds, 0)
        now.append(is_wrong(samples))
        before.append(is_wrong([Sample(sample.values) for sample in samples]))
    return float(np.mean(now)), float(np.mean(before))


def main() -> None:
    """Prints everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    repeats = parser.parse_args().repeats
    for by_image in (1.0, 0.5):
        print(f"\nShare of the variance between seeds that is independent from image to image: {by_image}\n")
        print("| variants | idiosyncrasy | seeds | false verdicts | before | differences covered | means covered |")
        print("|---|---|---|---|---|---|---|")
        for variants, idiosyncrasy, seeds in itertools.product((2, 8), IDIOSYNCRASIES, SEEDS):
            found = false_verdicts(variants, seeds, idiosyncrasy, by_image, repeats)
            cells = " | ".join(f"{100 * share:.1f} %" for share in found)
            print(f"| {variants} | {idiosyncrasy} | {seeds} | {cells} |", flush=True)
        print("\n| seeds | power | before | ratio |")
        print("|---|---|---|---|")
        for seeds in SEEDS:
            now, before = power(seeds, by_image, repeats)
            print(f"| {seeds} | {100 * now:.1f} % | {100 * before:.1f} % | {now / before:.3f} |", flush=True)


if __name__ == "__main__":
    main()
