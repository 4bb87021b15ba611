"""Compile and fit a model, epoch by epoch; knows neither the configuration nor where its metrics go."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from experiments.training.callbacks import CheckpointCallback, EpochFunction, HistoryCallback
from experiments.training.checkpoints import Checkpoint

_log = logging.getLogger(__name__)

#: Images that are only predicted go through the model in batches of this size: free, and 1000 take 80 MB more.
PREDICTION_BATCH_SIZE = 250


@dataclass(frozen=True)
class TrainingResult:
    """What a training measured; the model holds the weights of `best_epoch`."""

    history: Mapping[str, Sequence[float]]  # metric -> one value an epoch
    best_epoch: int  # counted from 1
    seconds: float
    images_per_second: float  # training images, validation time included

    @property
    def best(self) -> dict[str, float]:
        """The metrics of the best epoch."""
        return {name: values[self.best_epoch - 1] for name, values in self.history.items()}


def fit(
    model: keras.Model,
    batches: tf.data.Dataset,
    validation: tuple[np.ndarray, np.ndarray],
    *,
    num_images: int,
    epochs: int,
    batch_size: int,
    optimizer: keras.optimizers.Optimizer,
    schedule: float | keras.optimizers.schedules.LearningRateSchedule,
    label_smoothing: float,
    metric: str,
    mode: str,
    callbacks: Sequence[keras.callbacks.Callback],
    on_epoch: EpochFunction,
    progress_bar: bool,
    folder: Path,
    checkpoint: Checkpoint | None = None,
) -> TrainingResult:
    """Trains `model` and leaves the weights of its best epoch in it.

    After every epoch a checkpoint is written; a training that resumes from one ends with the same bits as one that
    was never interrupted, if TensorFlow is deterministic.

    Args:
        model: uncompiled; takes raw pixels, gives probabilities.
        batches: of all epochs to come, from `training_batches`.
        validation: raw pixels and classes.
        num_images: training images of an epoch.
        epochs: how many at the most.
        batch_size: images a training batch.
        optimizer: with `schedule` as its learning rate.
        schedule: a number, or a function of the step.
        label_smoothing: of the training and validation loss.
        metric: what chooses the best epoch, the first of equal ones.
        mode: `max` or `min`.
        callbacks: of Keras, such as early stopping.
        on_epoch: called at every epoch's end, also for those that `checkpoint` brings back.
        progress_bar: show Keras's own, with the time left.
        folder: where checkpoints are kept.
        checkpoint: to go on from.

    Raises:
        Diverged: at the end of the epoch in which a metric became NaN or infinite.
    """
    images, labels = validation
    num_classes = model.output_shape[-1]
    model.compile(
        optimizer,
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=label_smoothing),
        metrics=["accuracy"],
    )
    _make_variables(model)
    record = HistoryCallback(schedule, metric, mode)
    # Averaged weights must be in place before anything reads weights.
    averaging = [callback for callback in callbacks if isinstance(callback, keras.callbacks.SwapEMAWeights)]
    others = [callback for callback in callbacks if callback not in averaging]
    keeper = CheckpointCallback(folder, checkpoint, record, [*averaging, *others], on_epoch)
    begun_before = checkpoint.epoch if checkpoint else 0
    ended_before = keeper.recall()
    started = time.perf_counter()
    model.fit(
        batches,
        initial_epoch=epochs if ended_before else begun_before,
        epochs=epochs,
        steps_per_epoch=math.ceil(num_images / batch_size),
        validation_data=(images, keras.utils.to_categorical(labels, num_classes)),
        validation_batch_size=PREDICTION_BATCH_SIZE,
        callbacks=[*averaging, record, *others, keeper],
        shuffle=False,  # the batches are
        verbose=1 if progress_bar else 0,
    )
    seconds = record.seconds_before + time.perf_counter() - started
    model.set_weights(record.best_weights)
    trained = len(record.history["loss"])
    return TrainingResult(record.history, record.best_epoch, seconds, num_images * trained / seconds)


def _make_variables(model: keras.Model) -> None:
    """Makes the variables of the optimizer and the metrics, or TensorFlow traces the whole training step twice."""
    model.optimizer.build(model.trainable_variables)
    one = np.eye(1, model.output_shape[-1], dtype="float32")
    model.compute_loss(y=one, y_pred=one)
    model.compute_metrics(None, one, one)
    model.reset_metrics()
