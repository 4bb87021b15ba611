"""Compile and fit a model, epoch by epoch; knows neither the configuration nor where its metrics go."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from experiments import checkpoints
from experiments.checkpoints import Checkpoint
from experiments.errors import ExperimentError

_log = logging.getLogger(__name__)

#: Called at an epoch's end with its number, counted from 1, and its metrics; what is true ends the training.
EpochFunction = Callable[[int, Mapping[str, float]], bool]

#: Images that are only predicted go through the model in batches of this size: free, and 1000 take 80 MB more.
PREDICTION_BATCH_SIZE = 250

_DRAWS = 2**20  # more random numbers than any augmentation draws for a batch
_OF_KERAS = {"_model", "params"}  # attributes that Keras itself gives every callback
_runtime: tuple[int, bool] | None = None


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


class Diverged(Exception):
    """The loss became NaN or infinite; `history` holds the epochs before."""

    def __init__(self, epoch: int, history: Mapping[str, Sequence[float]]) -> None:
        self.epoch = epoch
        self.history = history
        super().__init__(f"the loss is no finite number after epoch {epoch}; try a smaller optimizer.learning_rate")


def start_runtime(*, seed: int, threads: int, deterministic: bool, precision: str) -> None:
    """Sets threads, determinism, precision and every random generator, and forgets earlier models.

    Raises:
        ExperimentError: TensorFlow runs in this process with other threads or another determinism already.
    """
    global _runtime
    wanted = (threads, deterministic)
    if _runtime is None:
        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
        except RuntimeError:  # already running: fine if it runs as asked
            if tf.config.threading.get_intra_op_parallelism_threads() != threads:
                raise _cannot_change(f"threads={threads}", "other threads") from None
        if deterministic:
            tf.config.experimental.enable_op_determinism()
        _runtime = wanted
    elif _runtime != wanted:
        asked, runs = (f"threads={t} deterministic={str(d).lower()}" for t, d in (wanted, _runtime))
        raise _cannot_change(asked, runs)
    tf.get_logger().setLevel("ERROR")  # a notebook's later runs are no mistake for making functions anew
    forget_models(precision)
    keras.utils.set_random_seed(seed)


def forget_models(precision: str) -> None:
    """Lets the next model be built as in a new process, with `precision`."""
    keras.backend.clear_session()
    keras.config.set_dtype_policy(precision)


def _cannot_change(asked: str, runs: str) -> ExperimentError:
    return ExperimentError(
        f"{asked}: TensorFlow runs in this process with {runs} and cannot change it.",
        advice="Start a new process (in a notebook: restart the kernel).",
    )


def training_batches(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    augmentation: Sequence[keras.Layer] = (),
    after_epoch: int = 0,
) -> tf.data.Dataset:
    """Batches of augmented images and one-hot labels for all epochs, one after another.

    Order and augmentation of a batch follow from `seed` and its place alone, so any can be had without those before it.

    Args:
        images: raw pixels of shape (images, height, width, channels).
        labels: classes of shape (images,).
        num_classes: length of a one-hot label.
        batch_size: images a batch; an epoch's last batch may be smaller.
        epochs: how many times every image comes.
        seed: of the order.
        augmentation: Keras image layers, applied in order to whole batches.
        after_epoch: how many epochs to leave out at the beginning.
    """
    total = len(images)
    steps = math.ceil(total / batch_size)
    all_images, all_labels = tf.constant(images), tf.constant(labels)
    generators = [
        variable for layer in augmentation for variable in layer.variables if variable.name == "seed_generator_state"
    ]
    seeds = [int(generator[0]) for generator in generators]

    def batch(position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        epoch, step = position // steps, position % steps
        places = tf.range(step * batch_size, tf.minimum((step + 1) * batch_size, total))
        shuffled = tf.random.experimental.index_shuffle(places, seed=[seed, epoch], max_index=total - 1)
        return position, tf.gather(all_images, shuffled), tf.one_hot(tf.gather(all_labels, shuffled), num_classes)

    def augment(position: tf.Tensor, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        for generator, layer_seed in zip(generators, seeds, strict=True):
            generator.assign(tf.stack([layer_seed, position * _DRAWS]))
        for layer in augmentation:
            if hasattr(layer, "transform_labels"):  # an image layer, which may change labels too, as MixUp does
                both = layer({"images": images, "labels": labels}, training=True)
                images, labels = both["images"], both["labels"]
            else:
                images = layer(images, training=True)
        return images, labels

    return tf.data.Dataset.range(after_epoch * steps, epochs * steps).map(batch).map(augment).prefetch(2)


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

    After every epoch a checkpoint is written; a training that goes on from one ends with the same bits as one that
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
        Diverged: at the end of the epoch whose loss is no finite number.
    """
    images, labels = validation
    num_classes = model.output_shape[-1]
    model.compile(
        optimizer,
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=label_smoothing),
        metrics=["accuracy"],
    )
    _make_variables(model)
    record = _Record(schedule, metric, mode)
    # Averaged weights must be in place before anything reads weights.
    averaging = [callback for callback in callbacks if isinstance(callback, keras.callbacks.SwapEMAWeights)]
    others = [callback for callback in callbacks if callback not in averaging]
    keeper = _Keeper(folder, checkpoint, record, [*averaging, *others], on_epoch)
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


class _Record(keras.callbacks.Callback):
    """Keeps every epoch's metrics and the best epoch's weights; ends a diverged training."""

    def __init__(
        self, schedule: float | keras.optimizers.schedules.LearningRateSchedule, metric: str, mode: str
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.metric = metric
        self.sign = 1 if mode == "max" else -1
        self.history: dict[str, list[float]] = {}
        self.best_epoch = 0
        self.best_weights: list[np.ndarray] = []
        self.seconds_before = 0.0  # of the training that a checkpoint has come from

    def epoch(self, number: int) -> dict[str, float]:
        """The metrics of an epoch, counted from 1."""
        return {name: values[number - 1] for name, values in self.history.items()}

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        self.started = time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self.begun = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        metrics = {name: float(value) for name, value in (logs or {}).items()}
        if not all(math.isfinite(value) for value in metrics.values()):
            raise Diverged(epoch + 1, self.history)
        metrics["learning_rate"] = self._last_learning_rate()
        metrics["epoch_seconds"] = time.perf_counter() - self.begun
        for name, value in metrics.items():
            self.history.setdefault(name, []).append(value)
        scores = [self.sign * value for value in self.history[self.metric]]
        if scores[-1] > max(scores[:-1], default=-math.inf):
            self.best_epoch = epoch + 1
            self.best_weights = self.model.get_weights()

    def seconds(self) -> float:
        """How long the training has taken so far."""
        return self.seconds_before + time.perf_counter() - self.started

    def _last_learning_rate(self) -> float:
        optimizer = self.model.optimizer
        if callable(self.schedule):
            # Half precision may have skipped every step so far, as it does when a gradient overflows.
            return float(self.schedule(max(int(optimizer.iterations) - 1, 0)))
        return float(optimizer.learning_rate)


class _Keeper(keras.callbacks.Callback):
    """Writes a checkpoint at every epoch's end, then passes the metrics on; goes on from one.

    It stands last: others set themselves back when the training begins, and move on when an epoch ends.
    """

    def __init__(
        self,
        folder: Path,
        checkpoint: Checkpoint | None,
        record: _Record,
        others: Sequence[keras.callbacks.Callback],
        on_epoch: EpochFunction,
    ) -> None:
        super().__init__()
        self.folder = folder
        self.checkpoint = checkpoint
        self.record = record
        self.others = others
        self.on_epoch = on_epoch
        self.disk_is_full = False
        self.lost: set[str] = set()  # attributes of callbacks that no checkpoint can hold

    def recall(self) -> bool:
        """Brings back the epochs of the checkpoint; says whether the training had ended with them."""
        if self.checkpoint is None:
            return False
        state = self.checkpoint.state
        self.record.history = {name: list(values) for name, values in state["history"].items()}
        self.record.best_epoch = state["best_epoch"]
        self.record.seconds_before = state["seconds"]
        stops = [self.on_epoch(number, self.record.epoch(number)) for number in range(1, self.checkpoint.epoch + 1)]
        return state["ended"] or any(stops)

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        if self.checkpoint is None:
            return
        arrays = self.checkpoint.arrays
        variables = {"model": self.model.variables, "optimizer": self.model.optimizer.variables}
        for part, own in variables.items():
            for variable, value in zip(own, arrays[part], strict=True):
                variable.assign(_in_type_of(variable, value))
        pairs = zip(self.model.weights, arrays["best"], strict=True)
        self.record.best_weights = [_in_type_of(variable, value) for variable, value in pairs]
        for callback, state in zip(self.others, self.checkpoint.state["callbacks"], strict=True):
            if getattr(callback, "monitor_op", callback) is None:
                callback._set_monitor_op()  # at the first epoch's end it would turn the restored min_delta round
            vars(callback).update(checkpoints.decoded(state, arrays.get("callbacks", [])))

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._write(epoch + 1)
        if self.on_epoch(epoch + 1, self.record.epoch(epoch + 1)):
            self.model.stop_training = True

    def _write(self, epoch: int) -> None:
        of_callbacks: list[np.ndarray] = []
        state = {
            "history": self.record.history,
            "best_epoch": self.record.best_epoch,
            "seconds": self.record.seconds(),
            "ended": self.model.stop_training,
            "callbacks": [checkpoints.encoded(self._attributes(callback), of_callbacks) for callback in self.others],
        }
        arrays = {
            "model": [np.asarray(variable) for variable in self.model.variables],
            "optimizer": [np.asarray(variable) for variable in self.model.optimizer.variables],
            "best": self.record.best_weights,
            "callbacks": of_callbacks,
        }
        try:
            checkpoints.write(self.folder, Checkpoint(epoch, state, arrays))
        except OSError as error:  # no reason to end a training that can still end well
            if not self.disk_is_full:
                _log.warning("No checkpoint can be written, so a killed run would start anew: %s", error)
            self.disk_is_full = True

    def _attributes(self, callback: keras.callbacks.Callback) -> dict[str, Any]:
        """What a callback remembers; says once what of it no checkpoint can hold."""
        found = {name: value for name, value in vars(callback).items() if name not in _OF_KERAS}
        lost = [name for name, value in found.items() if not (checkpoints.is_plain(value) or callable(value))]
        for name in {f"{type(callback).__name__}.{name}" for name in lost} - self.lost:
            _log.warning("%s is no plain value, so a checkpoint does not hold it", name)
            self.lost.add(name)
        return {name: value for name, value in found.items() if name not in lost and not callable(value)}


def _in_type_of(variable: keras.Variable, value: np.ndarray) -> np.ndarray:
    """The array with a type that NumPy has no file format for."""
    return value.view(np.asarray(variable).dtype)
