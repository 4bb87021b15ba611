"""Where runs are recorded: the only package that knows MLflow."""

from experiments.tracking.lock import Elsewhere, close_stale_runs, lock, lock_of_sweep, sync, unlock
from experiments.tracking.provenance import WithoutSecrets, environment, provenance, uncommitted
from experiments.tracking.records import (
    Recorded,
    artifact,
    earlier_runs,
    existing,
    experiment_name,
    history,
    model_file,
    parents,
    recorded,
)
from experiments.tracking.run import TAGS, Run, open_run, own_output, preload
from experiments.tracking.store import (
    StoreLost,
    StoreRefused,
    be_patient,
    check_store,
    check_writable,
    home,
    jobs_folder,
    nothing_recorded,
    run_folder,
    shown_uri,
    store_uri,
)
from experiments.tracking.sweep import Parent, end_run, open_parent
from experiments.tracking.ui import page, serve_ui

__all__ = [
    "TAGS",
    "Elsewhere",
    "Parent",
    "Recorded",
    "Run",
    "StoreLost",
    "StoreRefused",
    "WithoutSecrets",
    "artifact",
    "be_patient",
    "check_store",
    "check_writable",
    "close_stale_runs",
    "earlier_runs",
    "end_run",
    "environment",
    "existing",
    "experiment_name",
    "history",
    "home",
    "jobs_folder",
    "lock",
    "lock_of_sweep",
    "model_file",
    "nothing_recorded",
    "open_parent",
    "open_run",
    "own_output",
    "page",
    "parents",
    "preload",
    "provenance",
    "recorded",
    "run_folder",
    "serve_ui",
    "shown_uri",
    "store_uri",
    "sync",
    "uncommitted",
    "unlock",
]
