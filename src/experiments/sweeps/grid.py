"""The sweeper `grid`: every combination, all of them checked before the first starts."""

from collections.abc import Sequence
from typing import Any

from experiments.errors import ExperimentError
from experiments.sweeps import jobs as job_list
from experiments.sweeps import launcher, sweep
from experiments.sweeps.display import Display
from experiments.sweeps.jobs import NOT_STARTED, WAITING, Job
from experiments.sweeps.plan import (
    check_objectives,
    config_dir,
    dry_table,
    experiment_of,
    look_up,
    plan_jobs,
    planner_of,
)
from experiments.sweeps.sweep import Sweep
from experiments.tracking.locks import close_stale_runs
from experiments.tracking.store import check_store, nothing_recorded


def run(sweeper: Any, arguments: Sequence[str]) -> None:
    """Runs the sweep that the command line and the configuration describe.

    Args:
        sweeper: the plugin, set up by Hydra.
        arguments: overrides of the command line, swept ones among them.

    Raises:
        ExperimentError: a job that cannot work; nothing has been recorded.
        JobsFailed: a job has no result.
    """
    display = Display()
    with launcher.server():
        jobs = _jobs(sweeper, arguments, display)
        check_store()
        with planner_of(sweeper, display) as planner:
            plan_jobs(jobs, planner, display)
        dry = jobs[0].configuration.cfg.dry_run
        if not (dry and nothing_recorded()):
            if not dry:
                close_stale_runs()
            display.say(look_up(jobs, display))
        if dry:
            display.show(dry_table(jobs))
            return
        name = job_list.sweep_name(jobs, sweeper.config.hydra.runtime.choices.get("sweep"), arguments, _identity(jobs))
        with sweep.opened(jobs, jobs[0].configuration, experiment_of(jobs), name, display) as opened:
            _launch(sweeper.launcher, opened, [job for job in jobs if job.state == WAITING and not job.twin])


def _jobs(sweeper: Any, arguments: Sequence[str], display: Display) -> list[Job]:
    found = job_list.combinations(arguments, sweeper.params, sweeper.include, sweeper.hydra_context.config_loader)
    composed = job_list.composed(found, sweeper.exclude, config_dir(sweeper))
    jobs = list(display.progress("Checking", composed, len(found)))
    if not jobs:
        raise ExperimentError("The sweep has no job: every combination is excluded.")
    check_objectives(jobs)
    job_list.tell_apart(jobs)
    return jobs


def _identity(jobs: Sequence[Job]) -> list[Any]:
    return [[job.configuration.variant, job.configuration.cfg.seed, job.configuration.paths] for job in jobs]


def _launch(launcher: Any, opened: Sweep, jobs: Sequence[Job]) -> None:
    if hasattr(launcher, "pool"):
        pool = launcher.pool()
        source = ((job.number, opened.overrides(job)) for job in jobs)
        with pool, opened.display.live(len(jobs), pool.n_jobs, opened.cfg.objective):
            for _ in opened.follow(pool.events(source), {job.number: job for job in jobs}):
                pass
        for job in jobs:
            if job.state == WAITING:
                job.state = NOT_STARTED
    elif jobs:
        opened.launch(launcher, jobs)
    for job in opened.jobs:
        job.share_with_twin()
