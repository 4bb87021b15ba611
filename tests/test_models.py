"""Architectures and scalings: hand-counted parameters, layer order, refusals, and files that load anywhere."""

import re

import keras
import numpy as np
import pytest
import yaml

from experiments import models
from experiments.config.compose import CONF_DIR
from experiments.config.targets import instantiate
from experiments.errors import ExperimentError
from experiments.training.macs import count_macs
from experiments.training.runtime import start_runtime

DIGIT = (28, 28, 1)
#: What every option of conf/model counts on 28x28x1 images of 10 classes; the sides of the maps stand behind.
PARAMETERS = {
    # 28 -> 26 -> 13 -> 11 -> 5
    "conv2": (3 * 3 * 1 + 1) * 32 + (3 * 3 * 32 + 1) * 64 + (5 * 5 * 64 + 1) * 64 + (64 + 1) * 10,
    # No bias in a normalised convolution; scale, offset, mean and variance of every channel instead.
    "conv2_batch_norm": (3 * 3 * 1 + 4) * 32 + (3 * 3 * 32 + 4) * 64 + (5 * 5 * 64 + 1) * 64 + (64 + 1) * 10,
    # 28 -> 26 -> 13 -> 11 -> 5 -> 3
    "conv3": (3 * 3 * 1 + 1) * 32
    + (3 * 3 * 32 + 1) * 64
    + (3 * 3 * 64 + 1) * 128
    + (3 * 3 * 128 + 1) * 128
    + (128 + 1) * 10,
    "conv3_dropout": (3 * 3 * 1 + 1) * 32
    + (3 * 3 * 32 + 1) * 64
    + (3 * 3 * 64 + 1) * 128
    + (3 * 3 * 128 + 1) * 128
    + (128 + 1) * 10,
    "conv3_batch_norm_dropout": (3 * 3 * 1 + 4) * 32
    + (3 * 3 * 32 + 4) * 64
    + (3 * 3 * 64 + 4) * 128
    + (3 * 3 * 128 + 1) * 128
    + (128 + 1) * 10,
    "conv3_wide": (3 * 3 * 1 + 1) * 64
    + (3 * 3 * 64 + 1) * 128
    + (3 * 3 * 128 + 1) * 256
    + (3 * 3 * 256 + 1) * 128
    + (128 + 1) * 10,
    # 28 -> 26 -> 13 -> 11 -> 9 -> 7 -> 3 -> 1; batch normalization has four numbers a channel
    "conv5": (3 * 3 * 1 + 4) * 32
    + (3 * 3 * 32 + 4) * 64
    + 2 * (3 * 3 * 64 + 4) * 64
    + (3 * 3 * 64 + 4) * 128
    + (128 + 1) * 10,
    "conv5_small": (3 * 3 * 1 + 4) * 24
    + (3 * 3 * 24 + 4) * 48
    + 2 * (3 * 3 * 48 + 4) * 48
    + (3 * 3 * 48 + 4) * 96
    + (96 + 1) * 10,
    # LeNet-5; 28 -> 28 -> 14 -> 10 -> 5
    "sequential": (5 * 5 * 1 + 1) * 6 + (5 * 5 * 6 + 1) * 16 + (5 * 5 * 16 + 1) * 120 + (120 + 1) * 84 + (84 + 1) * 10,
}
#: Multiply-accumulates of one image, by hand: output height * width * kernel * channels in * channels out; in * out.
MACS = {
    "conv2": 26 * 26 * 3 * 3 * 1 * 32 + 11 * 11 * 3 * 3 * 32 * 64 + 5 * 5 * 64 * 64 + 64 * 10,
    "conv2_batch_norm": 26 * 26 * 3 * 3 * 1 * 32 + 11 * 11 * 3 * 3 * 32 * 64 + 5 * 5 * 64 * 64 + 64 * 10,
    "conv3": 26 * 26 * 3 * 3 * 1 * 32
    + 11 * 11 * 3 * 3 * 32 * 64
    + 3 * 3 * 3 * 3 * 64 * 128
    + 3 * 3 * 128 * 128
    + 128 * 10,
    "conv3_dropout": 26 * 26 * 3 * 3 * 1 * 32
    + 11 * 11 * 3 * 3 * 32 * 64
    + 3 * 3 * 3 * 3 * 64 * 128
    + 3 * 3 * 128 * 128
    + 128 * 10,
    "conv3_batch_norm_dropout": 26 * 26 * 3 * 3 * 1 * 32
    + 11 * 11 * 3 * 3 * 32 * 64
    + 3 * 3 * 3 * 3 * 64 * 128
    + 3 * 3 * 128 * 128
    + 128 * 10,
    "conv3_wide": 26 * 26 * 3 * 3 * 1 * 64
    + 11 * 11 * 3 * 3 * 64 * 128
    + 3 * 3 * 3 * 3 * 128 * 256
    + 3 * 3 * 256 * 128
    + 128 * 10,
    "conv5": 26 * 26 * 3 * 3 * 1 * 32
    + 11 * 11 * 3 * 3 * 32 * 64
    + (9 * 9 + 7 * 7) * 3 * 3 * 64 * 64
    + 3 * 3 * 64 * 128
    + 128 * 10,
    "conv5_small": 26 * 26 * 3 * 3 * 1 * 24
    + 11 * 11 * 3 * 3 * 24 * 48
    + (9 * 9 + 7 * 7) * 3 * 3 * 48 * 48
    + 3 * 3 * 48 * 96
    + 96 * 10,
    "sequential": 28 * 28 * 5 * 5 * 1 * 6 + 10 * 10 * 5 * 5 * 6 * 16 + 5 * 5 * 16 * 120 + 120 * 84 + 84 * 10,
}
#: Parameters and multiply-accumulates of the net of every option of conf/experiment, likewise.
EXPERIMENTS = {
    "two_conv": (PARAMETERS["conv2"], MACS["conv2"]),
    "two_conv_scaled_twice": (PARAMETERS["conv2"], MACS["conv2"]),
    "one_cycle": (PARAMETERS["conv2"], MACS["conv2"]),
    "three_conv_callbacks": (PARAMETERS["conv3"], MACS["conv3"]),
    "mnist_best": (PARAMETERS["conv5"], MACS["conv5"]),
    "mnist_small": (PARAMETERS["conv5_small"], MACS["conv5_small"]),
    "dropout_15_epochs": (
        (3 * 3 * 1 + 1) * 32 + (3 * 3 * 32 + 1) * 64 + (5 * 5 * 64 + 1) * 10,
        26 * 26 * 3 * 3 * 1 * 32 + 11 * 11 * 3 * 3 * 32 * 64 + 5 * 5 * 64 * 10,
    ),
    # 28 -> 24 -> 12 -> 10 -> 5
    "one_cycle_fast": (
        (5 * 5 * 1 + 1) * 24 + (3 * 3 * 24 + 1) * 32 + (5 * 5 * 32 + 1) * 256 + (256 + 1) * 10,
        24 * 24 * 5 * 5 * 1 * 24 + 10 * 10 * 3 * 3 * 24 * 32 + 5 * 5 * 32 * 256 + 256 * 10,
    ),
    "mnist_fast": (
        (5 * 5 * 1 + 1) * 20 + (3 * 3 * 20 + 1) * 32 + (5 * 5 * 32 + 1) * 256 + (256 + 1) * 10,
        24 * 24 * 5 * 5 * 1 * 20 + 10 * 10 * 3 * 3 * 20 * 32 + 5 * 5 * 32 * 256 + 256 * 10,
    ),
    # 28 -> 26 -> 13 -> 11 -> 5 -> 3 -> 1
    "three_conv_two_dense": (
        (3 * 3 * 1 + 1) * 64
        + (3 * 3 * 64 + 1) * 64
        + (3 * 3 * 64 + 1) * 64
        + (64 + 1) * 64
        + (64 + 1) * 32
        + (32 + 1) * 10,
        26 * 26 * 3 * 3 * 1 * 64 + 11 * 11 * 3 * 3 * 64 * 64 + 3 * 3 * 3 * 3 * 64 * 64 + 64 * 64 + 64 * 32 + 32 * 10,
    ),
}
SCALES = ("l2_columns", "none", "standard", "unit", "unit_twice")


def option_files(group):
    return {file.stem: file for file in (CONF_DIR / group).glob("*.yaml")}


@pytest.fixture(scope="module", autouse=True)
def runtime():
    """The threads and determinism of every test that computes: one process can have only one of each."""
    start_runtime(seed=0, threads=2, deterministic=True, precision="float32")


@pytest.fixture(autouse=True)
def seeded(runtime):
    """Equal weights for a test, whichever tests ran before it."""
    keras.utils.set_random_seed(0)


@pytest.fixture
def build(compose):
    """Builds the net that overrides describe."""

    def built(*overrides, input_shape=DIGIT, num_classes=10):
        return instantiate(compose(*overrides).cfg, "model", input_shape=input_shape, num_classes=num_classes)

    return built


@pytest.fixture
def build_scaling(compose):
    """Builds an option of conf/scale."""
    return lambda option, train_images: instantiate(compose(f"scale={option}").cfg, "scale", train_images=train_images)


def pixels(count=16, shape=DIGIT, seed=0):
    """Random images with dark columns, as digits have them."""
    images = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
    images[:, :, :4] = 0
    return images


def layer_names(net):
    return [layer.name for layer in net.layers]


# Parameters


def test_every_model_option_has_a_derived_count():
    assert len(option_files("model")) >= 7
    assert set(option_files("model")) == {*PARAMETERS, "backbone"}  # the latter takes larger images only


@pytest.mark.parametrize("option", PARAMETERS)
def test_parameter_counts(build, build_scaling, option):
    net = build(f"model={option}")
    assert net.count_params() == PARAMETERS[option]
    assert net.output_shape == (None, 10)


@pytest.mark.parametrize("scale", SCALES)
def test_scaling_adds_no_parameters(build, build_scaling, scale):
    model = models.with_scaling(build("model=conv2"), build_scaling(scale, pixels()), DIGIT)
    assert model.count_params() == PARAMETERS["conv2"]


@pytest.mark.parametrize("option", PARAMETERS)
def test_the_header_of_an_option_tells_its_count(option):
    header = option_files("model")[option].read_text().splitlines()[0]
    assert f" {PARAMETERS[option]:,} parameters" in header


def test_colour_images_build(build):
    # 32 -> 30 -> 15 -> 13 -> 6
    expected = (3 * 3 * 3 + 1) * 32 + (3 * 3 * 32 + 1) * 64 + (6 * 6 * 64 + 1) * 64 + (64 + 1) * 7
    net = build("model=conv2", input_shape=(32, 32, 3), num_classes=7)
    assert net.count_params() == expected
    assert net.output_shape == (None, 7)


@pytest.mark.parametrize("option", PARAMETERS)
def test_every_option_builds_for_colour(build, build_scaling, option):
    images = pixels(shape=(32, 32, 3))
    model = models.with_scaling(
        build(f"model={option}", input_shape=(32, 32, 3)), build_scaling("standard", images), (32, 32, 3)
    )
    np.testing.assert_allclose(np.asarray(model(images)).sum(axis=1), 1, rtol=1e-6)


# Multiply-accumulates


@pytest.mark.parametrize("option", MACS)
def test_multiply_accumulates(build, build_scaling, option):
    net = build(f"model={option}")
    assert count_macs(net) == MACS[option]
    assert count_macs(models.with_scaling(net, build_scaling("unit", pixels()), DIGIT)) == MACS[option]


def test_every_option_and_experiment_has_its_multiply_accumulates():
    assert set(MACS) == set(PARAMETERS)
    assert set(EXPERIMENTS) == set(option_files("experiment"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_model_of_an_experiment_by_hand(build, experiment):
    net = build(f"experiment={experiment}")
    assert (net.count_params(), count_macs(net)) == EXPERIMENTS[experiment]


def test_multiply_accumulates_of_colour_images(build):
    # 32 -> 30 -> 15 -> 13 -> 6
    net = build("model=conv2", input_shape=(32, 32, 3))
    assert net.count_params() == (3 * 3 * 3 + 1) * 32 + (3 * 3 * 32 + 1) * 64 + (6 * 6 * 64 + 1) * 64 + (64 + 1) * 10
    assert count_macs(net) == 30 * 30 * 3 * 3 * 3 * 32 + 13 * 13 * 3 * 3 * 32 * 64 + 6 * 6 * 64 * 64 + 64 * 10


@pytest.mark.parametrize(
    ("shape", "layer", "expected"),
    [
        ((8, 4), lambda: keras.layers.Conv1D(5, 3), 6 * 3 * 4 * 5),
        ((8, 8, 4), lambda: keras.layers.Conv2D(6, 3, strides=2, padding="same"), 4 * 4 * 3 * 3 * 4 * 6),
        ((8, 8, 4), lambda: keras.layers.Conv2D(6, (3, 1), groups=2), 6 * 8 * 3 * 1 * 2 * 6),
        ((8, 8, 4), lambda: keras.layers.Conv2D(6, 3, dilation_rate=2), 4 * 4 * 3 * 3 * 4 * 6),
        ((6, 6, 6, 2), lambda: keras.layers.Conv3D(3, 2), 5 * 5 * 5 * 2 * 2 * 2 * 2 * 3),
        # Each of the 8 x 8 values of 4 channels meets the kernel of 3 x 3 x 6.
        ((8, 8, 4), lambda: keras.layers.Conv2DTranspose(6, 3, strides=2), 8 * 8 * 4 * 3 * 3 * 6),
        ((8, 8, 4), lambda: keras.layers.DepthwiseConv2D(3, depth_multiplier=2), 6 * 6 * 3 * 3 * 4 * 2),
        (
            (8, 8, 4),
            lambda: keras.layers.SeparableConv2D(5, 3, depth_multiplier=2),
            6 * 6 * (3 * 3 * 4 * 2 + 4 * 2 * 5),
        ),
        ((7,), lambda: keras.layers.Dense(3, use_bias=False), 7 * 3),
        ((4, 7), lambda: keras.layers.Dense(3), 4 * 7 * 3),
        ((9, 7), lambda: keras.layers.SimpleRNN(3), 9 * (7 * 3 + 3 * 3)),
        ((9, 7), lambda: keras.layers.GRU(3, return_sequences=True), 9 * 3 * (7 * 3 + 3 * 3)),
        ((9, 7), lambda: keras.layers.LSTM(3), 9 * 4 * (7 * 3 + 3 * 3)),
        ((4, 4, 2), lambda: keras.layers.BatchNormalization(), 0),
        ((4, 4, 2), lambda: keras.layers.LayerNormalization(axis=(1, 2, 3)), 0),
        ((4, 4, 2), lambda: keras.layers.PReLU(), 0),
        ((4, 4, 2), lambda: keras.layers.AveragePooling2D(2), 0),
        # A layer that holds others, which nobody but it knows how it calls.
        ((4, 7), lambda: keras.layers.TimeDistributed(keras.layers.Dense(3)), None),
    ],
)
def test_multiply_accumulates_of_a_layer(shape, layer, expected):
    assert count_macs(keras.Sequential([keras.Input(shape), layer()])) == expected


def test_multiply_accumulates_of_layers_that_are_called_twice_and_of_models_in_models():
    image = keras.Input((8, 8, 3))
    shared = keras.layers.Conv2D(3, 3, padding="same")
    inner = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)])  # of any size
    net = keras.Model(image, keras.layers.GlobalMaxPooling2D()(inner(shared(shared(image)) + 1.0)))
    expected = 2 * 8 * 8 * 3 * 3 * 3 * 3 + 6 * 6 * 3 * 3 * 3 * 4
    assert count_macs(net) == expected
    assert count_macs(models.with_scaling(net, keras.layers.Rescaling(0.5), (8, 8, 3))) == expected


def test_counting_changes_nothing(build):
    net = build("model=conv3_batch_norm_dropout")
    images = pixels().astype("float32")
    layers, weights, said = net.layers, net.get_weights(), np.asarray(net(images))
    count_macs(net)
    assert net.layers == layers
    assert all(np.array_equal(a, b) for a, b in zip(net.get_weights(), weights, strict=True))
    assert np.array_equal(np.asarray(net(images)), said)


# Blocks


def test_one_kernel_size_is_meant_for_all_blocks(build):
    one, each = build("model.kernel_size=5"), build("model.kernel_size=[5,5]")
    # 28 -> 24 -> 12 -> 8 -> 4
    expected = (5 * 5 * 1 + 1) * 32 + (5 * 5 * 32 + 1) * 64 + (4 * 4 * 64 + 1) * 64 + (64 + 1) * 10
    assert one.count_params() == each.count_params() == expected
    assert [one.get_layer(f"block{block}_conv").kernel_size for block in (1, 2)] == [(5, 5), (5, 5)]


def test_one_kernel_size_a_block(build):
    # 28 -> 24 -> 12 -> 10 -> 5
    expected = (5 * 5 * 1 + 1) * 24 + (3 * 3 * 24 + 1) * 32 + (5 * 5 * 32 + 1) * 256 + (256 + 1) * 10
    net = build("model.filters=[24,32]", "model.kernel_size=[5,3]", "model.dense_units=[256]")
    assert net.count_params() == expected


def test_pool_size_1_means_no_pooling(build):
    # 28 -> 26 -> 13 -> 11
    net = build("model.pool_sizes=[2,1]", "model.dense_units=[]")
    assert net.count_params() == (3 * 3 * 1 + 1) * 32 + (3 * 3 * 32 + 1) * 64 + (11 * 11 * 64 + 1) * 10
    assert layer_names(net) == [
        "block1_conv",
        "block1_pool",
        "block1_relu",
        "block2_conv",
        "block2_relu",
        "flatten",
        "classifier",
        "softmax",
    ]


def test_padding_same_keeps_the_size(build):
    # 28 -> 14 -> 7
    expected = (3 * 3 * 1 + 1) * 32 + (3 * 3 * 32 + 1) * 64 + (7 * 7 * 64 + 1) * 64 + (64 + 1) * 10
    assert build("model.padding=same").count_params() == expected


def test_order_with_relu_and_everything(build):
    net = build("model.batch_norm=true", "model.conv_dropout=0.1", "model.dropout=0.2", "model.dense_units=[8,4]")
    block = ["conv", "batch_norm", "pool", "relu", "dropout"]
    assert layer_names(net) == [
        *(f"block1_{part}" for part in block),
        *(f"block2_{part}" for part in block),
        "flatten",
        "dropout",
        "dense1",
        "dense2",
        "classifier",
        "softmax",
    ]
    assert [net.get_layer(name).rate for name in ("block1_dropout", "block2_dropout", "dropout")] == [0.1, 0.1, 0.2]
    assert [net.get_layer(name).use_bias for name in ("block1_conv", "block2_conv")] == [False, False]


@pytest.mark.parametrize("activation", ["gelu", "silu", "leaky_relu"])
def test_other_activations_stand_before_the_pool(build, activation):
    net = build(f"model.activation={activation}", "model.batch_norm=true")
    assert layer_names(net)[:4] == ["block1_conv", "block1_batch_norm", f"block1_{activation}", "block1_pool"]
    assert net.get_layer("dense1").activation is keras.activations.get(activation)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_pooling_before_relu_is_bit_equal_to_the_textbook_order(build, batch_norm):
    net = build(f"model.batch_norm={str(batch_norm).lower()}", "model.filters=[8,8]", "model.dense_units=[16]")
    textbook = keras.Sequential([keras.Input(DIGIT)])
    for block in (1, 2):
        textbook.add(keras.layers.Conv2D(8, 3, use_bias=not batch_norm))
        if batch_norm:
            textbook.add(keras.layers.BatchNormalization())
        textbook.add(keras.layers.Activation("relu"))
        textbook.add(keras.layers.MaxPooling2D(2))
        assert layer_names(net).index(f"block{block}_pool") < layer_names(net).index(f"block{block}_relu")
    textbook.add(keras.layers.Flatten())
    textbook.add(keras.layers.Dense(16, activation="relu"))
    textbook.add(keras.layers.Dense(10, activation="softmax"))
    random = np.random.default_rng(0)
    weights = [
        random.uniform(-0.4, 0.5, array.shape) / max(array[..., 0].size, 2) ** 0.5 for array in net.get_weights()
    ]
    if batch_norm:  # scale, offset, mean and variance, of both signs but the last
        for position in (4, 9):
            weights[position] = np.abs(weights[position])
    net.set_weights(weights)
    textbook.set_weights(weights)
    images = (pixels() / 255).astype("float32")
    # training=False and True: with batch statistics as well.
    for training_mode in (False, True):
        ours = np.asarray(net(images, training=training_mode))
        assert np.array_equal(ours, np.asarray(textbook(images, training=training_mode)))
        assert len(np.unique(ours)) > 10


@pytest.mark.parametrize("option", PARAMETERS)
def test_softmax_ends_every_model_in_float32(build, build_scaling, option):
    keras.config.set_dtype_policy("mixed_float16")
    images = pixels()
    model = models.with_scaling(build(f"model={option}"), build_scaling("unit", images), DIGIT)
    last, before = model.layers[-1], model.layers[-2]
    assert (last.name, last.activation) == ("softmax", keras.activations.softmax)
    assert before.compute_dtype == "float16"
    probabilities = np.asarray(model(images))
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.slow
def test_every_activation_that_is_offered_works():
    knobs = {
        "filters": [2, 2],
        "kernel_size": 3,
        "pool_sizes": [2, 1],
        "batch_norm": False,
        "conv_dropout": 0.0,
        "dense_units": [3],
        "dropout": 0.0,
        "padding": "valid",
    }
    with pytest.raises(ExperimentError) as refused:
        models.convnet(input_shape=(8, 8, 1), num_classes=4, activation="nonsense", **knobs)
    names = str(refused.value).partition("Allowed: ")[2].rstrip(".").split(", ")
    assert {"relu", "gelu", "silu", "tanh", "leaky_relu"} <= set(names)
    for name in names:
        net = models.convnet(input_shape=(8, 8, 1), num_classes=4, activation=name, **knobs)
        probabilities = np.asarray(net(np.ones((1, 8, 8, 1), np.float32)))
        assert probabilities.shape == (1, 4)
        assert np.isfinite(probabilities).all()


# Refusals


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.kernel_size=[3,3,3]",
            "model.kernel_size=[3, 3, 3] has 3 entries and model.filters=[32, 64] has 2. "
            "Give model.kernel_size one entry per block.",
        ),
        (
            "model.pool_sizes=[2]",
            "model.pool_sizes=[2] has 1 entries and model.filters=[32, 64] has 2. "
            "Give model.pool_sizes one entry per block.",
        ),
        (
            "model.filters=[32,64,128]",
            "model.pool_sizes=[2, 2] has 2 entries and model.filters=[32, 64, 128] has 3. "
            "Give model.pool_sizes one entry per block.",
        ),
    ],
)
def test_lists_of_unequal_length_are_refused(build, override, message):
    with pytest.raises(ExperimentError) as refused:
        build(override)
    assert str(refused.value) == message


def test_an_unknown_activation_is_refused_with_the_nearest_name(build):
    message = "model.activation=rellu: Keras has no such activation. Did you mean relu?"
    with pytest.raises(ExperimentError, match=f"^{re.escape(message)}"):
        build("model.activation=rellu")


@pytest.mark.parametrize("name", ["get", "threshold", "glu", "__doc__"])
def test_what_is_no_plain_activation_is_refused(build, name):
    with pytest.raises(ExperimentError, match=f"^model.activation={name}: Keras has no such activation. "):
        build(f"model.activation={name}")


def listed(*layers, classifier="true"):
    """Overrides for the free form; a layer is its class and its arguments."""
    entries = ", ".join(f"{{_target_: keras.layers.{layer}}}" for layer in layers)
    return "model=sequential", f"model.layers=[{entries}]", f"model.classifier={classifier}"


SHRUNK = "below one pixel. Use fewer or smaller pools and kernels, or padding: same."


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        # 28 -> 26 -> 13 -> 11 -> 5 -> 3 -> 1
        (
            ("model.filters=[8,8,8,8]", "model.pool_sizes=[2,2,2,2]"),
            f"model: layer block4_conv shrinks its input of 1 x 1 {SHRUNK}",
        ),
        (
            ("model.filters=[8,8,8,8]", "model.pool_sizes=[2,2,2,2]", "model.kernel_size=[3,3,3,1]"),
            f"model: layer block4_pool shrinks its input of 1 x 1 {SHRUNK}",
        ),
        (
            ("model.kernel_size=29",),
            f"model: layer block1_conv shrinks its input of 28 x 28 {SHRUNK}",
        ),
        (
            listed("MaxPooling2D, pool_size: 28", "MaxPooling2D, pool_size: 2, name: second", "Flatten"),
            f"model: layer second shrinks its input of 1 x 1 {SHRUNK}",
        ),
        (
            listed("Conv2D, filters: 4, kernel_size: [5, 30], name: too_wide", "Flatten"),
            f"model: layer too_wide shrinks its input of 28 x 28 {SHRUNK}",
        ),
        (
            listed("AveragePooling2D, pool_size: 14", "DepthwiseConv2D, kernel_size: 3, name: deep", "Flatten"),
            f"model: layer deep shrinks its input of 2 x 2 {SHRUNK}",
        ),
    ],
)
def test_an_image_that_shrinks_away_is_refused_with_the_layer(build, overrides, message):
    with pytest.raises(ExperimentError) as refused:
        build(*overrides)
    assert str(refused.value) == message


def test_padding_same_is_the_way_out_of_a_small_image(build):
    # 28 -> 14 -> 7 -> 3 -> 1
    net = build("model.filters=[8,8,8,8]", "model.pool_sizes=[2,2,2,2]", "model.padding=same", "model.dense_units=[]")
    assert net.count_params() == (3 * 3 * 1 + 1) * 8 + 3 * (3 * 3 * 8 + 1) * 8 + (8 + 1) * 10


def test_a_list_may_end_in_the_logits_itself(build):
    net = build(*listed("Flatten", "Dense, units: 10", classifier="false"))
    assert net.count_params() == (28 * 28 + 1) * 10
    assert [type(layer).__name__ for layer in net.layers] == ["Flatten", "Dense", "Activation"]
    convolutional = build(*listed("Conv2D, filters: 10, kernel_size: 1", "GlobalMaxPooling2D", classifier="false"))
    assert convolutional.count_params() == (1 + 1) * 10


@pytest.mark.parametrize(
    ("overrides", "shape"),
    [
        (listed("Flatten", "Dense, units: 7", classifier="false"), "(7,)"),
        (listed("Flatten", classifier="false"), "(784,)"),
        (listed("Conv2D, filters: 4, kernel_size: 3"), "(26, 26, 10)"),  # no Flatten
        (listed("Dense, units: 10", classifier="false"), "(28, 28, 10)"),
    ],
)
def test_an_output_that_is_not_one_logit_a_class_is_refused(build, overrides, shape):
    with pytest.raises(ExperimentError) as refused:
        build(*overrides)
    end = ", or set classifier: true." if "model.classifier=false" in overrides else "."
    assert str(refused.value) == (
        f"model: the layers output the shape {shape}, but one logit for each of the 10 classes is needed. "
        f"Add a Flatten or pooling layer{end}"
    )


LAST_LAYERS = {
    "Dense, units: 10, activation: softmax": "softmax its activation",
    "Dense, units: 10, activation: sigmoid": "sigmoid its activation",
    "Dense, units: 10 / Softmax": "softmax the layer",
    "Dense, units: 10 / Activation, activation: softmax": "softmax the layer",
    "Dense, units: 10 / Softmax / Dropout, rate: 0.1": "softmax the layer",
    "Dense, units: 10 / Softmax / Reshape, target_shape: [10]": "softmax the layer",
}


@pytest.mark.parametrize("layers", LAST_LAYERS)
def test_probabilities_before_the_softmax_are_refused(build, layers):
    with pytest.raises(ExperimentError) as refused:
        build(*listed("Flatten", *layers.split(" / "), classifier="false"))
    name, _, what = LAST_LAYERS[layers].partition(" ")
    position = 1 if "activation: s" in layers and "/" not in layers else 2
    assert str(refused.value) == (
        f"model.layers[{position}]: a softmax is added to every model, and with a {name} before it a model learns "
        f"badly. Leave {what} out."
    )


def test_a_softmax_before_the_classifier_is_refused_and_a_sigmoid_is_not(build):
    with pytest.raises(ExperimentError, match=r"^model\.layers\[1\]: a softmax is added to every model"):
        build(*listed("Flatten", "Dense, units: 10, activation: softmax", "Dropout, rate: 0.1"))
    build(*listed("Flatten", "Dense, units: 10, activation: sigmoid"))


def test_a_softmax_inside_the_model_is_part_of_it(build):
    build(*listed("Dense, units: 3, activation: softmax", "Flatten", "Dense, units: 12", "Dense, units: 11"))
    build(*listed("Softmax, axis: [1, 2], name: attention", "GlobalAveragePooling2D"))


def test_a_second_classifier_is_refused(build):
    with pytest.raises(ExperimentError) as refused:
        build(*listed("Flatten", "Dense, units: 10"))
    assert str(refused.value) == (
        "model.layers[1] outputs one logit per class, and classifier: true adds another one. "
        "Leave the layer out, or set classifier: false."
    )


@pytest.mark.parametrize("entry", ["{units: 3}", "3", "Flatten"])
def test_an_entry_that_is_no_layer_is_refused(build, entry):
    with pytest.raises(ExperimentError) as refused:
        build("model=sequential", f"model.layers=[{{_target_: keras.layers.Flatten}}, {entry}]")
    shown = yaml.safe_load(entry)
    assert str(refused.value) == (
        f"model.layers[1]={shown} is not a layer. "
        "Write {_target_: keras.layers.Dense, units: 64} or another Keras layer."
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            listed("Flatten", "Dense, units: 10, name: a", "Dense, units: 12, name: classifier"),
            "model.layers[2]: classifier is the name of a layer that is always added. Give it another name.",
        ),
        (
            listed("Flatten, name: a", "Dense, units: 12, name: a"),
            "model.layers[1]: a is the name of another layer of the list. Give it another name.",
        ),
    ],
)
def test_layers_that_stand_in_each_others_way_are_refused(build, overrides, message):
    with pytest.raises(ExperimentError) as refused:
        build(*overrides)
    assert str(refused.value) == message


def test_a_layer_may_have_the_name_of_the_scaling_layer(build):
    net = build(*listed("Flatten", "Dense, units: 12, name: rescaling"))
    model = models.with_scaling(net, keras.layers.Rescaling(1 / 255, name="rescaling"), DIGIT)
    images = pixels().astype("float32")
    assert model.predict(images, verbose=0) == pytest.approx(net.predict(images / 255, verbose=0), abs=1e-6)


def test_the_last_layer_may_be_named_classifier_where_we_add_none(build):
    net = build(*listed("Flatten", "Dense, units: 10, name: classifier", classifier="false"))
    assert layer_names(net) == ["flatten", "classifier", "softmax"]


def test_what_a_layer_says_of_its_input_is_shown_in_plain_text(build):
    with pytest.raises(ExperimentError) as refused:
        build(*listed("Flatten, name: flat", "Reshape, target_shape: [3, 3], name: square"))
    assert str(refused.value) == (
        "model: layer square does not accept inputs of shape (784,): The total size of the tensor must be unchanged. "
        "Received: input_shape=(784,), target_shape=(3, 3)"
    )


# Scaling


def test_with_scaling_takes_raw_pixels(build, build_scaling):
    images = pixels()
    net = build()
    model = models.with_scaling(net, build_scaling("unit", images), DIGIT)
    assert [type(layer) for layer in model.layers[:2]] == [keras.layers.Rescaling, keras.layers.Conv2D]
    assert model.inputs[0].dtype == "float32"
    assert model.input_shape == (None, *DIGIT)
    expected = np.asarray(net((images / np.float32(255)).astype("float32")))
    np.testing.assert_allclose(np.asarray(model(images)), expected, atol=1e-6)


def test_with_scaling_takes_a_model_with_branches(build_scaling):
    entry = keras.Input(DIGIT)
    flat = keras.layers.Flatten()(entry)
    branches = keras.layers.Add()([keras.layers.Dense(10)(flat), keras.layers.Dense(10)(flat)])
    net = keras.Model(entry, keras.layers.Softmax()(branches), name="branches")
    images = pixels()
    model = models.with_scaling(net, build_scaling("unit", images), DIGIT)
    assert model.name == "branches"
    assert isinstance(model.layers[1], keras.layers.Rescaling)
    assert model.count_params() == 2 * (28 * 28 + 1) * 10
    expected = np.asarray(net((images / np.float32(255)).astype("float32")))
    np.testing.assert_allclose(np.asarray(model(images)), expected, atol=1e-6)


def test_these_are_the_scalings():
    assert set(option_files("scale")) == set(SCALES)


def scaled(scaling, images):
    return np.asarray(scaling(images.astype("float32")))


def test_unit_divides_by_255(build_scaling):
    images = pixels()
    np.testing.assert_allclose(scaled(build_scaling("unit", images), images), images / 255.0, rtol=1e-6)


def test_unit_twice_divides_by_255_twice(build_scaling):
    images = pixels()
    np.testing.assert_allclose(scaled(build_scaling("unit_twice", images), images), images / 255.0 / 255.0, rtol=1e-6)


@pytest.mark.parametrize("shape", [DIGIT, (20, 12, 3)])
def test_l2_columns_is_what_notebooks_do(build_scaling, shape):
    images = pixels(shape=shape)
    images[0] = 0
    expected = keras.utils.normalize(images.astype("float64"), axis=1)
    np.testing.assert_allclose(scaled(build_scaling("l2_columns", images), images), expected, atol=1e-6)
    assert (expected[0] == 0).all()


def test_standard_brings_the_training_images_to_mean_0_and_deviation_1(build_scaling):
    train, other = pixels(seed=1), pixels(seed=2) // 2
    scaling = build_scaling("standard", train)
    assert type(scaling) is keras.layers.Rescaling  # of Keras, so it loads without this package
    values = scaled(scaling, train).astype("float64")
    assert abs(values.mean()) < 1e-6
    assert abs(values.std() - 1) < 1e-6
    # Other images are moved by the same numbers: the mean and deviation are not theirs.
    mean, deviation = train.mean(dtype="float64"), train.std(dtype="float64")
    np.testing.assert_allclose(scaled(scaling, other), (other - mean) / deviation, atol=1e-6)


def test_standard_by_hand(build_scaling):
    # Half of the pixels 10, half 30: mean 20, deviation 10.
    images = np.tile(np.array([10, 30], np.uint8), 8).reshape(1, 4, 4, 1)
    scaling = build_scaling("standard", images)
    assert (scaling.scale, scaling.offset) == (pytest.approx(0.1, rel=1e-12), pytest.approx(-2, rel=1e-12))


def test_standard_refuses_images_without_contrast(build_scaling):
    with pytest.raises(ExperimentError) as refused:
        build_scaling("standard", np.full((2, 4, 4, 1), 9, np.uint8))
    assert str(refused.value) == "scale=standard: every pixel of the training images is 9. Use scale=unit."


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_scaling_is_exact_in_every_precision(build, build_scaling, scale, precision):
    # A sum of squared pixels is more than float16 can hold.
    images = pixels() // 2 + np.uint8(128)
    expected = scaled(build_scaling(scale, images), images)
    keras.config.set_dtype_policy(precision)
    model = models.with_scaling(build(), build_scaling(scale, images), DIGIT)
    assert np.array_equal(scaled(model.layers[0], images), expected)
    assert np.abs(expected).max() > 0.003
    assert model.layers[1].compute_dtype == precision.removeprefix("mixed_")


# Files


@pytest.mark.slow
@pytest.mark.parametrize("option", PARAMETERS)
def test_models_load_again_in_safe_mode(build, build_scaling, tmp_path, option):
    images = pixels()
    for scale in SCALES:
        model = models.with_scaling(build(f"model={option}"), build_scaling(scale, images), DIGIT)
        assert "experiments" not in model.to_json()  # nothing but Keras is needed to load it
        model.save(tmp_path / f"{scale}.keras")
        loaded = keras.saving.load_model(tmp_path / f"{scale}.keras", safe_mode=True)
        assert np.array_equal(np.asarray(loaded(images)), np.asarray(model(images)))


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_models_load_into_a_float32_process(build, build_scaling, tmp_path, precision):
    keras.config.set_dtype_policy(precision)
    images = pixels()
    model = models.with_scaling(build("model=conv2_batch_norm"), build_scaling("l2_columns", images), DIGIT)
    said = np.asarray(model(images))
    model.save(tmp_path / "model.keras")
    keras.config.set_dtype_policy("float32")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert np.array_equal(np.asarray(loaded(images)), said)
