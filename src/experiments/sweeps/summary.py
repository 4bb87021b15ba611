"""What the run of a sweep says of its jobs in MLflow: parameters, metrics, and the view of the runs."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.sweeps.jobs import Job, State
from experiments.tracking.views import View

if TYPE_CHECKING:
    from experiments.compare.ranking import Comparison

_ENDED = (State.FINISHED, State.PRUNED, State.DIVERGED)


def distinguishing_keys(jobs: Sequence[Job]) -> list[str]:
    """The keys that differ between jobs, without the seed where there are others."""
    keys = list(dict.fromkeys(key.lstrip("+") for job in jobs for key in job.distinguishing_values))
    return [key for key in keys if key != "seed"] or keys


def params(jobs: Sequence[Job], objective: str) -> dict[str, str]:
    """What was swept, and what the jobs were ranked by."""
    return {"swept": ", ".join(distinguishing_keys(jobs)), "objective": objective}


def metrics(jobs: Sequence[Job], found: "Comparison | None", objective: str) -> dict[str, float]:
    """How many jobs have ended how, and the results of the best variant, averaged over its seeds."""
    states = Counter(job.state for job in jobs)
    ended = {"finished": states[State.FINISHED], "failed": sum(states[state] for state in State if state not in _ENDED)}
    values: dict[str, float] = {"sweep/jobs": len(jobs), **{f"sweep/{name}": count for name, count in ended.items()}}
    if found:
        first = found.rows[0]
        values |= {"sweep/variants": len(found.rows), f"sweep/best_{objective}": first.mean.value}
        values |= {"sweep/best_test_accuracy": first.test_accuracy} if first.test_accuracy is not None else {}
    return values


def view(sweep: str, jobs: Sequence[Job], found: "Comparison | None", objective: str, parent: str) -> View:
    """The view of a sweep's runs.

    Args:
        sweep: its name.
        jobs: all that are known.
        found: their comparison, if any has finished.
        objective: that they are ranked by.
        parent: id of the sweep's run.
    """
    runs = [job.run for job in jobs if job.run]
    repeated = len({job.configuration.variant for job in jobs}) < len(jobs)
    return View(
        sweep=sweep,
        objective=objective,
        mode=next((job.plan.mode for job in jobs if job.plan), "min" if objective.endswith("loss") else "max"),
        swept=distinguishing_keys(jobs),
        title=_title(found) if found else "Runs",
        repeated=repeated,
        runs=[run for row in found.rows for run in row.runs] if found else (),
        run_ids=sorted({run.run_id for run in runs}) if any(run.parent != parent for run in runs) else (),
    )


def _title(found: "Comparison") -> str:
    """The variant that ranks first, and how sure that is."""
    from experiments.compare.ranking import WORSE

    others = found.rows[1:]
    name = found.rows[0].runs[0].name.partition(" seed=")[0]  # the title has room for what differs alone
    known = [row.p for row in others if row.p is not None]
    if not others or len(known) < len(others):
        return f"First: {name}"
    place = "Best" if all(row.verdict == WORSE for row in others) else "First"
    p = max(known)
    return f"{place}, {'p<0.001' if p < 0.001 else f'p={p:.2g}'}: {name}"  # MLflow shows some 33 characters
