"""What a sweep would run: every job checked, built and looked up before the first starts."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from hydra.core.utils import JobStatus
from rich.table import Table

from experiments.config.configuration import Plan
from experiments.errors import ExperimentError
from experiments.library_internals import job_error
from experiments.sweeps import jobs as job_list
from experiments.sweeps.display import Display
from experiments.sweeps.jobs import (  # fmt: skip
    DIVERGED,
    FINISHED,
    WAITING,
    Job,
    apply_result,
)
from experiments.sweeps.launcher import Planner
from experiments.sweeps.worker import Work
from experiments.tracking.endings import Ending
from experiments.tracking.runs import earlier_runs


def config_dir(sweeper: Any) -> str | None:
    """The user's folder of options, from `--config-dir`."""
    sources = sweeper.config.hydra.runtime.config_sources
    return next((source.path for source in sources if source.provider == "command-line"), None)


def experiment_of(jobs: Sequence[Job]) -> str:
    """The MLflow experiment of a sweep: as it is told, or every choice of data."""
    told = jobs[0].configuration.cfg.tracking.experiment
    return str(told or "+".join(dict.fromkeys(job.configuration.choices["data"] for job in jobs)))


def check_objectives(jobs: Sequence[Job]) -> None:
    """Holds all jobs to one objective.

    Raises:
        ExperimentError: they cannot be ranked.
    """
    if len({job.configuration.cfg.objective for job in jobs}) > 1:
        raise ExperimentError("The objective differs between the jobs, so nothing could rank them.")


@contextlib.contextmanager
def planner_of(sweeper: Any, display: Display) -> Iterator[Planner]:
    """A process that plans the jobs of `sweeper`; it has to wait for TensorFlow."""
    with contextlib.ExitStack() as stack:
        with display.busy("Loading TensorFlow …"):
            planner = stack.enter_context(Planner(Work.of(sweeper)))
        yield planner


def plan_jobs(jobs: Sequence[Job], planner: Planner, display: Display) -> None:
    """Builds every job in another process, once for all its seeds.

    Raises:
        ExperimentError: one that cannot be built, by its number and values.
    """
    plans: dict[str, Plan] = {}
    first: dict[str, Job] = {}
    for job in display.progress("Building", jobs, len(jobs)):
        key = job.configuration.without_seed
        if key not in plans:
            with job_list.in_job(job.number, job.own):
                plans[key] = plan_job(planner, job.overrides)
        data, code = plans[key].data_sha256, plans[key].code_sha256
        job.plan = replace(
            plans[key],
            fingerprint=job.configuration.fingerprint(data, code),
            parameters={**plans[key].parameters, "seed": job.configuration.parameters["seed"]},
        )
        job.twin = first.get(job.fingerprint)
        first.setdefault(job.fingerprint, job)


def plan_job(planner: Planner, overrides: Sequence[str]) -> Plan:
    """The plan of one job.

    Raises:
        ExperimentError: it cannot be built.
    """
    result = planner.plan(overrides)
    if result.status is JobStatus.COMPLETED:
        return result.return_value
    error = job_error(result)
    if isinstance(error, ExperimentError):
        raise error
    assert error  # noqa: S101 - it has not completed
    raise ExperimentError(f"it cannot be built: {Ending.of(error).failure}.")


def look_up(jobs: Sequence[Job], display: Display) -> str:
    """Marks the jobs that need not run; says how many there are of each kind."""
    other = {"code": 0, "data": 0}
    for job in display.progress("Looking up", jobs, len(jobs)):
        if job.twin:
            continue
        earlier = earlier_runs(job.configuration.variant, job.configuration.cfg.seed)
        equal = [run for run in earlier if run.tags.get("fingerprint") == job.fingerprint]
        job.attempts = {run.run_id: run.attempt for run in equal}
        done = next((run for run in equal if run.finished), None) or next((run for run in equal if run.diverged), None)
        if done and not job.configuration.cfg.force:
            apply_result(job, done)
        elif not equal and (older := next((run for run in earlier if run.finished), None)):
            assert job.plan  # noqa: S101 - all have been planned
            other["data" if older.tags.get("data.sha256") != job.plan.data_sha256 else "code"] += 1
    for job in jobs:
        job.share_with_twin()
    to_run = [job for job in jobs if job.state == WAITING and not job.twin]
    twins = sum(job.twin is not None and job.state == WAITING for job in jobs)
    diverged = sum(job.state == DIVERGED for job in jobs)
    parts = [f"{sum(job.state == FINISHED for job in jobs)} {FINISHED}"]
    parts += [f"{diverged} {DIVERGED}"] if diverged else []
    parts += [f"{twins} equal to another one"] if twins else []
    with_other = [f"{count} of them were finished with other {what}" for what, count in other.items() if count]
    tail = f" ({', '.join(with_other)})" if with_other else ""
    return f"{len(jobs):,} {'job' if len(jobs) == 1 else 'jobs'}: {', '.join(parts)}, {len(to_run)} to run{tail}"


def dry_table(jobs: Sequence[Job]) -> Table:
    """What would run, for `dry_run=true`."""
    table = Table("job", "variant", box=None, pad_edge=False)
    table.add_column("parameters", justify="right")
    table.add_column("state")
    for job in jobs:
        assert job.plan  # noqa: S101 - all have been planned
        state = f"equal to job {job.twin.number}" if job.twin else job.state if job.state != WAITING else "to run"
        table.add_row(str(job.number), job.label, f"{job.plan.num_parameters:,}", state)
    return table
