"""Is A really better than B? Variants among finished runs, ranked, each with an honest verdict."""

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
COSTS = ("parameters", "macs", "train_seconds")
#: Metric that images are counted for -> whose predictions say which of them are right.
_COUNTED = {"best/val_accuracy": "validation", "test/accuracy": "test"}
_LESS_IS_BETTER = ("loss", "error", "seconds", "parameters", "macs")
_MOST_NAMED = 3  # in a sentence


@dataclass(frozen=True)
class Row:
    """A variant and its comparison with the best one."""

    rank: int
    label: str  # what tells the variant from the others, as words key=value
    differing: Mapping[str, str]  # the same as key -> value; a key that it lacks, or that says nothing, is absent
    runs: tuple[StoredRun, ...]  # one a seed, by seed
    mean: Estimate  # of the metric
    difference: Estimate | None  # from the best; None for the best itself
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
    notes: tuple[str, ...]  # what a reader must know, a sentence each; the first one is the result

    @property
    def best_run(self) -> StoredRun:
        """The best seed of the best variant."""
        choose = max if self.mode == "max" else min
        return choose(self.rows[0].runs, key=lambda run: run.metrics[self.metric])


def find(sweeps: Sequence[str], query: str) -> tuple[str, list[StoredRun]]:
    """A title, and the runs of some sweeps; without names those that match `query`, or without it the latest sweep's.

    Args:
        sweeps: each by its name, its name without the six digits at the end, a unique prefix of its run id, or `last`.
        query: a filter in MLflow's grammar; empty for none.

    Raises:
        ExperimentError: there is no such sweep, or MLflow refuses the filter.
    """
    if nothing_recorded():
        advice = "Start with: experiments train sweep=quick"
        raise ExperimentError(f"Nothing is recorded in {shown_uri()} yet.", advice=advice)
    if query and not sweeps:
        return query, list(search_runs(query))
    parents = _chosen(sweeps, runs.sweeps())
    names = " + ".join(parent.tags["sweep.name"] for parent in parents)
    found = [run for parent in parents for run in runs_of(parent, query)]
    return f"{names}, {query}" if query else names, found


def _chosen(names: Sequence[str], parents: Sequence[StoredRun]) -> list[StoredRun]:
    if not parents:
        advice = "Start one with: experiments train sweep=quick, or name runs with --filter."
        raise ExperimentError("There is no sweep in this store yet.", advice=advice)
    by_name: dict[str, StoredRun] = {}
    for parent in reversed(parents):  # the newest wins
        name = parent.tags["sweep.name"]
        by_name |= {name.rpartition("-")[0]: parent, name: parent, parent.run_id: parent}
    by_name["last"] = parents[0]
    for name in names:
        if name not in by_name and (begin := [parent for parent in parents if parent.run_id.startswith(name)]):
            by_name[name] = runs.only_one(name, begin)
        if name not in by_name:
            known = {parent.tags["sweep.name"] for parent in parents}
            raise ExperimentError(f"{name}: there is no such sweep in this store.", given=name, allowed=known)
    return list({by_name[name].run_id: by_name[name] for name in names}.values()) if names else [parents[0]]


def comparison(runs: Iterable[StoredRun], title: str, metric: str = "", *, across_data: bool = False) -> Comparison:
    """Every variant among finished runs, the best first, each tested against the best.

    Args:
        runs: the newest first; those that are not finished, were pruned or reproduce another one are left out.
        title: what they are.
        metric: ranks the variants, by default the runs' objective; `val_accuracy` means that of the best epoch.
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
    adjusted = statistics.holm(statistics.p_of_all_pairs(samples))
    fronts = {cost: _front(ranked, metric, f"cost/{cost}", sign) for cost in COSTS}
    rows = [
        _row(place, variant, samples, adjusted, frozenset(cost for cost in COSTS if place in fronts[cost]))
        for place, variant in enumerate(ranked)
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
        f"Without {metric}, and so left out: {_runs(lacking)}." if lacking else "",
        f"Repeats of a variant's seed, of which the newest counts: {_runs(repeated)}." if repeated else "",
    ]
    swept = dict.fromkeys(key for variant in ranked for key in variant.differing)
    return Comparison(title, metric, mode, tuple(rows), tuple(swept), tuple(note for note in notes if note))


def _finished(runs: Iterable[StoredRun]) -> tuple[list[StoredRun], str]:
    """The runs that count, each once, and how many do not, in words."""
    kept, kinds = [], Counter[str]()
    for run in {run.run_id: run for run in runs}.values():
        if not {"variant", *DIGESTS} <= set(run.tags) or "seed" not in run.params:
            kinds["of no variant"] += "sweep.name" not in run.tags
        elif run.status != "FINISHED":
            kinds[run.status.lower()] += 1
        elif "pruned" in run.tags:
            kinds["pruned"] += 1
        elif "reproduces" in run.tags:
            kinds["made by reproduce"] += 1
        else:
            kept.append(run)
    counted = [f"{count} {kind}" for kind, count in sorted(kinds.items()) if count]
    return kept, f"Left out: {', '.join(counted)}." if counted else ""


def _metric(runs: Sequence[StoredRun], given: str) -> str:
    """The full name of the metric that ranks."""
    names = {name for run in runs for name in run.metrics}
    if not given:
        objectives = {run.params.get("objective.metric", "val_accuracy") for run in runs}
        if len(objectives) > 1:
            raise ExperimentError(
                f"The runs have several objectives: {', '.join(sorted(objectives))}.", advice="Choose with --metric."
            )
        given = objectives.pop()
    found = next((name for name in (f"best/{given}", given) if name in names), None)
    if found is None:
        raise ExperimentError(f"{given}: no run has this metric.", given=given, allowed=names)
    return found


def _mode(metric: str, runs: Sequence[StoredRun]) -> str:
    """Whether more or less of a metric is better."""
    told = {run.params.get("objective.mode") for run in runs if f"best/{run.params.get('objective.metric')}" == metric}
    if len(told) == 1 and (mode := told.pop()):
        return mode
    return "min" if metric.endswith(_LESS_IS_BETTER) else "max"


def _other_data(runs: Sequence[StoredRun], *, across_data: bool) -> str:
    """A sentence on runs whose data differ.

    Raises:
        ExperimentError: they do, and that was not asked for.
    """
    sentences = []
    for name in DIGESTS:
        found = Counter(run.tags[name] for run in runs)
        if len(found) > 1:
            counted = ", ".join(f"{digest[:12]} ({_runs(count)})" for digest, count in found.most_common(_MOST_NAMED))
            rest = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
            sentences.append(f"{name} is {counted}{rest}")
    if sentences and not across_data:
        problem = f"The runs are on different data, so their metrics are not comparable: {'; '.join(sentences)}."
        raise ExperimentError(problem, advice="Narrow them with --filter, or compare them anyway with --across-data.")
    return f"This compares runs on different data: {'; '.join(sentences)}." if sentences else ""


def _sample(variant: Variant, metric: str) -> Sample:
    values = {int(run.params["seed"]): run.metrics[metric] for run in variant.runs}
    part = _COUNTED.get(metric)
    if part is None or len(values) > 1:
        return Sample(values)
    try:
        predictions = runs.predictions(variant.runs[0], part)
    except (StoreLost, StoreRefused):  # the table of a sweep must not be lost with them
        predictions = None
    if predictions is None:
        return Sample(values)
    right = predictions.probabilities.argmax(axis=1) == predictions.labels
    return Sample(values, right, variant.runs[0].tags[f"data.{part}_sha256"])


def _row(place: int, variant: Variant, samples: Sequence[Sample], adjusted: np.ndarray, pareto: frozenset[str]) -> Row:
    # The pairs with the best one come first.
    p = float(adjusted[place - 1]) if place else np.nan
    difference = statistics.difference(samples[place], samples[0]) if place else None
    costs = {cost: variant.mean(f"cost/{cost}") for cost in COSTS}
    return Row(
        rank=place + 1,
        label=variant.label,
        differing=variant.differing,
        runs=variant.runs,
        mean=statistics.estimate(samples[place]),
        difference=difference.estimate if difference else None,
        p=None if np.isnan(p) else p,
        verdict=BEST if place == 0 else WORSE if p < statistics.LEVEL else NO_DIFFERENCE,
        test=difference.test if difference else "",
        test_accuracy=variant.mean("test/accuracy"),
        costs={cost: value for cost, value in costs.items() if value is not None},
        pareto=pareto,
    )


def _front(ranked: Sequence[Variant], metric: str, cost: str, sign: int) -> set[int]:
    """Places of the variants that no other one beats: none is as good and cheaper, or better and as cheap."""
    prices = {place: price for place, variant in enumerate(ranked) if (price := variant.mean(cost)) is not None}
    points = {place: (price, sign * (ranked[place].mean(metric) or 0)) for place, price in prices.items()}
    front: list[int] = []
    for place in sorted(points, key=points.__getitem__):
        if not front or points[place][1] < points[front[-1]][1] or points[place] == points[front[-1]]:
            front.append(place)
    return set(front)


# What a reader must know


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
    """By what was ranked, and how intervals and p were made."""
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
        sentences.append(f"No test is possible for {len(untested)} of {len(rows) - 1}: {_why_untested(untested[0])}.")
    return sentences


def _why_untested(row: Row) -> str:
    if row.test == statistics.NO_TEST:
        return "one seed each, and no predictions of the same images to compare"
    return "the values do not vary over the seeds"


def _more_seeds(rows: Sequence[Row], samples: Sequence[Sample], adjusted: np.ndarray) -> str:
    """How many more seeds would make the first difference that is not significant significant."""
    row = next((row for row in rows[1:] if row.verdict == NO_DIFFERENCE), None)
    if row is None or row.difference is None:
        return ""
    # What Holm asks of the smallest p that is not significant yet.
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
    """Whether runs that should be equal but for the seed were made by different code."""
    mixed = {row.label: sorted({run.tags.get("code.sha256", "")[:8] for run in row.runs}) for row in rows}
    mixed = {label: digests for label, digests in mixed.items() if len(digests) > 1}
    if not mixed:
        return ""
    named = "; ".join(f"{label} ({', '.join(digests)})" for label, digests in list(mixed.items())[:_MOST_NAMED])
    rest = f"; and {len(mixed) - _MOST_NAMED} more" if len(mixed) > _MOST_NAMED else ""
    return f"Runs of one variant were made by different versions of the code (code.sha256): {named}{rest}."


def _runs(count: int) -> str:
    return f"{count:,} {'run' if count == 1 else 'runs'}"
