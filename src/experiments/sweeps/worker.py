"""What runs in the process of a job or of the planner."""

import contextlib
import multiprocessing
import os
import reprlib
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Protocol

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.core.utils import run_job as run_task
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from experiments.library_internals import job_error
from experiments.sweeps import gpus

GRACE = 6  # seconds that a job has to close its run after a signal
_shown = reprlib.Repr()  # as repr, and nothing that it may raise
_shown.maxother = 200

_launcher: Connection | None = None  # to the process that launched this one


class Plugin(Protocol):
    """A sweeper or launcher that Hydra has set up."""

    hydra_context: HydraContext
    config: DictConfig
    task_function: TaskFunction


@dataclass(frozen=True)
class SweepTask:
    """What the jobs of a sweep have in common; a job adds its overrides."""

    hydra_context: HydraContext
    config: DictConfig
    task_function: TaskFunction

    @classmethod
    def of(cls, plugin: Plugin) -> "SweepTask":
        """The task that Hydra has set a sweeper or launcher up with."""
        return cls(plugin.hydra_context, plugin.config, plugin.task_function)

    def pickled(self) -> bytes:
        """The task and Hydra's singletons as bytes for another process."""
        return cloudpickle.dumps((self, Singleton.get_state()))

    def run(self, number: int, overrides: Sequence[str]) -> JobReturn:
        """Runs one job in this process, as Hydra's own launchers do."""
        setup_globals()
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = f"{config.hydra.job.name}_{number}"
            config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        return run_task(
            hydra_context=self.hydra_context,
            config=config,
            task_function=self.task_function,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )


@dataclass(frozen=True)
class WorkerEnvironment:
    """What the launching process gives to the process of a job."""

    scratch: str  # folder for what TensorFlow leaves behind when a process ends without Python's tidying up
    ending_signals: list[signal.Signals]  # that end it
    gpu: str | None  # the only one that it sees, none for -1; None to leave that as it is


def report(message: object) -> bool:
    """Sends a message to the launching process; returns whether there is one to send it to."""
    if _launcher is None:
        return False
    with contextlib.suppress(BrokenPipeError):
        _launcher.send(("progress", message))
    return True


def run_job(
    connection: Connection, task: bytes, number: int, overrides: list[str], environment: WorkerEnvironment
) -> None:
    """Runs one job and sends its result; its process does nothing else."""
    global _launcher
    _prepare(environment)
    _launcher = connection
    try:
        result = _unpickled(task).run(number, overrides)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    error = job_error(result)
    if isinstance(error, Exception):  # its traceback does not go along
        error.add_note("".join(traceback.format_exception(error)))
    connection.send(("returned", _pickled(result)))
    connection.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # whatever threads the job has left behind


def run_planner(connection: Connection, task: bytes, environment: WorkerEnvironment) -> None:
    """Receives the overrides of jobs and sends their plans; its process does nothing else."""
    _prepare(environment)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # a job says the same again
    os.dup2(nowhere, 2)
    sweep_task = _unpickled(task)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            connection.send(_pickled(sweep_task.run(0, [*connection.recv(), "dry_run=true"])))


def _prepare(environment: WorkerEnvironment) -> None:
    """Ends this process when the launching one ends; lets it close its run when it receives a signal."""
    if wait([_sentinel()], timeout=0):
        os._exit(128 + signal.SIGTERM)
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    for number in environment.ending_signals:
        signal.signal(number, _stop_once)
    if environment.gpu is not None:
        gpus.use(environment.gpu)
    tempfile.tempdir = environment.scratch


def _stop_once(number: int, frame: object) -> None:
    for other in (signal.SIGINT, signal.SIGTERM):  # a second one would disturb the closing of the run
        signal.signal(other, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def _end_with_launcher() -> None:
    wait([_sentinel()])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)


def _sentinel() -> int:
    """A handle that becomes readable when the launching process has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101 - this runs in processes of multiprocessing only
    return parent.sentinel


def _unpickled(task: bytes) -> SweepTask:
    sweep_task, singletons = cloudpickle.loads(task)
    Singleton.set_state(singletons)
    return sweep_task


def _pickled(result: JobReturn) -> bytes:
    try:
        pickled = cloudpickle.dumps(result)
        cloudpickle.loads(pickled)  # an exception with arguments of its own may fail here only
        return pickled
    except Exception as error:  # whatever the task returned or raised
        value = result.return_value if result.status is JobStatus.COMPLETED else job_error(result)
        result.return_value = RuntimeError(f"{_shown.repr(value)} cannot be sent between processes: {error}")
        result.status = JobStatus.FAILED
        return cloudpickle.dumps(result)
