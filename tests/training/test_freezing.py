"""Layers that are frozen at first or throughout, and a learning rate of its own for the last layer."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest

from experiments import run
from experiments.errors import ExperimentError
from experiments.tracking.results import model_file
from experiments.tracking.runs import get_run, history
from experiments.train import plan
from experiments.training.freezing import frozen_layers, set_head_learning_rate
from experiments.training.layers import named_layers

SMALL = ["data.limit=96", "batch_size=32", "model=conv2_batch_norm", "model.filters=[4,6]", "model.dense_units=[8]"]
NAMES = ["block1_conv", "block1_batch_norm", "block2_conv", "block2_batch_norm", "dense1", "classifier"]


@pytest.fixture
def trained(store, tmp_path):
    """Trains; returns the file of the model, the weights of each layer, and the history."""

    def train(*overrides):
        recorded = get_run(run([*SMALL, *overrides]).run_id)
        folder = tmp_path / recorded.run_id
        folder.mkdir()
        file = model_file(recorded, folder)
        weights = {name: layer.get_weights() for name, layer in named_layers(keras.saving.load_model(file)).items()}
        weights = {name: values for name, values in weights.items() if values}
        return SimpleNamespace(file=file, weights=weights, history=history(recorded))

    return train


def equal(first, second):
    return [name for name in first if all((a == b).all() for a, b in zip(first[name], second[name], strict=True))]


def test_frozen_weights_stay_bit_by_bit(trained):
    start = trained("epochs=1")
    begin = [f"init_from={start.file}", "epochs=2"]
    frozen = trained(*begin, "freeze=all_but_head")
    assert equal(frozen.weights, start.weights) == NAMES[:-1]  # also the averages of batch normalization
    some = trained(*begin, "freeze=['block1_*',dense1]")
    assert equal(some.weights, start.weights) == ["block1_conv", "block1_batch_norm", "dense1"]


def test_layers_that_join_in_are_trained_at_the_scheduled_rate(trained):
    settings = ["epochs=3", "schedule=cosine", "model.dropout=0.1"]
    plain = trained(*settings).history
    never = trained(*settings, "freeze=all_but_head").history
    later = trained(*settings, "freeze=all_but_head", "unfreeze_at_epoch=3").history
    assert later["learning_rate"] == plain["learning_rate"] == never["learning_rate"]
    for name in ("loss", "val_loss"):
        assert plain[name][0] != never[name][0]
        assert later[name][:2] == never[name][:2] and later[name][2] != never[name][2]


def test_the_learning_rate_of_the_last_layer():
    def step(factor, freeze=()):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2, "softmax")])
        optimizer = keras.optimizers.SGD(0.5)
        if factor:
            set_head_learning_rate(optimizer, model, factor)
        model.compile(optimizer, "categorical_crossentropy")
        before = model.get_weights()
        model.fit(np.ones((4, 3)), np.eye(2)[[0, 0, 1, 0]], verbose=0)
        return [after - first for after, first in zip(model.get_weights(), before, strict=True)]

    plain, faster = step(None), step(4)
    assert np.allclose(faster[0], plain[0]) and np.allclose(faster[1], plain[1])
    assert np.allclose(faster[2], 4 * plain[2]) and np.allclose(faster[3], 4 * plain[3])
    assert np.abs(plain[2]).max() > 0


def test_layers_are_named_by_patterns():
    layers = keras.layers
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(2, 3), layers.Conv2D(2, 3), layers.Flatten()])
    model.add(layers.Dense(2))
    assert [layer.name for layer in frozen_layers(model, "conv*")] == ["conv2d", "conv2d_1"]
    assert [layer.name for layer in frozen_layers(model, ["conv2d_1", "conv2d_?"])] == ["conv2d_1"]
    assert [layer.name for layer in frozen_layers(model, "all_but_head")] == ["conv2d", "conv2d_1"]
    with pytest.raises(ExperimentError) as caught:
        frozen_layers(model, ["conv2d", "flat*"])
    assert str(caught.value) == (
        "freeze=flat* matches no layer with weights. Allowed: all_but_head, conv2d, conv2d_1, dense."
    )
    with pytest.raises(
        ExperimentError, match=r"^freeze=\* leaves no weights to train\. Take all_but_head to train the"
    ):
        frozen_layers(model, "*")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["freeze=block3_*"], "^freeze=block3_\\* matches no layer with weights. Did you mean block2_conv[?]"),
        (["freeze=all_but_haed"], "^freeze=all_but_haed matches no layer with weights. Did you mean all_but_head[?]"),
        (["unfreeze_at_epoch=2"], "^unfreeze_at_epoch=2: no layer is frozen. Name some with freeze.$"),
        (["freeze=dense1", "unfreeze_at_epoch=6"], "^unfreeze_at_epoch=6: the run ends after epoch 5.$"),
        (["freeze=dense1", "unfreeze_at_epoch=1"], "^unfreeze_at_epoch=1 is refused: it must be a whole number of at"),
        (["head_learning_rate=0"], "^head_learning_rate=0 is refused: it must be a number above 0 or null.$"),
    ],
)  # fmt: skip
def test_what_cannot_be_frozen_is_refused(compose, words, message):
    with pytest.raises(ExperimentError, match=message):
        plan(compose(*SMALL, *words))


def test_a_layer_that_was_built_frozen_is_never_unfrozen():
    layers = [keras.layers.Dense(3, name=name) for name in ("built_frozen", "first", "last")]
    layers[0].trainable = False
    model = keras.Sequential([keras.Input((4,)), *layers])
    assert frozen_layers(model, "all_but_head") == [layers[1]]
