"""What the models of runs score on every validation or test image."""

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from experiments.tracking.results import predictions
from experiments.tracking.runs import StoredRun, artifact
from experiments.tracking.store import StoreLost, StoreRefused, local_folder

_READERS = 8  # files that are read at the same time


def scores(stored: Sequence[StoredRun], part: str) -> list[np.ndarray | None]:
    """What each run's model scores on every `validation` or `test` image; None for a run where it cannot be read.

    Returns:
        Arrays of shape (images,) with the fields `correct`, bool, and `cross_entropy`, float32.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda run: _scores(run, part), stored))


def _scores(run: StoredRun, part: str) -> np.ndarray | None:
    name = f"{part}_scores.npy"
    folder = local_folder(run.artifact_uri)
    try:
        with tempfile.TemporaryDirectory() if folder is None else nullcontext(folder) as place:
            file = artifact(run, name, Path(place)) if folder is None else Path(place, name)
            if file and file.exists():
                return np.load(file, allow_pickle=False)
        said = predictions(run, part)  # of a run that was recorded before there were scores
        return image_scores(said.labels, said.probabilities) if said else None
    except (StoreLost, StoreRefused, OSError, ValueError):  # damaged, or out of reach: a comparison needs no scores
        return None


def image_scores(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """What a model scores on every image: the fields `correct`, bool, and `cross_entropy`, float32.

    Args:
        labels: int64 (images,).
        probabilities: float32 (images, classes).
    """
    likelihoods = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    found = np.empty(len(labels), [("correct", bool), ("cross_entropy", np.float32)])
    found["correct"] = probabilities.argmax(axis=1) == labels
    # As model.evaluate: behind a softmax Keras takes the logits and clips nothing; this only avoids log 0.
    found["cross_entropy"] = -np.log(likelihoods.clip(min=np.finfo(np.float32).tiny))
    return found
