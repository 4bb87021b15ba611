"""What a process prints: on the console, and in the `job.log` of its run."""

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from experiments.tracking.secrets import WithoutSecrets, without_secrets
from experiments.tracking.store import jobs_folder

_log = logging.getLogger("experiments")
_own_output: Path | None = None  # where this process writes its output as long as no run of a sweep is open


class _StandardOutput(logging.StreamHandler[TextIO]):
    """Prints to the standard output of the moment, which the progress bar keeps clear of its own line."""

    stream = property(lambda self: sys.stdout, lambda self, stream: None)


@contextlib.contextmanager
def console_log(*, of_a_job: bool) -> Iterator[None]:
    """Prints the log of this package during a run, except in the job of a sweep, whose log goes to its file."""
    _log.setLevel(logging.DEBUG)
    if of_a_job:
        yield
        return
    handler = _StandardOutput()
    handler.setLevel(logging.INFO)
    handler.setFormatter(WithoutSecrets("%(message)s"))
    _log.addHandler(handler)
    try:
        yield
    finally:
        _log.removeHandler(handler)


@contextlib.contextmanager
def redirect_output(name: str) -> Iterator[TextIO]:
    """Sends everything that this process prints to a file, which becomes `job.log` of the next run.

    Args:
        name: of the file as long as there is no run.

    Yields:
        The standard output as it was before.
    """
    global _own_output
    jobs_folder().mkdir(parents=True, exist_ok=True)
    _own_output = jobs_folder() / name
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.ExitStack() as restore, open(os.dup(1), "w", encoding="utf-8", buffering=1) as console:
        for descriptor in (1, 2):
            before = os.dup(descriptor)
            restore.callback(os.close, before)
            restore.callback(os.dup2, before, descriptor)
        restore.callback(sys.stderr.flush)
        restore.callback(sys.stdout.flush)
        with _own_output.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            yield console
        except Exception:
            print(without_secrets(traceback.format_exc()), file=sys.stderr)
            raise
        finally:
            _own_output = None


@contextlib.contextmanager
def job_log(file: Path) -> Iterator[None]:
    """Writes the log of this package to `file`, after what this process has printed so far if that is kept."""
    if _own_output:
        if file.exists():  # from an earlier attempt; this process appends to it
            _own_output.write_bytes(file.read_bytes() + _own_output.read_bytes())
        _own_output.rename(file)
    handler = logging.FileHandler(file)
    handler.setFormatter(WithoutSecrets("%(asctime)s %(levelname)s %(message)s"))
    _log.addHandler(handler)
    try:
        yield
    finally:
        _log.removeHandler(handler)
        handler.close()
