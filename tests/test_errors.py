"""The reason of an exception in one line, held to what Keras and TensorFlow really raise."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from experiments.errors import reason_of
from experiments.tracking.endings import Ending


class Numeric(keras.layers.Layer):
    def call(self, inputs):
        return tf.debugging.check_numerics(inputs / 0.0 * 0, "not a number")


class Broken(keras.layers.Layer):
    def call(self, inputs):
        raise RuntimeError("my own mistake\nand where it is")


def trained(*layers, labels=0, loss="sparse_categorical_crossentropy"):
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile("sgd", loss)
    model.fit(np.ones((2, 4)), np.full(2, labels), verbose=0)


def of_users_code():
    list(tf.data.Dataset.range(1).map(lambda n: tf.reshape(tf.zeros(3), (2, tf.cast(n, tf.int32)))))


WITHOUT_SHAPE = (
    "RuntimeError: Could not automatically infer the output shape / dtype of 'broken' (of type Broken). Either the "
    "`Broken.call()` method is incorrect, or you need to implement the `Broken.compute_output_spec() / "
    "compute_output_shape()` method. Error encountered: my own mistake and where it is"
)
RAISED = {
    "in a graph": (
        lambda: trained(Numeric(), keras.layers.Dense(2, activation="softmax")),
        "InvalidArgumentError: not a number : Tensor had NaN values",
    ),
    "in a loss": (
        lambda: trained(keras.layers.Dense(2, activation="softmax"), labels=7),
        "InvalidArgumentError: indices[0] = 7 is not in [0, 2)",
    ),
    "in a layer": (
        lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])(np.ones((3, 5))),
        "ValueError: Input 0 with name 'None' of layer 'dense' is incompatible with the layer: expected axis -1 of "
        "input shape to have value 4, but received input with shape (3, 5)",
    ),
    "in a layer of the user's": (lambda: trained(Broken()), WITHOUT_SHAPE),
    "in an operation": (
        lambda: tf.matmul(tf.ones((2, 3)), tf.ones((2, 3))),
        "InvalidArgumentError: Matrix size-incompatible: In[0]: [2,3], In[1]: [2,3]",
    ),
    "in a pipeline": (of_users_code, "ValueError: Dimension size must be evenly divisible by 2 but is 3 for"),
}


@pytest.mark.parametrize("where", RAISED)
def test_the_reason_is_the_sentence_that_says_what_is_wrong(where):
    fail, reason = RAISED[where]
    with pytest.raises(Exception) as raised:  # whatever the library has
        fail()
    assert Ending.of(raised.value).failure.startswith(reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", ""),
        ("one line", "one line"),
        ("first\n  second\n\nArguments:\n  x", "first second"),
        (
            "(sqlite3.OperationalError) locked\n[SQL: SELECT]\n\n(Background on this error)",
            "(sqlite3.OperationalError) locked [SQL: SELECT]",
        ),
    ],
)
def test_the_first_paragraph_is_the_reason(text, reason):
    assert reason_of(ValueError(text)) == reason
