"""Locks: one process per fingerprint or sweep, and no run left RUNNING by a process that has died."""

import contextlib
import json
import logging
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from time import time

import psutil
from mlflow.entities import Run, ViewType

from experiments.errors import ExperimentError
from experiments.tracking.delivery import REMEMBERED, is_waiting
from experiments.tracking.parent import end_run
from experiments.tracking.run import this_process
from experiments.tracking.store import StoreLost, call_store, folder_lock, jobs_folder, open_store, shown_uri, store_uri

_log = logging.getLogger(__name__)

TOUCHED_EVERY = 10  # seconds
_SAME_START = 60  # seconds between two readings of one process's start
_ABANDONED_AFTER = 120  # seconds without a touch from another host
_STALE = {"reason": "stale", "failure": "its process had died"}


class AlreadyRunning(ExperimentError):
    """Another process is running the same training or sweep."""


def _lives(process: dict[str, object]) -> bool:
    """Whether a process of this host is alive; its id alone may belong to a newer process by now."""
    if process["pid"] is None:  # it has left its run
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(int(str(process["pid"])))
        # Wide, as the times that a system tells of a process move when its clock is set.
        same = abs(found.create_time() - float(str(process.get("started", found.create_time())))) < _SAME_START
        return same and found.status() != psutil.STATUS_ZOMBIE
    return False


@contextlib.contextmanager
def lock(name: str, what: str = "This very run is being trained") -> Iterator[None]:
    """Holds a lock, so that no other process does the same work in the same store.

    Args:
        name: a fingerprint, or what `lock_of_sweep` returns.
        what: what is being done, for the error message.

    Raises:
        AlreadyRunning: another process holds the lock.
    """
    file = _lock_file(name)
    with folder_lock(file.parent):
        if _held(file):
            holder = _holder(file)
            raise AlreadyRunning(
                f"{what} by process {holder['pid']} on {holder['host']}.",
                advice=f"Wait until it has finished; if that process is gone, delete {file}",
            )
        file.write_text(json.dumps(this_process()), encoding="utf-8")
    done = threading.Event()
    keeper = threading.Thread(target=_keep, args=(file, done), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()
        # A lock that cannot be deleted holds nobody up once this process is gone.
        with contextlib.suppress(OSError), folder_lock(file.parent):
            if _is_ours(file):
                file.unlink()


def lock_of_sweep(name: str) -> str:
    """The name of a sweep's lock; the sweep's own name may contain what a file name cannot."""
    return sha256(name.encode()).hexdigest()[:16]


def unlock(name: str) -> None:
    """Deletes a lock whose process has died."""
    file = _lock_file(name)
    with folder_lock(file.parent):
        if not _held(file):
            file.unlink(missing_ok=True)


def is_locked(name: str) -> bool:
    """Whether a process holds a lock."""
    return _held(_lock_file(name))


def _lock_file(name: str) -> Path:
    store = sha256(store_uri().encode()).hexdigest()[:8]
    return jobs_folder() / f"{store}-{name}.lock"


def _holder(file: Path) -> dict[str, object]:
    """The process that a lock names, empty when there is no lock or its process died while writing it."""
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        return json.loads(file.read_text(encoding="utf-8"))
    return {}


def _held(file: Path) -> bool:
    """Whether the process that a lock names is alive: on another host, as long as it touches the lock."""
    holder = _holder(file)
    if not holder:
        return False
    if holder["host"] == socket.gethostname():
        return _lives(holder)
    try:
        return time() - file.stat().st_mtime < _ABANDONED_AFTER
    except FileNotFoundError:  # deleted just now
        return False


def _is_ours(file: Path) -> bool:
    holder = _holder(file)
    return (holder.get("host"), holder.get("pid")) == (socket.gethostname(), os.getpid())


def _keep(file: Path, done: threading.Event) -> None:
    """Touches a lock until `done`, so that other hosts see that its process is alive; says once if that fails."""
    failing = False
    while not done.wait(TOUCHED_EVERY):
        try:
            if not _is_ours(file):
                holder = _holder(file)
                fate = f"was taken over by process {holder['pid']} on {holder['host']}" if holder else "was deleted"
                _log.warning("The lock %s %s: another process may do the same work now.", file, fate)
                return
            os.utime(file)
            failing = False
        except OSError as error:  # of a network drive, which may come back
            if not failing:
                _log.warning("The lock %s cannot be kept: %s. Another host may do the same work soon.", file, error)
            failing = True


def close_stale_runs() -> None:
    """Ends the runs that are RUNNING although their process on this host has died."""
    client = open_store()
    found = call_store(client.search_experiments, view_type=ViewType.ACTIVE_ONLY)
    experiments = [experiment.experiment_id for experiment in found]
    running = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
    for run in call_store(client.search_runs, experiments, running):
        if _lives(_process_of(run)):
            continue
        name = run.data.tags.get("sweep.name")
        try:
            _close(run.info.run_id)
        except Exception as error:  # whatever is wrong with it must not keep another run from starting
            _log.warning(
                "%s (%s), whose process has died, cannot be closed: %s", run.info.run_name, run.info.run_id, error
            )
        unlock(lock_of_sweep(name) if name else run.data.tags.get("fingerprint", ""))


def sync(say: Callable[[str], None]) -> bool:
    """Sends what the folders of ended runs still hold, and ends the runs whose process has died.

    Args:
        say: called with one line about each run.

    Returns:
        Whether the store has everything that was meant for it.

    Raises:
        StoreLost: the store does not answer.
    """
    client = open_store()
    folders = [folder for folder in sorted(jobs_folder().glob("*/")) if is_waiting(folder)]
    idle = [folder for folder in folders if not _is_at_work(folder)]
    complete = True
    for folder in idle:
        name = folder.name
        try:
            name = call_store(client.get_run, folder.name).info.run_name
            _close(folder.name)
        except StoreLost:
            raise
        except Exception as error:  # the next run may be fine
            recorded_in = _remembered(folder).get("store")
            if name == folder.name and recorded_in != shown_uri():
                say(f"{name} is not in this store; it was recorded in {recorded_in}.")
                continue
            complete = False
            say(
                f"{name} cannot be sent from {folder}: {error} "
                "Correct that and run experiments sync again, or delete the folder if nobody needs what is in it."
            )
            continue
        ended = call_store(client.get_run, folder.name)
        if ended.info.status == "FINISHED" or {"diverged", "sweep.name"} & set(ended.data.tags):
            shutil.rmtree(folder)
        say(f"Sent {name} ({folder.name}): {ended.info.status}")
    if len(idle) < len(folders):
        say(f"{len(folders) - len(idle)} more are still running.")
    elif not folders:
        say("Nothing to send: the store has everything.")
    return complete


def _close(run_id: str) -> None:
    """Ends a run whose process has died, unless another process has resumed it meanwhile."""
    folder = jobs_folder() / run_id
    with folder_lock(folder) if folder.exists() else contextlib.nullcontext():
        if not _is_at_work(folder):
            end_run(run_id, "KILLED", _STALE)


def _is_at_work(folder: Path) -> bool:
    """Whether the process that has a run open is alive, on this or another host."""
    holder = _remembered(folder)
    if not holder:
        return False
    if holder["host"] == socket.gethostname():
        return _lives(holder)
    name = lock_of_sweep(str(holder["sweep"])) if holder.get("sweep") else str(holder.get("fingerprint"))
    return any(_held(file) for file in jobs_folder().glob(f"*-{name}.lock"))


def _remembered(folder: Path) -> dict[str, object]:
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        return json.loads((folder / REMEMBERED).read_text(encoding="utf-8"))
    return {}


def _process_of(run: Run) -> dict[str, object]:
    """The process that has a run open, from its folder or its tags; runs of other programs count as alive."""
    written = _remembered(jobs_folder() / run.info.run_id)
    return written if written.get("store") == shown_uri() else {"pid": run.data.tags.get("pid", os.getpid())}
