"""Functions that build uncompiled Keras models from plain keyword arguments.

`input_shape` and `num_classes` come from the run, all other arguments from the YAML file of the model. Every model ends
in a softmax over the classes, computed in float32 whatever the precision of the run.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import keras
import numpy as np
from pydantic import Field

from experiments.errors import ExperimentError, reason_of
from experiments.stored_images import Images, pieces

_Size = Annotated[int, Field(ge=1)]
_DropoutRate = Annotated[float, Field(ge=0, lt=1)]
_Sizes = Annotated[list[_Size], Field(min_length=1)]
Shape = tuple[int, int, int]


def convnet(
    *,
    input_shape: Shape,
    num_classes: int,
    filters: _Sizes,
    kernel_size: _Size | _Sizes,
    pool_sizes: _Sizes,
    batch_norm: bool,
    conv_dropout: _DropoutRate,
    dense_units: list[_Size],
    dropout: _DropoutRate,
    activation: str,
    padding: Literal["valid", "same"],
) -> keras.Model:
    """Builds a convolutional network: one block for each entry of `filters`, then dense layers.

    A block is convolution, batch normalization, activation, max pooling and dropout.

    Args:
        input_shape: height, width and channels of an image.
        num_classes: number of classes.
        filters: output channels of each convolution, one entry per block.
        kernel_size: side of the square kernels in pixels, one for all blocks or one per block.
        pool_sizes: size and stride of the max pooling, one per block; 1 means no pooling.
        batch_norm: whether to normalize the output of every convolution, which then has no bias.
        conv_dropout: dropout rate at the end of each block; 0 means no dropout.
        dense_units: units of the hidden dense layers; may be empty.
        dropout: dropout rate between the blocks and the dense layers; 0 means no dropout.
        activation: name of a function in `keras.activations`.
        padding: padding of the convolutions, `valid` or `same`.

    Raises:
        ExperimentError: the lists differ in length, the activation is unknown, or the image shrinks below one pixel.
    """
    kernel_sizes = [kernel_size] * len(filters) if isinstance(kernel_size, int) else kernel_size
    for key, sizes in (("kernel_size", kernel_sizes), ("pool_sizes", pool_sizes)):
        if len(sizes) != len(filters):
            raise ExperimentError(
                f"model.{key}={sizes} has {len(sizes)} entries and model.filters={filters} has {len(filters)}.",
                advice=f"Give model.{key} one entry per block.",
            )
    activations = [name for name in dir(keras.activations) if name[0] != "_" and name not in _NOT_ACTIVATIONS]
    if activation not in activations:
        raise ExperimentError(
            f"model.activation={activation}: Keras has no such activation.", given=activation, allowed=activations
        )
    layers: list[keras.Layer] = []
    for block, (width, kernel, pool) in enumerate(zip(filters, kernel_sizes, pool_sizes, strict=True), start=1):
        name = f"block{block}"
        layers.append(keras.layers.Conv2D(width, kernel, padding=padding, use_bias=not batch_norm, name=f"{name}_conv"))
        if batch_norm:
            layers.append(keras.layers.BatchNormalization(name=f"{name}_batch_norm"))
        activate = keras.layers.Activation(activation, name=f"{name}_{activation}")
        if pool == 1:
            layers.append(activate)
        else:
            pooling = keras.layers.MaxPooling2D(pool, name=f"{name}_pool")
            # ReLU and the maximum commute bit by bit; after pooling there are fewer values to clip.
            layers += [pooling, activate] if activation == "relu" else [activate, pooling]
        if conv_dropout:
            layers.append(keras.layers.Dropout(conv_dropout, name=f"{name}_dropout"))
    layers.append(keras.layers.Flatten(name="flatten"))
    if dropout:
        layers.append(keras.layers.Dropout(dropout, name="dropout"))
    for position, units in enumerate(dense_units, start=1):
        layers.append(keras.layers.Dense(units, activation=activation, name=f"dense{position}"))
    return _stack(layers, input_shape, num_classes, classifier=True)


def sequential(
    *, input_shape: Shape, num_classes: int, layers: Annotated[list, Field(min_length=1)], classifier: bool
) -> keras.Model:
    """Builds a stack of the Keras layers listed in a YAML file.

    Args:
        input_shape: height, width and channels of an image.
        num_classes: number of classes.
        layers: the layers in order (`_target_: keras.layers.…`).
        classifier: whether to add a dense layer of `num_classes` units; if false, the last layer of the list must
            output one logit per class.

    Raises:
        ExperimentError: an entry is not a layer or has a reserved name, the image shrinks below one pixel, or the
            output is not one logit per class.
    """
    own_names = {"image", "softmax", *(["classifier"] if classifier else [])}
    names: set[str] = set()
    for position, layer in enumerate(layers):
        if not isinstance(layer, keras.Layer):
            raise ExperimentError(
                f"model.layers[{position}]={layer} is not a layer.",
                advice="Write {_target_: keras.layers.Dense, units: 64} or another Keras layer.",
            )
    _check_last_layers(layers, num_classes, classifier)
    for position, layer in enumerate(layers):
        if layer.name in own_names | names:
            owner = "another layer of the list" if layer.name in names else "a layer that is always added"
            raise ExperimentError(
                f"model.layers[{position}]: {layer.name} is the name of {owner}.", advice="Give it another name."
            )
        names.add(layer.name)
    return _stack(layers, input_shape, num_classes, classifier)


def backbone(
    *,
    input_shape: Shape,
    num_classes: int,
    name: str,
    weights: Annotated[str, Field(min_length=1)] | None,
    dropout: _DropoutRate,
) -> keras.Model:
    """Builds a model of `keras.applications` with its own preprocessing, and a classifier on its averaged features.

    Grayscale images are given to it as color images with three equal channels.

    Args:
        input_shape: height, width and channels of an image.
        num_classes: number of classes.
        name: of the model, as in `keras.applications.MobileNetV2`.
        weights: a file with the weights of the model without its top, `imagenet` to download those, or None for random
            ones.
        dropout: dropout rate before the classifier; 0 means no dropout.

    Raises:
        ExperimentError: there is no such model or file, the weights do not fit, or the images are too small.
    """
    names = [each for each in dir(keras.applications) if each[0].isupper()]
    if name not in names:
        raise ExperimentError(f"model.name={name}: keras.applications has no such model.", given=name, allowed=names)
    if weights not in (None, "imagenet") and not Path(weights).is_file():
        raise ExperimentError(f"model.weights={weights}: there is no such file.")
    builder = getattr(keras.applications, name)
    height, width, channels = input_shape
    try:
        known = weights if weights == "imagenet" else None
        features = builder(include_top=False, weights=known, input_shape=(height, width, 3))
    except Exception as error:  # Keras raises plain Exception for a failed download
        smallest = re.search(r"at least (\d+)x(\d+)", str(error))
        if smallest is None:
            raise ExperimentError(f"model.name={name}: {reason_of(error)}") from error
        raise ExperimentError(
            f"model.name={name}: images of {height} x {width} pixels are too small for it; the smallest ones are "
            f"{smallest[1]} x {smallest[2]}.",
            advice=f"Set data.image_size=[{smallest[1]},{smallest[2]}] or more, or choose another model.",
        ) from error
    if weights != known:
        try:
            with warnings.catch_warnings(action="error", category=UserWarning):  # of layers that the file does not have
                features.load_weights(weights)
        except Exception as error:  # a file of another model or format makes Keras and h5py raise almost anything
            raise ExperimentError(
                f"model.weights={weights} cannot be loaded into {name}: {reason_of(error)}",
                advice="Save the weights of a model that has been built with include_top=False, as NAME.weights.h5.",
            ) from error
    image = keras.Input(input_shape)
    pixels = image if channels == 3 else keras.layers.Concatenate(name="color")([image] * 3)
    outputs = keras.layers.GlobalAveragePooling2D(name="average")(features(_preprocessed(pixels, builder)))
    if dropout:
        outputs = keras.layers.Dropout(dropout, name="dropout")(outputs)
    outputs = keras.layers.Dense(num_classes, name="classifier")(outputs)
    outputs = keras.layers.Activation("softmax", dtype="float32", name="softmax")(outputs)
    return keras.Model(image, outputs, name="net")


def _preprocessed(pixels: keras.KerasTensor, builder: Callable[..., keras.Model]) -> keras.KerasTensor:
    """What the weights of a model of `keras.applications` take in place of raw pixels.

    Its `preprocess_input` maps every channel linearly and may swap red and blue; layers that do the same can be saved.
    """
    preprocess = getattr(keras.applications, builder.__module__.rpartition(".")[2]).preprocess_input
    black, white, red = (
        np.asarray(preprocess(np.array([[[c]]], "float32")))[0, 0, 0] for c in ([0, 0, 0], [255, 255, 255], [255, 0, 0])
    )
    if red[0] == black[0]:
        pixels = pixels[..., ::-1]
    scale = (white - black) / 255
    if (scale == 1).all() and (black == 0).all():  # it has a scaling layer inside
        return pixels
    return keras.layers.Rescaling(scale.tolist(), black.tolist(), name="preprocessing")(pixels)


def rescaling(*, train_images: Images) -> keras.layers.Rescaling:
    """Builds the layer that scales the training pixels to mean 0 and standard deviation 1, over all pixels together.

    Args:
        train_images: raw pixels 0 to 255 of shape (images, height, width, channels).

    Raises:
        ExperimentError: all pixels are equal.
    """
    # From the histogram: exact integers, and no float copy of the images.
    counts = np.sum([np.bincount(piece.ravel(), minlength=256) for piece in pieces(train_images)], axis=0)
    pixels = np.arange(len(counts))
    mean = np.average(pixels, weights=counts)
    deviation = np.sqrt(np.average((pixels - mean) ** 2, weights=counts))
    if deviation == 0:
        raise ExperimentError(
            f"scale=standard: every pixel of the training images is {mean:g}.", advice="Use scale=unit."
        )
    return keras.layers.Rescaling(float(1 / deviation), offset=float(-mean / deviation))


def with_scaling(model: keras.Model, scaling: keras.Layer, input_shape: Shape) -> keras.Model:
    """Puts a scaling layer in front of a model, which then takes raw pixels 0 to 255.

    The input is float32, because a uint8 input would truncate augmented pixels.

    Raises:
        ExperimentError: the scaling fails on images of this shape, or changes the shape; or the model cannot be called
            again.
    """
    pixels = keras.Input(input_shape, dtype="float32", name="image")
    scaling.dtype_policy = "float32"  # in half precision, a sum of squared pixels overflows
    _check_scaling(scaling, input_shape)
    try:
        if isinstance(model, keras.Sequential) and scaling.name not in {layer.name for layer in model.layers}:
            return keras.Sequential([pixels, scaling, *model.layers], name=model.name)
        return keras.Model(pixels, model(scaling(pixels)), name=model.name)
    except ValueError as error:  # as of a layer that returns its input itself
        raise ExperimentError(f"model: it cannot be put behind the scaling: {reason_of(error)}") from error


def _check_scaling(scaling: keras.Layer, input_shape: Shape) -> None:
    """Scales one image, because Keras rejects most wrong values only when a layer is called."""
    try:
        scaled = scaling(keras.ops.zeros((1, *input_shape)))
    except Exception as error:  # TensorFlow has its own types
        raise ExperimentError(
            f"scale: layer {scaling.name} does not accept images of shape {input_shape}: {reason_of(error)}"
        ) from error
    if (shape := tuple(scaled.shape[1:])) != tuple(input_shape):
        raise ExperimentError(
            f"scale: layer {scaling.name} changes the shape of an image from {input_shape} to {shape}."
        )


def _check_last_layers(layers: Sequence[keras.Layer], num_classes: int, classifier: bool) -> None:
    """Refuses what is added behind the layers of every model, if they already end in it."""
    last = layers[-1]
    if classifier and isinstance(last, keras.layers.Dense) and last.units == num_classes and _is_linear(last):
        raise ExperimentError(
            f"model.layers[{len(layers) - 1}] outputs one logit per class, and classifier: true adds another one.",
            advice="Leave the layer out, or set classifier: false.",
        )
    for position, layer in reversed(list(enumerate(layers))):
        activation = getattr(layer, "activation", None)
        is_softmax = activation is keras.activations.softmax or (
            isinstance(layer, keras.layers.Softmax) and layer.axis == -1
        )
        if is_softmax or (activation is keras.activations.sigmoid and not classifier):
            name = "softmax" if is_softmax else "sigmoid"
            is_alone = isinstance(layer, keras.layers.Softmax | keras.layers.Activation)
            raise ExperimentError(
                f"model.layers[{position}]: a softmax is added to every model, and with a {name} before it a model "
                "learns badly.",
                advice="Leave the layer out." if is_alone else "Leave its activation out.",
            )
        if not isinstance(layer, _SHAPE_ONLY):
            return


#: Layers behind which probabilities are still probabilities.
_SHAPE_ONLY = (
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.Identity,
    keras.layers.Reshape,
)


def _is_linear(layer: keras.layers.Dense) -> bool:
    return layer.activation is keras.activations.linear


#: Names in `keras.activations` that are helpers, need arguments (threshold) or halve the channels (glu).
_NOT_ACTIVATIONS = {"deserialize", "get", "serialize", "threshold", "glu"}


def _stack(layers: Iterable[keras.Layer], input_shape: Shape, num_classes: int, classifier: bool) -> keras.Sequential:
    """Builds a Sequential model of the layers and a softmax; an error names the layer that does not fit."""
    layers = [*layers, keras.layers.Dense(num_classes, name="classifier")] if classifier else list(layers)
    outputs = keras.Input(input_shape)
    for layer in layers:
        before = outputs.shape
        try:
            outputs = layer(outputs)
            fits = all(size is None or size >= 1 for size in outputs.shape)
        except Exception as error:  # every layer has its own
            if "negative" not in str(error):
                raise ExperimentError(
                    f"model: layer {layer.name} does not accept inputs of shape {before[1:]}: {reason_of(error)}"
                ) from error
            fits = False
        if not fits:
            raise ExperimentError(
                f"model: layer {layer.name} shrinks its input of {' x '.join(map(str, before[1:-1]))} below one pixel.",
                advice="Use fewer or smaller pools and kernels, or padding: same.",
            )
    if outputs.shape != (None, num_classes):
        raise ExperimentError(
            f"model: the layers output the shape {outputs.shape[1:]}, but one logit for each of the {num_classes} "
            f"classes is needed.",
            advice="Add a Flatten or pooling layer" + ("." if classifier else ", or set classifier: true."),
        )
    # Half precision is too coarse for probabilities.
    softmax = keras.layers.Activation("softmax", dtype="float32", name="softmax")
    return keras.Sequential([keras.Input(input_shape), *layers, softmax], name="net")
