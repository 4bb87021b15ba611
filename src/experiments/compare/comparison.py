"""Ranks the variants among finished runs and tests each of them against the best one."""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from experiments.compare import notes, statistics
from experiments.compare.names import find_sweeps
from experiments.compare.pairs import Tests, all_tests
from experiments.compare.ranking import BEST, COSTS, EQUAL, NO_DIFFERENCE, NO_VERDICT, WORSE, Comparison, Row
from experiments.compare.samples import samples_of
from experiments.compare.sequential import AT_EVERY_LOOK, Decision, Race, Standing
from experiments.compare.statistics import Estimate, Sample
from experiments.compare.variants import DIGESTS, Variant, beside_others, split, swept_keys, variants_of
from experiments.config.configuration import REPLICATE_KEYS
from experiments.errors import ExperimentError
from experiments.tracking import runs
from experiments.tracking.parent import SPACE
from experiments.tracking.runs import StoredRun, runs_of, search_runs
from experiments.tracking.store import nothing_recorded, shown_uri

_LESS_IS_BETTER = ("loss", "error", "seconds", "parameters", "macs")


@dataclass(frozen=True)
class Selection:
    """Runs to compare."""

    title: str
    runs: Sequence[StoredRun]  # the newest first
    swept: Collection[str] = ()  # keys that are shown for every variant, also where their values do not differ
    race: Race | None = None  # the rule by which they were collected
    command: str = ""  # that has started their sweep, if there is one only; it names the race that continues the sweep
    searched: bool = False  # whether they are the trials of a search, none of which is called better on one seed
    importance: Mapping[str, float] = field(default_factory=dict)  # searched key -> share, if the search has found it
    space: Mapping[str, str] = field(default_factory=dict)  # searched key -> what its values were drawn from, in words


def find_runs(sweeps: Sequence[str], query: str) -> Selection:
    """Finds the runs to compare.

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
        return Selection(query, search_runs(query))
    parents = find_sweeps(sweeps)
    names = " + ".join(parent.tags["sweep.name"] for parent in parents)
    found = [run for parent in parents for run in runs_of(parent, query)]
    swept = {key for parent in parents for key in swept_keys(runs.job_list(parent))}
    title = f"{names}, {query}" if query else names
    if len(parents) > 1 or query:
        return Selection(title, found, swept)
    (parent,), searched = parents, "search.trials" in parents[0].tags
    importance = runs.importance(parent) if searched else {}
    space = {key.removeprefix(SPACE): text for key, text in sorted(parent.params.items()) if key.startswith(SPACE)}
    if searched and not space:  # as an earlier version has recorded it
        space = dict.fromkeys(sorted(swept.difference(REPLICATE_KEYS)), "")
    return Selection(title, found, swept, _race(parent), parent.tags.get("command", ""), searched, importance, space)


def _race(parent: StoredRun) -> Race | None:
    if "race.max_seeds" not in parent.tags:
        return None
    margin = parent.tags["race.equal_within"]
    return Race(int(parent.tags["race.max_seeds"]), float(margin) if margin else None)


def compare_runs(
    selection: Selection,
    metric: str = "",
    *,
    across_data: bool = False,
    these_images: bool = False,
    equal_within: float | None = None,
) -> Comparison:
    """Ranks the variants among finished runs and tests each of them against the best one.

    Args:
        selection: the runs; unfinished and pruned ones, and those that reproduce another run, are left out.
        metric: metric to rank by, by default the objective of the runs; `val_accuracy` means `best/val_accuracy`.
        across_data: whether to compare runs on different data.
        these_images: whether intervals and tests shall hold on these images only, instead of on new ones.
        equal_within: differences that do not matter; None to look for differences alone.

    Raises:
        ExperimentError: no run is left, no run has the metric, or the data differ.
    """
    title, race = selection.title, selection.race
    ended, left_out = _ended(selection.runs)
    finished = [run for run in ended if not run.diverged]
    if not finished:
        raise ExperimentError(f"{title}: there is no finished run.", advice=left_out)
    metric = _metric(finished, metric)
    measured = [run for run in ended if metric in run.metrics or run.diverged]
    other_data = _other_data(measured, across_data=across_data)
    mode = mode_of(metric, measured)
    sign = -1 if mode == "max" else 1
    found = variants_of(measured, selection.swept)
    ranked, diverged = ([each for each in found if bool(each.diverged) is has] for has in (False, True))
    for variants in (ranked, diverged):
        variants.sort(key=lambda variant: (_worst_last(variant.mean(metric), sign), variant.label))
    samples = samples_of(ranked, metric, mode, these_images=these_images)
    tests = all_tests(samples, equal_within)
    fronts = {cost: _front(ranked, metric, f"cost/{cost}", sign) for cost in COSTS}
    crowded = beside_others(measured)
    beside = [any(run.run_id in crowded for run in variant.runs) for variant in ranked]
    if any(beside):
        fronts["train_seconds"] = set()
    rows = [
        _row(index, variant, samples, tests, frozenset(cost for cost in COSTS if index in fronts[cost]), equal_within)
        for index, variant in enumerate(ranked)
    ]
    rows = [replace(row, beside_others=crowded) for row, crowded in zip(rows, beside, strict=True)]
    if selection.searched:
        rows = [_without_verdict(row) if row.rank > 1 and len(row.runs) == 1 else row for row in rows]
    if race:
        again = Race(race.max_seeds, race.equal_within)  # it remembers what it has seen by the numbers of variants
        rows = _decided(rows, again.decide(dict(enumerate(samples)), -sign), race, is_rate=samples[0].is_rate)
    last = [_diverged_row(len(rows) + 1 + index, variant, metric) for index, variant in enumerate(diverged)]
    lacking = len(ended) - len(measured)
    repeated = len(measured) - sum(len(variant.runs) for variant in found)
    sentences = [
        *(notes.of_result(metric, rows, samples, tests, these_images=these_images) if rows else []),
        notes.of_race(race) if race else "",
        notes.of_continuation(rows, selection.command),
        notes.of_importance(selection.importance),
        notes.of_diverged(last),
        notes.of_code([*rows, *last]),
        other_data,
        left_out,
        f"Left out because {metric} is missing: {notes.count_runs(lacking)}." if lacking else "",
        f"Left out because a newer run has the same variant and seed: {notes.count_runs(repeated)}."
        if repeated
        else "",
    ]
    keys = dict.fromkeys(key for variant in (*ranked, *diverged) for key in variant.distinguishing_values)
    said = tuple(sentence for sentence in sentences if sentence)
    return Comparison(title, metric, mode, (*rows, *last), tuple(keys), said, selection.importance, selection.space)


def _worst_last(mean: float | None, sign: int) -> float:
    return np.inf if mean is None else sign * mean


def _ended(runs: Iterable[StoredRun]) -> tuple[list[StoredRun], str]:
    """The runs that have finished or diverged, each once, and a sentence that counts the others."""
    kept, kinds = [], Counter[str]()
    for run in {run.run_id: run for run in runs}.values():
        if not {"variant.id", *DIGESTS} <= set(run.tags) or "seed" not in run.params:
            if "sweep.name" not in run.tags:  # the run of a sweep is not counted at all
                kinds["without a variant"] += 1
        elif run.status != "FINISHED" and not run.diverged:
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


def mode_of(metric: str, runs: Sequence[StoredRun]) -> str:
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
        if name == "data.validation_sha256" and _same_splits(runs):
            continue
        if len(found) > 1:
            counted = ", ".join(
                f"{digest[:12]} ({notes.count_runs(count)})" for digest, count in found.most_common(notes.MOST_NAMED)
            )
            rest = f" and {len(found) - notes.MOST_NAMED} more" if len(found) > notes.MOST_NAMED else ""
            differences.append(f"{name} is {counted}{rest}")
    if differences and not across_data:
        problem = f"The runs are on different data, so their metrics are not comparable: {'; '.join(differences)}."
        raise ExperimentError(problem, advice="Select runs with --filter, or compare them anyway with --across-data.")
    return f"This compares runs on different data: {'; '.join(differences)}." if differences else ""


def _same_splits(runs: Sequence[StoredRun]) -> bool:
    """Whether validation images differ only as the splits do, and some split is common to all variants."""
    by_split, by_variant = defaultdict[tuple[int, int], set[str]](set), defaultdict[str, set[str]](set)
    for run in runs:
        by_split[split(run)].add(run.tags["data.validation_sha256"])
        by_variant[run.tags["variant.id"]].add(run.tags["data.validation_sha256"])
    return all(len(digests) == 1 for digests in by_split.values()) and bool(set.intersection(*by_variant.values()))


def _row(
    index: int, variant: Variant, samples: Sequence[Sample], tests: Tests, pareto: frozenset[str], margin: float | None
) -> Row:
    p = float(tests.p_values[index])
    costs = {cost: variant.mean(f"cost/{cost}") for cost in COSTS}
    return Row(
        rank=index + 1,
        label=variant.label,
        distinguishing_values=variant.distinguishing_values,
        runs=variant.runs,
        mean=statistics.estimate(samples[index]),
        difference=tests.interval(index) if index else None,
        p=None if np.isnan(p) else p,
        verdict=_verdict(index, p, bool(tests.equal[index]), margin),
        test=str(tests.differences.tests[index]) if index else "",
        test_accuracy=variant.mean("test/accuracy"),
        costs={cost: value for cost, value in costs.items() if value is not None},
        pareto=pareto,
    )


def _verdict(index: int, p: float, equal: bool, margin: float | None) -> str:
    if index == 0:
        return BEST
    if equal:
        return f"{EQUAL} {margin:g}"
    return WORSE if p < statistics.LEVEL else NO_DIFFERENCE


def _without_verdict(row: Row) -> Row:
    return replace(
        row, difference=Estimate(row.difference.value) if row.difference else None, p=None, verdict=NO_VERDICT
    )


def _decided(rows: Sequence[Row], decisions: Mapping[int, Decision], race: Race, *, is_rate: bool) -> list[Row]:
    """The rows with the verdicts of a race; a variant without a decision keeps its own."""
    verdicts = {
        Standing.BEST: BEST,
        Standing.WORSE: WORSE,
        Standing.EQUAL: f"{EQUAL} {race.equal_within:g}" if race.equal_within else "",
    }
    found: list[Row] = []
    best = next((index for index, decision in decisions.items() if decision.standing is Standing.BEST), 0)
    for index in sorted(range(len(rows)), key=lambda index: index != best):
        row, decision = rows[index], decisions.get(index)
        if decision:
            interval, value, half = None, decision.difference, decision.half_width
            if value is not None:
                low, high = value - half, value + half
                interval = Estimate(
                    value, *((max(low, -1.0), min(high, 1.0)) if is_rate else (low, high)), AT_EVERY_LOOK
                )
            verdict = verdicts.get(decision.standing, NO_DIFFERENCE)
            test = "" if value is None else AT_EVERY_LOOK
            row = replace(row, difference=interval, p=decision.p, verdict=verdict, test=test)
        found.append(replace(row, rank=len(found) + 1))
    return found


def _diverged_row(rank: int, variant: Variant, metric: str) -> Row:
    mean, measured = variant.mean(metric), tuple(run for run in variant.runs if metric in run.metrics)
    return Row(
        rank=rank,
        label=variant.label,
        distinguishing_values=variant.distinguishing_values,
        runs=measured or variant.runs,
        mean=Estimate(np.nan if mean is None else mean),
        difference=None,
        p=None,
        verdict=f"diverged, {variant.diverged} of {len(variant.runs)} seeds",
        test="",
        test_accuracy=variant.mean("test/accuracy"),
        costs={},
        pareto=frozenset(),
        diverged=variant.diverged,
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
