"""What a user may call a run or a sweep."""

import re
from collections.abc import Sequence

from experiments.errors import ExperimentError
from experiments.tracking import runs
from experiments.tracking.runs import StoredRun

_BEST = "best:"


def find_run(name: str) -> StoredRun:
    """Finds the run that a user names: by its id or a unique prefix of it, as `last`, or as `best:SWEEP`.

    Raises:
        ExperimentError: there is no such run, or there are several.
    """
    if not name.startswith(_BEST):
        return runs.find_run(name)
    from experiments.compare.comparison import compare_runs, find_runs  # imports SciPy, which only this needs

    return compare_runs(find_runs([name.removeprefix(_BEST)], "")).best_run


def find_runs_or_run(name: str) -> list[StoredRun]:
    """The runs of the sweep that a user names, or the single run; `last` is the latest run.

    Raises:
        ExperimentError: there is neither a sweep nor a run of that name, or there are several.
    """
    if name == "last" or name.startswith(_BEST):
        return [find_run(name)]
    try:
        (parent,) = find_sweeps([name])
        return runs.runs_of(parent)
    except ExperimentError as no_sweep:
        try:
            return [find_run(name)]
        except ExperimentError as no_run:
            raise (no_run if re.fullmatch(r"runs:/.*|[0-9a-f]+", name) else no_sweep) from None


def find_all_runs(names: Sequence[str]) -> list[StoredRun]:
    """The runs of all the sweeps and the single runs that a user names, each of them once.

    Raises:
        ExperimentError: there is neither a sweep nor a run of one of the names, or there are several.
    """
    ids = [name for name in names if re.fullmatch("[0-9a-f]{32}", name)]
    # In one query: by itself, each name takes a look at all sweeps.
    singles = {run_id: run for run_id, run in runs.by_ids(ids).items() if "sweep.name" not in run.tags}
    found = [run for name in names for run in ([singles[name]] if name in singles else find_runs_or_run(name))]
    return list({run.run_id: run for run in found}.values())


def find_sweeps(names: Sequence[str]) -> list[StoredRun]:
    """The parents of the sweeps that a user names; without a name, that of the latest sweep.

    Args:
        names: of sweeps, with or without the six digits at the end; unique prefixes of their run ids; or `last`.

    Raises:
        ExperimentError: there is no such sweep, or there are several.
    """
    parents = runs.sweeps()
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
