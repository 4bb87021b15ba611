"""Balanced accuracy, recall and precision against scikit-learn, and as a run records them."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, precision_score, recall_score

from experiments import metrics, run
from experiments.errors import ExperimentError

CLASSES = ["cat", "dog", "fox", "owl"]


def measured(build, labels, probabilities, weights=None):
    """What a metric says of images that come in batches of 32, the last one smaller."""
    metric = build(name="m", class_names=CLASSES)
    for start in range(0, len(labels), 32):
        batch = slice(start, start + 32)
        metric.update_state(labels[batch], probabilities[batch], *([] if weights is None else [weights[batch]]))
    result = metric.result()
    return {name: float(value) for name, value in result.items()} if isinstance(result, dict) else float(result)


@pytest.fixture
def predictions():
    """100 images of three of the four classes, the first far more frequent, and their probabilities."""
    random = np.random.default_rng(0)
    labels = random.choice(3, 100, p=[0.8, 0.15, 0.05])
    return labels, random.dirichlet(np.ones(4), 100) + 0.3 * np.eye(4)[labels]


def test_the_values_are_those_of_scikit_learn(predictions):
    labels, probabilities = predictions
    predicted, one_hot = probabilities.argmax(axis=1), np.eye(4)[labels]
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        balanced = balanced_accuracy_score(labels, predicted)
    assert measured(metrics.balanced_accuracy, one_hot, probabilities) == pytest.approx(balanced, abs=1e-6)
    asked = {"labels": range(4), "average": None, "zero_division": 0}
    for build, score in ((metrics.recall, recall_score), (metrics.precision, precision_score)):
        found = measured(build, one_hot, probabilities)
        assert list(found) == [f"m/{name}" for name in CLASSES]
        assert list(found.values()) == pytest.approx(score(labels, predicted, **asked), abs=1e-6)


def test_a_mixed_image_counts_for_each_of_its_classes_by_its_share(predictions):
    labels, probabilities = predictions
    other, share = np.roll(labels, 1), np.random.default_rng(1).uniform(size=100)
    mixed = share[:, None] * np.eye(4)[labels] + (1 - share)[:, None] * np.eye(4)[other]
    weights = np.random.default_rng(2).uniform(size=100)
    both, predicted = np.concatenate([labels, other]), np.tile(probabilities.argmax(axis=1), 2)
    counted = np.concatenate([weights * share, weights * (1 - share)])
    expected = recall_score(both, predicted, labels=range(4), average=None, zero_division=0, sample_weight=counted)
    found = measured(metrics.recall, mixed, probabilities, weights)
    assert list(found.values()) == pytest.approx(expected, abs=1e-6)


def test_the_names_of_classes_can_be_recorded():
    metric = metrics.recall(name="recall", class_names=["a b", "50%", "50#", "..", "猫"])
    assert list(metric.result()) == ["recall/a b", "recall/50_", "recall/50__2", "recall/3", "recall/猫"]


def test_a_run_records_the_values_of_every_class(store, tmp_path):
    random = np.random.default_rng(0)
    for name, brightness in (("cat", 40), ("dog", 120), ("owl 100%", 200)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            image = random.integers(brightness, brightness + 50, (16, 16), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "photos" / name / f"{number}.png")
    words = ["data=folder", f"data.path={tmp_path}/photos", "model.filters=[4]", "model.pool_sizes=[2]", "epochs=2"]
    words += ["metrics=[balanced_accuracy,recall,precision]", "objective=val_recall/dog"]
    result = run(words)
    names = [f"{metric}/{name}" for metric in ("recall", "precision") for name in ("cat", "dog", "owl 100_")]
    record = store.get_run(result.run_id)
    for name in [*names, "balanced_accuracy"]:
        values = [point.value for point in store.get_metric_history(result.run_id, f"val_{name}")]
        assert values == result.history[f"val_{name}"] and len(values) == 2
        assert record.data.metrics[f"best/val_{name}"] == values[int(result.metrics["best/epoch"]) - 1]
    assert result.objective == max(result.history["val_recall/dog"])
    assert json.loads(record.data.tags["metric_modes"])["recall/dog"] == "max"
    with np.load(store.download_artifacts(result.run_id, "test_predictions.npz")) as test:
        labels, predicted = test["labels"], test["probabilities"].argmax(axis=1)
    expected = recall_score(labels, predicted, labels=range(3), average=None)
    assert [result.metrics[f"test/{name}"] for name in names[:3]] == pytest.approx(expected, abs=1e-6)
    assert result.metrics["test/balanced_accuracy"] == pytest.approx(expected.mean(), abs=1e-6)

    with pytest.raises(ExperimentError) as refused:
        run([*words[:-1], "objective=val_recall/dgo"])
    assert "objective=val_recall/dgo: no epoch measures it. Did you mean val_recall/dog?" in str(refused.value)
    with pytest.raises(ExperimentError, match=r"^objective=val_recall: no epoch measures it\."):
        run([*words[:-1], "objective=val_recall"])
