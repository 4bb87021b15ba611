"""Checks, builds and looks up every job of a sweep before the first starts."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobStatus
from rich.table import Table

from experiments.config.configuration import Configuration, Plan
from experiments.config.overrides import for_hydra
from experiments.errors import ExperimentError
from experiments.library_internals import job_error
from experiments.sweeps import jobs as job_list
from experiments.sweeps.display import Display
from experiments.sweeps.jobs import Job, State, apply_result
from experiments.sweeps.launcher import Planner
from experiments.sweeps.worker import SweepTask
from experiments.tracking.endings import Ending
from experiments.tracking.runs import earlier_runs

if TYPE_CHECKING:
    from hydra_plugins.experiments_sweeps import ExperimentSweeper


def config_dir(sweeper: "ExperimentSweeper") -> str | None:
    """The user's folder of options, from `--config-dir`."""
    sources = sweeper.config.hydra.runtime.config_sources
    return next((source.path for source in sources if source.provider == "command-line"), None)


def experiment_of(jobs: Sequence[Job]) -> str:
    """The MLflow experiment of a sweep: `tracking.experiment`, or the names of all its data."""
    given = jobs[0].configuration.cfg.tracking.experiment
    return str(given or "+".join(dict.fromkeys(job.configuration.choices["data"] for job in jobs)))


def checked_jobs(
    found: Sequence[tuple[tuple[str, ...], dict[str, str]]],
    excluded: Sequence[Mapping[str, Any]],
    sweeper: "ExperimentSweeper",
    display: Display,
) -> list[Job]:
    """Composes and checks every job.

    Args:
        found: overrides and swept values of each.
        excluded: combinations to leave out.
        sweeper: the plugin, set up by Hydra.
        display: shows the progress.

    Raises:
        ExperimentError: a job that cannot work, no job at all, or jobs that cannot be ranked.
    """
    jobs = list(display.progress("Checking", job_list.compose_jobs(found, excluded, config_dir(sweeper)), len(found)))
    if not jobs:
        raise ExperimentError("The sweep has no job: every combination is excluded.")
    if len({job.configuration.cfg.objective for job in jobs}) > 1:
        raise ExperimentError("The objective differs between the jobs, so nothing could rank them.")
    job_list.find_differences(jobs)
    return jobs


@contextlib.contextmanager
def planner_of(sweeper: "ExperimentSweeper", display: Display) -> Iterator[Planner]:
    """Starts the process that plans the jobs of `sweeper`; waits until it has imported TensorFlow."""
    with contextlib.ExitStack() as stack:
        with display.status("Loading TensorFlow …"):
            planner = stack.enter_context(Planner(SweepTask.of(sweeper)))
        yield planner


def plan_jobs(jobs: Sequence[Job], planner: Planner, display: Display) -> None:
    """Plans every job in another process; builds its model once for all seeds.

    Raises:
        ExperimentError: one that cannot be built, by its number and values.
    """
    plans: dict[str, Plan] = {}
    first: dict[str, Job] = {}
    for job in display.progress("Building", jobs, len(jobs)):
        key = job.configuration.without_seed
        if key not in plans:
            with job_list.in_job(job.number, job.swept_values):
                plans[key] = plan_job(planner, job.overrides)
        job.set_plan(plan_for(job.configuration, plans[key]))
        job.duplicate_of = first.get(job.fingerprint)
        first.setdefault(job.fingerprint, job)


def plan_for(configuration: Configuration, of_another_seed: Plan) -> Plan:
    """The plan of a configuration, from that of one that differs in the seed only."""
    pinned = configuration.pinned(of_another_seed.init_from)
    return replace(
        of_another_seed,
        fingerprint=pinned.fingerprint(of_another_seed.data_sha256, of_another_seed.code_sha256),
        parameters={**of_another_seed.parameters, "seed": configuration.parameters["seed"]},
    )


def plan_job(planner: Planner, overrides: Sequence[str]) -> Plan:
    """The plan of one job.

    Raises:
        ExperimentError: it cannot be built.
    """
    result = planner.plan(for_hydra(overrides))
    if result.status is JobStatus.COMPLETED:
        return result.return_value
    error = job_error(result)
    if isinstance(error, ExperimentError):
        raise error
    assert error  # noqa: S101 - it has not completed
    raise ExperimentError(f"it cannot be built: {Ending.of(error).failure}.")


def find_finished_jobs(jobs: Sequence[Job], display: Display) -> str:
    """Sets the state of jobs that have a finished run; returns how many jobs there are of each kind."""
    other = {"code": 0, "data": 0}
    for job in display.progress("Looking up", jobs, len(jobs)):
        if job.duplicate_of:
            continue
        earlier = earlier_runs(job.configuration)
        equal = [run for run in earlier if run.tags.get("fingerprint") == job.fingerprint]
        job.states_before = {run.run_id: run.attempt for run in equal}
        done = next((run for run in equal if run.finished), None) or next((run for run in equal if run.diverged), None)
        if done and not job.configuration.cfg.force:
            apply_result(job, done)
        elif not equal and (older := next((run for run in earlier if run.finished), None)):
            assert job.plan  # noqa: S101 - all have been planned
            other["data" if older.tags.get("data.sha256") != job.plan.data_sha256 else "code"] += 1
    for job in jobs:
        job.copy_result_of_duplicate()
    to_run = [job for job in jobs if job.state == State.WAITING and not job.duplicate_of]
    duplicates = sum(job.duplicate_of is not None and job.state == State.WAITING for job in jobs)
    diverged = sum(job.state == State.DIVERGED for job in jobs)
    parts = [f"{sum(job.state == State.FINISHED for job in jobs)} finished"]
    parts += [f"{diverged} diverged"] if diverged else []
    parts += [f"{duplicates} equal to another one"] if duplicates else []
    with_other = [f"{count} of them were finished with other {what}" for what, count in other.items() if count]
    tail = f" ({', '.join(with_other)})" if with_other else ""
    return f"{len(jobs):,} {'job' if len(jobs) == 1 else 'jobs'}: {', '.join(parts)}, {len(to_run)} to run{tail}"


def dry_table(jobs: Sequence[Job]) -> Table:
    """The table of all jobs that `dry_run=true` prints."""
    table = Table("job", "variant", box=None, pad_edge=False)
    table.add_column("parameters", justify="right")
    table.add_column("state")
    for job in jobs:
        assert job.plan  # noqa: S101 - all have been planned
        state = "to run" if job.state is State.WAITING else job.state.value
        state = f"equal to job {job.duplicate_of.number}" if job.duplicate_of else state
        table.add_row(str(job.number), job.label, f"{job.plan.num_parameters:,}", state)
    return table
