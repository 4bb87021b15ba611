"""Compile and fit a model, epoch by epoch; knows neither the configuration nor where its metrics go."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.live import Live

from experiments.stored_images import Images
from experiments.training.batches import evaluation_batches, prediction_batch_size
from experiments.training.callbacks import CheckpointCallback, EpochFunction, HistoryCallback, measured_in
from experiments.training.checkpoints import Checkpoint
from experiments.training.freezing import FreezeCallback
from experiments.training.progress import ProgressBar

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """What a training measured; the model holds the weights of `best_epoch`."""

    history: Mapping[str, Sequence[float]]  # metric -> one value per epoch; NaN where a callback has left none
    best_epoch: int  # counted from 1; the last one with keep=last
    seconds: float
    images_per_second: float  # training images, validation time included

    @property
    def best(self) -> dict[str, float]:
        """The metrics of the best epoch."""
        return measured_in(self.history, self.best_epoch)


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: for how long, with which optimizer, and what selects its best epoch."""

    epochs: int  # at most
    batch_size: int
    optimizer: keras.optimizers.Optimizer  # with `schedule` as its learning rate
    schedule: float | keras.optimizers.schedules.LearningRateSchedule
    loss: keras.losses.Loss
    metrics: Sequence[keras.Metric]  # besides loss and accuracy
    callbacks: Sequence[keras.callbacks.Callback]
    metric: str  # chooses the best epoch, the first of equal ones
    mode: str  # of `metric`, `max` or `min`
    keep: str  # whose weights are kept, `best` or `last`
    freezing: FreezeCallback | None = None


def fit(
    model: keras.Model,
    batches: tf.data.Dataset,
    validation: tuple[Images, np.ndarray],
    recipe: Recipe,
    *,
    num_images: int,
    on_epoch: EpochFunction,
    progress_bar: bool,
    folder: Path,
    checkpoint: Checkpoint | None = None,
) -> TrainingResult:
    """Trains `model` and leaves the weights of its best or last epoch in it.

    A checkpoint is written at the end of every epoch. A training that resumes from one ends with the same bits as one
    that was never interrupted, provided that TensorFlow is deterministic.

    Args:
        model: uncompiled; takes raw pixels and outputs probabilities.
        batches: of all remaining epochs, from `training_batches`.
        validation: raw pixels of shape (images, height, width, channels) and classes of shape (images,).
        recipe: how to train.
        num_images: training images per epoch.
        on_epoch: called at the end of every epoch, including those restored from `checkpoint`.
        progress_bar: whether to show the epochs on the terminal while they are trained.
        folder: where checkpoints are written.
        checkpoint: the checkpoint to resume from.

    Raises:
        Diverged: at the end of the epoch in which a metric became NaN or infinite.
    """
    images, labels = validation
    num_classes = model.output_shape[-1]
    _compile(model, recipe, weighted=len(batches.element_spec) == 3)
    freezing = [recipe.freezing] if recipe.freezing else []
    for each in freezing:
        each.set_trainable(False)  # the optimizer knows all variables, whichever it changes
    history = HistoryCallback(recipe.schedule, recipe.metric, recipe.mode, recipe.keep)
    # Averaged weights must be in place before anything reads weights.
    averaging = [callback for callback in recipe.callbacks if isinstance(callback, keras.callbacks.SwapEMAWeights)]
    others = [callback for callback in recipe.callbacks if callback not in averaging]
    checkpoints = CheckpointCallback(folder, checkpoint, history, [*averaging, *others], on_epoch)
    trained_before = checkpoint.epoch if checkpoint else 0
    has_ended = checkpoints.restore_history()
    started = time.perf_counter()
    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False, transient=True) if progress_bar else nullcontext() as live:
        model.fit(
            batches,
            initial_epoch=recipe.epochs if has_ended else trained_before,
            epochs=recipe.epochs,
            steps_per_epoch=math.ceil(num_images / recipe.batch_size),
            validation_data=evaluation_batches(images, labels, num_classes, prediction_batch_size(model)),
            callbacks=[
                *averaging,
                *freezing,
                history,
                *others,
                *([ProgressBar(live, recipe.metric)] if live else []),
                checkpoints,
            ],
            shuffle=False,  # the batches are
            verbose=0,  # Keras's own progress bar wraps on a narrow terminal
        )
    seconds = history.seconds_before + time.perf_counter() - started
    model.set_weights(history.best_weights)
    for each in freezing:
        each.set_trainable(True)  # as the model was built
    trained = len(history.history["loss"])
    return TrainingResult(history.history, history.best_epoch, seconds, num_images * trained / seconds)


def _compile(model: keras.Model, recipe: Recipe, *, weighted: bool) -> None:
    """Compiles the model so that `loss` is the cross-entropy of the data, whatever is minimized.

    What is minimized is reported as `total_loss` if it is something else: another loss, weighted images, label
    smoothing, penalties.
    """
    one = np.eye(1, model.output_shape[-1], dtype="float32")
    model(np.zeros((1, *model.input_shape[1:]), "float32"))  # from here on its losses include those of activities
    cross_entropy = keras.losses.CategoricalCrossentropy(name=recipe.loss.name)
    same = type(recipe.loss) is type(cross_entropy) and recipe.loss.get_config() == cross_entropy.get_config()
    plain = [] if same and not model.losses and not weighted else [keras.metrics.CategoricalCrossentropy(name="loss")]
    model.compile(recipe.optimizer, loss=recipe.loss, metrics=["accuracy", *plain, *recipe.metrics])
    if plain:
        model.metrics[0].name = "total_loss"  # Keras reports what it minimizes first
    # Creates the variables of optimizer and metrics; otherwise TensorFlow traces the training step twice.
    model.optimizer.build(model.trainable_variables)
    model.compute_loss(y=one, y_pred=one)
    model.compute_metrics(None, one, one)
    model.reset_metrics()
