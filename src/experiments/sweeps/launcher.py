"""Runs each job in its own process, forked from a server that has imported TensorFlow but not started it."""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

import cloudpickle
import psutil
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from omegaconf import DictConfig

from experiments.sweeps.gpus import least_used
from experiments.sweeps.worker import GRACE, SweepTask, WorkerEnvironment, run_job, run_planner
from experiments.tracking.endings import Ending, JobDied

_log = logging.getLogger(__name__)

# Signals that ask a process to end, as far as the system has them.
_ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_GIGABYTE = 2**30
_A_JOB_NEEDS = 1.2  # gigabytes
_KERNEL_COUNTS = Path("/proc/vmstat")


@dataclass(frozen=True)
class Started:
    """The process of a job has started."""

    number: int


@dataclass(frozen=True)
class Progress:
    """A job has finished an epoch."""

    number: int
    message: Any


@dataclass(frozen=True)
class Ended:
    """A job has ended, with or without a result."""

    number: int
    result: JobReturn


@dataclass
class _Job:
    number: int
    overrides: Sequence[str]
    process: BaseProcess
    connection: Connection
    deadline: float
    gpu: str | None
    result: JobReturn | None = None
    timed_out: bool = False


def usable_slots(on_gpus: int = 0) -> int:
    """How many jobs can run at a time, if there is memory for them: one per core, or as many as GPUs take.

    Args:
        on_gpus: how many jobs the GPUs take; 0 if there are none.
    """
    this = psutil.Process()
    cores = len(this.cpu_affinity()) if hasattr(this, "cpu_affinity") else psutil.cpu_count() or 1
    return max(1, min(on_gpus or cores, int(psutil.virtual_memory().available / _GIGABYTE / _A_JOB_NEEDS)))


@contextlib.contextmanager
def server() -> Iterator[None]:
    """Starts importing TensorFlow in the server that jobs are forked from, without waiting; ends it at the end."""
    _ensure_server()
    try:
        yield
    finally:
        _end_server()


def _ensure_server() -> None:
    if sys.platform == "linux":
        from multiprocessing import forkserver

        with ignore_signals():  # the server inherits it: Ctrl-C is for the jobs
            _context()
            forkserver.ensure_running()


def _end_server() -> None:
    for child in psutil.Process().children():  # it would end by itself, but only after its imports
        with contextlib.suppress(psutil.Error):
            if "multiprocessing.forkserver" in " ".join(child.cmdline()):
                child.kill()


def _kill(process: BaseProcess) -> None:
    """Ends a job's process and those that it has started."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
    process.kill()


@contextlib.contextmanager
def ignore_signals() -> Iterator[None]:
    """Ignores Ctrl-C and similar signals while it is open."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _context() -> Any:
    if sys.platform != "linux":  # forking after such imports is unsafe on macOS, and Windows cannot
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.sweeps.preload"])
    return context


class Pool:
    """Runs jobs in processes of their own, a few at a time; ends those that still run when it is left.

    Args:
        task: what the jobs have in common.
        n_jobs: how many at a time.
        timeout: seconds for one job; None for any time.
        stop_on_error: start no further job after one that failed.
        gpus: names of the GPUs; each job sees the one that the fewest others use.
    """

    def __init__(
        self,
        task: SweepTask,
        n_jobs: int,
        timeout: float | None = None,
        stop_on_error: bool = False,
        gpus: Sequence[str] = (),
    ) -> None:
        self.gpus = gpus
        self.task = task.pickled()
        self.n_jobs = n_jobs
        self.timeout = timeout or float("inf")
        self.stop_on_error = stop_on_error
        self.running: dict[int, _Job] = {}
        self.out_of_memory = _out_of_memory_kills()
        # What a job writes for itself alone; its process ends without the tidying up of Python.
        self.scratch = tempfile.TemporaryDirectory(prefix="experiments-", ignore_cleanup_errors=True)
        # A command that a script has started in the background ignores Ctrl-C, and so do its jobs.
        self.ending_signals = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]

    def __enter__(self) -> "Pool":
        _ensure_server()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with ignore_signals(), self.scratch:
            self.stop(signal.SIGINT if kind and issubclass(kind, KeyboardInterrupt) else signal.SIGTERM)

    def events(self, jobs: Iterable[tuple[int, Sequence[str]]]) -> Iterator[Started | Progress | Ended]:
        """What happens to `jobs`, number and overrides of each, as it happens.

        A job is taken from `jobs` when there is a process for it and not before.
        """
        source = iter(jobs)
        more = True
        while more or self.running:
            while more and len(self.running) < self.n_jobs:
                job = next(source, None)
                if job is None:
                    more = False
                    break
                self._start(*job)
                yield Started(job[0])
            for event in self._wait():
                if isinstance(event, Ended) and self.stop_on_error and event.result.status is JobStatus.FAILED:
                    more = False
                yield event

    def _start(self, number: int, overrides: Sequence[str]) -> None:
        context = _context()
        connection, theirs = context.Pipe()
        gpu = least_used(self.gpus, (job.gpu for job in self.running.values()))
        environment = WorkerEnvironment(self.scratch.name, self.ending_signals, gpu)
        arguments = (theirs, self.task, number, list(overrides), environment)
        process = context.Process(target=run_job, args=arguments, name=f"job {number}")
        process.start()
        theirs.close()
        self.running[number] = _Job(number, overrides, process, connection, time.monotonic() + self.timeout, gpu)

    def _wait(self) -> Iterator[Progress | Ended]:
        """Waits for the next events and yields them."""
        if not self.running:
            return
        sources = {job.connection: job for job in self.running.values() if not job.connection.closed}
        ends = {job.process.sentinel: job for job in self.running.values()}
        deadlines = [job.deadline for job in self.running.values() if not job.timed_out]  # others only need reaping
        left = min(deadlines, default=float("inf")) - time.monotonic()
        ready = wait([*sources, *ends], timeout=max(0, left) if left < float("inf") else None)
        for connection in [handle for handle in ready if handle in sources]:
            yield from self._read(sources[connection])
        for sentinel in [handle for handle in ready if handle in ends]:
            job = ends[sentinel]
            # To its end would be too far: a process that the job has left behind may hold it open.
            while not job.connection.closed and job.connection.poll():
                yield from self._read(job)
            job.connection.close()
            yield Ended(job.number, self._end(job))
        for job in self.running.values():
            if time.monotonic() > job.deadline and not job.timed_out:
                job.timed_out = True
                _kill(job.process)

    def _read(self, job: _Job) -> Iterator[Progress]:
        try:
            kind, content = job.connection.recv()
        except (EOFError, OSError):
            job.connection.close()
            return
        if kind == "progress":
            yield Progress(job.number, content)
        else:
            job.result = cloudpickle.loads(content)

    def _end(self, job: _Job) -> JobReturn:
        job.process.join()
        result = job.result or failed(JobDied(self._ending(job)), job.overrides)
        job.process.close()
        del self.running[job.number]
        return result

    def _ending(self, job: _Job) -> Ending:
        code = job.process.exitcode
        if job.timed_out:
            return Ending("KILLED", "timeout", f"took longer than {self.timeout / 60:g} minutes")
        if code == -signal.SIGKILL and _out_of_memory_kills() > self.out_of_memory:
            self.out_of_memory = _out_of_memory_kills()
            return Ending("KILLED", "memory", "killed by the kernel: out of memory")
        return Ending.of_exit_code(code)

    def stop(self, number: signal.Signals) -> None:
        """Ends all jobs: asks them by a signal, and after some seconds does not ask."""
        jobs = list(self.running.values())
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline and any(job.process.is_alive() for job in jobs):
            for job in jobs:  # again and again: one that has just started ignores signals at first
                if job.process.pid and job.process.is_alive():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(job.process.pid, number)
            wait([job.process.sentinel for job in jobs if job.process.is_alive()], timeout=0.5)
        for job in jobs:
            if job.process.is_alive():
                _kill(job.process)
            job.connection.close()
            self._end(job)


def failed(error: BaseException, overrides: Sequence[str] = ()) -> JobReturn:
    """The result of a job that has no result."""
    result = JobReturn(status=JobStatus.FAILED, overrides=filter_overrides(overrides))
    result.return_value = error
    return result


def _out_of_memory_kills() -> int:
    """How often the kernel has ended a process for want of memory; 0 where it does not tell."""
    with contextlib.suppress(OSError, StopIteration):
        lines = _KERNEL_COUNTS.read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("oom_kill ")).split()[1])
    return 0


def launch(
    pool: Pool, config: DictConfig, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
) -> list[JobReturn]:
    """Runs a list of jobs as every launcher of Hydra does: results in order, errors among them."""
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
    numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
    for number, overrides in zip(numbers, job_overrides, strict=True):
        _log.info("\t#%d : %s", number, " ".join(filter_overrides(overrides)))
    try:
        with pool:
            events = pool.events(zip(numbers, job_overrides, strict=True))
            results = {event.number: event.result for event in events if isinstance(event, Ended)}
    except BaseException:
        _end_server()
        raise
    return [
        results.get(number) or failed(JobDied(Ending("FAILED", "exit", "not started")), overrides)
        for number, overrides in zip(numbers, job_overrides, strict=True)
    ]


@dataclass
class Planner:
    """A process that runs jobs with `dry_run=true`, so that the launching one need not know Keras."""

    task: SweepTask
    process: BaseProcess = field(init=False)
    connection: Connection = field(init=False)
    scratch: tempfile.TemporaryDirectory[str] = field(init=False)

    def __enter__(self) -> "Planner":
        context = _context()
        self.connection, theirs = context.Pipe()
        self.scratch = tempfile.TemporaryDirectory(prefix="experiments-", ignore_cleanup_errors=True)
        arguments = (
            theirs,
            self.task.pickled(),
            WorkerEnvironment(self.scratch.name, [], gpu="-1"),
        )  # it trains nothing
        self.process = context.Process(target=run_planner, args=arguments, name="planner", daemon=True)
        self.process.start()
        theirs.close()
        return self

    def __exit__(self, *_: object) -> None:
        _kill(self.process)
        self.process.join()
        self.connection.close()
        self.scratch.cleanup()

    def plan(self, overrides: Sequence[str]) -> JobReturn:
        """What the task function returns for one job."""
        try:
            self.connection.send(list(overrides))
            return cloudpickle.loads(self.connection.recv())
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.process.join()
            died = failed(JobDied(Ending.of_exit_code(self.process.exitcode)), overrides)
            self.__exit__()
            self.__enter__()  # for the jobs to come
            return died
