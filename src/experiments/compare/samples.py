"""Reads the samples that are tested: the metric of every run, and its scores on single images where they are known."""

from collections.abc import Sequence

import numpy as np

from experiments.compare.statistics import Sample
from experiments.compare.variants import Variant, split
from experiments.tracking.scores import scores

#: Metrics that are means over images -> the images, and the field of the recorded scores.
SCORES = {
    "best/val_accuracy": ("validation", "correct"),
    "best/val_loss": ("validation", "cross_entropy"),
    "test/accuracy": ("test", "correct"),
    "test/loss": ("test", "cross_entropy"),
}


def samples_of(variants: Sequence[Variant], metric: str, mode: str, *, these_images: bool) -> list[Sample]:
    """The samples of a metric, one for each variant.

    Args:
        variants: the variants; all of their runs have the metric.
        metric: full name of the metric.
        mode: `max` or `min`.
        these_images: whether to take the images as given; scores are read for variants with a single seed only.
    """
    values = [[run.metrics[metric] for run in variant.runs] for variant in variants]
    is_rate = mode == "max" and all(0 <= value <= 1 for column in values for value in column)
    found: list[list[np.ndarray | None]] = [[None] * len(variant.runs) for variant in variants]
    part = ""
    if metric in SCORES:
        part, field = SCORES[metric]
        wanted = [index for index, variant in enumerate(variants) if len(variant.runs) == 1 or not these_images]
        read = iter(scores([run for index in wanted for run in variants[index].runs], part))
        for index in wanted:
            arrays = [next(read) for _ in variants[index].runs]
            found[index] = [None if array is None else array[field] for array in arrays]
    return [_sample(*parts, part, is_rate) for parts in zip(variants, values, found, strict=True)]


def _sample(
    variant: Variant, values: Sequence[float], columns: Sequence[np.ndarray | None], part: str, is_rate: bool
) -> Sample:
    known = _stackable(columns, values)
    images = {run.tags.get(f"data.{part}_sha256", "") for run in variant.runs}
    stacked = np.stack(known) if known and len(images) == 1 else None
    splits = [split(run) for run in variant.runs]
    numbers = sorted(set(splits))
    if len(numbers) == 1:
        seeds = [int(run.params["seed"]) for run in variant.runs]
        return Sample(dict(zip(seeds, values, strict=True)), stacked, min(images), is_rate)
    # The seeds of one split share its training images; what counts is how much the splits differ.
    members = {number: [place for place, each in enumerate(splits) if each == number] for number in numbers}
    means = [float(np.mean([values[place] for place in places])) for places in members.values()]
    if stacked is not None:
        stacked = np.stack([stacked[places].mean(axis=0) for places in members.values()])
    params = variant.runs[0].params
    folds = int(params["data.folds"]) if numbers[0][1] >= 0 else 0
    share = 1 / folds if folds else float(params.get("data.validation_fraction", 0.1))
    of_all_folds = folds and known and len(numbers) == folds and len({seed for seed, _ in numbers}) == 1
    over_all = float(np.concatenate(known).mean()) if of_all_folds else None
    return Sample(dict(zip(numbers, means, strict=True)), stacked, min(images), is_rate, share / (1 - share), over_all)


def _stackable(columns: Sequence[np.ndarray | None], values: Sequence[float]) -> list[np.ndarray]:
    """The scores of all runs if all are known and their means are the recorded values, else none.

    They are not if the metric has another definition, such as a loss with label smoothing.
    """
    known = [column for column in columns if column is not None]
    if len(known) < len(columns):
        return []
    means = [column.mean(dtype=np.float64) for column in known]
    return known if np.allclose(means, values, rtol=1e-4, atol=1e-6) else []
