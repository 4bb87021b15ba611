"""The sweeper `grid`: every combination of the swept values, all checked before the first job starts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from experiments.config.overrides import as_typed
from experiments.sweeps import jobs as job_list
from experiments.sweeps import launcher
from experiments.sweeps.display import Display
from experiments.sweeps.jobs import Job, State
from experiments.sweeps.plan import (
    checked_jobs,
    dry_table,
    experiment_of,
    find_finished_jobs,
    plan_jobs,
    planner_of,
)
from experiments.sweeps.sweep import open_sweep
from experiments.tracking.locks import close_stale_runs
from experiments.tracking.store import check_store, nothing_recorded

if TYPE_CHECKING:
    from hydra_plugins.experiments_sweeps import GridSweeper


def run(sweeper: "GridSweeper", arguments: Sequence[str]) -> None:
    """Runs the sweep that the command line and the configuration describe.

    Args:
        sweeper: the plugin, set up by Hydra.
        arguments: overrides of the command line, swept ones among them.

    Raises:
        ExperimentError: a job that cannot work; nothing has been recorded.
        JobsFailed: a job has no result.
    """
    arguments = as_typed(arguments)
    display = Display()
    with launcher.server():
        found = job_list.combinations(arguments, sweeper.params, sweeper.include, sweeper.hydra_context.config_loader)
        jobs = checked_jobs(found, sweeper.exclude, sweeper, display)
        check_store()
        with planner_of(sweeper, display) as planner:
            plan_jobs(jobs, planner, display)
        dry = jobs[0].configuration.cfg.dry_run
        if not (dry and nothing_recorded()):
            if not dry:
                close_stale_runs()
            display.print(find_finished_jobs(jobs, display))
        if dry:
            display.show(dry_table(jobs))
            return
        name = job_list.sweep_name(jobs, sweeper.config.hydra.runtime.choices.get("sweep"), arguments, _identity(jobs))
        with open_sweep(jobs, jobs[0].configuration, experiment_of(jobs), name, display) as sweep:
            waiting = [job for job in jobs if job.state is State.WAITING and not job.duplicate_of]
            sweep.run(sweeper.launcher, waiting)
            sweep.take_finished_elsewhere()
            for job in jobs:
                job.copy_result_of_duplicate()


def _identity(jobs: Sequence[Job]) -> list[Any]:
    return [[job.configuration.variant, job.configuration.replicate, job.configuration.paths] for job in jobs]
