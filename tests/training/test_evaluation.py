"""Metrics of small cases counted by hand."""

import math

import keras
import numpy as np
import pytest

from experiments import models
from experiments.training.evaluation import Evaluation, calibration_bins, evaluate
from experiments.training.runtime import start_runtime


@pytest.fixture(scope="module", autouse=True)
def runtime():
    """The threads and determinism of every test that computes: one process can have only one of each."""
    start_runtime(seed=0, threads=2, deterministic=True, precision="float32")


def evaluation(labels, probabilities):
    return Evaluation(np.array(labels), np.array(probabilities, np.float32))


@pytest.fixture
def small():
    """Four images of three classes; the third image, of class 2, is predicted as class 0."""
    return evaluation([0, 1, 2, 1], [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2], [0.3, 0.4, 0.3]])


def test_predictions_and_confidences(small):
    assert small.predicted.tolist() == [0, 1, 0, 1]
    assert small.confidences.tolist() == pytest.approx([0.7, 0.6, 0.5, 0.4])
    assert small.wrong.tolist() == [2]


def test_metrics_by_hand(small):
    values = small.metrics()
    assert set(values) == {"accuracy", "loss", "macro_f1", "weighted_f1"}
    assert all(type(value) is float for value in values.values())
    assert values["accuracy"] == 0.75
    assert values["loss"] == pytest.approx(-math.log(0.7 * 0.6 * 0.2 * 0.4) / 4, abs=1e-7)
    # F1 by class: 2*1/(2*1+1) with one false alarm; 1; 0.
    assert values["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert values["weighted_f1"] == pytest.approx((1 * 2 / 3 + 2 * 1 + 1 * 0) / 4)


def test_confusion_matrix_has_true_classes_as_rows(small):
    assert small.confusion_matrix().tolist() == [[1, 0, 0], [0, 2, 0], [1, 0, 0]]


def test_reports_by_hand(small):
    names = ["cat", "dog", "fox"]
    values = small.report_values(names)
    assert values["cat"] == pytest.approx({"precision": 0.5, "recall": 1, "f1-score": 2 / 3, "support": 1})
    assert values["dog"] == {"precision": 1, "recall": 1, "f1-score": 1, "support": 2}
    assert values["fox"] == {"precision": 0, "recall": 0, "f1-score": 0, "support": 1}
    assert values["accuracy"] == 0.75
    lines = [line.split() for line in small.report(names).splitlines()]
    assert ["cat", "0.5000", "1.0000", "0.6667", "1"] in lines
    assert ["fox", "0.0000", "0.0000", "0.0000", "1"] in lines
    assert ["accuracy", "0.7500", "4"] in lines


def test_the_surest_mistake_comes_first_and_equal_ones_keep_their_order():
    said = evaluation(
        [1, 0, 1, 1, 1, 0],
        [[0.6, 0.4], [0.9, 0.1], [0.8, 0.2], [0.95, 0.05], [0.8, 0.2], [0.3, 0.7]],
    )
    assert said.wrong.tolist() == [3, 2, 4, 5, 0]


def test_accuracy_without_some_images(small):
    assert small.accuracy_without([]) == 0.75
    assert small.accuracy_without([2]) == 1  # the wrong one
    assert small.accuracy_without((0, 3)) == 0.5
    assert small.accuracy_without([0, 1, 3]) == 0


def test_nothing_is_wrong():
    assert evaluation([0, 1], [[1, 0], [0, 1]]).wrong.tolist() == []


def test_the_loss_of_sure_answers():
    assert evaluation([0], [[1, 0]]).metrics()["loss"] == 0
    # Sure mistakes cost what they cost in Keras, which does not stop at 1e-7 ...
    assert evaluation([1], [[1, 1e-30]]).metrics()["loss"] == pytest.approx(30 * math.log(10), rel=1e-6)
    # ... but the logarithm of 0 is not infinite: float32 ends at 2^-126.
    assert evaluation([1], [[1, 0]]).metrics()["loss"] == pytest.approx(126 * math.log(2), rel=1e-12)
    assert evaluation([0, 1], [[1, 0], [1, 0]]).metrics()["loss"] == pytest.approx(63 * math.log(2), rel=1e-12)


def test_a_class_without_test_images():
    # Class 2 is neither there nor predicted, class 1 only predicted.
    said = evaluation([0, 0, 0, 3], [[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    values = said.metrics()
    assert values["accuracy"] == 0.75
    # F1 by class: 2*2/(2*2+1), 0, 0, 1; a class that nobody could test counts as 0 in the plain mean.
    assert values["macro_f1"] == pytest.approx((4 / 5 + 0 + 0 + 1) / 4)
    assert values["weighted_f1"] == pytest.approx((3 * 4 / 5 + 1 * 1) / 4)
    assert said.confusion_matrix().tolist() == [[2, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    values = said.report_values(["a", "b", "c", "d"])
    assert values["c"] == {"precision": 0, "recall": 0, "f1-score": 0, "support": 0}
    assert values["accuracy"] == 0.75
    assert "accuracy" in said.report(["a", "b", "c", "d"])


# How far an accuracy can be trusted


@pytest.mark.parametrize(("right", "total"), [(12, 27), (100, 100), (0, 30), (9_800, 10_000)])
def test_the_interval_of_the_accuracy_is_that_of_wilson(right, total):
    share, z = right / total, 1.959963984540054
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    reach = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    said = evaluation([0] * total, [[1, 0]] * right + [[0, 1]] * (total - right))
    assert said.accuracy_interval == pytest.approx((middle - reach, middle + reach), abs=1e-12)


def test_the_share_of_the_largest_class(small):
    assert small.largest_class_share == 0.5


# Calibration


def calibration_error(right, confidences, bins=15):
    return calibration_bins(right, confidences, bins).error


def test_calibration_error_by_hand():
    # 15 bins of 2 images with the confidence 0.5 + k/30; all right in even bins, all wrong in odd ones.
    # The gaps are 0.5 - k/30 in even bins and 0.5 + k/30 in odd ones: (15 * 0.5 + (49 - 56)/30) / 15.
    confidences = np.repeat(0.5 + np.arange(15) / 30, 2)
    right = np.repeat(np.arange(15) % 2 == 0, 2)
    expected = (7.5 - 7 / 30) / 15
    assert calibration_error(right, confidences) == pytest.approx(expected, abs=1e-12)
    order = np.random.default_rng(0).permutation(30)
    assert calibration_error(right[order], confidences[order]) == pytest.approx(expected, abs=1e-12)


def test_bins_by_hand():
    # Rising confidences, however the images stand: 0.2, 0.4, 0.6 in the first bin, 0.8, 0.9 in the second.
    right, confidences = np.array([True, False, True, True, False]), np.array([0.9, 0.2, 0.6, 0.4, 0.8])
    bins = calibration_bins(right, confidences, bins=2)
    assert bins.counts.tolist() == [3, 2]
    assert bins.confidences.tolist() == pytest.approx([0.4, 0.85])
    assert bins.accuracies.tolist() == pytest.approx([2 / 3, 1 / 2])
    assert bins.error == pytest.approx((3 * (2 / 3 - 0.4) + 2 * (0.85 - 0.5)) / 5)


def test_intervals_of_bins_are_those_of_wilson_for_all_of_them():
    # Two bins of 50 images, of which 45 and all are right; 2.2414 is the 98.75 % quantile: half of 5 % for each bin.
    right = np.repeat([True, False, True], [45, 5, 50])
    bins = calibration_bins(right, np.repeat([0.9, 0.95], 50), bins=2)
    z, n = 2.2414027276, 50
    for bin_, share in enumerate((0.9, 1.0)):
        middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
        reach = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
        assert bins.intervals[0][bin_] == pytest.approx(middle - reach, abs=1e-9)
        assert bins.intervals[1][bin_] == pytest.approx(middle + reach, abs=1e-9)
    assert bins.intervals[1][1] == pytest.approx(1, abs=1e-12)


def test_the_bins_of_a_run_are_those_of_its_metric():
    rng = np.random.default_rng(0)
    said = evaluation(rng.integers(0, 10, 500), rng.dirichlet(np.full(10, 0.2), 500))
    bins = said.calibration
    assert sorted(set(bins.counts)) == [33, 34] and len(bins.counts) == 15
    assert (np.diff(bins.confidences) > 0).all()
    assert said.metrics()["calibration_error"] == bins.error > 0.1


@pytest.mark.parametrize(("images", "bins"), [(100, 5), (139, 6), (299, 14), (300, 15), (10_000, 15)])
def test_a_bin_has_at_least_20_images(images, bins):
    rng = np.random.default_rng(0)
    found = evaluation(rng.integers(0, 3, images), rng.dirichlet(np.ones(3), images)).calibration
    assert len(found.counts) == bins and found.counts.sum() == images and found.counts.min() >= 20


def test_fewer_than_100_images_have_no_calibration_error():
    said = evaluation([0, 1, 1] * 33, [[0.7, 0.3]] * 99)
    assert said.calibration is None
    assert "calibration_error" not in said.metrics()


def test_gaps_of_one_bin_cancel_and_those_of_two_do_not():
    right, confidences = np.array([True, False]), np.array([0.8, 0.8 + 1e-9])
    assert calibration_error(right, confidences, bins=1) == pytest.approx(abs(0.5 - 0.8))
    assert calibration_error(right, confidences, bins=2) == pytest.approx((0.2 + 0.8) / 2)


def test_bins_of_equal_mass_may_differ_by_one_image():
    # 5 images in 2 bins: 3 and 2. Shares 2/3 and 1/2; mean confidences 0.2 and 0.7.
    right = np.array([True, True, False, True, False])
    confidences = np.array([0.1, 0.2, 0.3, 0.6, 0.8])
    expected = (3 * (2 / 3 - 0.2) + 2 * (0.7 - 0.5)) / 5
    assert calibration_error(right, confidences, bins=2) == pytest.approx(expected, abs=1e-12)


def test_perfectly_calibrated():
    # Of 20 images with the confidence c/20, c are right; a bin holds exactly these 20.
    counts = np.arange(5, 20)
    confidences = np.repeat(counts / 20, 20)
    right = np.concatenate([np.arange(20) < count for count in counts])
    assert calibration_error(right, confidences) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("count", [1, 7, 15, 100])
def test_always_sure_and_always_wrong(count):
    assert calibration_error(np.zeros(count, bool), np.ones(count, np.float32)) == 1
    assert calibration_error(np.ones(count, bool), np.ones(count, np.float32)) == 0


def test_fewer_images_than_bins():
    right, confidences = np.array([True, False, True]), np.array([0.9, 0.6, 0.8])
    assert calibration_error(right, confidences) == pytest.approx((0.1 + 0.6 + 0.2) / 3, abs=1e-12)


def test_the_order_of_equally_sure_answers_does_not_count():
    # A collapsed net says the same of every image; a folder's images stand class by class.
    right, confidences = np.arange(300) < 30, np.full(300, 0.15)
    assert calibration_error(right, confidences) == pytest.approx(0.05, abs=1e-12)
    assert calibration_error(right[::-1], confidences) == pytest.approx(0.05, abs=1e-12)


# Against Keras


@pytest.mark.parametrize("sharpness", [1 / 255, 1 / 20])
def test_the_loss_is_that_of_keras(sharpness):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (700, 6, 6, 1), dtype=np.uint8)
    labels = rng.integers(0, 5, 700)
    net = models.sequential(input_shape=(6, 6, 1), num_classes=5, layers=[keras.layers.Flatten()], classifier=True)
    model = models.with_scaling(net, keras.layers.Rescaling(sharpness), (6, 6, 1))
    said = evaluate(model, images, labels)
    assert said.labels is labels
    assert said.probabilities.dtype == np.float32
    least = said.probabilities[np.arange(700), labels].min()
    assert least > 1e-3 if sharpness == 1 / 255 else 0 < least < 1e-8  # where a loss of probabilities is clipped
    model.compile(loss="categorical_crossentropy", metrics=["accuracy"])
    loss, accuracy = model.evaluate(images, keras.utils.to_categorical(labels, 5), batch_size=32, verbose=0)
    values = said.metrics()
    assert values["loss"] == pytest.approx(loss, rel=1e-6)
    assert values["accuracy"] == pytest.approx(accuracy, abs=1e-7)
