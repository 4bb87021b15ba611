"""Predictions for image files: as a table, JSON, CSV and a figure."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments import images
from experiments.errors import ExperimentError
from experiments.serving.classifier import Classifier

UNSURE = 0.8  # the highest probability that is not taken at its word
MNIST_SHAPE = (28, 28, 1)
_OF_DIGITS = ("mnist", "mnist_5k")  # choices of data
_AT_ONCE = 256  # files in memory
_MOST_IN_A_PICTURE = 40


@dataclass(frozen=True)
class Prediction:
    """What a model says of one file."""

    file: str
    probabilities: np.ndarray  # float32 (classes,)
    names: tuple[str, ...]  # of the classes

    @property
    def order(self) -> np.ndarray:
        """Places of the classes, the most probable first."""
        return np.argsort(-self.probabilities, kind="stable")

    @property
    def unsure(self) -> bool:
        """Whether its probability is low."""
        return bool(self.probabilities.max() < UNSURE)

    def values(self) -> dict[str, object]:
        """Column -> value."""
        first, second = self.order[:2]
        return {
            "file": self.file,
            "label": self.names[first],
            "probability": float(self.probabilities[first]),
            "unsure": self.unsure,
            "second": self.names[second],
            "second_probability": float(self.probabilities[second]),
        }


def preparation(classifier: Classifier, chosen: str | None) -> Callable[[Image.Image], np.ndarray]:
    """How images become the pixels that the model takes: as chosen, or as fits the data it was trained on.

    A model of `data=folder` gets exactly the pixels of its training: the model's own input has the size and colour
    mode, its run has recorded `data.invert`.

    Raises:
        ExperimentError: the choice does not fit the model.
    """
    shape = classifier.image_shape
    digits = classifier.run is not None and classifier.run.params.get("data") in _OF_DIGITS and shape == MNIST_SHAPE
    kind = chosen or ("mnist" if digits else "resize")
    if kind == "mnist":
        if shape != MNIST_SHAPE:
            problem = f"--prepare mnist makes images of 28 x 28 grey pixels, and {classifier.name} takes {shape}."
            raise ExperimentError(problem, advice="Try: --prepare resize")
        return images.as_mnist
    if shape[-1] not in (1, 3):
        raise ExperimentError(f"{classifier.name} takes {shape[-1]} channels: no image file has them.")
    convert = images.resized if kind == "resize" else images.as_it_is
    return partial(convert, shape=shape, invert=classifier.inverts)


def predict(
    classifier: Classifier, files: Sequence[Path], prepare: Callable[[Image.Image], np.ndarray]
) -> tuple[list[Prediction], list[str]]:
    """Predictions of all files that are images, and a sentence on each that is none; 256 are read at once."""
    found, refused = [], []
    groups = [files[start : start + _AT_ONCE] for start in range(0, len(files), _AT_ONCE)]
    console = Console(stderr=True)
    for group in track(groups, "Predicting", console=console, transient=True, disable=not console.is_terminal):
        names, prepared = [], []
        for file in group:
            try:
                prepared.append(prepare(images.read(file)))
            except images.NotAnImage as error:
                refused.append(f"{file} {error}.")
            else:
                names.append(str(file))
        if names:
            said = classifier.predict(np.stack(prepared))
            found += [Prediction(*pair, classifier.class_names) for pair in zip(names, said, strict=True)]
    return found, refused


def show(predictions: Sequence[Prediction], console: Console) -> None:
    """Prints a table."""
    table = Table(box=None, pad_edge=False)
    table.add_column("file", overflow="fold")
    for name in ("label", "probability"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("second choice", no_wrap=True)
    for prediction in predictions:
        values = prediction.values()
        sure = f"{values['probability']:.1%}" + (" unsure" if prediction.unsure else "       ")
        second = f"{values['second']} ({values['second_probability']:.1%})"
        table.add_row(prediction.file, str(values["label"]), sure, second)
    console.print(table)


def write_csv(predictions: Sequence[Prediction], stream: TextIO) -> None:
    """Writes a line for each file."""
    header = ["file", "label", "probability", "unsure", "second", "second_probability"]
    writer = csv.DictWriter(stream, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(prediction.values() for prediction in predictions)


def write_json(predictions: Sequence[Prediction], stream: TextIO) -> None:
    """Writes a list of objects, with all probabilities."""
    values = [
        p.values() | {"probabilities": dict(zip(p.names, map(float, p.probabilities), strict=True))}
        for p in predictions
    ]
    json.dump(values, stream, indent=1)
    stream.write("\n")


def draw(predictions: Sequence[Prediction], prepare: Callable[[Image.Image], np.ndarray], file: Path) -> None:
    """Draws the first 40 images as they are given, as the net sees them, and its probabilities.

    Raises:
        ExperimentError: the picture cannot be written.
    """
    from experiments import plots  # matplotlib, which nothing else here needs

    shown = predictions[:_MOST_IN_A_PICTURE]
    given = [images.read(Path(prediction.file)) for prediction in shown]
    figure = plots.classified(
        [_thumbnail(image) for image in given],
        [prepare(image) for image in given],
        np.stack([prediction.probabilities for prediction in shown]),
        [Path(prediction.file).name for prediction in shown],
        predictions[0].names,
        UNSURE,
    )
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:
        raise ExperimentError(f"{file} cannot be written: {error}.") from error


def _thumbnail(image: Image.Image) -> np.ndarray:
    image = images.composited(image).convert("RGB")
    image.thumbnail((224, 224))
    return np.asarray(image)
