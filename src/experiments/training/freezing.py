"""Layers that are frozen at first or throughout, and a learning rate of its own for the last layer."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import keras
import numpy as np

from experiments.errors import ExperimentError
from experiments.training.layers import named_layers

_ALL_BUT_HEAD = "all_but_head"


def frozen_layers(model: keras.Model, freeze: str | Sequence[str]) -> list[keras.Layer]:
    """Finds the layers to freeze.

    Args:
        model: that they are in.
        freeze: names of layers, patterns such as `block1_*`, or `all_but_head` for all but the last layer with weights.

    Raises:
        ExperimentError: a name or pattern matches no layer with weights, or none is left to train.
    """
    layers = {name: layer for name, layer in named_layers(model).items() if layer.weights}
    frozen: dict[str, keras.Layer] = {}
    for pattern in [freeze] if isinstance(freeze, str) else freeze:
        names = (
            list(layers)[:-1] if pattern == _ALL_BUT_HEAD else [name for name in layers if fnmatchcase(name, pattern)]
        )
        if not names:
            raise ExperimentError(
                f"freeze={pattern} matches no layer with weights.", given=pattern, allowed=[*layers, _ALL_BUT_HEAD]
            )
        frozen |= {name: layers[name] for name in names if layers[name].trainable}  # others stay as they were built
    if not any(layer.trainable_variables for name, layer in layers.items() if name not in frozen):
        raise ExperimentError(
            f"freeze={freeze} leaves no weights to train.", advice=f"Take {_ALL_BUT_HEAD} to train the last layer."
        )
    return list(frozen.values())


class ShiftedSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule whose steps are counted from `offset`, for an optimizer that starts anew after so many steps."""

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.offset = 0

    def __call__(self, step: Any) -> Any:
        """The learning rate of a step of the optimizer."""
        return self.schedule(step + self.offset)

    def get_config(self) -> dict[str, Any]:
        """Nothing: it is saved nowhere."""
        return {}


class FreezeCallback(keras.callbacks.Callback):
    """Trains some layers only from an epoch on, or not at all.

    When they join in, the optimizer has no averages of their gradients. The steps of Adam would be too large by far as
    long as it has seen few, so it starts anew in that epoch. Its learning rate goes on as scheduled.
    """

    def __init__(self, layers: Sequence[keras.Layer], epoch: int | None, steps_per_epoch: int, schedule: Any) -> None:
        super().__init__()
        self.layers = layers
        self.epoch = epoch  # counted from 1; None for not at all
        self.steps_per_epoch = steps_per_epoch
        self.schedule = schedule
        self.is_done = False

    def set_trainable(self, trainable: bool) -> None:
        """Freezes or unfreezes the layers; a frozen batch normalization works as when it predicts."""
        for layer in self.layers:
            layer.trainable = trainable

    def on_train_begin(self, logs: Any = None) -> None:
        """Remembers how the optimizer begins; a checkpoint is restored after that."""
        self.beginning = [np.asarray(variable) for variable in self.model.optimizer.variables]

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Unfreezes the layers if it is time."""
        if self.is_done or self.epoch is None or epoch + 1 < self.epoch:
            return
        self.is_done = True
        self.set_trainable(True)
        if epoch + 1 == self.epoch:  # later, a checkpoint has brought what the optimizer has become since
            for variable, value in zip(self.model.optimizer.variables, self.beginning, strict=True):
                if variable.name != "learning_rate":  # which another callback may have changed
                    variable.assign(value)
        if isinstance(self.schedule, ShiftedSchedule):
            self.schedule.offset = (self.epoch - 1) * self.steps_per_epoch
        self.model.make_train_function(force=True)


def set_head_learning_rate(optimizer: keras.optimizers.Optimizer, model: keras.Model, factor: float) -> None:
    """Multiplies the learning rate of the last layer with weights by a factor."""
    head = [layer for layer in named_layers(model).values() if layer.weights][-1].trainable_variables
    update_step = optimizer.update_step

    def scaled_step(gradient: Any, variable: Any, learning_rate: Any) -> Any:
        is_of_head = any(variable is own or variable is own.value for own in head)
        return update_step(gradient, variable, learning_rate * factor if is_of_head else learning_rate)

    optimizer.update_step = scaled_step
