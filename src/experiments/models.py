"""Architecture builders: plain keywords in, an uncompiled `keras.Model` out.

A builder gets `input_shape` and `num_classes` from the run and everything else from its YAML file. Its net ends in a
softmax over the classes, computed in float32 whatever the precision of the run.
"""

import re
from collections.abc import Iterable
from typing import Annotated, Literal

import keras
import numpy as np
from pydantic import Field

from experiments.errors import ExperimentError

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
    """A convolutional net of one block for each entry of `filters`, then dense layers.

    A block is convolution, batch normalisation, activation, max pooling, dropout.

    Args:
        input_shape: height, width and channels of an image.
        num_classes: width of the softmax.
        filters: output channels, one entry a block; as many entries as blocks.
        kernel_size: side of the square kernels in pixels, one for all blocks or one a block.
        pool_sizes: side and stride of the max pooling, one a block; 1 means none.
        batch_norm: normalise the output of every convolution, which then has no bias of its own.
        conv_dropout: rate of the dropout that ends each block; 0 means none.
        dense_units: widths of the hidden dense layers; may be empty.
        dropout: rate of the dropout between the blocks and the dense layers; 0 means none.
        activation: a name of `keras.activations`.
        padding: of the convolutions, `valid` or `same`.

    Raises:
        ExperimentError: lists of unequal length, an unknown activation, or an image that shrinks below one pixel.
    """
    kernel_sizes = [kernel_size] * len(filters) if isinstance(kernel_size, int) else kernel_size
    for key, sizes in (("kernel_size", kernel_sizes), ("pool_sizes", pool_sizes)):
        if len(sizes) != len(filters):
            raise ExperimentError(
                f"model.{key}={sizes} has {len(sizes)} entries and model.filters={filters} has {len(filters)}.",
                advice=f"Give model.{key} one entry a block.",
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
    """A stack of Keras layers that a YAML file lists, for any architecture without branches.

    Args:
        input_shape: height, width and channels of an image.
        num_classes: width of the softmax.
        layers: the layers in order (`_target_: keras.layers.…`).
        classifier: add the dense layer of `num_classes` units; if false, the last layer of the list gives one logit
            a class.

    Raises:
        ExperimentError: an entry that is no layer or has a name of our own layers, an image that shrinks below one
            pixel, or an output that is not one logit a class.
    """
    own_names = {"image", "softmax", *(["classifier"] if classifier else [])}
    names: set[str] = set()
    for position, layer in enumerate(layers):
        if not isinstance(layer, keras.Layer):
            raise ExperimentError(
                f"model.layers[{position}]={layer}: this is no layer.",
                advice="Write {_target_: keras.layers.Dense, units: 64} or another layer of Keras.",
            )
        last = position == len(layers) - 1
        softmax = isinstance(layer, keras.layers.Softmax)
        if last and (softmax or getattr(layer, "activation", None) is keras.activations.softmax):
            raise ExperimentError(
                f"model.layers[{position}]: every net ends in a softmax of our own, and two learn badly.",
                advice="Leave the layer out." if softmax else "Leave its activation out.",
            )
        if layer.name in own_names | names:
            owner = "another layer of the list" if layer.name in names else "a layer of our own"
            raise ExperimentError(
                f"model.layers[{position}]: {layer.name} is the name of {owner}.", advice="Give it another name."
            )
        names.add(layer.name)
    return _stack(layers, input_shape, num_classes, classifier)


def rescaling(*, train_images: np.ndarray) -> keras.layers.Rescaling:
    """The layer that brings the training images to mean 0 and deviation 1, one mean and deviation for all pixels.

    Args:
        train_images: raw pixels 0 to 255 of shape (images, height, width, channels); no other image is looked at.

    Raises:
        ExperimentError: all pixels are equal.
    """
    # From the histogram: exact integers, and no float copy of the images.
    counts = np.bincount(train_images.ravel(), minlength=256)
    pixels = np.arange(len(counts))
    mean = np.average(pixels, weights=counts)
    deviation = np.sqrt(np.average((pixels - mean) ** 2, weights=counts))
    if deviation == 0:
        raise ExperimentError(
            f"scale=standard: every pixel of the training images is {mean:g}.", advice="Take scale=unit."
        )
    return keras.layers.Rescaling(float(1 / deviation), offset=float(-mean / deviation))


def with_scaling(net: keras.Model, scaling: keras.Layer, input_shape: Shape) -> keras.Model:
    """`net` with `scaling` as its first layer: a model that takes raw pixels 0 to 255.

    The input is float32: a uint8 input would truncate augmented pixels.

    Raises:
        ExperimentError: a scaling that does not work on images of this shape, or changes it.
    """
    pixels = keras.Input(input_shape, dtype="float32", name="image")
    scaling.dtype_policy = "float32"  # in half precision a sum of squared pixels overflows
    _check_scaling(scaling, input_shape)
    if isinstance(net, keras.Sequential) and scaling.name not in {layer.name for layer in net.layers}:
        return keras.Sequential([pixels, scaling, *net.layers], name=net.name)
    return keras.Model(pixels, net(scaling(pixels)), name=net.name)


def _check_scaling(scaling: keras.Layer, input_shape: Shape) -> None:
    """Scales one image, because Keras finds most wrong values in a call only."""
    try:
        scaled = scaling(keras.ops.zeros((1, *input_shape)))
    except Exception as error:  # TensorFlow has types of its own
        raise ExperimentError(f"scale: layer {scaling.name} refuses images {input_shape}: {_reason(error)}") from error
    if tuple(scaled.shape[1:]) != tuple(input_shape):
        raise ExperimentError(f"scale: layer {scaling.name} turns images {input_shape} into {tuple(scaled.shape[1:])}.")


#: Helpers, one that needs arguments, and one that halves the channels.
_NOT_ACTIVATIONS = {"deserialize", "get", "serialize", "threshold", "glu"}


def _stack(layers: Iterable[keras.Layer], input_shape: Shape, num_classes: int, classifier: bool) -> keras.Sequential:
    """`layers` on an input of `input_shape`, ended by a softmax; names the layer that does not fit."""
    layers = [*layers, keras.layers.Dense(num_classes, name="classifier")] if classifier else list(layers)
    outputs = keras.Input(input_shape)
    for layer in layers:
        before = outputs.shape
        try:
            outputs = layer(outputs)
            fits = all(size is None or size >= 1 for size in outputs.shape)
        except (TypeError, ValueError) as error:
            if "negative" not in str(error):
                raise ExperimentError(
                    f"model: layer {layer.name} refuses its input {before[1:]}: {_reason(error)}"
                ) from error
            fits = False
        if not fits:
            raise ExperimentError(
                f"model: layer {layer.name} shrinks its input of {' x '.join(map(str, before[1:-1]))} below one pixel.",
                advice="Take fewer or smaller pools and kernels, or padding: same.",
            )
    if outputs.shape != (None, num_classes):
        raise ExperimentError(
            f"model: the layers end in shape {outputs.shape[1:]}, and one logit for each of the {num_classes} "
            f"classes is needed.",
            advice="Add a Flatten or pooling layer" + ("." if classifier else ", or set classifier: true."),
        )
    # Half precision is too coarse for probabilities.
    softmax = keras.layers.Activation("softmax", dtype="float32", name="softmax")
    return keras.Sequential([keras.Input(input_shape), *layers, softmax], name="net")


def _reason(error: Exception) -> str:
    """What Keras or TensorFlow says, without the call around it and without its bold type."""
    bold = re.search(r"\x1b\[1m(.+?)\x1b\[0m", str(error), re.DOTALL)
    return re.sub(r"\{\{.*?\}\} | \[Op:.*", "", bold[1] if bold else str(error))
