"""Weights of classes and of images in the loss: against scikit-learn and NumPy."""

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight

from experiments import data, load, run
from experiments.config.compose import compose
from experiments.errors import ExperimentError
from experiments.train import plan
from experiments.training.class_weights import ClassWeightedLoss, class_weights

NAMES = ("cat", "dog", "fox")
LABELS = np.array([0] * 30 + [1] * 6 + [2] * 4)


def test_balanced_weights_are_those_of_scikit_learn():
    weights = class_weights("balanced", LABELS, NAMES)
    assert weights == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=LABELS))
    assert weights[LABELS].mean() == pytest.approx(1)
    assert class_weights("balanced", LABELS, (*NAMES, "owl"))[3] == 1  # which has no image
    assert class_weights("none", LABELS, NAMES) is None


def test_classes_are_named_or_counted():
    assert class_weights({"dog": 2.0, 2: 0.5}, LABELS, NAMES).tolist() == [1, 2, 0.5]
    assert class_weights({3: 5.0}, LABELS, ("3", "7", "9")).tolist() == [5, 1, 1]  # a name comes first


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"dgo": 2.0}, "class_weight.dgo: there is no such class. Did you mean dog? Allowed: cat, dog, fox."),
        ({3: 2.0}, "class_weight.3: there is no such class. Allowed: cat, dog, fox."),
        ({-1: 2.0}, "class_weight.-1: there is no such class. Allowed: cat, dog, fox."),
        (
            {"cat": 2.0, 0: 1.0},
            "class_weight={'cat': 2.0, 0: 1.0}: it names a class twice, by its name and its number.",
        ),
    ],
)
def test_an_unknown_class_is_refused(setting, message):
    with pytest.raises(ExperimentError) as refused:
        class_weights(setting, LABELS, NAMES)
    assert str(refused.value) == message


def cross_entropy(labels, probabilities):
    return -(labels * np.log(probabilities)).sum(axis=1)


def focal(labels, probabilities):
    return -(0.25 * (1 - probabilities) ** 2 * labels * np.log(probabilities)).sum(axis=1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True], ids=["one-hot", "mixed"])
@pytest.mark.parametrize(
    ("kind", "by_hand"),
    [(keras.losses.CategoricalCrossentropy, cross_entropy), (keras.losses.CategoricalFocalCrossentropy, focal)],
)
def test_an_image_counts_by_the_weights_of_its_classes(kind, by_hand, mixed, smoothing):
    random = np.random.default_rng(0)
    labels, weights = np.eye(3)[LABELS], np.array([0.5, 2.0, 3.5])
    if mixed:
        share = random.uniform(size=(40, 1))
        labels = share * labels + (1 - share) * labels[random.permutation(40)]
    probabilities = random.dirichlet(np.ones(3), 40)
    loss = ClassWeightedLoss(kind(label_smoothing=smoothing), weights)
    of_image = by_hand((1 - smoothing) * labels + smoothing / 3, probabilities)
    expected = ((labels @ weights) * of_image).mean()
    found = loss(labels.astype("float32"), probabilities.astype("float32"))
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_an_image_counts_by_its_own_weight_times_that_of_its_class(store, tmp_path):
    random, rows = np.random.default_rng(0), ["path,label,weight"]
    for number in range(40):
        pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{('cat', 'dog')[number % 2]},{number / 10}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    words = ["data=csv", f"data.path={tmp_path}/table.csv", "data.image_size=[8,8]", "batch_size=10", "epochs=1"]
    words += ["model=sequential", "model.layers=[{_target_:keras.layers.Flatten}]", "class_weight={dog:3}"]
    result = run([*words, "optimizer=sgd", "optimizer.learning_rate=1e-30"])  # which changes nothing

    cfg = compose(words).cfg.data
    loaded = data.csv(**{key: value for key, value in cfg.items() if key != "_target_"})
    assert len(loaded.train_labels) % 10 == 9  # the last batch is smaller
    probabilities = load(result.run_id).predict(loaded.train_images)
    of_image = cross_entropy(np.eye(2)[loaded.train_labels], probabilities)
    weights = loaded.train_weights * np.array([1, 3])[loaded.train_labels]
    assert result.history["total_loss"] == pytest.approx([(weights * of_image).mean()], abs=1e-6)
    assert result.history["loss"] == pytest.approx([of_image.mean()], abs=1e-6)
    right = probabilities.argmax(axis=1) == loaded.train_labels
    assert result.history["accuracy"] == pytest.approx([right.mean()], abs=1e-6)

    with pytest.raises(ExperimentError) as refused:
        plan(compose([*words, "augment=mixup"]))
    assert str(refused.value) == (
        "augment.mixup: keras.layers.MixUp would mix images of different weights. "
        "Leave it out, or the weights of the images."
    )
