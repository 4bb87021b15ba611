"""Who is at work: one process a fingerprint, and no run left open by a dead process."""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from time import time

import psutil
from mlflow.entities import Run, ViewType

from experiments.errors import ExperimentError
from experiments.tracking.run import this_process
from experiments.tracking.store import alone_in, jobs_folder, open_store, shown_uri, store_uri
from experiments.tracking.sweep import end_run

_TOUCHED_EVERY = 10  # seconds
_SAME_START = 60  # seconds between two readings of one process's start
_ABANDONED_AFTER = 120  # seconds without a touch from another host


class Elsewhere(ExperimentError):
    """Another process is at the very same work just now."""


def _lives(process: dict[str, object]) -> bool:
    """Whether a process of this host is alive; a process id alone may have gone to another one since."""
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(int(str(process["pid"])))
        # Wide, as the times that a system tells of a process move when its clock is set.
        same = abs(found.create_time() - float(str(process.get("started", found.create_time())))) < _SAME_START
        return same and found.status() != psutil.STATUS_ZOMBIE
    return False


@contextlib.contextmanager
def lock(name: str, what: str = "This very run is being trained") -> Iterator[None]:
    """Keeps every other process off the same work in the same store.

    Args:
        name: a fingerprint, or of a sweep.
        what: is done, for the message.

    Raises:
        Elsewhere: another process is at it.
    """
    file = _lock_file(name)
    with alone_in(file.parent):
        if file.exists() and _held(file):
            holder = json.loads(file.read_text())
            raise Elsewhere(
                f"{what} by process {holder['pid']} on {holder['host']}.",
                advice=f"Wait for it, or if that is not so, delete {file}",
            )
        file.write_text(json.dumps(this_process()))
    done = threading.Event()
    keeper = threading.Thread(target=_keep, args=(file, done), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()
        file.unlink(missing_ok=True)


def lock_of_sweep(name: str) -> str:
    """The name under which a sweep is locked: its own may hold what no file name can."""
    return sha256(name.encode()).hexdigest()[:16]


def unlock(name: str) -> None:
    """Removes the lock that a dead process has left."""
    file = _lock_file(name)
    with alone_in(file.parent):
        if file.exists() and not _held(file):
            file.unlink()


def _lock_file(name: str) -> Path:
    store = sha256(store_uri().encode()).hexdigest()[:8]
    return jobs_folder() / f"{store}-{name}.lock"


def _held(file: Path) -> bool:
    try:
        holder = json.loads(file.read_text())
    except json.JSONDecodeError:  # its maker died while writing
        return False
    if holder["host"] == socket.gethostname():
        return _lives(holder)
    return time() - file.stat().st_mtime < _ABANDONED_AFTER


def _keep(file: Path, done: threading.Event) -> None:
    while not done.wait(_TOUCHED_EVERY):
        with contextlib.suppress(FileNotFoundError):
            os.utime(file)


def close_stale_runs() -> None:
    """Closes the runs that a dead process of this host has left open."""
    client = open_store()
    experiments = [found.experiment_id for found in client.search_experiments(view_type=ViewType.ACTIVE_ONLY)]
    running = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
    stale = [run for run in client.search_runs(experiments, running) if not _lives(_process_of(run))]
    for run in stale:
        end_run(run.info.run_id, "KILLED", {"reason": "stale", "failure": "its process was gone"})
        name = run.data.tags.get("sweep.name")
        unlock(lock_of_sweep(name) if name else run.data.tags.get("fingerprint", ""))


def _process_of(run: Run) -> dict[str, object]:
    """The process that has a run open: as its folder has it, or else as its tags."""
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        written = json.loads((jobs_folder() / run.info.run_id / "run.json").read_text())
        if written["store"] == shown_uri():
            return written
    return {"pid": run.data.tags["pid"]}
