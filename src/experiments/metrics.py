"""Metrics that Keras does not have; each counts which classes are predicted for which, as scikit-learn does."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

_LONGEST_NAME = 100  # characters of a class


def balanced_accuracy(*, name: str, class_names: Sequence[str]) -> keras.Metric:
    """The mean over the classes of the share of their images that is predicted right."""
    return _CountingMetric(name, len(class_names), lambda counts: _mean_of_present(counts, _recalls(counts)))


def recall(*, name: str, class_names: Sequence[str]) -> keras.Metric:
    """For every class, the share of its images that is predicted right; 0 for a class without images."""
    return _CountingMetric(name, len(class_names), _by_class(name, class_names, _recalls))


def precision(*, name: str, class_names: Sequence[str]) -> keras.Metric:
    """For every class, the share of its predictions that is right; 0 for a class that is never predicted."""
    return _CountingMetric(name, len(class_names), _by_class(name, class_names, _precisions))


class _CountingMetric(keras.Metric):
    """Computes its result from the counts of images by true class (rows) and predicted class (columns).

    A mixed image counts for each of its classes by its share.
    """

    def __init__(self, name: str, num_classes: int, compute: Callable[[Any], Any]) -> None:
        super().__init__(name=name)
        self.num_classes = num_classes
        self.compute = compute
        self.counts = self.add_variable((num_classes, num_classes), initializer="zeros", name="counts")
        self._direction = "up"  # as the metrics of Keras say which values are better

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds images, with one-hot or mixed labels and probabilities of shape (images, classes)."""
        labels = ops.cast(y_true, self.dtype)
        if sample_weight is not None:
            labels *= ops.reshape(ops.cast(sample_weight, self.dtype), (-1, 1))
        predicted = ops.one_hot(ops.argmax(y_pred, axis=-1), self.num_classes, dtype=self.dtype)
        self.counts.assign_add(ops.matmul(ops.transpose(labels), predicted))

    def result(self) -> Any:
        """The value, or a value for every class by its name."""
        return self.compute(self.counts)


def _recalls(counts: Any) -> Any:
    return ops.divide_no_nan(ops.diagonal(counts), ops.sum(counts, axis=1))


def _precisions(counts: Any) -> Any:
    return ops.divide_no_nan(ops.diagonal(counts), ops.sum(counts, axis=0))


def _mean_of_present(counts: Any, values: Any) -> Any:
    """The mean over the classes that have images."""
    present = ops.cast(ops.sum(counts, axis=1) > 0, values.dtype)
    return ops.divide_no_nan(ops.sum(values * present), ops.sum(present))


def _by_class(name: str, class_names: Sequence[str], compute: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    names = [f"{name}/{each}" for each in _recordable(class_names)]
    return lambda counts: dict(zip(names, ops.unstack(compute(counts), len(names)), strict=True))


def _recordable(class_names: Sequence[str]) -> list[str]:
    """Names of classes as MLflow takes them in the name of a metric, still different from each other."""
    found: list[str] = []
    for number, name in enumerate(class_names):
        plain = re.sub(r"[^\w .-]", "_", name)[:_LONGEST_NAME].strip(" .") or str(number)
        found.append(plain if plain not in found else f"{plain}_{number}")
    return found
