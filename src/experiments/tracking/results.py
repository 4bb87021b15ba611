"""Reads what a run has left behind: predictions, errors on the test set, class names, the model."""

import contextlib
import json
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar
from zipfile import BadZipFile

import numpy as np
from mlflow.artifacts import download_artifacts

from experiments.errors import ExperimentError
from experiments.tracking.runs import StoredRun, artifact
from experiments.tracking.store import StoreRefused, call_store, open_store, store_uri

_Kind = TypeVar("_Kind")


@dataclass(frozen=True)
class Predictions:
    """What a run's model predicts for its validation or test images."""

    labels: np.ndarray  # int64 (images,)
    probabilities: np.ndarray  # float32 (images, classes)


def predictions(run: StoredRun, part: str) -> Predictions | None:
    """The recorded predictions for the `validation` or `test` images, or None."""
    return _arrays(run, f"{part}_predictions.npz", Predictions)


@dataclass(frozen=True)
class Mistakes:
    """The test images that a run's model predicts wrongly, the most confident error first."""

    index: np.ndarray  # int64 (mistakes,), places in the test set as it is published
    image: np.ndarray  # uint8 (mistakes, height, width, channels)
    label: np.ndarray  # str (mistakes,), names of the classes
    predicted: np.ndarray  # str (mistakes,)


def mistakes(run: StoredRun) -> Mistakes | None:
    """The recorded errors on the test set, or None."""
    return _arrays(run, "mistakes.npz", Mistakes)


def _arrays(run: StoredRun, name: str, kind: type[_Kind]) -> _Kind | None:
    """The arrays of an .npz artifact of a run, or None if there is none or it is corrupt."""
    wanted = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        file = artifact(run, name, Path(folder))
        if file is None:
            return None
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return kind(*(arrays[field] for field in wanted))
        except (OSError, ValueError, KeyError, BadZipFile):  # damaged, or of another version of this project
            return None


def class_names(run: StoredRun) -> tuple[str, ...]:
    """The names of the classes in their order, empty when the run has not been evaluated."""
    with tempfile.TemporaryDirectory() as folder:
        file = artifact(run, "classification_report.json", Path(folder))
        report = json.loads(file.read_text(encoding="utf-8")) if file else {}
    *names, average = [name for name, values in report.items() if isinstance(values, dict)][:-1] or [""]
    if average != "macro avg":
        return ()
    # A class of that name has lost its place to the total, and its images are missing in the sum.
    if sum(report[name]["support"] for name in names) < report[average]["support"]:
        names.insert(list(report).index("accuracy"), "accuracy")
    return tuple(names)


def model_id(run: StoredRun) -> str | None:
    """The id of the model that a run has logged, None if there is none any more."""
    client = open_store()
    outputs = call_store(client.get_run, run.run_id).outputs
    logged = outputs.model_outputs[-1].model_id if outputs and outputs.model_outputs else None
    with contextlib.suppress(StoreRefused):  # it was deleted
        return call_store(client.get_logged_model, logged).model_id if logged else None
    return None


def model_file(run: StoredRun, folder: Path) -> Path | None:
    """Copies the .keras file that a run has logged into `folder`; None if it has logged none."""
    logged = model_id(run)
    if logged is None:
        return None
    copied = call_store(
        download_artifacts, artifact_uri=f"models:/{logged}", dst_path=str(folder), tracking_uri=store_uri()
    )
    return next(Path(copied).rglob("*.keras"), None)


def no_model(run: StoredRun) -> ExperimentError:
    """The error that explains why a run has no model."""
    if "sweep.name" in run.tags:
        return ExperimentError(f"{run.run_id} is a sweep.", advice=f"Name its best run: best:{run.tags['sweep.name']}")
    if run.diverged:
        reason = "its training has diverged"
    elif "pruned" in run.tags:
        reason = "it was pruned"
    elif run.status == "RUNNING":
        reason = "it is still running"
    elif run.status != "FINISHED":
        reason = f"it did not finish: {run.tags.get('failure', run.status)}"
    else:
        reason = "it was deleted" if run.models else "it was trained with tracking.model=false"
    return ExperimentError(f"{run.run_id} ({run.name}) has no model: {reason}.")
