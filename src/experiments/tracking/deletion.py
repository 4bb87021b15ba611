"""Deletes runs and models with their artifacts."""

import shutil
from dataclasses import dataclass

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from experiments.errors import ExperimentError
from experiments.library_internals import delete_for_good
from experiments.tracking.runs import StoredRun, get_run, search
from experiments.tracking.sizes import model_folder, num_bytes
from experiments.tracking.store import StoreRefused, call_store, local_folder, open_store, run_folder, store_uri


def is_server() -> bool:
    """Whether the store is a server, whose database only the server itself can clean."""
    return store_uri().startswith(("http://", "https://"))


@dataclass(frozen=True)
class Room:
    """What takes room of a run or of its models alone, and how much."""

    models: tuple[str, ...]  # ids of models that are still there
    folders: tuple[str, ...]  # of their artifacts, and of the run's
    bytes: int  # of all artifacts, and of what the run has left on this machine


def room_of(run: StoredRun, *, models_only: bool = False) -> Room:
    """What takes room of a run, or of its models alone."""
    places = {model: folder for model in run.models if (folder := model_folder(model))}
    folders = [*places.values(), *([] if models_only else [run.artifact_uri])]
    left = 0 if models_only else num_bytes(str(run_folder(run.run_id)))
    return Room(tuple(places), tuple(folders), sum(map(num_bytes, folders)) + left)


def all_runs() -> tuple[list[StoredRun], list[StoredRun]]:
    """Every run of the store, sweeps among them, and every run that was marked as deleted."""
    client = open_store()
    return list(search(client, "")), list(search(client, "", deleted=True))


def registered() -> tuple[set[str], set[str]]:
    """The ids of the models that are registered, and of the runs that have trained them."""
    client = open_store()
    versions, token = [], None
    while True:
        page = call_store(client.search_model_versions, page_token=token)
        versions += page
        token = page.token
        if not token:
            break
    models = {str(version.source).removeprefix("models:/") for version in versions}
    return models, {version.run_id for version in versions if version.run_id}


def delete_models(room: Room) -> None:
    """Deletes logged models.

    Artifacts go first: whatever ends this process, the next one finds the rest.
    """
    client = open_store()
    for model, folder in zip(room.models, room.folders, strict=False):
        _delete_artifacts(folder)
        if not delete_for_good(client, model_id=model):
            call_store(client.delete_logged_model, model)


def delete_run(run: StoredRun, room: Room, *, marked: bool) -> bool:
    """Deletes a run with its models and its folder on this machine; returns False if it is being trained again.

    A server can only mark it as deleted; `mlflow gc` on the server's machine removes what stays in the database.

    Args:
        run: as it was found.
        room: that it takes.
        marked: whether it is marked as deleted already.
    """
    client = open_store()
    if get_run(run.run_id).attempt != run.attempt:
        return False
    delete_models(room)
    _delete_artifacts(run.artifact_uri)
    shutil.rmtree(run_folder(run.run_id), ignore_errors=True)
    if not delete_for_good(client, run_id=run.run_id) and not marked:
        call_store(client.delete_run, run.run_id)
    return True


def _delete_artifacts(folder: str) -> None:
    """Deletes a folder of artifacts; a local one with the folder of the run or model around it, if that is empty.

    Raises:
        ExperimentError: it cannot be deleted.
    """
    place = local_folder(folder)
    try:
        if place is None:
            call_store(get_artifact_repository(folder, tracking_uri=store_uri()).delete_artifacts)
        elif place.exists():
            shutil.rmtree(place)
            if not any(place.parent.iterdir()):
                place.parent.rmdir()
    except (OSError, StoreRefused) as error:
        raise ExperimentError(f"{folder} cannot be deleted: {error}") from error
