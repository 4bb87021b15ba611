"""Weights of classes in the loss, for data of which some classes have few images."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from experiments.errors import ExperimentError

_log = logging.getLogger(__name__)
_MOST_SHOWN = 20  # classes


class ClassWeightedLoss(keras.losses.Loss):
    """A loss that counts every image by the weight of its class; for a mixed label, by the mean over its shares."""

    def __init__(self, loss: keras.losses.Loss, weights: np.ndarray) -> None:
        super().__init__(name=loss.name, reduction=loss.reduction, dtype=loss.dtype)
        self.loss = loss
        self.weights = weights

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The weighted loss of every image."""
        return self.loss.call(y_true, y_pred) * ops.sum(y_true * ops.cast(self.weights, y_true.dtype), axis=-1)


def log_class_weights(loss: keras.losses.Loss, class_names: Sequence[str]) -> None:
    """Says which weights the classes have, if they have any."""
    if isinstance(loss, ClassWeightedLoss):
        pairs = zip(class_names[:_MOST_SHOWN], loss.weights, strict=False)
        _log.info("Class weights: %s", ", ".join(f"{name} {weight:.3g}" for name, weight in pairs))


def class_weights(
    setting: str | Mapping[str | int, float], labels: np.ndarray, class_names: Sequence[str]
) -> np.ndarray | None:
    """The weight of every class; None if all classes count as they are.

    Args:
        setting: `none`, `balanced`, or the weights of some classes by name or number; the others have the weight 1.
        labels: classes of the training images. With `balanced`, every class that has any counts the same in total, and
            the mean weight of an image is 1, as in scikit-learn.
        class_names: in the order of the labels.

    Raises:
        ExperimentError: a class that does not exist, or is named twice.
    """
    if setting == "none":
        return None
    weights = np.ones(len(class_names))
    if isinstance(setting, str):
        counts = np.bincount(labels, minlength=len(class_names))
        present = counts > 0
        weights[present] = len(labels) / (present.sum() * counts[present])
        return weights
    positions = [_position(key, class_names) for key in setting]
    if len(set(positions)) < len(positions):
        raise ExperimentError(f"class_weight={dict(setting)}: it names a class twice, by its name and its number.")
    weights[positions] = list(setting.values())
    return weights


def _position(key: str | int, class_names: Sequence[str]) -> int:
    """The number of a class that is given by its name or number; the name comes first."""
    if str(key) in class_names:
        return class_names.index(str(key))
    if str(key).isdecimal() and int(key) < len(class_names):
        return int(key)
    raise ExperimentError(f"class_weight.{key}: there is no such class.", given=str(key), allowed=class_names)
