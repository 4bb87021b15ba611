"""Reads the samples that are tested: the metric of every run, and its scores on single images where they are known."""

from collections.abc import Sequence

import numpy as np

from experiments.compare.statistics import Sample
from experiments.compare.variants import Variant
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
    found: dict[int, np.ndarray] = {}
    part = ""
    if metric in SCORES:
        part, field = SCORES[metric]
        wanted = [index for index, variant in enumerate(variants) if len(variant.runs) == 1 or not these_images]
        read = iter(scores([run for index in wanted for run in variants[index].runs], part))
        for index in wanted:
            columns = [None if array is None else array[field] for array in (next(read) for _ in variants[index].runs)]
            if (stacked := _stacked(columns, values[index])) is not None:
                found[index] = stacked
    return [
        Sample(
            values={int(run.params["seed"]): value for run, value in zip(variant.runs, values[index], strict=True)},
            scores=found.get(index),
            images=variant.runs[0].tags.get(f"data.{part}_sha256", ""),
            is_rate=is_rate,
        )
        for index, variant in enumerate(variants)
    ]


def _stacked(columns: Sequence[np.ndarray | None], values: Sequence[float]) -> np.ndarray | None:
    """The scores of all seeds, (seeds, images), if all are known and their means are the recorded values.

    They are not if the metric has another definition, such as a loss with label smoothing.
    """
    known = [column for column in columns if column is not None]
    if len(known) < len(columns) or len({len(column) for column in known}) > 1:
        return None
    means = [column.mean(dtype=np.float64) for column in known]
    return np.stack(known) if np.allclose(means, values, rtol=1e-4, atol=1e-6) else None
