"""A trained model by any of its names, ready to say what is on images."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from experiments.dataset import are_probabilities
from experiments.errors import ExperimentError
from experiments.tracking import runs
from experiments.tracking.registry import registered_model
from experiments.tracking.runs import StoredRun, find_run, model_file, no_model

_BATCH_SIZE = 256


@dataclass(frozen=True)
class Classifier:
    """A model that takes raw pixels."""

    name: str  # as the user has named it
    model: keras.Model
    run: StoredRun | None  # that has trained it; None where nobody knows
    class_names: tuple[str, ...]

    @property
    def reads_image_files(self) -> bool:
        """Whether it was trained on image files, as `data=folder` is."""
        return self.run is not None and "data.invert" in self.run.params

    @property
    def inverts(self) -> bool:
        """Whether it was trained on image files with dark and light exchanged."""
        return self.run is not None and self.run.params.get("data.invert") == "true"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.model.input_shape[1:]

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The probability of every class.

        Args:
            images: raw pixels, 0 to 255, of shape (images, height, width, channels); one channel may be left out.

        Returns:
            float32 of shape (images, classes).

        Raises:
            ExperimentError: the images have another shape than the model takes.
        """
        images = np.asarray(images)
        if images.ndim == 3 and self.image_shape[-1] == 1:
            images = images[..., None]
        if images.shape[1:] != self.image_shape:
            wanted = ", ".join(map(str, self.image_shape))
            raise ExperimentError(f"{self.name} takes images of shape (images, {wanted}), and not {images.shape}.")
        if not len(images):
            return np.empty((0, len(self.class_names)), np.float32)
        return np.asarray(self.model.predict(images.astype(np.float32), batch_size=_BATCH_SIZE, verbose=0))


def load(name: str) -> Classifier:
    """Finds a model and loads it.

    Args:
        name: the id of a run, alone or after `runs:/`; a registered model, as `models:/name@alias` or `models:/name/1`;
            a `.keras` file; or `best:` and a sweep, for the run that is best on its validation set.

    Raises:
        ExperimentError: there is no such model, the run has none, or it cannot be loaded.
    """
    if name.endswith(".keras"):
        file = Path(name)
        if not file.is_file():
            near = [found.name for found in file.parent.glob("*.keras")] if file.parent.is_dir() else []
            raise ExperimentError(f"{name}: there is no such file.", given=file.name, allowed=near)
        return _classifier(name, file, None)
    with tempfile.TemporaryDirectory() as folder:
        if name.startswith("models:/"):
            return _classifier(name, *registered_model(name, Path(folder)))
        run = _best(name.removeprefix("best:")) if name.startswith("best:") else find_run(name)
        copied = model_file(run, Path(folder))
        if copied is None:
            raise no_model(run)
        return _classifier(name, copied, run)


def _best(sweep: str) -> StoredRun:
    """The best seed of the best variant of a sweep, on validation."""
    from experiments.compare.comparison import comparison, find  # SciPy, which no other name needs

    title, runs = find([sweep], "")
    return comparison(runs, title).best_run


def _classifier(name: str, file: Path, run: StoredRun | None) -> Classifier:
    try:
        model = keras.saving.load_model(file, compile=False, safe_mode=True)
    except Exception as error:  # a damaged file, or one that needs code from elsewhere, raises almost anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExperimentError(f"{name} cannot be loaded: {reason}") from error
    given, answer = model.input_shape, model.output_shape
    if len(given) != 4 or None in given[1:] or len(answer) != 2 or answer[-1] < 2:
        raise ExperimentError(f"{name} takes {given} to {answer}, and is no classifier of images of one size.")
    outputs = np.asarray(model(np.zeros((1, *given[1:]), np.float32)))
    if not are_probabilities(outputs):
        raise ExperimentError(
            f"{name} does not output probabilities: on a black image its outputs are from {outputs.min():.3g} to "
            f"{outputs.max():.3g} and sum to {outputs.sum():.3g}.",
            advice="Save it again with keras.layers.Softmax() behind its last layer.",
        )
    names = runs.class_names(run) if run else ()
    return Classifier(name, model, run, names if len(names) == answer[-1] else tuple(map(str, range(answer[-1]))))
