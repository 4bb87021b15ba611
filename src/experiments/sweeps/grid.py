"""The sweeper `grid`: every combination, all of them checked before the first starts."""

from collections.abc import Sequence
from typing import Any

from experiments import tracking
from experiments.errors import ExperimentError
from experiments.sweeps import jobs as job_list
from experiments.sweeps import processes, sweep
from experiments.sweeps.display import Display
from experiments.sweeps.jobs import NOT_STARTED, WAITING, Job


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
    with processes.server():
        jobs = _jobs(sweeper, arguments, display)
        tracking.check_store()
        with processes.Planner(processes.Work.of(sweeper)) as planner:
            sweep.plan(jobs, planner, display)
        dry = jobs[0].configuration.cfg.dry_run
        if not (dry and tracking.nothing_recorded()):
            if not dry:
                tracking.close_stale_runs()
            display.say(sweep.look_up(jobs, display))
        if dry:
            display.console.print(sweep.dry_table(jobs))
            return
        name = job_list.sweep_name(jobs, sweeper.config.hydra.runtime.choices.get("sweep"), arguments, _identity(jobs))
        with sweep.opened(jobs, name, display) as opened:
            _launch(sweeper.launcher, opened, [job for job in jobs if job.state == WAITING and not job.twin])


def _jobs(sweeper: Any, arguments: Sequence[str], display: Display) -> list[Job]:
    found = job_list.combinations(arguments, sweeper.params, sweeper.list, sweeper.hydra_context.config_loader)
    where = [source.path for source in sweeper.config.hydra.runtime.config_sources if source.provider == "command-line"]
    composed = job_list.composed(found, sweeper.exclude, where[0] if where else None)
    jobs = list(display.progress("Checking", composed, len(found)))
    if not jobs:
        raise ExperimentError("The sweep has no job: every combination is excluded.")
    job_list.tell_apart(jobs)
    return jobs


def _identity(jobs: Sequence[Job]) -> list[list[Any]]:
    return [[job.configuration.variant, job.configuration.cfg.seed] for job in jobs]


def _launch(launcher: Any, opened: sweep.Sweep, jobs: Sequence[Job]) -> None:
    overrides = [opened.overrides(job) for job in jobs]
    if hasattr(launcher, "pool"):
        by_number = {job.number: job for job in jobs}
        pool = launcher.pool()
        with pool, opened.display.live(opened.jobs, pool.n_jobs):
            for _ in opened.follow(pool.events(zip(by_number, overrides, strict=True)), by_number):
                pass
        for job in jobs:
            if job.state == WAITING:
                job.state = NOT_STARTED
    elif jobs:
        try:
            results = launcher.launch(overrides, initial_job_idx=0)
        except Exception as error:  # joblib and Ray give up the whole list when a worker dies
            opened.display.say(f"The launcher failed: {type(error).__name__}: {error}")
            opened.salvage(error)
        else:
            for job, result in zip(jobs, results, strict=True):
                opened.settle(job, result)
    for job in opened.jobs:
        job.share_with_twin()
