"""Numbers over runs: variants ranked, each with an honest verdict."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from statistics import mean, stdev

from experiments.significance import Estimate
from experiments.tracking import Recorded

BETTER, WORSE, NO_DIFFERENCE = "better", "worse", "no difference shown"


@dataclass(frozen=True)
class Row:
    """A variant, and how it stands to the best one."""

    rank: int
    label: str  # what tells the variant from the others, as words key=value
    differing: Mapping[str, str]  # key -> value; a key that it lacks, or that says nothing, is absent
    runs: tuple[Recorded, ...]  # one a seed, by seed
    mean: Estimate  # of the metric
    difference: Estimate | None  # to the best; None for the best itself
    p: float | None  # of the test against the best, adjusted for all pairs; None where no test is possible
    verdict: str
    test: str  # name of the test
    test_accuracy: float | None  # mean over the seeds; nothing was chosen by it
    costs: Mapping[str, float]  # `parameters`, `macs`, `train_seconds` -> mean over the seeds, as far as recorded
    pareto: frozenset[str]  # those of `costs` on whose Pareto front with the metric it lies


@dataclass(frozen=True)
class Comparison:
    """Variants, the best first."""

    title: str  # the sweeps or the filter
    metric: str  # its name in MLflow, as in best/val_accuracy
    mode: str  # `max` or `min`, what is better
    rows: tuple[Row, ...]
    swept: tuple[str, ...]  # every key in which variants differ
    notes: tuple[str, ...]  # what a reader must know, a sentence each


@dataclass(frozen=True)
class Result:
    """What one finished run has reached."""

    variant: str  # the same for all seeds
    label: str  # what tells the variant from the others
    objective: float
    best_epoch: int
    seconds: float
    run_id: str


@dataclass(frozen=True)
class OldRow:
    """A variant in the leaderboard."""

    rank: int
    label: str
    seeds: int
    mean: float  # of the objective
    standard_deviation: float | None  # over the seeds; None for a single one
    best_epoch: float  # mean over the seeds
    seconds: float  # mean over the seeds
    run_id: str  # of the best seed


def leaderboard(results: Iterable[Result], mode: str) -> list[OldRow]:
    """Every variant with its mean over the seeds, the best first.

    Args:
        results: of finished runs.
        mode: `max` or `min`, what is better.
    """
    sign = -1 if mode == "max" else 1
    by_variant = groupby(sorted(results, key=lambda result: result.variant), key=lambda result: result.variant)
    groups = [sorted(group, key=lambda result: sign * result.objective) for _, group in by_variant]
    ranked = sorted(groups, key=lambda group: sign * mean(result.objective for result in group))
    return [
        OldRow(
            rank=rank,
            label=group[0].label,
            seeds=len(group),
            mean=mean(result.objective for result in group),
            standard_deviation=stdev(result.objective for result in group) if len(group) > 1 else None,
            best_epoch=mean(result.best_epoch for result in group),
            seconds=mean(result.seconds for result in group),
            run_id=group[0].run_id,
        )
        for rank, group in enumerate(ranked, start=1)
    ]
