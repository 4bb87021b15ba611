"""Ranks the variants among finished runs and tests each of them against the best one."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.compare import statistics
from experiments.compare.statistics import Estimate, Sample
from experiments.compare.variants import DIGESTS, Variant, variants_of
from experiments.errors import ExperimentError
from experiments.tracking import runs
from experiments.tracking.runs import StoredRun, runs_of, search_runs
from experiments.tracking.store import StoreLost, StoreRefused, nothing_recorded, shown_uri

BEST, WORSE, NO_DIFFERENCE = "best", "worse", "no significant difference"
#: Metric `cost/…` -> its column in the table.
COSTS = {"parameters": "parameters", "macs": "MACs", "train_seconds": "seconds"}
#: Accuracy metric -> the set of images it is measured on, whose recorded predictions are tested for a single seed.
_ACCURACIES = {"best/val_accuracy": "validation", "test/accuracy": "test"}
_LESS_IS_BETTER = ("loss", "error", "seconds", "parameters", "macs")
_MOST_NAMED = 3  # per sentence


@dataclass(frozen=True)
class Row:
    """A variant and its comparison with the best one."""

    rank: int
    label: str  # the distinguishing values as text: key=value key=value
    distinguishing_values: Mapping[str, str]  # key -> value, only where they tell the variant from others
    runs: tuple[StoredRun, ...]  # one per seed, in the order of the seeds
    mean: Estimate  # mean of the metric
    difference: Estimate | None  # from the best; None for the best itself
    p: float | None  # p-value of the test against the best, adjusted over all pairs; None if no test is possible
    verdict: str
    test: str  # name of the test
    test_accuracy: float | None  # mean over the seeds; not used for selection
    costs: Mapping[str, float]  # key of `COSTS` -> mean over the seeds, if recorded
    pareto: frozenset[str]  # the costs in which the variant is Pareto-optimal


@dataclass(frozen=True)
class Comparison:
    """The ranked variants, the best first."""

    title: str  # names of the sweeps, or the filter
    metric: str  # name in MLflow, such as best/val_accuracy
    mode: str  # `max` or `min`: whether a higher or lower metric is better
    rows: tuple[Row, ...]
    distinguishing_keys: tuple[str, ...]  # all keys in which variants differ
    notes: tuple[str, ...]  # the result, then how it was obtained and its caveats; one sentence each

    @property
    def best_run(self) -> StoredRun:
        """The run with the best seed of the best variant."""
        choose = max if self.mode == "max" else min
        return choose(self.rows[0].runs, key=lambda run: run.metrics[self.metric])


def find_runs(sweeps: Sequence[str], query: str) -> tuple[str, list[StoredRun]]:
    """Finds the runs to compare, and a title for them.

    Args:
        sweeps: names of sweeps, with or without the six digits at the end, unique prefixes of their run ids, or `last`.
            If empty, all runs that match `query`; without a query, those of the latest sweep.
        query: a filter in MLflow's search syntax; empty for none.

    Raises:
        ExperimentError: there is no such sweep, or MLflow rejects the filter.
    """
    if nothing_recorded():
        advice = "Start with: experiments train sweep=quick"
        raise ExperimentError(f"Nothing is recorded in {shown_uri()} yet.", advice=advice)
    if query and not sweeps:
        return query, list(search_runs(query))
    parents = _find_sweeps(sweeps, runs.sweeps())
    names = " + ".join(parent.tags["sweep.name"] for parent in parents)
    found = [run for parent in parents for run in runs_of(parent, query)]
    return f"{names}, {query}" if query else names, found


def _find_sweeps(names: Sequence[str], parents: Sequence[StoredRun]) -> list[StoredRun]:
    if not parents:
        advice = "Start one with: experiments train sweep=quick, or name runs with --filter."
        raise ExperimentError("There is no sweep in this store yet.", advice=advice)
    by_name: dict[str, StoredRun] = {}
    for parent in reversed(parents):  # of sweeps with the same name, the newest one counts
        name = parent.tags["sweep.name"]
        by_name |= {name.rpartition("-")[0]: parent, name: parent, parent.run_id: parent}
    by_name["last"] = parents[0]
    for name in names:
        if name not in by_name and (matching := [parent for parent in parents if parent.run_id.startswith(name)]):
            by_name[name] = runs.only_one(name, matching)
        if name not in by_name:
            known = {parent.tags["sweep.name"] for parent in parents}
            raise ExperimentError(f"{name}: there is no such sweep in this store.", given=name, allowed=known)
    return list({by_name[name].run_id: by_name[name] for name in names}.values()) if names else [parents[0]]


def compare_runs(runs: Iterable[StoredRun], title: str, metric: str = "", *, across_data: bool = False) -> Comparison:
    """Ranks the variants among finished runs and tests each of them against the best one.

    Args:
        runs: the newest first; unfinished and pruned runs, and those that reproduce another run, are left out.
        title: title of the comparison.
        metric: metric to rank by, by default the objective of the runs; `val_accuracy` means `best/val_accuracy`.
        across_data: whether to compare runs on different data.

    Raises:
        ExperimentError: no run is left, no run has the metric, or the data differ.
    """
    finished, left_out = _finished(runs)
    if not finished:
        raise ExperimentError(f"{title}: there is no finished run.", advice=left_out)
    metric = _metric(finished, metric)
    measured = [run for run in finished if metric in run.metrics]
    other_data = _other_data(measured, across_data=across_data)
    mode = _mode(metric, measured)
    sign = -1 if mode == "max" else 1
    ranked = sorted(variants_of(measured), key=lambda variant: (sign * (variant.mean(metric) or 0), variant.label))
    samples = [_sample(variant, metric) for variant in ranked]
    adjusted = statistics.holm(statistics.pairwise_p_values(samples))
    fronts = {cost: _front(ranked, metric, f"cost/{cost}", sign) for cost in COSTS}
    rows = [
        _row(index, variant, samples, adjusted, frozenset(cost for cost in COSTS if index in fronts[cost]))
        for index, variant in enumerate(ranked)
    ]
    lacking = len(finished) - len(measured)
    repeated = len(measured) - sum(len(variant.runs) for variant in ranked)
    notes = [
        _conclusion(rows),
        *_methods(metric, rows, adjusted),
        _more_seeds(rows, samples, adjusted),
        _versions_of_code(rows),
        other_data,
        left_out,
        f"Left out because {metric} is missing: {_count_runs(lacking)}." if lacking else "",
        f"Left out because a newer run has the same variant and seed: {_count_runs(repeated)}." if repeated else "",
    ]
    keys = dict.fromkeys(key for variant in ranked for key in variant.distinguishing_values)
    return Comparison(title, metric, mode, tuple(rows), tuple(keys), tuple(note for note in notes if note))


def _finished(runs: Iterable[StoredRun]) -> tuple[list[StoredRun], str]:
    """The runs to compare, each once, and a sentence that counts the others."""
    kept, kinds = [], Counter[str]()
    for run in {run.run_id: run for run in runs}.values():
        if not {"variant", *DIGESTS} <= set(run.tags) or "seed" not in run.params:
            if "sweep.name" not in run.tags:  # the run of a sweep is not counted at all
                kinds["without a variant"] += 1
        elif run.status != "FINISHED":
            kinds[run.status.lower()] += 1
        elif "pruned" in run.tags:
            kinds["pruned"] += 1
        elif "reproduces" in run.tags:
            kinds["made by reproduce"] += 1
        else:
            kept.append(run)
    counted = [f"{count} {kind}" for kind, count in sorted(kinds.items())]
    return kept, f"Left out: {', '.join(counted)}." if counted else ""


def _metric(runs: Sequence[StoredRun], given: str) -> str:
    """The full name of the metric to rank by."""
    names = {name for run in runs for name in run.metrics}
    if not given:
        objectives = {run.params.get("objective", "val_accuracy") for run in runs}
        if len(objectives) > 1:
            raise ExperimentError(
                f"The runs have different objectives: {', '.join(sorted(objectives))}.",
                advice="Choose one with --metric.",
            )
        given = objectives.pop()
    found = next((name for name in (f"best/{given}", given) if name in names), None)
    if found is None:
        raise ExperimentError(f"{given}: no run has this metric.", given=given, allowed=names)
    return found


def _mode(metric: str, runs: Sequence[StoredRun]) -> str:
    """`max` if a higher metric is better, else `min`."""
    name = metric.rpartition("/")[2].removeprefix("val_")
    modes = {json.loads(run.tags.get("metric_modes", "{}")).get(name) for run in runs} - {None}
    return modes.pop() if len(modes) == 1 else "min" if metric.endswith(_LESS_IS_BETTER) else "max"


def _other_data(runs: Sequence[StoredRun], *, across_data: bool) -> str:
    """A sentence on runs whose data differ, empty if they do not.

    Raises:
        ExperimentError: the data differ, and `across_data` is false.
    """
    differences = []
    for name in DIGESTS:
        found = Counter(run.tags[name] for run in runs)
        if len(found) > 1:
            counted = ", ".join(
                f"{digest[:12]} ({_count_runs(count)})" for digest, count in found.most_common(_MOST_NAMED)
            )
            rest = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
            differences.append(f"{name} is {counted}{rest}")
    if differences and not across_data:
        problem = f"The runs are on different data, so their metrics are not comparable: {'; '.join(differences)}."
        raise ExperimentError(problem, advice="Select runs with --filter, or compare them anyway with --across-data.")
    return f"This compares runs on different data: {'; '.join(differences)}." if differences else ""


def _sample(variant: Variant, metric: str) -> Sample:
    values = {int(run.params["seed"]): run.metrics[metric] for run in variant.runs}
    part = _ACCURACIES.get(metric)
    if part is None or len(values) > 1:
        return Sample(values)
    try:
        predictions = runs.predictions(variant.runs[0], part)
    except (StoreLost, StoreRefused):  # the table of a sweep needs no predictions
        predictions = None
    if predictions is None:
        return Sample(values)
    correct = predictions.probabilities.argmax(axis=1) == predictions.labels
    return Sample(values, correct, variant.runs[0].tags[f"data.{part}_sha256"])


def _row(index: int, variant: Variant, samples: Sequence[Sample], adjusted: np.ndarray, pareto: frozenset[str]) -> Row:
    # The pairs with the best variant come first.
    p = float(adjusted[index - 1]) if index else np.nan
    difference = statistics.difference(samples[index], samples[0]) if index else None
    costs = {cost: variant.mean(f"cost/{cost}") for cost in COSTS}
    return Row(
        rank=index + 1,
        label=variant.label,
        distinguishing_values=variant.distinguishing_values,
        runs=variant.runs,
        mean=statistics.estimate(samples[index]),
        difference=difference.estimate if difference else None,
        p=None if np.isnan(p) else p,
        verdict=BEST if index == 0 else WORSE if p < statistics.LEVEL else NO_DIFFERENCE,
        test=difference.test if difference else "",
        test_accuracy=variant.mean("test/accuracy"),
        costs={cost: value for cost, value in costs.items() if value is not None},
        pareto=pareto,
    )


def _front(ranked: Sequence[Variant], metric: str, cost: str, sign: int) -> set[int]:
    """Indices of the Pareto-optimal variants: no other is as good and cheaper, or better and as cheap."""
    costs = {index: value for index, variant in enumerate(ranked) if (value := variant.mean(cost)) is not None}
    points = {index: (value, sign * (ranked[index].mean(metric) or 0)) for index, value in costs.items()}
    front: list[int] = []
    for index in sorted(points, key=points.__getitem__):
        if not front or points[index][1] < points[front[-1]][1] or points[index] == points[front[-1]]:
            front.append(index)
    return set(front)


# Notes below the table


def _conclusion(rows: Sequence[Row]) -> str:
    first, others = rows[0].label, len(rows) - 1
    worse = sum(row.verdict == WORSE for row in rows)
    if not others:
        return f"{first} is the only variant: there is nothing to compare it with."
    if worse == others:
        return f"{first} is better than {'the other one' if others == 1 else f'all {others} others'}."
    equal = [row.label for row in rows[1:] if row.verdict == NO_DIFFERENCE]
    named = ", ".join(equal[:_MOST_NAMED]) + (
        f" and {len(equal) - _MOST_NAMED} more" if len(equal) > _MOST_NAMED else ""
    )
    shown = f"{worse} of {others} others {'is' if worse == 1 else 'are'} worse; " if worse else ""
    return f"{first} ranks first; {shown}no significant difference from {named}."


def _methods(metric: str, rows: Sequence[Row], adjusted: np.ndarray) -> list[str]:
    """Sentences on the ranking, the intervals and the tests."""
    if metric.startswith("test/"):
        ranked = f"Ranked by {metric}: the test set was used for selection, so its metrics are no longer unbiased."
    else:
        ranked = f"Ranked by {metric}; the test set was not used for selection."
    intervals = sorted({row.mean.method for row in rows} - {""})
    tests = sorted({row.test for row in rows if row.p is not None})
    pairs = int((~np.isnan(adjusted)).sum())
    sentences = [
        ranked,
        f"95 % confidence intervals: {', '.join(intervals)}." if intervals else "",
        f"p: {', '.join(tests)}; Holm-adjusted over {'one pair' if pairs == 1 else f'all {pairs:,} pairs'}."
        if tests
        else "",
    ]
    if any(len(row.runs) == 1 for row in rows):
        sentences.append("A single seed does not show how results vary from seed to seed: add seed=range(5).")
    untested = [row for row in rows[1:] if row.p is None]
    if untested:
        sentences.append(
            f"No test is possible for {len(untested)} of {len(rows) - 1} comparisons with the best: "
            f"{_why_untested(untested[0])}."
        )
    return sentences


def _why_untested(row: Row) -> str:
    if row.test == statistics.NO_TEST:
        return "they have one seed each, and no predictions for the same images"
    return "the values do not vary between the seeds"


def _more_seeds(rows: Sequence[Row], samples: Sequence[Sample], adjusted: np.ndarray) -> str:
    """How many more seeds would show the first difference that is not significant."""
    row = next((row for row in rows[1:] if row.verdict == NO_DIFFERENCE), None)
    if row is None or row.difference is None:
        return ""
    # The level at which Holm's method tests the smallest p-value that is not significant.
    level = statistics.LEVEL / max(1, int((adjusted >= statistics.LEVEL).sum()))
    needed = statistics.seeds_needed(samples[row.rank - 1], samples[0], level)
    if needed is None:
        return ""
    more = max(1, needed - min(len(row.runs), len(rows[0].runs)))
    size = f"{abs(row.difference.value):.2g}"
    return (
        f"To show a difference of {size} between {rows[0].label} and {row.label}, "
        f"about {more:,} more seeds each are needed (80 % power)."
    )


def _versions_of_code(rows: Sequence[Row]) -> str:
    """A sentence on variants whose runs were made by different code, empty if there are none."""
    mixed = {row.label: sorted({run.tags.get("code.sha256", "")[:8] for run in row.runs}) for row in rows}
    mixed = {label: digests for label, digests in mixed.items() if len(digests) > 1}
    if not mixed:
        return ""
    named = "; ".join(f"{label} ({', '.join(digests)})" for label, digests in list(mixed.items())[:_MOST_NAMED])
    rest = f"; and {len(mixed) - _MOST_NAMED} more" if len(mixed) > _MOST_NAMED else ""
    return f"The runs of a variant were made by different versions of the code (code.sha256): {named}{rest}."


def _count_runs(count: int) -> str:
    return f"{count:,} {'run' if count == 1 else 'runs'}"
