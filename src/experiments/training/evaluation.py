"""Computes metrics and reports from predictions, with scikit-learn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from sklearn import metrics

from experiments.stored_images import Images
from experiments.training.batches import evaluation_batches, prediction_batch_size

_MEASURED_AT_ONCE = 250  # images
_FEWEST_TO_CALIBRATE = 100  # images; with fewer, chance alone makes a large calibration error


@dataclass(frozen=True)
class Evaluation:
    """A model's predictions for labelled images."""

    labels: np.ndarray  # int64 (images,)
    probabilities: np.ndarray  # float32 (images, classes)

    @property
    def predicted(self) -> np.ndarray:
        """The predicted class of every image, int64 of shape (images,)."""
        return self.probabilities.argmax(axis=1)

    @property
    def confidences(self) -> np.ndarray:
        """The probability of the predicted class, float32 of shape (images,)."""
        return self.probabilities.max(axis=1)

    @property
    def wrong(self) -> np.ndarray:
        """Positions of the wrongly classified images, the most confident error first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        return wrong[np.argsort(-self.confidences[wrong], kind="stable")]

    @property
    def calibration(self) -> "CalibrationBins | None":
        """The bins of the calibration error: up to 15, of at least 20 images each; None for fewer than 100 images."""
        number = len(self.labels)
        if number < _FEWEST_TO_CALIBRATE:
            return None
        return calibration_bins(self.predicted == self.labels, self.confidences, min(15, number // 20))

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the accuracy (Wilson)."""
        from statsmodels.stats.proportion import proportion_confint  # imported here because it takes a while

        right = int((self.predicted == self.labels).sum())
        low, high = proportion_confint(right, len(self.labels), method="wilson")
        return float(low), float(high)

    @property
    def largest_class_share(self) -> float:
        """The accuracy of predicting the most frequent class for every image."""
        return float(np.bincount(self.labels).max() / len(self.labels))

    def accuracy_without(self, positions: Sequence[int]) -> float:
        """The accuracy on all other images."""
        return float(np.delete(self.predicted == self.labels, positions).mean())

    def metrics(self) -> dict[str, float]:
        """Accuracy, cross-entropy (without label smoothing), F1 scores and, from 100 images on, calibration error."""
        calibration = self.calibration
        classes = range(self.probabilities.shape[1])
        macro, weighted = (
            metrics.f1_score(self.labels, self.predicted, labels=classes, average=average, zero_division=0)
            for average in ("macro", "weighted")
        )
        likelihoods = self.probabilities[np.arange(len(self.labels)), self.labels].astype(np.float64)
        return {
            "accuracy": float(metrics.accuracy_score(self.labels, self.predicted)),
            # As model.evaluate: behind a softmax Keras takes the logits and clips nothing; this only avoids log 0.
            "loss": float(-np.log(likelihoods.clip(min=np.finfo(np.float32).tiny)).mean()),
            "macro_f1": float(macro),
            "weighted_f1": float(weighted),
            **({"calibration_error": calibration.error} if calibration else {}),
        }

    def confusion_matrix(self) -> np.ndarray:
        """Counts of shape (classes, classes): rows are true classes, columns predicted ones."""
        return metrics.confusion_matrix(self.labels, self.predicted, labels=range(self.probabilities.shape[1]))

    def report(self, class_names: Sequence[str]) -> str:
        """Precision, recall and F1 of every class as a text table."""
        return metrics.classification_report(
            self.labels,
            self.predicted,
            labels=range(len(class_names)),
            target_names=class_names,
            digits=4,
            zero_division=0,
        )

    def report_values(self, class_names: Sequence[str]) -> dict[str, dict[str, float]]:
        """The table of `report` as numbers."""
        return metrics.classification_report(
            self.labels,
            self.predicted,
            labels=range(len(class_names)),
            target_names=class_names,
            output_dict=True,
            zero_division=0,
        )


def evaluate(model: keras.Model, images: Images, labels: np.ndarray) -> Evaluation:
    """Predicts raw pixels of shape (images, height, width, channels)."""
    # Given an array, Keras would copy it.
    batches = evaluation_batches(images, labels, model.output_shape[-1], prediction_batch_size(model))
    return Evaluation(labels, model.predict(batches, verbose=0))


def measure(evaluation: Evaluation, metrics: Sequence[keras.Metric]) -> dict[str, float]:
    """The values of Keras metrics on the predictions, measured in batches as `Model.evaluate` does."""
    found: dict[str, float] = {}
    labels = keras.utils.to_categorical(evaluation.labels, evaluation.probabilities.shape[1])
    for metric in metrics:
        metric.reset_state()
        for start in range(0, len(labels), _MEASURED_AT_ONCE):
            batch = slice(start, start + _MEASURED_AT_ONCE)
            metric.update_state(labels[batch], evaluation.probabilities[batch])
        found |= {name: float(value) for name, value in values_of(metric).items()}
    return found


def values_of(metric: keras.Metric) -> dict[str, Any]:
    """What a metric has measured, by name: one value, or one for every class."""
    result = metric.result()
    return result if isinstance(result, dict) else {metric.name: result}


@dataclass(frozen=True)
class CalibrationBins:
    """Images in bins of increasing confidence and equal size, give or take one; one entry per bin."""

    counts: np.ndarray  # int64, images
    confidences: np.ndarray  # float64, the mean probability of the likeliest class
    accuracies: np.ndarray  # float64, the share of images whose likeliest class was the true one
    intervals: np.ndarray  # float64 (2, bins), ends of intervals that hold all true accuracies with 95 % probability

    @property
    def error(self) -> float:
        """The expected calibration error: the mean over images of |accuracy - confidence| of their bin."""
        return float((self.counts * abs(self.accuracies - self.confidences)).sum() / self.counts.sum())


def calibration_bins(right: np.ndarray, confidences: np.ndarray, bins: int) -> CalibrationBins:
    """Accuracy in bins of similar confidence, with Wilson intervals after Bonferroni's correction.

    Bins of equal mass are those of Nguyen and O'Connor 2015, https://arxiv.org/abs/1508.05154.

    Args:
        right: whether the likeliest class was the true one, of shape (images,).
        confidences: the probability of the likeliest class, of shape (images,).
        bins: how many, or one per image where there are fewer images.
    """
    from statsmodels.stats.proportion import proportion_confint  # imported here because it takes a while

    values, group, counts = np.unique(confidences, return_inverse=True, return_counts=True)
    # Predictions of equal confidence share their accuracy, or the order of the images would matter.
    shares = np.bincount(group, weights=right) / counts
    in_bins = [
        np.array_split(np.repeat(column, counts), min(bins, len(right))) for column in (values.astype(float), shares)
    ]
    mean_confidences, accuracies = (np.array([part.mean() for part in parts]) for parts in in_bins)
    sizes = np.array([len(part) for part in in_bins[0]])
    intervals = proportion_confint(accuracies * sizes, sizes, alpha=0.05 / len(sizes), method="wilson")
    return CalibrationBins(sizes, mean_confidences, accuracies, np.stack(intervals))
