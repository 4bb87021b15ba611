"""Counts the multiply-accumulate operations of a model."""

import math
from typing import Any

import keras


def count_macs(model: keras.Model) -> int | None:
    """Multiply-accumulate operations of one forward pass of one image, counted as textbooks do it by hand.

    Each product of a weight of a kernel with a value counts one: kernel height * kernel width * input channels * output
    channels at each output position of a convolution, inputs * outputs of a dense layer (Sze et al. 2017, section
    III, https://arxiv.org/abs/1703.09039). Biases, activations, pooling, normalization and scaling count nothing.

    Args:
        model: a Sequential or functional model; layers that it calls twice count twice.

    Returns:
        None if a layer with weights is not one of Keras's dense, convolutional and recurrent layers.
    """
    return _macs_on(model, [keras.Input(batch_shape=image.shape) for image in model.inputs])


def _macs_on(model: keras.Model, inputs: list[keras.KerasTensor]) -> int | None:
    counts: list[int | None] = []

    def call(layer: keras.Layer, *inputs: Any, **options: Any) -> Any:
        outputs = layer(*inputs, **options)
        counts.append(_layer_macs(layer, inputs[0], outputs) if isinstance(layer, keras.Layer) else 0)
        return outputs

    # The way of Keras to see each call of each layer; nothing is copied. A Sequential model would not show its calls.
    functional = keras.Model(model.inputs, model.outputs)
    keras.models.clone_model(functional, inputs, clone_function=lambda layer: layer, call_function=call)
    return None if None in counts else sum(count or 0 for count in counts)


def _layer_macs(layer: keras.Layer, inputs: Any, outputs: Any) -> int | None:
    """The operations of one call of a layer; None if they cannot be counted."""
    if isinstance(layer, keras.Model):
        return _macs_on(layer, keras.tree.flatten(inputs))
    if isinstance(layer, _CONVOLUTIONS | keras.layers.Dense):  # at each output position, all of the kernel
        return _values(outputs) * math.prod(layer.kernel.shape[:-1])
    if isinstance(layer, _TRANSPOSED):  # at each input position
        return _values(inputs) * math.prod(layer.kernel.shape[:-1])
    if isinstance(layer, _DEPTHWISE):  # a kernel for each output channel
        return _values(outputs) * math.prod(layer.kernel.shape[:-2])
    if isinstance(layer, _SEPARABLE):
        positions = _values(outputs) // layer.pointwise_kernel.shape[-1]
        return positions * sum(math.prod(kernel.shape) for kernel in (layer.depthwise_kernel, layer.pointwise_kernel))
    if isinstance(layer, keras.layers.SimpleRNN | keras.layers.GRU | keras.layers.LSTM):  # at each step
        cell = layer.cell
        return inputs.shape[1] * sum(math.prod(kernel.shape) for kernel in (cell.kernel, cell.recurrent_kernel))
    return None if layer.weights and not isinstance(layer, _WITHOUT_KERNELS) else 0


def _values(tensor: Any) -> int:
    """The number of values per image in a shape."""
    return math.prod(tensor.shape[1:])


_CONVOLUTIONS = keras.layers.Conv1D | keras.layers.Conv2D | keras.layers.Conv3D
_TRANSPOSED = keras.layers.Conv1DTranspose | keras.layers.Conv2DTranspose | keras.layers.Conv3DTranspose
_DEPTHWISE = keras.layers.DepthwiseConv1D | keras.layers.DepthwiseConv2D
_SEPARABLE = keras.layers.SeparableConv1D | keras.layers.SeparableConv2D
_WITHOUT_KERNELS = (
    keras.layers.Normalization
    | keras.layers.BatchNormalization
    | keras.layers.LayerNormalization
    | keras.layers.RMSNormalization
    | keras.layers.GroupNormalization
    | keras.layers.PReLU
    | keras.layers.Embedding
)
