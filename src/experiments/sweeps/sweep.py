"""A sweep under way: its parent in the store, how each of its jobs ends, and the table at the end."""

import contextlib
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from rich.table import Table

from experiments import config, tracking
from experiments.config import Configuration, Plan
from experiments.errors import ExperimentError, JobsFailed
from experiments.sweeps import jobs as job_list
from experiments.sweeps.display import Display
from experiments.sweeps.jobs import (
    DIVERGED,
    ELSEWHERE,
    FAILED,
    FINISHED,
    KILLED,
    NOT_RECORDED,
    NOT_STARTED,
    PRUNED,
    RUNNING,
    WAITING,
    Job,
)  # fmt: skip
from experiments.sweeps.processes import Ended, JobDied, Planner, Said, Started, Work, deaf
from experiments.tracking import Recorded

if TYPE_CHECKING:
    from experiments.compare import Comparison


class Sweep:
    """The jobs of a sweep whose parent is open in the store."""

    def __init__(self, parent: tracking.Parent, jobs: list[Job], first: Configuration, display: Display) -> None:
        self.parent = parent
        self.jobs = jobs
        self.first = first  # of any job: what all have in common is read from it
        self.cfg = first.cfg
        self.display = display
        self.older: dict[str, object] = {}  # run id -> how far it had come before this call
        self.lost: list[tuple[Job, JobReturn]] = []  # jobs that could not be recorded

    def overrides(self, job: Job) -> list[str]:
        """What a launcher starts `job` with."""
        # In quotes, as digits with an e among them would be a number.
        told = {"parent": f"'{self.parent.run_id}'", "fingerprint": f"'{job.fingerprint}'", "job": job.number}
        if job.trial is not None:
            told["trial"] = job.trial
        return [*job.overrides, *(f"tracking.{key}={value}" for key, value in told.items())]

    def follow(self, events: Iterable[Started | Said | Ended], by_number: Mapping[int, Job]) -> Iterator[Job]:
        """Goes along with what happens to jobs; gives each as it ends."""
        for event in events:
            job = by_number[event.number]
            if isinstance(event, Started):
                job.state = RUNNING
                self.display.started(job)
            elif isinstance(event, Said):
                self.display.spoke(job, event.message)
            else:
                self.settle(job, event.result)
                self.display.ended(job)
                yield job

    def settle(self, job: Job, result: JobReturn) -> None:
        """Finds out how a job has ended; closes or makes its run if it could not do so itself."""
        error = result._return_value if result.status is JobStatus.FAILED else None
        tracking.unlock(job.fingerprint)  # if its process could not
        output = tracking.jobs_folder() / job_output(self.parent.run_id, job.number)
        if isinstance(error, tracking.Elsewhere):
            job.state, job.reason = ELSEWHERE, str(error)
            output.unlink(missing_ok=True)
            return
        try:
            self._take_result(job, error, output)
        except (tracking.StoreLost, tracking.StoreRefused) as lost:
            job.state, job.reason = NOT_RECORDED, str(lost)
            self.lost.append((job, result))

    def _take_result(self, job: Job, error: BaseException | None, output: Path) -> None:
        run = self._run_of(job)
        if run is None and error is None:  # another sweep had finished it meanwhile
            earlier = tracking.earlier_runs(job.configuration.variant, job.configuration.cfg.seed)
            run = next((run for run in earlier if run.tags.get("fingerprint") == job.fingerprint), None)
            output.unlink(missing_ok=True)
        if run is None:
            self._record(job, _death(error))
            run = self._run_of(job)
        elif run.status == "RUNNING":
            died = _death(error)
            tracking.end_run(run.run_id, died.status, {"reason": died.reason, "failure": died.failure})
            run = self._run_of(job)
        take(job, run)

    def settle_lost(self) -> None:
        """Finds out once more how those jobs have ended that could not be recorded: the store may be back."""
        lost, self.lost = self.lost, []
        for job, result in lost:
            self.settle(job, result)

    def launch(self, launcher: Any, jobs: Sequence[Job]) -> None:
        """Runs jobs by a launcher that takes a list and gives all results at the end."""
        try:
            results = launcher.launch([self.overrides(job) for job in jobs], initial_job_idx=jobs[0].number)
        except Exception as error:  # joblib and Ray give up the whole list when a worker dies
            self.display.say(f"The launcher has given up: {type(error).__name__}: {error}")
            if "ray" in sys.modules:  # or jobs that were waiting would start now
                sys.modules["ray"].shutdown()
            self.salvage(error)
        else:
            for job, result in zip(jobs, results, strict=True):
                self.settle(job, result)

    def salvage(self, error: BaseException) -> None:
        """Takes what there is of the jobs that no launcher tells of any more."""
        begun = set()
        with contextlib.suppress(tracking.StoreLost, tracking.StoreRefused):
            begun = {int(run.tags["job"]) for run in self.parent.runs() if self.older.get(run.run_id) != run.attempt}
        for job in self.jobs:
            if job.state == RUNNING or (job.state == WAITING and job.number in begun):
                self.settle(job, JobReturn(status=JobStatus.FAILED, _return_value=_death(error)))
            elif job.state == WAITING and not job.twin:
                job.state = NOT_STARTED

    def _run_of(self, job: Job) -> Recorded | None:
        """The run that this call has made or gone on with; that may be one outside of this sweep."""
        earlier = tracking.earlier_runs(job.configuration.variant, job.configuration.cfg.seed)
        equal = [run for run in earlier if run.tags.get("fingerprint") == job.fingerprint]
        before = {**self.older, **job.attempts}
        runs = [*self.parent.runs(job.number), *equal]
        return next((run for run in runs if before.get(run.run_id) != run.attempt), None)

    def _record(self, job: Job, died: JobDied) -> None:
        """Makes the run of a job that ended before it could."""
        configuration = job.configuration
        assert job.plan  # noqa: S101 - it has been started
        tags = {
            **dict(configuration.cfg.tracking.tags),
            "variant": configuration.variant,
            "fingerprint": job.fingerprint,
            "data.sha256": job.plan.data_sha256,
            "code.sha256": job.plan.code_sha256,
            "job": job.number,
            "command": f"{configuration.command} hydra.mode=RUN",
        }
        with tracking.open_run(
            experiment="",
            name=configuration.title,
            params=configuration.parameters,
            tags=tags,
            files={"config.yaml": configuration.as_yaml, "environment.txt": tracking.environment()},
            parent=self.parent.run_id,
            output=job_output(self.parent.run_id, job.number),
            patience=self.cfg.tracking.patience,
        ) as run:
            run.fail(died.failure, {"reason": died.reason}, died.status)

    def write_jobs(self) -> None:
        """Keeps the list of jobs and their runs with the parent."""
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
        """Every variant with its mean over the seeds, the best first; None as long as no job is finished."""
        from experiments import compare  # SciPy and statsmodels would keep the first job waiting

        runs = [job.run for job in self.jobs if job.run and job.state == FINISHED and job.objective is not None]
        metric = self.cfg.objective.metric
        return compare.comparison(runs, self.parent.name, metric, across_data=True) if runs else None

    def close(self, status: str, tags: Mapping[str, object], patience: float, *, page: bool = False) -> None:
        """Writes the table to the parent, with or without the page, ends it and prints how the sweep has gone."""
        from experiments import tables

        found = self.comparison()
        # MLflow shows the first lines only, until one asks for more.
        note = [str(self.cfg.tracking.note or ""), f"**{found.notes[0]}**" if found else "", counts(self.jobs)]
        if found:
            self.parent.outbox.put_file("leaderboard.csv", tables.as_csv(found))
            self.parent.outbox.put_file("leaderboard.md", tables.as_markdown(found))
            note.append(tables.note(found))
            tags = {**tags, "best_run_id": found.best_run.run_id}
            if page:
                self._write_page(found)
        tags = {**tags, "mlflow.note.content": "\n\n".join(part for part in note if part)}
        self.write_jobs()
        self.parent.set_tags(tags)
        self.parent.close(status, patience)
        if found:
            tables.show(found, self.display.console)
        for job in self.jobs:
            if job.state in (FAILED, KILLED, ELSEWHERE, NOT_RECORDED, DIVERGED):
                self.display.say(f"[{job.number}] {job.label}: {job.state}: {job.reason}")
        self.display.say(counts(self.jobs))
        if found:
            self.display.say(f"Best run: {found.best_run.run_id}")
        self.display.say(f"Look at them with experiments ui: {tracking.page(self._link())}")

    def _write_page(self, comparison: "Comparison") -> None:
        from experiments import report

        try:
            self.parent.outbox.put_file("report.html", report.page(comparison))
        except Exception as error:  # it is an extra: nothing that is wrong with it may cost the sweep its record
            problem = f"Without report.html: {type(error).__name__}: {error}"
            self.display.say(f"{problem} Later: experiments compare {self.parent.name} --html FILE")

    def _link(self) -> str:
        ids = {job.run.run_id for job in self.jobs if job.run}
        elsewhere = any(job.run and job.run.parent != self.parent.run_id for job in self.jobs)
        return self.parent.link(self.cfg.objective.metric, self.cfg.objective.mode, sorted(ids) if elsewhere else ())


def job_output(parent: str, number: int) -> str:
    """Name of the file that a job's output goes to until its run is open."""
    return f"{parent}-{number}.log"


@contextlib.contextmanager
def opened(jobs: list[Job], first: Configuration, experiment: str, name: str, display: Display) -> Iterator[Sweep]:
    """A sweep whose parent is in the store, closed with the truth about how it ended.

    Args:
        jobs: as far as they are known.
        first: of any job; what all have in common is read from it.
        experiment: name of the MLflow experiment.
        name: of the sweep.
        display: where to tell of it.

    Raises:
        Elsewhere: another process runs it.
        JobsFailed: a job has no result.
    """
    with tracking.lock(tracking.lock_of_sweep(name), "This sweep is being run"):
        yield from _opened(jobs, first, experiment, name, display)


def _opened(jobs: list[Job], first: Configuration, experiment: str, name: str, display: Display) -> Iterator[Sweep]:
    command = shlex.join(["experiments", "train", *config.anywhere(sys.argv[1:])])
    tags = {**dict(first.cfg.tracking.tags), "command": command}
    parent = tracking.open_parent(experiment, name, tags, first.cfg.tracking.patience)
    sweep = Sweep(parent, jobs, first, display)
    try:
        sweep.older = {run.run_id: run.attempt for run in parent.runs()}
        sweep.write_jobs()
        yield sweep
        sweep.settle_lost()
    except BaseException as error:
        with deaf():  # a second Ctrl-C would leave the record half-written
            tracking.be_patient(0)
            died = _death(error)
            try:
                sweep.salvage(error)
            finally:
                sweep.close(died.status, {"reason": died.reason, "failure": died.failure}, patience=0)
        display.say(f"Go on with: {command}")
        raise
    failed = [job for job in sweep.jobs if job.state in (FAILED, KILLED, ELSEWHERE, NOT_RECORDED, NOT_STARTED, WAITING)]
    sweep.close("FAILED" if failed else "FINISHED", {}, patience=first.cfg.tracking.patience, page=True)
    if any(job.trial is None for job in failed):  # of a search, a failed trial counts
        display.say(f"Run what is missing with: {command}")
    if any(not job.earlier for job in failed):
        raise JobsFailed


def _death(error: BaseException | None) -> JobDied:
    """Why a job or a sweep has ended, as its run says it."""
    if isinstance(error, JobDied):
        return error
    if isinstance(error, tracking.StoreLost):
        return JobDied("store", str(error))
    if isinstance(error, KeyboardInterrupt):
        return JobDied("interrupted", "SIGINT")
    if isinstance(error, SystemExit):
        ended_by = next((number.name for number in signal.Signals if error.code == 128 + number), None)
        return JobDied("signal", ended_by) if ended_by else JobDied("exit", f"exit status {error.code}")
    if error is None:
        return JobDied("error", "it has returned without a run in this store")
    text = str(error).splitlines()
    return JobDied("error", f"{type(error).__name__}: {text[0] if text else ''}")


def take(job: Job, run: Recorded | None) -> None:
    """Lets `job` be as its run is."""
    if run is None:
        return
    job.run = run
    job.reason = run.tags.get("failure", "")
    if run.status == "FINISHED":
        job.state = PRUNED if "pruned" in run.tags else FINISHED
    elif run.diverged:
        job.state = DIVERGED
    else:
        job.state = KILLED if run.status == "KILLED" else FAILED


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
    if len({job.configuration.cfg.objective.metric for job in jobs}) > 1:
        raise ExperimentError("The objective differs between the jobs, so nothing could rank them.")


@contextlib.contextmanager
def planner_of(sweeper: Any, display: Display) -> Iterator[Planner]:
    """A process that plans the jobs of `sweeper`; it has to wait for TensorFlow."""
    with contextlib.ExitStack() as stack:
        with display.busy("Loading TensorFlow …"):
            planner = stack.enter_context(Planner(Work.of(sweeper)))
        yield planner


def plan(jobs: Sequence[Job], planner: Planner, display: Display) -> None:
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
                plans[key] = planned(planner, job.overrides)
        data, code = plans[key].data_sha256, plans[key].code_sha256
        job.plan = replace(plans[key], fingerprint=job.configuration.fingerprint(data, code))
        job.twin = first.get(job.fingerprint)
        first.setdefault(job.fingerprint, job)


def planned(planner: Planner, overrides: Sequence[str]) -> Plan:
    """The plan of one job.

    Raises:
        ExperimentError: it cannot be built.
    """
    result = planner.plan(overrides)
    if result.status is JobStatus.COMPLETED:
        return result._return_value
    error = result._return_value
    if isinstance(error, ExperimentError):
        raise error
    raise ExperimentError(f"it cannot be built: {_death(error).failure}.")


def look_up(jobs: Sequence[Job], display: Display) -> str:
    """Marks the jobs that need not run; says how many there are of each kind."""
    other = {"code": 0, "data": 0}
    for job in display.progress("Looking up", jobs, len(jobs)):
        if job.twin:
            continue
        earlier = tracking.earlier_runs(job.configuration.variant, job.configuration.cfg.seed)
        equal = [run for run in earlier if run.tags.get("fingerprint") == job.fingerprint]
        job.attempts = {run.run_id: run.attempt for run in equal}
        done = next((run for run in equal if run.finished), None) or next((run for run in equal if run.diverged), None)
        if done and not job.configuration.cfg.force:
            take(job, done)
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


def counts(jobs: Sequence[Job]) -> str:
    """How many jobs are in each state."""
    order = (FINISHED, PRUNED, DIVERGED, FAILED, KILLED, ELSEWHERE, NOT_RECORDED, NOT_STARTED, WAITING)
    found = {state: sum(job.state == state for job in jobs) for state in order}
    head = f"{len(jobs):,} {'job' if len(jobs) == 1 else 'jobs'}"
    return f"{head}: {', '.join(f'{count} {state}' for state, count in found.items() if count)}"


def dry_table(jobs: Sequence[Job]) -> Table:
    """What would run, for `dry_run=true`."""
    table = Table("job", "what differs", box=None, pad_edge=False)
    table.add_column("parameters", justify="right")
    table.add_column("state")
    for job in jobs:
        assert job.plan  # noqa: S101 - all have been planned
        state = f"equal to job {job.twin.number}" if job.twin else job.state if job.state != WAITING else "to run"
        table.add_row(str(job.number), job.label, f"{job.plan.num_parameters:,}", state)
    return table
