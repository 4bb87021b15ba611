"""Augmentation is tried before anything is recorded; images are predicted in batches of bounded memory."""

import keras
import numpy as np
import pytest

from experiments.dataset import Dataset
from experiments.errors import ExperimentError
from experiments.training.batches import prediction_batch_size
from experiments.training.build import build


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    return Dataset.from_arrays(random.integers(0, 255, (60, 28, 28)), np.arange(60) % 3, name="noise")


def with_augmentation(compose, tmp_path, text):
    (tmp_path / "augment").mkdir()
    (tmp_path / "augment" / "mine.yaml").write_text(f"# mine\n{text}\n")
    return compose("augment=mine", config_dir=str(tmp_path)).cfg


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "crop: {_target_: keras.layers.RandomCrop, height: 24, width: 24}",
            "augment.crop: keras.layers.RandomCrop makes images of shape (24, 24, 1) and labels of shape (3,) of those "
            "of shape (28, 28, 1) and (3,). An augmentation must keep both; keras.layers.Resizing behind it ",
        ),
        (
            "flat: {_target_: keras.layers.Flatten}",
            "augment.flat: keras.layers.Flatten makes images of shape (784,) and labels of shape (3,) of those ",
        ),
        (
            "flip: {_target_: keras.layers.RandomFlip}\nturn: {_target_: keras.layers.LSTM, units: 3}",
            "augment.turn: keras.layers.LSTM cannot be applied to images of shape (28, 28, 1): ",
        ),
    ],
)
def test_an_augmentation_that_does_not_fit_the_images_is_refused(compose, tmp_path, data, text, message):
    with pytest.raises(ExperimentError) as refused:
        build(with_augmentation(compose, tmp_path, text), data)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("layer", ["GaussianNoise, stddev: 0.5", "Dropout, rate: 0.1", "RandomFlip, mode: horizontal"])
def test_layers_of_any_kind_get_the_numbers_that_they_take(compose, tmp_path, data, layer):
    components = build(with_augmentation(compose, tmp_path, f"mine: {{_target_: keras.layers.{layer}}}"), data)
    assert len(components.augmentation) == 1


@pytest.mark.parametrize(("size", "expected"), [((28, 28, 1), 250), ((256, 256, 3), 4), ((4000, 4000, 1), 1)])
def test_images_are_predicted_in_batches_of_bounded_memory(size, expected):
    model = keras.Sequential(
        [
            keras.Input(size),
            keras.layers.Conv2D(32, 3, padding="same"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    assert prediction_batch_size(model) == expected
