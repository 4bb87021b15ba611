"""One job of sweep.py in plain Keras: model=conv2, trained for one epoch and evaluated; nothing is recorded.

The shell loop runs this file once per job; the other peers import its functions, so that all do the same work.
"""

import argparse

import keras
import numpy as np


def load(file: str) -> dict[str, np.ndarray]:
    """The arrays that sweep.py has written: x and y of train, validation and test."""
    with np.load(file) as arrays:
        # Pixels become numbers from 0 to 1, as in any tutorial.
        return {
            name: array[..., np.newaxis].astype("float32") / 255 if name.startswith("x_") else array
            for name, array in arrays.items()
        }


def build(seed: int) -> keras.Model:
    """The compiled model."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Conv2D(64, 3, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def train(model: keras.Model, data: dict[str, np.ndarray], **keywords: object) -> dict[str, float]:
    """Trains for an epoch; what was measured on training, validation and test images."""
    history = model.fit(
        data["x_train"],
        data["y_train"],
        batch_size=32,
        epochs=1,
        validation_data=(data["x_validation"], data["y_validation"]),
        verbose=0,
        **keywords,
    )
    loss, accuracy = model.evaluate(data["x_test"], data["y_test"], verbose=0)
    last = {name: values[-1] for name, values in history.history.items()}
    return {**last, "test_loss": loss, "test_accuracy": accuracy}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(train(build(arguments.seed), load(arguments.data)))
