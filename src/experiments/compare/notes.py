"""The sentences below the table of a comparison."""

import shlex
from collections.abc import Mapping, Sequence

from experiments.compare import pairs
from experiments.compare.pairs import Tests
from experiments.compare.power import limit
from experiments.compare.ranking import EQUAL, NO_DIFFERENCE, NO_VERDICT, WORSE, Row
from experiments.compare.samples import SCORES
from experiments.compare.sequential import Race
from experiments.compare.statistics import Sample

MOST_NAMED = 3  # per sentence


def of_result(
    metric: str, rows: Sequence[Row], samples: Sequence[Sample], tests: Tests, *, these_images: bool
) -> list[str]:
    """What was found, what it holds for, how it was tested, and what limits it; an empty text for nothing to say."""
    return [
        _conclusion(rows),
        _ranking(metric),
        _question(metric, samples, these_images=these_images),
        *_methods(rows, tests),
        _single_seeds(rows),
        _untested(rows),
        _over_all_folds(rows, samples),
        _limit(metric, rows, samples, tests),
    ]


def _conclusion(rows: Sequence[Row]) -> str:
    first, others = rows[0].label, len(rows) - 1
    worse = sum(row.verdict == WORSE for row in rows)
    if not others:
        return f"{first} is the only variant: there is nothing to compare it with."
    if worse == others:
        return f"{first} is better than {'the other one' if others == 1 else f'all {others} others'}."
    equal = [row for row in rows[1:] if row.verdict.startswith(EQUAL)]
    open_ = [row for row in rows[1:] if row.verdict == NO_DIFFERENCE]
    parts = [
        f"{worse} of {others} others {'is' if worse == 1 else 'are'} worse" if worse else "",
        f"{equal[0].verdict}: {_named(equal)}" if equal else "",
        f"no significant difference from {_named(open_)}" if open_ else "",
    ]
    untested = [row for row in rows[1:] if row.verdict == NO_VERDICT]
    parts.append("trials with one seed are not called better or worse" if untested else "")
    return f"{first} ranks first; {'; '.join(part for part in parts if part)}."


def _named(rows: Sequence[Row]) -> str:
    rest = f" and {len(rows) - MOST_NAMED} more" if len(rows) > MOST_NAMED else ""
    return ", ".join(row.label for row in rows[:MOST_NAMED]) + rest


def of_race(race: Race) -> str:
    """A sentence on runs that a race has collected."""
    return (
        f"The runs were collected by a race of up to {race.max_seeds} seeds: differences are those on the seeds that "
        "both variants have, for a worse one from the best variant when it went out, and p holds although the results "
        "were looked at after every seed."
    )


def of_continuation(rows: Sequence[Row], command: str) -> str:
    """A sentence on the race that continues a sweep; empty if nothing is left to decide, or the sweep cannot be raced.

    Args:
        rows: of the table.
        command: that has started the sweep.
    """
    program, *words = shlex.split(command) or [""]
    searched = any(word.startswith("hydra/sweeper=") for word in words)
    if words[:1] != ["train"] or searched or all(row.verdict != NO_DIFFERENCE for row in rows):
        return ""
    dropped = ("-m", "--multirun", "seed=", "sweep.name=", "hydra.mode=")
    kept = [word for word in words[1:] if not word.startswith(dropped)]
    race = shlex.join([program, "race", *kept])
    return f"To decide it, let a race add seeds, whose verdicts hold at every look: {race}"


def of_importance(importance: Mapping[str, float]) -> str:
    """A sentence on what matters among the keys of a search, empty for none."""
    shares = ", ".join(f"{key} {share:.2f}" for key, share in importance.items())
    return f"Importance of the searched keys (PED-ANOVA): {shares}." if shares else ""


def of_diverged(rows: Sequence[Row]) -> str:
    """A sentence on variants that are not ranked, empty if there are none."""
    return f"Not ranked because runs have diverged: {_named(rows)}." if rows else ""


def _ranking(metric: str) -> str:
    if metric.startswith(("test/", "robustness/")):
        return f"Ranked by {metric}: the test set was used for selection, so its metrics are no longer unbiased."
    return f"Ranked by {metric}; the test set was not used for selection."


def _question(metric: str, samples: Sequence[Sample], *, these_images: bool) -> str:
    """Which images intervals and tests hold for."""
    if all(sample.overlap and sample.scores is None for sample in samples):
        return (
            "Intervals and tests hold for new images of the same kind, and for training on other images; they are "
            "corrected for the training images that the splits share (Nadeau and Bengio 2003)."
        )
    given = sum(sample.scores is None for sample in samples)
    if not given and all(len(sample.values) == 1 for sample in samples):
        return "Intervals and tests hold for new images of the same kind, and for these trained models only."
    if not given:
        return "Intervals and tests hold for new images of the same kind, and for training with new seeds."
    if these_images:
        return "Intervals and tests hold for these images only (--on these-images), and for training with new seeds."
    if metric not in SCORES:
        return f"Intervals and tests hold for these images only, because {metric} is no mean over images."
    which = "" if given == len(samples) else f" of {given} of {len(samples)} variants"
    return (
        f"Intervals and tests{which} hold for these images only, "
        f"because the recorded predictions are missing or do not give {metric}."
    )


def _methods(rows: Sequence[Row], tests: Tests) -> list[str]:
    """Sentences on the intervals and the tests."""
    intervals = sorted({row.mean.method for row in rows} - {""})
    names = sorted({row.test for row in rows if row.p is not None})
    number = "one pair" if tests.num_pairs == 1 else f"all {tests.num_pairs:,} pairs"
    return [
        f"95 % confidence intervals: {', '.join(intervals)}." if intervals else "",
        f"p: {', '.join(names)}; Holm-adjusted over {number}." if names else "",
    ]


def _single_seeds(rows: Sequence[Row]) -> str:
    if all(len(row.runs) > 1 for row in rows) or any(row.verdict == NO_VERDICT for row in rows):
        return ""
    advice = "A single seed does not show how results vary from seed to seed: add seed=range(5)."
    if any(row.p is not None and row.test in (pairs.MCNEMAR, pairs.OVER_IMAGES) for row in rows):
        return f"A test of single seeds speaks of two trained models, not of two recipes. {advice}"
    return advice


def _untested(rows: Sequence[Row]) -> str:
    untested = [row for row in rows[1:] if row.p is None and row.verdict != NO_VERDICT]
    if not untested:
        return ""
    why = "the values do not vary between the seeds"
    if untested[0].test == pairs.NO_TEST:
        why = "they have one seed each, and no predictions for the same images"
    return f"No test is possible for {len(untested)} of {len(rows) - 1} comparisons with the best: {why}."


def _over_all_folds(rows: Sequence[Row], samples: Sequence[Sample]) -> str:
    found = [
        f"{row.label} {sample.over_all:.4f}"
        for row, sample in zip(rows, samples, strict=True)
        if sample.over_all is not None
    ]
    rest = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    if not found:
        return ""
    return f"Over all images, each predicted by the model that had not seen it: {', '.join(found[:MOST_NAMED])}{rest}."


def _limit(metric: str, rows: Sequence[Row], samples: Sequence[Sample], tests: Tests) -> str:
    """What would show the first difference that is not significant: more seeds, or more images."""
    index = next((row.rank - 1 for row in rows if row.verdict == NO_DIFFERENCE), None)
    if index is None or min(len(rows[0].runs), len(rows[index].runs)) == 1 or samples[index].overlap:
        return ""
    sample = samples[index]
    images = sample.scores.shape[1] if sample.scores is not None else 0
    value, seeds = float(tests.differences.values[index]), min(len(rows[0].runs), len(rows[index].runs))
    found = limit(value, tests.differences.variance_of(index), seeds, images, float(tests.levels[index]))
    if found is None:
        return ""
    scale, unit = (100, " points") if sample.is_rate else (1, "")
    size = f"{scale * abs(value):.2g}{unit}"
    shown = f"to show a difference of {size} between {rows[0].label} and {rows[index].label} (80 % power)"
    if found.more_seeds is not None:
        return f"What limits this are the seeds: {shown}, about {found.more_seeds:,} more per variant are needed."
    if found.images is None:
        return ""
    also = "" if found.enough_seeds else " beside more seeds"
    errors = f"from {scale * found.error:.3g} to at best {scale * found.least_error:.3g}{unit}"
    return (
        f"What limits this are the images: with more seeds the standard error falls {errors}; "
        f"{shown}, about {found.images:,} validation images would be needed{also}."
    )


def of_code(rows: Sequence[Row]) -> str:
    """A sentence on variants whose runs were made by different code, empty if there are none."""
    mixed = {row.label: sorted({run.tags.get("code.sha256", "")[:8] for run in row.runs}) for row in rows}
    mixed = {label: digests for label, digests in mixed.items() if len(digests) > 1}
    if not mixed:
        return ""
    named = "; ".join(f"{label} ({', '.join(digests)})" for label, digests in list(mixed.items())[:MOST_NAMED])
    rest = f"; and {len(mixed) - MOST_NAMED} more" if len(mixed) > MOST_NAMED else ""
    return f"The runs of a variant were made by different versions of the code (code.sha256): {named}{rest}."


def count_runs(count: int) -> str:
    """A number of runs in words."""
    return f"{count:,} {'run' if count == 1 else 'runs'}"
