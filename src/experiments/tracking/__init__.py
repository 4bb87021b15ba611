"""Where runs are recorded: the only package that knows MLflow."""

from experiments.tracking.lock import Elsewhere, close_stale_runs, lock, lock_of_sweep, unlock
from experiments.tracking.run import TAGS, Run, environment, open_run, own_output, preload
from experiments.tracking.store import (
    check_store,
    check_writable,
    home,
    jobs_folder,
    nothing_recorded,
    shown_uri,
    store_uri,
)
from experiments.tracking.sweep import Parent, Recorded, earlier_runs, end_run, open_parent, parents, recorded
from experiments.tracking.ui import page, serve_ui

__all__ = [
    "TAGS",
    "Elsewhere",
    "Parent",
    "Recorded",
    "Run",
    "check_store",
    "check_writable",
    "close_stale_runs",
    "earlier_runs",
    "end_run",
    "environment",
    "home",
    "jobs_folder",
    "lock",
    "lock_of_sweep",
    "nothing_recorded",
    "open_parent",
    "open_run",
    "own_output",
    "page",
    "parents",
    "preload",
    "recorded",
    "serve_ui",
    "shown_uri",
    "store_uri",
    "unlock",
]
