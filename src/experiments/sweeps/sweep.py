"""A running sweep: its parent run, how each job ends, and the comparison at the end."""

import contextlib
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

from experiments.config.configuration import Configuration
from experiments.config.names import names
from experiments.config.overrides import absolute_paths, as_typed, for_hydra
from experiments.config.schema import JOB_KEY
from experiments.errors import ExperimentError, JobsFailed
from experiments.library_internals import job_error
from experiments.sweeps import summary
from experiments.sweeps.display import Display
from experiments.sweeps.jobs import Job, State, apply_result, counts
from experiments.sweeps.launcher import Ended, Progress, Started, failed, ignore_signals
from experiments.tracking import ui
from experiments.tracking.endings import Ending, JobDied
from experiments.tracking.locks import AlreadyRunning, lock, lock_of_sweep, unlock
from experiments.tracking.parent import SPACE, Parent, end_run, open_parent
from experiments.tracking.provenance import environment
from experiments.tracking.run import open_run
from experiments.tracking.runs import IMPORTANCE, StoredRun, earlier_runs, sweeps
from experiments.tracking.store import StoreLost, StoreRefused, jobs_folder, set_store_timeout

if TYPE_CHECKING:
    from experiments.compare.ranking import Comparison
    from experiments.compare.sequential import Race

#: States of jobs that have a cause, and of jobs without a result.
_WITH_REASON = (State.FAILED, State.KILLED, State.ELSEWHERE, State.NOT_RECORDED, State.DIVERGED)
_MISSING = (State.FAILED, State.KILLED, State.ELSEWHERE, State.NOT_RECORDED, State.NOT_STARTED, State.WAITING)


class Sweep:
    """The jobs of a sweep whose parent run is open."""

    def __init__(self, parent: Parent, jobs: list[Job], first: Configuration, display: Display, command: str) -> None:
        self.parent = parent
        self.jobs = jobs
        self.first = first  # configuration of any job, for what all have in common
        self.cfg = first.cfg
        self.display = display
        self.states_before: dict[str, object] = {}  # run id -> attempt, of the runs that it had already
        self.command = command  # that has started it
        self.race: Race | None = None  # the rule by which it adds jobs
        self.space: Mapping[str, str] = {}  # what it draws the keys that it searches from
        self.importance: Mapping[str, float] = {}  # of these keys
        self.lost: list[tuple[Job, JobReturn]] = []  # jobs that could not be recorded

    def overrides(self, job: Job) -> list[str]:
        """The overrides that a launcher starts `job` with."""
        # In quotes, as digits with an e among them would be a number.
        values = {
            "sweep": f"'{self.parent.run_id}'",
            "number": job.number,
            "fingerprint": f"'{job.fingerprint}'",
            "trial": "null" if job.trial is None else job.trial,
            "swept": f"[{','.join(repr(key.lstrip('+')) for key in job.distinguishing_values)}]",
        }
        return [
            *for_hydra(job.overrides),
            f"{JOB_KEY}={{{','.join(f'{key}:{value}' for key, value in values.items())}}}",
        ]

    def follow(self, events: Iterable[Started | Progress | Ended], by_number: Mapping[int, Job]) -> Iterator[Job]:
        """Shows and records what happens to jobs; yields each job when it has ended."""
        for event in events:
            job = by_number[event.number]
            if isinstance(event, Started):
                job.state = State.RUNNING
                self.display.started(job)
            elif isinstance(event, Progress):
                self.display.epoch_ended(job, event.message)
            else:
                self.finish_job(job, event.result)
                self.display.ended(job)
                yield job

    def finish_job(self, job: Job, result: JobReturn) -> None:
        """Sets the state of a job that has ended; closes or creates its run if the job could not."""
        error = job_error(result)
        unlock(job.fingerprint)  # if its process could not
        try:
            if isinstance(error, AlreadyRunning):
                job.state, job.reason = State.ELSEWHERE, str(error)
            else:
                self._take_result(job, error)
        except (StoreLost, StoreRefused) as lost:
            job.state, job.reason = State.NOT_RECORDED, str(lost)
            self.lost.append((job, result))
        else:  # its run has it as job.log, unless another process has trained that
            (jobs_folder() / job_output(self.parent.run_id, job.number)).unlink(missing_ok=True)

    def _take_result(self, job: Job, error: BaseException | None) -> None:
        ending = Ending.of(error) if error else Ending("FAILED", "error", "it has returned without a run in this store")
        run = self._find_run(job)
        if run is None and error is None:  # another sweep had finished it meanwhile
            earlier = earlier_runs(job.configuration)
            run = next((run for run in earlier if run.tags.get("fingerprint") == job.fingerprint), None)
        if run is None:
            self._create_run(job, ending)
            run = self._find_run(job)
        elif run.status == "RUNNING":
            end_run(run.run_id, ending.status, ending.tags)
            run = self._find_run(job)
        apply_result(job, run)

    def finish_lost_jobs(self) -> None:
        """Tries again to record the jobs that could not be recorded: the store may be back."""
        lost, self.lost = self.lost, []
        for job, result in lost:
            self.finish_job(job, result)

    def take_finished_elsewhere(self) -> None:
        """Takes the results of jobs that another process was training and has finished since."""
        with contextlib.suppress(StoreLost, StoreRefused):
            for job in self.jobs:
                run = self._find_run(job) if job.state == State.ELSEWHERE else None
                if run and (run.finished or run.diverged):
                    apply_result(job, run)

    def run(self, launcher: Launcher, jobs: Sequence[Job]) -> None:
        """Runs jobs to their end, one after another as processes are free, or with a launcher that takes a list."""
        if hasattr(launcher, "pool"):
            pool = launcher.pool()
            source = ((job.number, self.overrides(job)) for job in jobs)
            with pool, self.display.live(self.jobs, len(jobs), pool.n_jobs, self.cfg.objective):
                for _ in self.follow(pool.events(source), {job.number: job for job in jobs}):
                    pass
            for job in jobs:
                if job.state == State.WAITING:
                    job.state = State.NOT_STARTED
        elif jobs:
            self.launch(launcher, jobs)

    def launch(self, launcher: Launcher, jobs: Sequence[Job]) -> None:
        """Runs jobs with a launcher that takes a list and returns all results at the end."""
        try:
            results = launcher.launch([self.overrides(job) for job in jobs], initial_job_idx=jobs[0].number)
        except Exception as error:  # joblib and Ray give up the whole list when a worker dies
            self.display.print(f"The launcher has failed: {type(error).__name__}: {error}")
            if "ray" in sys.modules:  # or jobs that were waiting would start now
                sys.modules["ray"].shutdown()
            self.recover_jobs(error)
        else:
            for job, result in zip(jobs, results, strict=True):
                self.finish_job(job, result)

    def recover_jobs(self, error: BaseException) -> None:
        """Finds the results of jobs whose launcher has failed."""
        started = set()
        with contextlib.suppress(StoreLost, StoreRefused):
            new = [run for run in self.parent.runs() if self.states_before.get(run.run_id) != run.attempt]
            started = {int(run.tags["job"]) for run in new}
        for job in self.jobs:
            if job.state == State.RUNNING or (job.state == State.WAITING and job.number in started):
                self.finish_job(job, failed(JobDied(Ending.of(error))))
            elif job.state == State.WAITING and not job.duplicate_of:
                job.state = State.NOT_STARTED

    def _find_run(self, job: Job) -> StoredRun | None:
        """The run that this call has created or resumed, which may belong to another sweep."""
        earlier = earlier_runs(job.configuration)
        equal = [run for run in earlier if run.tags.get("fingerprint") == job.fingerprint]
        before = {**self.states_before, **job.states_before}
        runs = [*self.parent.runs(job.number), *equal]
        return next((run for run in runs if before.get(run.run_id) != run.attempt), None)

    def _create_run(self, job: Job, ending: Ending) -> None:
        """Creates the run of a job that has ended without one."""
        configuration = job.configuration
        assert job.plan  # noqa: S101 - all have been planned
        named = names(configuration, job.distinguishing_values)
        tags = {
            **dict(configuration.cfg.tracking.tags),
            "variant": named.variant,
            "variant.id": configuration.variant,
            "fingerprint": job.fingerprint,
            "data.sha256": job.plan.data_sha256,
            "code.sha256": job.plan.code_sha256,
            "job": job.number,
            "command": f"{configuration.command} hydra.mode=RUN",
        }
        with open_run(
            experiment="",
            name=named.run,
            params=job.plan.parameters,
            tags=tags,
            files={"config.yaml": configuration.as_yaml, "environment.txt": environment()},
            parent=self.parent.run_id,
            output=job_output(self.parent.run_id, job.number),
            patience=self.cfg.tracking.store_timeout,
        ) as run:
            run.fail(ending.failure, ending.tags, ending.status)

    def write_jobs(self) -> None:
        """Writes the list of jobs and their runs to the parent."""
        self.parent.write_jobs(
            {
                "job": job.number,
                "overrides": list(job.overrides),
                "fingerprint": job.fingerprint,
                "run_id": job.run.run_id if job.run else None,
            }
            for job in self.jobs
        )

    def comparison(self) -> "Comparison | None":
        """The comparison of all variants; None as long as no job is finished."""
        from experiments.compare import comparison  # SciPy and statsmodels would keep the first job waiting

        runs = [
            job.run
            for job in self.jobs
            if job.run and (job.state == State.DIVERGED or (job.state == State.FINISHED and job.objective is not None))
        ]
        metric = self.cfg.objective
        keys = {key for job in self.jobs for key in job.swept_values}
        swept = [key for key in keys if len({job.swept_values.get(key) for job in self.jobs}) > 1]
        if not any(run.finished for run in runs):
            return None
        searched = any(job.trial is not None for job in self.jobs)
        selection = comparison.Selection(
            self.parent.name, runs, swept, self.race, self.command, searched, self.importance, self.space
        )
        return comparison.compare_runs(selection, metric, across_data=True)

    def set_space(self, space: Mapping[str, str]) -> None:
        """Records what the searched keys are drawn from, in words, for the comparison, too."""
        self.space = {key.lstrip("+"): text for key, text in space.items()}
        self.parent.log_params({f"{SPACE}{key}": text for key, text in self.space.items()})

    def set_importance(self, importance: Mapping[str, float]) -> None:
        """Records the importance of the searched keys, for the comparison, too."""
        self.importance = importance
        self.parent.outbox.put_file(IMPORTANCE, json.dumps(importance, indent=1))

    def close(self, status: str, tags: Mapping[str, object], patience: float, *, page: bool = False) -> None:
        """Writes the comparison to the parent run, ends it and prints a summary."""
        from experiments.compare import tables

        found = self.comparison()
        note = [str(self.cfg.tracking.note or ""), f"{counts(self.jobs)}. [Runs and charts]({self.parent.link})"]
        if found:
            self.parent.outbox.put_file("leaderboard.csv", tables.as_csv(found))
            self.parent.outbox.put_file("leaderboard.md", tables.as_markdown(found))
            note.append(tables.as_markdown(found, tables.DESCRIPTION_ROWS))
            tags = {**tags, "best_run_id": found.best_run.run_id}
            if page:
                self._write_page(found)
        tags = {**tags, "mlflow.note.content": "\n\n".join(part for part in note if part)}
        self.write_jobs()
        self.show(found)
        measured = summary.metrics(self.jobs, found, self.cfg.objective)
        self.parent.log_metrics(measured, step=int(measured["sweep/finished"]))
        self.parent.set_tags(tags)
        self.parent.close(status, patience)
        if found:
            tables.print_table(found, self.display.console)
        for job in self.jobs:
            if job.state in _WITH_REASON:
                self.display.print(f"[{job.number}] {job.label}: {job.state}: {job.reason}")
        self.display.print(counts(self.jobs))
        if found:
            self.display.print(f"Best run: {found.best_run.run_id}")
        self.display.print(f"Look at them with experiments ui: {ui.page(self.parent.link)}")

    def _write_page(self, comparison: "Comparison") -> None:
        from experiments.compare import report

        try:
            self.parent.outbox.put_file("report.html", report.page(comparison))
        except Exception as error:  # it is an extra: nothing that is wrong with it may cost the sweep its record
            problem = f"Without report.html: {type(error).__name__}: {error}"
            self.display.print(f"{problem} Later: experiments compare {self.parent.name} --html FILE")

    def show(self, found: "Comparison | None" = None) -> None:
        """Sets what the MLflow UI shows of the jobs, of which a race or a search has none at its start."""
        objective = self.cfg.objective
        self.parent.show(summary.view(self.parent.name, self.jobs, found, objective, self.parent.run_id))
        if self.jobs:
            self.parent.log_params(summary.params(self.jobs, objective))


def job_output(parent: str, number: int) -> str:
    """Name of the file that the output of a job goes to until its run is open."""
    return f"{parent}-{number}.log"


@contextlib.contextmanager
def open_sweep(jobs: list[Job], first: Configuration, experiment: str, name: str, display: Display) -> Iterator[Sweep]:
    """Opens the parent run of a sweep; closes it with the status that the sweep has ended with.

    Args:
        jobs: those known at the start.
        first: configuration of any job, for what all have in common.
        experiment: name of the MLflow experiment.
        name: of the sweep.
        display: shows the progress.

    Raises:
        AlreadyRunning: another process runs it.
        ExperimentError: it has a name that a user has given to other jobs.
        JobsFailed: a job has no result.
    """
    if first.cfg.sweep.name is not None:
        _check_free(name)
    with lock(lock_of_sweep(name), "This sweep is being run"):
        yield from _open_sweep(jobs, first, experiment, name, display)


def _check_free(name: str) -> None:
    """Checks that no other list of jobs has the name that a user gives to a sweep.

    Raises:
        ExperimentError: another one has it.
    """
    given = name.rpartition("-")[0]
    names = {parent.tags["sweep.name"] for parent in sweeps()}
    if other := next((taken for taken in sorted(names - {name}) if taken.rpartition("-")[0] == given), None):
        problem = f"sweep.name={given}: a sweep with other jobs has this name, {other}."
        raise ExperimentError(problem, advice="Choose another name, or leave it out.")


def _open_sweep(jobs: list[Job], first: Configuration, experiment: str, name: str, display: Display) -> Iterator[Sweep]:
    command = shlex.join(["experiments", "train", *absolute_paths(as_typed(sys.argv[1:]))])
    tags = {**dict(first.cfg.tracking.tags), "command": command}
    parent = open_parent(experiment, name, tags, first.cfg.tracking.store_timeout)
    sweep = Sweep(parent, jobs, first, display, command)
    try:
        sweep.states_before = {run.run_id: run.attempt for run in parent.runs()}
        sweep.write_jobs()
        sweep.show()
        yield sweep
        sweep.finish_lost_jobs()
    except BaseException as error:
        with ignore_signals():  # a second Ctrl-C would leave the record half-written
            set_store_timeout(0)
            ending = Ending.of(error)
            try:
                sweep.recover_jobs(error)
            finally:
                sweep.close(ending.status, ending.tags, patience=0)
        display.print(f"Resume with: {command}")
        raise
    missing = [job for job in sweep.jobs if job.state in _MISSING]
    sweep.close("FAILED" if missing else "FINISHED", {}, patience=first.cfg.tracking.store_timeout, page=True)
    if any(job.trial is None for job in missing):  # of a search, a failed trial counts
        display.print(f"Run what is missing with: {command}")
    if any(not job.earlier for job in missing):
        raise JobsFailed
