"""Trained models by any of their names; registered models: their versions, and which one is champion."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow.artifacts import download_artifacts

from experiments.errors import ExperimentError
from experiments.tracking.results import model_file, model_id, no_model
from experiments.tracking.runs import StoredRun, find_run, get_run
from experiments.tracking.store import StoreRefused, call_store, open_store, store_uri

CHAMPION, CHALLENGER = "champion", "challenger"


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    version: str
    run_id: str  # whose model it is
    tags: Mapping[str, str]


def find_model(name: str, folder: Path) -> tuple[Path, StoredRun | None]:
    """Finds a trained model: its .keras file and, if it is known, the run that trained it.

    Args:
        name: the id of a run, alone or after `runs:/`; a registered model, as `models:/name@alias` or `models:/name/1`;
            or a `.keras` file.
        folder: where to copy the file of a run or a registered model.

    Raises:
        ExperimentError: there is no such model, or the run has none.
    """
    if name.endswith(".keras"):
        file = Path(name).expanduser()
        if not file.is_file():
            near = [found.name for found in file.parent.glob("*.keras")] if file.parent.is_dir() else []
            raise ExperimentError(f"{name}: there is no such file.", given=file.name, allowed=near)
        return file, None
    if name.startswith("models:/"):
        return registered_model(name, folder)
    run = find_run(name)
    copied = model_file(run, folder)
    if copied is None:
        raise no_model(run)
    return copied, run


def registered_model(name: str, folder: Path) -> tuple[Path, StoredRun | None]:
    """Copies the .keras file of a registered model into `folder`; also returns the run that trained it, if known.

    Args:
        name: as `models:/name@alias` or `models:/name/version`.
        folder: where to copy it.

    Raises:
        ExperimentError: there is no such model, or it is not a Keras model.
    """
    client = open_store()
    model, _, version = name.removeprefix("models:/").partition("/")
    model, _, alias = model.partition("@")
    try:
        if alias:
            found = call_store(client.get_model_version_by_alias, model, alias)
        else:
            found = call_store(client.get_model_version, model, version)
    except StoreRefused as error:
        known = [registered.name for registered in call_store(client.search_registered_models)]
        problem = f"{name}: there is no such registered model."
        advice = "" if version or alias else f"Name a version or an alias, as in models:/{model}@champion."
        raise ExperimentError(problem, given=model, allowed=known, advice=advice) from error
    # In a URI that has the model's name in it, some characters would mean something else.
    place = call_store(client.get_model_version_download_uri, found.name, found.version)
    copied = call_store(download_artifacts, artifact_uri=place, dst_path=str(folder), tracking_uri=store_uri())
    file = next(Path(copied).rglob("*.keras"), None)
    if file is None:
        raise ExperimentError(f"{name} is not a Keras model.")
    return file, get_run(found.run_id) if found.run_id else None


def champion(name: str) -> Version | None:
    """The version with the alias `champion`, or None if there is none yet."""
    try:
        found = call_store(open_store().get_model_version_by_alias, name, CHAMPION)
    except StoreRefused:
        return None
    return Version(name, str(found.version), found.run_id, found.tags)


def register(name: str, run: StoredRun, tags: Mapping[str, str], description: str) -> str:
    """Registers the model of a run as the newest version of `name`, and returns its number.

    Raises:
        ExperimentError: the run has logged no model, or MLflow does not accept the name.
    """
    client = open_store()
    logged = model_id(run)
    if logged is None:
        raise no_model(run)
    try:
        try:
            call_store(client.get_registered_model, name)
        except StoreRefused:
            call_store(client.create_registered_model, name)
        made = call_store(
            client.create_model_version,
            name,
            f"models:/{logged}",
            run_id=run.run_id,
            tags=dict(tags),
            description=description,
            model_id=logged,
        )
    except StoreRefused as error:
        raise ExperimentError(f"{name} cannot be registered: {str(error.__cause__).splitlines()[0]}") from error
    return str(made.version)


def set_alias(name: str, alias: str, version: str) -> None:
    """Points an alias of a registered model at a version."""
    call_store(open_store().set_registered_model_alias, name, alias, version)
