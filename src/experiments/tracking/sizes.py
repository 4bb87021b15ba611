"""How much room the artifacts of runs and models take."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from mlflow.artifacts import list_artifacts

from experiments.tracking.runs import StoredRun
from experiments.tracking.store import StoreRefused, call_store, local_folder, open_store, store_uri

_READERS = 8  # folders that are listed at the same time


def sizes(runs: Sequence[StoredRun]) -> list[int]:
    """The bytes of the artifacts of each run, with those of its models."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(_of_run, runs))


def model_folder(model_id: str) -> str | None:
    """Where the artifacts of a logged model lie; None if it was deleted."""
    try:
        return call_store(open_store().get_logged_model, model_id).artifact_location
    except StoreRefused:
        return None


def num_bytes(folder: str) -> int:
    """The bytes of all files in a folder of artifacts, which may be on another machine."""
    place = local_folder(folder)
    if place is None:
        return _remote_bytes(folder)
    files = (os.path.join(path, name) for path, _, names in os.walk(place) for name in names)
    return sum(os.lstat(file).st_size for file in files)


def _of_run(run: StoredRun) -> int:
    folders: Iterable[str | None] = [run.artifact_uri, *map(model_folder, run.models)]
    return sum(num_bytes(folder) for folder in folders if folder)


def _remote_bytes(folder: str) -> int:
    total = 0
    for found in call_store(list_artifacts, artifact_uri=folder, tracking_uri=store_uri()):
        name = found.path.rpartition("/")[2]
        total += _remote_bytes(f"{folder.rstrip('/')}/{name}") if found.is_dir else found.file_size or 0
    return total
