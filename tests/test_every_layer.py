"""Every layer of Keras that a YAML file may name: it works, or is refused before a run is opened; gray and color."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from omegaconf import OmegaConf

from experiments.config.compose import checked, compose_unchecked
from experiments.dataset import Dataset
from experiments.errors import ExperimentError
from experiments.training.batches import training_batches
from experiments.training.build import build

FLATTEN = "{_target_: keras.layers.Flatten}"
SCALINGS = ("Normalization", "Rescaling", "UnitNormalization")
#: Arguments without which a layer cannot be made, or does nothing.
ARGUMENTS = {
    "Activation": "activation: relu",
    "AdaptiveAveragePooling1D": "output_size: 2",
    "AdaptiveAveragePooling2D": "output_size: 2",
    "AdaptiveAveragePooling3D": "output_size: 2",
    "AdaptiveMaxPooling1D": "output_size: 2",
    "AdaptiveMaxPooling2D": "output_size: 2",
    "AdaptiveMaxPooling3D": "output_size: 2",
    "AlphaDropout": "rate: 0.1",
    "AveragePooling1D": "pool_size: 2",
    "AveragePooling2D": "pool_size: 2",
    "AveragePooling3D": "pool_size: 2",
    "Bidirectional": "layer: {_target_: keras.layers.LSTM, units: 2}",
    "CategoryEncoding": "num_tokens: 300, output_mode: count",
    "CenterCrop": "height: 20, width: 20",
    "Conv1D": "filters: 2, kernel_size: 3",
    "Conv1DTranspose": "filters: 2, kernel_size: 3",
    "Conv2D": "filters: 2, kernel_size: 3",
    "Conv2DTranspose": "filters: 2, kernel_size: 3",
    "Conv3D": "filters: 2, kernel_size: 1",
    "Conv3DTranspose": "filters: 2, kernel_size: 1",
    "ConvLSTM1D": "filters: 2, kernel_size: 3",
    "ConvLSTM2D": "filters: 2, kernel_size: 1",
    "ConvLSTM3D": "filters: 2, kernel_size: 1",
    "Dense": "units: 3",
    "DepthwiseConv1D": "kernel_size: 3",
    "DepthwiseConv2D": "kernel_size: 3",
    "Discretization": "bin_boundaries: [0.2, 0.5]",
    "Dot": "axes: 1",
    "Dropout": "rate: 0.1",
    "EinsumDense": "equation: 'abcd,de->abce', output_shape: [null, null, 3]",
    "Embedding": "input_dim: 256, output_dim: 2",
    "GRU": "units: 2",
    "GRUCell": "units: 2",
    "GaussianDropout": "rate: 0.1",
    "GaussianNoise": "stddev: 0.1",
    "GroupNormalization": "groups: 1",
    "GroupQueryAttention": "head_dim: 2, num_query_heads: 2, num_key_value_heads: 1",
    "HashedCrossing": "num_bins: 3",
    "Hashing": "num_bins: 3",
    "InputLayer": "shape: [28, 28, 1]",
    "LSTM": "units: 2",
    "LSTMCell": "units: 2",
    "MaxNumBoundingBoxes": "max_number: 3",
    "MultiHeadAttention": "num_heads: 1, key_dim: 2",
    "Normalization": "mean: 0.1, variance: 0.2",
    "Permute": "dims: [2, 1, 3]",
    "Pipeline": "layers: [{_target_: keras.layers.RandomFlip}]",
    "RNN": "cell: {_target_: keras.layers.LSTMCell, units: 2}",
    "RandomBrightness": "factor: 0.1",
    "RandomContrast": "factor: 0.1",
    "RandomCrop": "height: 20, width: 20",
    "RandomHue": "factor: 0.1",
    "RandomPosterization": "factor: 4",
    "RandomRotation": "factor: 0.1",
    "RandomSaturation": "factor: 0.1",
    "RandomSharpness": "factor: 0.1",
    "RandomColorDegeneration": "factor: 0.1",
    "RandomTranslation": "height_factor: 0.1, width_factor: 0.1",
    "RandomZoom": "height_factor: 0.1",
    "RepeatVector": "n: 2",
    "Rescaling": "scale: 0.5",
    "Reshape": "target_shape: [-1]",
    "Resizing": "height: 20, width: 20",
    "ReversibleEmbedding": "input_dim: 256, output_dim: 2",
    "SeparableConv1D": "filters: 2, kernel_size: 3",
    "SeparableConv2D": "filters: 2, kernel_size: 3",
    "SimpleRNN": "units: 2",
    "SimpleRNNCell": "units: 2",
    "SpatialDropout1D": "rate: 0.1",
    "SpatialDropout2D": "rate: 0.1",
    "SpatialDropout3D": "rate: 0.1",
    "SpectralNormalization": "layer: {_target_: keras.layers.Conv2D, filters: 2, kernel_size: 3}",
    "StackedRNNCells": "cells: [{_target_: keras.layers.LSTMCell, units: 2}]",
    "TimeDistributed": "layer: {_target_: keras.layers.Dense, units: 2}",
    "Wrapper": "layer: {_target_: keras.layers.Dense, units: 2}",
}
#: What works on gray images; everything else is refused, except COLORS on color images.
IN_A_MODEL = {
    "Activation",
    "ActivityRegularization",
    "AdaptiveAveragePooling2D",
    "AdaptiveMaxPooling2D",
    "AlphaDropout",
    "AugMix",
    "AutoContrast",
    "AveragePooling2D",
    "BatchNormalization",
    "CenterCrop",
    "ContrastLimitedAdaptiveHistogramEqualization",
    "Conv2D",
    "Conv2DTranspose",
    "ConvLSTM1D",
    "Cropping2D",
    "Dense",
    "DepthwiseConv2D",
    "Discretization",
    "Dropout",
    "ELU",
    "Embedding",
    "Flatten",
    "GaussianDropout",
    "GaussianNoise",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling2D",
    "GroupNormalization",
    "Hashing",
    "Identity",
    "LayerNormalization",
    "LeakyReLU",
    "Masking",
    "MaxNumBoundingBoxes",
    "MaxPooling2D",
    "Normalization",
    "PReLU",
    "Permute",
    "Pipeline",
    "RMSNormalization",
    "RandAugment",
    "RandomBrightness",
    "RandomColorJitter",
    "RandomContrast",
    "RandomErasing",
    "RandomFlip",
    "RandomGaussianBlur",
    "RandomGrayscale",
    "RandomInvert",
    "RandomPerspective",
    "RandomPosterization",
    "RandomRotation",
    "RandomSharpness",
    "RandomShear",
    "RandomTranslation",
    "RandomZoom",
    "ReLU",
    "Rescaling",
    "Reshape",
    "Resizing",
    "ReversibleEmbedding",
    "SeparableConv2D",
    "Solarization",
    "SpatialDropout2D",
    "SpectralNormalization",
    "TimeDistributed",
    "UnitNormalization",
    "UpSampling2D",
    "ZeroPadding2D",
}
AS_AUGMENTATION = {
    "Activation",
    "ActivityRegularization",
    "AlphaDropout",
    "AugMix",
    "AutoContrast",
    "ContrastLimitedAdaptiveHistogramEqualization",
    "Cropping2D",
    "CutMix",
    "Discretization",
    "Dropout",
    "ELU",
    "Equalization",
    "GaussianDropout",
    "GaussianNoise",
    "Hashing",
    "Identity",
    "LeakyReLU",
    "Masking",
    "MaxNumBoundingBoxes",
    "MixUp",
    "Permute",
    "Pipeline",
    "RandAugment",
    "RandomBrightness",
    "RandomColorDegeneration",
    "RandomColorJitter",
    "RandomContrast",
    "RandomErasing",
    "RandomFlip",
    "RandomGaussianBlur",
    "RandomGrayscale",
    "RandomInvert",
    "RandomPerspective",
    "RandomPosterization",
    "RandomRotation",
    "RandomSharpness",
    "RandomShear",
    "RandomTranslation",
    "RandomZoom",
    "ReLU",
    "Softmax",
    "Solarization",
    "SpatialDropout2D",
}
#: What works on color images only.
COLORS = {
    "model": {"RandomColorDegeneration", "RandomHue", "RandomSaturation"},
    "augment": {"RandomHue", "RandomSaturation"},
}

NAMES = sorted({value.__name__ for name, value in vars(keras.layers).items() if name[0].isupper()})


@pytest.fixture
def tried():
    """Tries a layer in a group on one batch of images; returns what refuses it, or nothing."""
    default = compose_unchecked(["batch_size=4"])

    def try_layer(group, name, data):
        arguments = ARGUMENTS.get(name)
        layer = f"{{_target_: keras.layers.{name}{f', {arguments}' if arguments else ''}}}"
        layers = f"[{layer}, {FLATTEN}]" if group == "model" else f"[{FLATTEN}]"
        cfg = OmegaConf.merge(default.cfg)  # a copy; composing each from a file would take a third of the time
        cfg.model = yaml.safe_load(f"_target_: experiments.models.sequential\nclassifier: true\nlayers: {layers}")
        if group == "augment":
            cfg.augment = yaml.safe_load(f"tried: {layer}")
        elif name in SCALINGS:
            cfg.scale = {"_target_": "keras.layers.Identity"}
        try:
            parts = build(checked(replace(default, cfg=cfg)).cfg, data)  # which looks at the gradients of the model
        except ExperimentError as error:
            return str(error)
        if group == "model":
            # As a graph, in which fit and predict run, too.
            probabilities = [tf.function(parts.model)(data.train_images[:4], training=mode) for mode in (True, False)]
            assert np.allclose(np.sum(probabilities, axis=-1), 1, atol=1e-5)
            return ""
        options = {"batch_size": 4, "epochs": 1, "seed": 0, "augmentation": parts.augmentation}
        images, _ = next(iter(training_batches(data.train_images, data.train_labels, 3, **options)))
        assert np.isfinite(np.asarray(images, "float64")).all()
        return ""

    return try_layer


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Layer 'flatten.*' .* mask", "ignore:You are using a softmax over axis")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("group", "working"), [("model", IN_A_MODEL), ("augment", AS_AUGMENTATION)])
def test_every_layer_works_or_is_refused(tried, group, working, channels):
    images = np.random.RandomState(0).randint(0, 255, (12, 28, 28, channels)).astype("uint8")
    data = Dataset.from_arrays(images, np.arange(12) % 3, name="noise")
    refused = {name: reason for name in NAMES if (reason := tried(group, name, data))}
    assert all(reason.startswith(group) and "\n" not in reason for reason in refused.values())
    assert set(NAMES) - set(refused) == working | (COLORS[group] if channels == 3 else set())
