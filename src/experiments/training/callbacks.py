"""Callbacks that record epochs, keep the best weights and write checkpoints."""

import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from experiments.library_internals import set_monitor_op
from experiments.training import checkpoints
from experiments.training.checkpoints import Checkpoint

_log = logging.getLogger(__name__)

#: Called at the end of an epoch with its number, counted from 1, and its metrics; returns whether to stop training.
EpochFunction = Callable[[int, Mapping[str, float]], bool]
_LOSSES = ("total_loss", "loss", "val_total_loss", "val_loss")
_RECORDABLE = re.compile(r"\w[\w.: -]*(/\w[\w.: -]*)*")  # the name of a metric, as MLflow takes it
_OF_KERAS = {"_model", "params"}  # attributes that Keras itself gives every callback


class Diverged(Exception):
    """A metric, as a rule the loss, became NaN or infinite; `history` holds the epochs before."""

    def __init__(self, metric: str, epoch: int, history: Mapping[str, Sequence[float]]) -> None:
        self.epoch = epoch
        self.history = history
        what, advice = metric, f"look at metrics.{metric.removeprefix('val_')}"
        if metric in _LOSSES:
            what, advice = "the loss", "try a smaller optimizer.learning_rate"
        super().__init__(f"{what} is not finite (NaN or infinity) after epoch {epoch}; {advice}")


class HistoryCallback(keras.callbacks.Callback):
    """Keeps every epoch's metrics, and the weights of the best or the last one; ends a diverged training."""

    def __init__(
        self, schedule: float | keras.optimizers.schedules.LearningRateSchedule, metric: str, mode: str, keep: str
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.metric = metric
        self.sign = 1 if mode == "max" else -1
        self.history: dict[str, list[float]] = {}
        self.keep = keep
        self.best_epoch = 0  # the last one with keep=last
        self.best_weights: list[np.ndarray] = []
        self.seconds_before = 0.0  # of the training that a checkpoint has come from
        self.left_out: set[str] = set()  # names in the logs that are not recorded

    def epoch(self, number: int) -> dict[str, float]:
        """The metrics of an epoch, counted from 1."""
        return measured_in(self.history, number)

    def add_numbers(self, epoch: int, logs: Mapping[str, Any]) -> None:
        """Adds the numbers that other callbacks have left in the logs of an epoch; says once what is left out."""
        of_epoch = self.epoch(epoch)
        for name in logs.keys() - of_epoch.keys():
            problem = _problem_of(name, logs[name])
            if problem is None:
                self.history.setdefault(name, [math.nan] * (epoch - 1)).append(float(logs[name]))
            elif name not in self.left_out:
                self.left_out.add(name)
                _log.warning("%s in the logs of epoch %d is %s, so it is not recorded", name, epoch, problem)
        for values in self.history.values():  # an epoch without it
            values += [math.nan] * (epoch - len(values))

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Starts the clock of the training."""
        self.started = time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Starts the clock of the epoch."""
        self.begun = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Adds the epoch to the history and keeps its weights if it is the best so far, or the last is wanted.

        Raises:
            Diverged: a metric is NaN or infinite.
        """
        metrics = {name: _shortest(value) for name, value in (logs or {}).items()}
        if infinite := [name for name, value in metrics.items() if not math.isfinite(value)]:
            raise Diverged(min(infinite, key=(*_LOSSES, *infinite).index), epoch + 1, self.history)
        metrics["learning_rate"] = self._last_learning_rate()
        metrics["epoch_seconds"] = time.perf_counter() - self.begun
        for name, value in metrics.items():
            self.history.setdefault(name, []).append(value)
        scores = [self.sign * value for value in self.history[self.metric]]
        if self.keep == "last" or scores[-1] > max(scores[:-1], default=-math.inf):
            self.best_epoch = epoch + 1
            self.best_weights = self.model.get_weights()

    def seconds(self) -> float:
        """How long the training has taken so far."""
        return self.seconds_before + time.perf_counter() - self.started

    def _last_learning_rate(self) -> float:
        optimizer = self.model.optimizer
        if callable(self.schedule):
            # The schedule counts batches, the optimizer its steps.
            accumulated = getattr(optimizer, "inner_optimizer", optimizer).gradient_accumulation_steps or 1
            # Half precision may have skipped every step so far, as it does when a gradient overflows.
            return _shortest(self.schedule(max(int(optimizer.iterations) * accumulated - 1, 0)))
        return _shortest(optimizer.learning_rate)


class CheckpointCallback(keras.callbacks.Callback):
    """Writes a checkpoint at the end of every epoch, then calls `on_epoch`; restores one when training begins.

    It stands last: others set themselves back when the training begins, and move on when an epoch ends.
    """

    def __init__(
        self,
        folder: Path,
        checkpoint: Checkpoint | None,
        history: HistoryCallback,
        others: Sequence[keras.callbacks.Callback],
        on_epoch: EpochFunction,
    ) -> None:
        super().__init__()
        self.folder = folder
        self.checkpoint = checkpoint
        self.history = history
        self.others = others
        self.on_epoch = on_epoch
        self.disk_is_full = False
        self.lost: set[str] = set()  # attributes of callbacks that no checkpoint can hold

    def restore_history(self) -> bool:
        """Restores the epochs of the checkpoint; returns whether the training had ended with them."""
        if self.checkpoint is None:
            return False
        state = self.checkpoint.state
        self.history.history = {name: list(values) for name, values in state["history"].items()}
        self.history.best_epoch = state["best_epoch"]
        self.history.seconds_before = state["seconds"]
        stops = [self.on_epoch(number, self.history.epoch(number)) for number in range(1, self.checkpoint.epoch + 1)]
        return state["ended"] or any(stops)

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Restores the variables and the state of every callback from the checkpoint."""
        if self.checkpoint is None:
            return
        arrays = self.checkpoint.arrays
        variables = {"model": self.model.variables, "optimizer": self.model.optimizer.variables}
        for part, own in variables.items():
            for variable, value in zip(own, arrays[part], strict=True):
                variable.assign(_in_type_of(variable, value))
        pairs = zip(self.model.weights, arrays["best"], strict=True)
        self.history.best_weights = [_in_type_of(variable, value) for variable, value in pairs]
        for callback, state in zip(self.others, self.checkpoint.state["callbacks"], strict=True):
            if getattr(callback, "monitor_op", callback) is None:
                set_monitor_op(callback)  # at the first epoch's end it would turn the restored min_delta round
            vars(callback).update(checkpoints.decoded(state, arrays.get("callbacks", [])))

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Writes a checkpoint, then calls `on_epoch`."""
        self.history.add_numbers(epoch + 1, logs or {})
        self.write_checkpoint(epoch + 1)
        if self.on_epoch(epoch + 1, self.history.epoch(epoch + 1)):
            self.model.stop_training = True

    def write_checkpoint(self, epoch: int) -> None:
        """Writes a checkpoint after an epoch; a full disk is only a warning."""
        of_callbacks: list[np.ndarray] = []
        state = {
            "history": self.history.history,
            "best_epoch": self.history.best_epoch,
            "seconds": self.history.seconds(),
            "ended": self.model.stop_training,
            "callbacks": [checkpoints.encoded(self._attributes(callback), of_callbacks) for callback in self.others],
        }
        arrays = {
            "model": [np.asarray(variable) for variable in self.model.variables],
            "optimizer": [np.asarray(variable) for variable in self.model.optimizer.variables],
            "best": self.history.best_weights,
            "callbacks": of_callbacks,
        }
        try:
            checkpoints.write(self.folder, Checkpoint(epoch, state, arrays))
        except OSError as error:  # no reason to end a training that can still end well
            if not self.disk_is_full:
                _log.warning("No checkpoint can be written, so a killed run would start anew: %s", error)
            self.disk_is_full = True

    def _attributes(self, callback: keras.callbacks.Callback) -> dict[str, Any]:
        """The state of a callback; warns once of what a checkpoint cannot hold."""
        found = {name: value for name, value in vars(callback).items() if name not in _OF_KERAS}
        lost = [name for name, value in found.items() if not (checkpoints.is_plain(value) or callable(value))]
        for name in {f"{type(callback).__name__}.{name}" for name in lost} - self.lost:
            _log.warning("%s is no plain value, so a checkpoint does not hold it", name)
            self.lost.add(name)
        return {name: value for name, value in found.items() if name not in lost and not callable(value)}


def measured_in(history: Mapping[str, Sequence[float]], epoch: int) -> dict[str, float]:
    """The metrics of an epoch, counted from 1; a number that a callback has not left in it is not among them."""
    values = {name: values[epoch - 1] for name, values in history.items() if len(values) >= epoch}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _problem_of(name: object, value: Any) -> str | None:
    """Why a value in the logs cannot be recorded, None if it can."""
    if not (isinstance(name, str) and _RECORDABLE.fullmatch(name)):
        return "no name of a metric"
    try:
        number = float(value)
    except (TypeError, ValueError):
        return "no number"
    return None if math.isfinite(number) else "not finite"


def _shortest(value: Any) -> float:
    """A float32 number in the fewest digits that identify it: 0.946 instead of 0.9459999799728394."""
    return float(str(np.float32(value)))


def _in_type_of(variable: keras.Variable, value: np.ndarray) -> np.ndarray:
    """Converts an array back to a type that NumPy cannot save."""
    return value.view(np.asarray(variable).dtype)
