"""Predicts image files, and writes the predictions as a table, JSON, CSV or a figure."""

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

UNSURE = 0.8  # a lower probability is marked as unsure
MNIST_SHAPE = (28, 28, 1)
_DIGITS = ("mnist", "mnist_5k")  # options of data
_BATCH_SIZE = 256  # files in memory
_MOST_DRAWN = 40


@dataclass(frozen=True)
class Prediction:
    """The prediction for one file."""

    file: str
    probabilities: np.ndarray  # float32 (classes,)
    names: tuple[str, ...]  # of the classes

    @property
    def order(self) -> np.ndarray:
        """Indices of the classes, the most probable first."""
        return np.argsort(-self.probabilities, kind="stable")

    @property
    def unsure(self) -> bool:
        """Whether the highest probability is low."""
        return bool(self.probabilities.max() < UNSURE)

    def values(self) -> dict[str, object]:
        """The columns of the table and the CSV file."""
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
    """The function that converts images to the model's input: as chosen, or as for the data it was trained on.

    A model of image files gets exactly the pixels of its training: size and color mode follow from its input, and
    `data.resize`, `data.invert` and `data.background` from its run.

    Raises:
        ExperimentError: the chosen preparation does not fit the model's input.
    """
    shape = classifier.image_shape
    digits = classifier.run is not None and classifier.run.params.get("data") in _DIGITS and shape == MNIST_SHAPE
    kind = chosen or ("mnist" if digits else "resize")
    if kind == "mnist":
        if shape != MNIST_SHAPE:
            problem = f"--prepare mnist makes grayscale images of 28 x 28 pixels, but {classifier.name} takes {shape}."
            raise ExperimentError(problem, advice="Use --prepare resize.")
        return images.as_mnist
    if shape[-1] not in (1, 3):
        raise ExperimentError(f"{classifier.name} takes {shape[-1]} channels; image files have 1 or 3.")
    convert = partial(images.resized, resize=classifier.resize) if kind == "resize" else images.as_it_is
    return partial(convert, shape=shape, invert=classifier.inverts, background=classifier.background)


def predict_files(
    classifier: Classifier, files: Sequence[Path], prepare: Callable[[Image.Image], np.ndarray]
) -> tuple[list[Prediction], list[str]]:
    """Predictions for all files that are images, and a sentence on each that is not."""
    found, rejected = [], []
    groups = [files[start : start + _BATCH_SIZE] for start in range(0, len(files), _BATCH_SIZE)]
    console = Console(stderr=True)
    for group in track(groups, "Predicting", console=console, transient=True, disable=not console.is_terminal):
        names, prepared = [], []
        for file in group:
            try:
                prepared.append(prepare(images.read(file)))
            except images.NotAnImage as error:
                rejected.append(f"{file} {error}.")
            else:
                names.append(str(file))
        if names:
            probabilities = classifier.predict(np.stack(prepared))
            found += [Prediction(*pair, classifier.class_names) for pair in zip(names, probabilities, strict=True)]
    return found, rejected


def print_table(predictions: Sequence[Prediction], console: Console) -> None:
    """Prints the predictions as a table."""
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
    """Writes the predictions as CSV, one line per file."""
    header = ["file", "label", "probability", "unsure", "second", "second_probability"]
    writer = csv.DictWriter(stream, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(prediction.values() for prediction in predictions)


def write_json(predictions: Sequence[Prediction], stream: TextIO) -> None:
    """Writes the predictions as a JSON list of objects, with all probabilities."""
    values = [
        p.values() | {"probabilities": dict(zip(p.names, map(float, p.probabilities), strict=True))}
        for p in predictions
    ]
    json.dump(values, stream, indent=1)
    stream.write("\n")


def draw(predictions: Sequence[Prediction], prepare: Callable[[Image.Image], np.ndarray], file: Path) -> None:
    """Draws the first 40 images as given and as the model sees them, with its probabilities.

    Raises:
        ExperimentError: the file cannot be written.
    """
    from experiments import galleries  # imports matplotlib, which nothing else here needs

    shown = predictions[:_MOST_DRAWN]
    given = [images.read(Path(prediction.file)) for prediction in shown]
    figure = galleries.classified(
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
