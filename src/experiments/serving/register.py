"""Registers models in MLflow; a model becomes champion only if it is better than the present champion."""

from experiments.compare.comparison import Selection, compare_runs
from experiments.compare.names import find_runs_or_run
from experiments.compare.ranking import COSTS, WORSE, Comparison, Row
from experiments.errors import ExperimentError
from experiments.tracking import registry
from experiments.tracking.registry import CHALLENGER, CHAMPION, Version, set_alias
from experiments.tracking.results import no_model
from experiments.tracking.runs import StoredRun, get_run

_RUN_IDS = "run_ids"  # tag of a version: the runs of all its seeds, which are compared


def register_model(source: str, name: str, *, force: bool = False) -> str:
    """Registers a model as the newest version of `name`, and as its champion if it is better than the present one.

    Args:
        source: a run; or a sweep, for the median seed of its best variant on validation data.
        name: name of the registered model.
        force: whether to make it champion regardless of the comparison.

    Returns:
        A message with the version, its alias and the reason.

    Raises:
        ExperimentError: there is no such sweep or run, or it has no model.
    """
    runs = _find_candidates(source)
    candidate = compare_runs(Selection(source, runs))
    row = candidate.rows[0]
    run = _median_run(row, candidate.metric)
    present = registry.champion(name)
    if present and present.run_id == run.run_id:
        return f"{run.name} is already version {present.version} of {name} and its {CHAMPION}."
    won, reason = _compare_with_champion(row, present, candidate)
    alias = CHAMPION if won or force else CHALLENGER
    if force and not won:
        reason = f"made {CHAMPION} with --force; {reason}"
    tags = {
        _RUN_IDS: " ".join(found.run_id for found in row.runs),
        "variant": run.tags["variant"],
        "data.sha256": run.tags["data.sha256"],
        "metric": candidate.metric,
        "mean": f"{row.mean.value:.6g}",
        "seeds": str(len(row.runs)),
        "reason": reason,
    }
    version = registry.register(name, run, tags, _description(row, run, candidate, reason))
    set_alias(name, alias, version)
    return f"{run.name} is now version {version} of {name} and its {alias}: {reason}."


def _find_candidates(source: str) -> list[StoredRun]:
    """The runs of a sweep, or a single run that can be registered."""
    found = find_runs_or_run(source)
    if len(found) != 1:
        return found
    (run,) = found
    if "reproduces" in run.tags:
        advice = f"Register the original run: {run.tags['reproduces']}"
        raise ExperimentError(f"{run.run_id} ({run.name}) reproduces another run.", advice=advice)
    if not run.finished:
        raise no_model(run)
    return [run]


def _median_run(row: Row, metric: str) -> StoredRun:
    """The median seed of a variant; the best one would promise too much."""
    ranked = sorted(row.runs, key=lambda run: run.metrics[metric])
    return ranked[(len(ranked) - 1) // 2]


def _compare_with_champion(row: Row, present: Version | None, candidate: Comparison) -> tuple[bool, str]:
    """Whether a candidate is better than the present champion, and the reason."""
    if present is None:
        return True, "it is the first version"
    champion = f"version {present.version}"
    try:
        others = [get_run(run_id) for run_id in present.tags.get(_RUN_IDS, present.run_id).split()]
        both = compare_runs(Selection("", [*row.runs, *others]), candidate.metric)
    except ExperimentError as error:
        return False, f"it could not be compared with {champion} ({error})"
    if len(both.rows) == 1:
        return False, f"it has the same configuration as {champion}"
    new = next(found for found in both.rows if row.runs[0] in found.runs)
    old = next(found for found in both.rows if found is not new)
    figures = f"{candidate.metric} {new.mean.value:.4f} and {old.mean.value:.4f}"
    loser = both.rows[1]
    tested = f"{loser.test}, p = {loser.p:.2g}" if loser.p is not None else loser.test
    if old.verdict == WORSE:
        return True, f"it is better than {champion} ({figures}; {tested})"
    verdict = "it is worse than" if new.verdict == WORSE else "there is no significant difference from"
    return False, f"{verdict} {champion} ({figures}; {tested})"


def _description(row: Row, run: StoredRun, candidate: Comparison, reason: str) -> str:
    """The description of a version in the registry."""
    mean = row.mean
    interval = f" [{mean.low:.4f}, {mean.high:.4f}]" if mean.low is not None and mean.high is not None else ""
    seeds = f"{len(row.runs)} {'seed' if len(row.runs) == 1 else 'seeds'}"
    costs = ", ".join(f"{value:,.0f} {COSTS[name]}" for name, value in row.costs.items())
    test = f"Test accuracy of this model: {run.metrics['test/accuracy']:.4f}." if "test/accuracy" in run.metrics else ""
    lines = [
        f"{run.name}: {candidate.metric} {mean.value:.4f}{interval} over {seeds}; {reason}.",
        f"{test} {costs}.".strip(),
        f"Reproduce it with: experiments reproduce {run.run_id}",
    ]
    return "\n\n".join(lines)
