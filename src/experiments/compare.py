"""Numbers over runs: what a variant reaches over its seeds."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from statistics import mean, stdev


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
class Row:
    """A variant in the leaderboard."""

    rank: int
    label: str
    seeds: int
    mean: float  # of the objective
    standard_deviation: float | None  # over the seeds; None for a single one
    best_epoch: float  # mean over the seeds
    seconds: float  # mean over the seeds
    run_id: str  # of the best seed


def leaderboard(results: Iterable[Result], mode: str) -> list[Row]:
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
        Row(
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
