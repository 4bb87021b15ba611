"""`Classifier`: a trained model, loaded by any of its names and ready to predict."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from experiments.compare.names import find_run
from experiments.dataset import are_probabilities
from experiments.errors import ExperimentError
from experiments.tracking.registry import find_model
from experiments.tracking.results import class_names
from experiments.tracking.runs import StoredRun

_BATCH_SIZE = 256


@dataclass(frozen=True)
class Classifier:
    """A trained model that takes raw pixels."""

    name: str  # as given by the user
    model: keras.Model
    run: StoredRun | None  # the run that trained it; None if unknown
    class_names: tuple[str, ...]

    @property
    def reads_image_files(self) -> bool:
        """Whether it was trained on image files, as with `data=folder` and `data=csv`."""
        return self.run is not None and "data.invert" in self.run.params

    @property
    def inverts(self) -> bool:
        """Whether it was trained on image files with dark and light swapped."""
        return self.run is not None and self.run.params.get("data.invert") == "true"

    @property
    def background(self) -> str:
        """The color that transparent pixels of its training images were composited onto."""
        return self.run.params.get("data.background", "white") if self.run else "white"

    @property
    def resize(self) -> str:
        """What was done with training images of another aspect ratio: `stretch`, `crop` or `pad`."""
        return self.run.params.get("data.resize", "stretch") if self.run else "stretch"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.model.input_shape[1:]

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Predicts the probability of every class.

        Args:
            images: raw pixels, 0 to 255, of shape (n, height, width, channels); a single channel may be left out.

        Returns:
            float32 of shape (n, classes).

        Raises:
            ExperimentError: the shape of the images is not that of the model's input.
        """
        images = np.asarray(images)
        if images.ndim == 3 and self.image_shape[-1] == 1:
            images = images[..., None]
        if images.shape[1:] != self.image_shape:
            wanted = ", ".join(map(str, self.image_shape))
            raise ExperimentError(f"{self.name} takes images of shape (n, {wanted}), not {images.shape}.")
        if not len(images):
            return np.empty((0, len(self.class_names)), np.float32)
        return np.asarray(self.model.predict(images.astype(np.float32), batch_size=_BATCH_SIZE, verbose=0))


def load(name: str) -> Classifier:
    """Finds and loads a model.

    Args:
        name: the id of a run, alone or after `runs:/`; a registered model, as `models:/name@alias` or `models:/name/1`;
            a `.keras` file; or `best:` and a sweep, for its best run on validation data.

    Raises:
        ExperimentError: there is no such model, the run has no model, or it cannot be loaded.
    """
    found = find_run(name).run_id if name.startswith("best:") else name
    with tempfile.TemporaryDirectory() as folder:
        return _classifier(name, *find_model(found, Path(folder)))


def _classifier(name: str, file: Path, run: StoredRun | None) -> Classifier:
    try:
        model = keras.saving.load_model(file, compile=False, safe_mode=True)
    except Exception as error:  # a corrupt file, or one that needs other code, raises almost anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExperimentError(f"{name} cannot be loaded: {reason}") from error
    inputs, classes = model.input_shape, model.output_shape[-1]
    if len(inputs) != 4 or None in inputs[1:] or len(model.output_shape) != 2 or classes < 2:
        raise ExperimentError(
            f"{name} maps {inputs} to {model.output_shape}; it is not a classifier of images of one size."
        )
    outputs = np.asarray(model(np.zeros((1, *inputs[1:]), np.float32)))
    if not are_probabilities(outputs):
        raise ExperimentError(
            f"{name} does not output probabilities: for a black image, its outputs are from {outputs.min():.3g} to "
            f"{outputs.max():.3g} and sum to {outputs.sum():.3g}.",
            advice="Add keras.layers.Softmax() after its last layer and save it again.",
        )
    names = class_names(run) if run else ()
    return Classifier(name, model, run, names if len(names) == classes else tuple(map(str, range(classes))))
