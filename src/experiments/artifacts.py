"""Writes the results of a training into the record of its run: metrics, tables, figures, the model, a summary."""

import gc
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from experiments import galleries, plots
from experiments.dataset import Dataset
from experiments.tracking.run import Run
from experiments.tracking.scores import image_scores
from experiments.training.evaluation import Evaluation
from experiments.training.fit import TrainingResult
from experiments.training.layers import weights_sha256
from experiments.training.macs import count_macs

_log = logging.getLogger("experiments")
_SAMPLES = 16
_MOST_MISTAKES = 500
_MOST_CLASSES = 10  # named in a sentence
_BYTES_OF_MISTAKES = 2**25


@dataclass(frozen=True)
class Outcome:
    """A trained model, what it was trained on and what was measured."""

    model: keras.Model  # with the weights that were kept
    data: Dataset
    result: TrainingResult
    validation: Evaluation
    test: Evaluation
    measured: Mapping[str, float]  # the selected metrics on the test images
    objective: str  # the metric by which epochs are compared
    keep: str  # whose weights were kept, `best` or `last`


def metrics(outcome: Outcome) -> dict[str, float]:
    """The metrics of a whole run: the epoch whose weights were kept, the test set and the cost."""
    result, test, rejected = outcome.result, outcome.test, outcome.data.rejected_labels
    macs = count_macs(outcome.model)
    if macs is None:
        _log.info("cost/macs is not recorded: the operations of a layer of the model cannot be counted.")
    return {
        "best/epoch": result.best_epoch,
        **{f"best/{name}": value for name, value in result.best.items() if name.startswith("val_")},
        **{f"test/{name}": value for name, value in {**outcome.measured, **test.metrics()}.items()},
        **({"test/accuracy_clean": test.accuracy_without(rejected)} if rejected else {}),
        "cost/train_seconds": result.seconds,
        "cost/images_per_second": result.images_per_second,
        "cost/parameters": outcome.model.count_params(),
        **({} if macs is None else {"cost/macs": macs}),
    }


def link_data(record: Run, data: Dataset, loader: str) -> None:
    """Links the run to its data; `loader` is the name of the function that loaded them."""
    parts = {"training": data.train_labels, "validation": data.validation_labels, "test": data.test_labels}
    record.log_dataset(
        name=data.name,
        sha256=data.sha256,
        loader=loader,
        num_images=data.num_images,
        image_shape=data.image_shape,
        num_classes=data.num_classes,
        sizes={f"{part}_images": len(labels) for part, labels in parts.items()},
    )


def digests(outcome: Outcome) -> dict[str, str]:
    """Hashes that are equal for bit-identical results."""
    predictions = sha256(b"".join(said.probabilities.tobytes() for said in (outcome.validation, outcome.test)))
    return {"weights.sha256": weights_sha256(outcome.model), "predictions.sha256": predictions.hexdigest()}


def write_tables(record: Run, outcome: Outcome) -> None:
    """Writes predictions, mistakes and the classification report."""
    data, test = outcome.data, outcome.test
    write_predictions(record, outcome.validation, test, data.class_names)
    most = min(_MOST_MISTAKES, max(1, _BYTES_OF_MISTAKES // data.test_images[0].nbytes))
    worst, names = test.wrong[:most], np.array(data.class_names)
    mistakes: Any = {"index": data.test_index, "image": data.test_images}
    mistakes |= {"label": names[test.labels], "predicted": names[test.predicted]}
    with record.file("mistakes.npz") as file:
        np.savez_compressed(file, **{name: values[worst] for name, values in mistakes.items()})


def write_predictions(record: Run, validation: Evaluation, test: Evaluation, class_names: Sequence[str]) -> None:
    """Writes the predictions, what they score on every image, and the classification report of the test images."""
    for part, said in (("validation", validation), ("test", test)):
        with record.file(f"{part}_predictions.npz") as file:
            np.savez(file, labels=said.labels, probabilities=said.probabilities)
        with record.file(f"{part}_scores.npy") as file:  # all that a comparison of thousands of runs has time to read
            np.save(file, image_scores(said.labels, said.probabilities))
    with record.file("classification_report.txt") as file:
        file.write_text(test.report(class_names), encoding="utf-8")
    with record.file("classification_report.json") as file:
        file.write_text(json.dumps(test.report_values(class_names), indent=2), encoding="utf-8")


def draw(record: Run, outcome: Outcome) -> None:
    """Draws the figures of a run."""
    data, result, test = outcome.data, outcome.result, outcome.test
    of_images = data.test_images, test.labels, test.probabilities, data.class_names
    _write_figure(record, "curves.png", plots.curves, result.history, result.best_epoch, outcome.objective)
    _write_figure(record, "confusion_matrix.png", plots.confusion_matrix, test.confusion_matrix(), data.class_names)
    _write_figure(record, "predictions.png", galleries.predictions, *of_images)
    _write_figure(record, "mistakes.png", galleries.mistakes, *of_images)
    if bins := test.calibration:
        of_bins = bins.counts, bins.confidences, bins.accuracies, bins.intervals
        _write_figure(record, "reliability.png", plots.reliability, *of_bins)


def draw_samples(record: Run, data: Dataset, batches: tf.data.Dataset, scaling: keras.Layer) -> None:
    """Draws training images as the model sees them, with their labels."""
    images, labels, *_ = next(iter(batches.take(1)))
    scaled = np.asarray(scaling(tf.cast(images[:_SAMPLES], "float32")))
    # A mixed image has several labels.
    shares = np.asarray(labels[:_SAMPLES])
    captions = [" + ".join(data.class_names[label] for label in np.flatnonzero(row > 0.05)) for row in shares]
    _write_figure(record, "samples.png", galleries.samples, scaled, captions)


def _write_figure(record: Run, name: str, plot: Callable[..., Any], *values: object) -> None:
    """Writes the figure that `plot` draws of `values`."""
    was_enabled = gc.isenabled()
    gc.disable()  # a figure refers to itself; once old, it would keep its pixels until everything is looked through
    try:
        with record.file(name) as file:
            plot(*values).savefig(file)
    finally:
        if was_enabled:
            gc.enable()
    gc.collect(0)


def log_model(record: Run, outcome: Outcome) -> None:
    """Logs the model, tied to the metrics of the best epoch."""
    model, data, step = outcome.model, outcome.data, outcome.result.best_epoch
    # Without the state of the training, the model loads anywhere. Given as lists, its inputs would have to be lists.
    bare = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    record.log_model(bare, image_shape=data.image_shape, class_names=data.class_names, step=step)


def summarize(record: Run, outcome: Outcome, values: Mapping[str, float], note: object) -> None:
    """Writes the description of the run, after the user's note, and prints the result."""
    data, result, test = outcome.data, outcome.result, outcome.test
    sizes = " / ".join(f"{len(part):,}" for part in (data.train_labels, data.validation_labels, data.test_labels))
    macs = f"{values['cost/macs']:,} MACs, " if "cost/macs" in values else ""
    low, high = test.accuracy_interval
    doubts = (
        f"95 % confidence interval {100 * low:.2f} to {100 * high:.2f} %, "
        f"largest class {100 * test.largest_class_share:.2f} %, chance {100 / data.num_classes:.2f} %"
    )
    measured = [f"{name} {value:.4f}" for name, value in outcome.measured.items()]
    missing = _never_predicted(test, data.class_names)
    lines = [
        f"**Test accuracy {values['test/accuracy']:.2%}** ({doubts}), macro F1 {values['test/macro_f1']:.4f}, loss "
        f"{values['test/loss']:.4f}, validation accuracy {values['best/val_accuracy']:.2%}, "
        f"{_kept(outcome)}{f' by {outcome.objective}' if outcome.keep == 'best' else ''}",
        *([f"On the test set: {', '.join(measured)}"] if measured else []),
        *missing,
        f"{values['cost/parameters']:,} parameters, {macs}{result.seconds:.1f} s, {result.images_per_second:,.0f} "
        f"images/s; {data.name}: {sizes} images to train, validate and test",
    ]
    user = [str(note)] if note else []
    record.set_tags({"mlflow.note.content": "\n\n".join([*user, *lines])})
    _log.info(
        "Test accuracy %.2f %% (%s), %s, %.1f s",
        100 * values["test/accuracy"],
        doubts,
        _kept(outcome),
        result.seconds,
    )
    for line in missing:
        _log.info("%s", line)


def _kept(outcome: Outcome) -> str:
    """The epoch whose weights were kept."""
    epochs = len(outcome.result.history["loss"])
    return f"{outcome.keep} epoch {outcome.result.best_epoch} of {epochs}"


def _never_predicted(test: Evaluation, class_names: Sequence[str]) -> list[str]:
    """A sentence if the model predicts one class for every test image, or never some that the test set has."""
    predicted = np.unique(test.predicted)
    if len(predicted) == 1:
        return [f"The model predicts {class_names[predicted[0]]} for every test image."]
    missing = np.setdiff1d(test.labels, predicted)
    if not len(missing):
        return []
    names = ", ".join(class_names[label] for label in missing[:_MOST_CLASSES])
    more = f" and {len(missing) - _MOST_CLASSES} more" if len(missing) > _MOST_CLASSES else ""
    images = int(np.isin(test.labels, missing).sum())
    return [f"The model never predicts {names}{more}: {images:,} of {len(test.labels):,} test images."]
