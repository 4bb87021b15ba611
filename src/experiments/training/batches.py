"""Shuffled and augmented batches of training images."""

import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from experiments.stored_images import Images

_ALIGNMENT = 64  # bytes, of TensorFlow's tensors
_MOST_COPIED = 2**27  # bytes of images
_MOST_PREDICTED = 250  # images
_PREDICTION_BYTES = 2**26  # of the activations of a layer in float32
#: Image layers of Keras that fail when they get labels, too.
_WITHOUT_LABELS = (keras.layers.ContrastLimitedAdaptiveHistogramEqualization, keras.layers.RandomGrayscale)
_DRAWS = 2**20  # more random numbers than any augmentation draws for a batch


def training_batches(
    images: Images,
    labels: np.ndarray,
    num_classes: int,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    weights: np.ndarray | None = None,
    augmentation: Sequence[keras.Layer] = (),
    after_epoch: int = 0,
) -> tf.data.Dataset:
    """Batches of augmented images, one-hot labels and weights, if there are any, for all epochs, one after another.

    Order and augmentation of a batch follow from `seed` and its place alone, so any can be had without those before it.

    Args:
        images: raw pixels of shape (images, height, width, channels).
        labels: classes of shape (images,).
        num_classes: length of a one-hot label.
        batch_size: images per batch; the last batch of an epoch may be smaller.
        epochs: how many times every image comes.
        seed: of the order.
        weights: how much each image counts in the loss, of shape (images,); None if all count the same.
        augmentation: Keras image layers, applied in order to whole batches.
        after_epoch: how many epochs to leave out at the beginning.
    """
    total = len(images)
    steps = math.ceil(total / batch_size)
    read, all_labels = _reader(images), tf.constant(labels)
    all_weights = [] if weights is None else [tf.constant(weights)]
    generators = [
        variable for layer in augmentation for variable in layer.variables if variable.name == "seed_generator_state"
    ]
    seeds = [int(generator[0]) for generator in generators]

    def batch(position: tf.Tensor) -> tuple[tf.Tensor, ...]:
        epoch, step = position // steps, position % steps
        places = tf.range(step * batch_size, tf.minimum((step + 1) * batch_size, total))
        shuffled = tf.random.experimental.index_shuffle(places, seed=[seed, epoch], max_index=total - 1)
        of_images = [tf.gather(values, shuffled) for values in all_weights]
        return position, read(shuffled), tf.one_hot(tf.gather(all_labels, shuffled), num_classes), *of_images

    def augment(
        position: tf.Tensor, images: tf.Tensor, labels: tf.Tensor, *weights: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        for generator, layer_seed in zip(generators, seeds, strict=True):
            generator.assign(tf.stack([layer_seed, position * _DRAWS]))
        for layer in augmentation:
            images, labels = augmented(layer, images, labels)
        return images, labels, *weights

    return tf.data.Dataset.range(after_epoch * steps, epochs * steps).map(batch).map(augment).prefetch(2)


def evaluation_batches(images: Images, labels: np.ndarray, num_classes: int, batch_size: int) -> tf.data.Dataset:
    """Batches of images and one-hot labels, in their order; a few of them are in memory at a time.

    Args:
        images: raw pixels of shape (images, height, width, channels).
        labels: classes of shape (images,).
        num_classes: length of a one-hot label.
        batch_size: images per batch.
    """
    all_labels = tf.constant(labels)

    def batch(start: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels = tf.numpy_function(lambda first: images[first : first + batch_size], [start], tf.uint8)
        pixels = tf.ensure_shape(pixels, (None, *images.shape[1:]))
        return pixels, tf.one_hot(all_labels[start : start + batch_size], num_classes)

    return tf.data.Dataset.range(0, len(images), batch_size).map(batch).prefetch(2)


def augmented(layer: keras.Layer, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Applies a layer to raw images and one-hot labels; image layers such as MixUp may change the labels, too."""
    images = tf.cast(images, "float32")  # some layers would compute in uint8, or refuse it
    if hasattr(layer, "transform_labels") and not isinstance(layer, _WITHOUT_LABELS):
        both = layer({"images": images, "labels": labels}, training=True)
        return both["images"], both["labels"]
    return layer(images, training=True), labels


def prediction_batch_size(model: keras.Model) -> int:
    """The number of images that go through a model at once when it only predicts: up to 250, in bounded memory."""
    sizes = [
        math.prod(dimension or 1 for dimension in output.shape[1:])
        for layer in model.layers
        for output in keras.tree.flatten(layer.output)
    ]
    return max(1, min(_MOST_PREDICTED, _PREDICTION_BYTES // (4 * 2 * max(sizes))))  # input and output of a layer


def _reader(images: Images) -> Callable[[tf.Tensor], tf.Tensor]:
    """A TensorFlow function that returns the images at some positions."""
    if isinstance(images, np.ndarray) and images.nbytes <= _MOST_COPIED:
        tensor = _tensor(images)
        return lambda positions: tf.gather(tensor, positions)

    def read(positions: tf.Tensor) -> tf.Tensor:
        # TensorFlow's own tensor of all images would be a copy, of which it makes another to rewrite the pipeline.
        pixels = tf.numpy_function(images.__getitem__, [positions], tf.uint8)
        return tf.ensure_shape(pixels, (None, *images.shape[1:]))

    return read


def _tensor(array: np.ndarray) -> tf.Tensor:
    """Converts an array to a tensor with one copy; `tf.constant` would keep two copies in memory."""
    memory = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    aligned = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    aligned[:] = array
    return tf.experimental.dlpack.from_dlpack(aligned.__dlpack__())
