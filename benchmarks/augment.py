"""What an affine augmentation costs: one layer of ours beside four of Keras, one after another, that do the same.

Prints the table of benchmarks/README.md: CPU milliseconds per batch of 128 images, medians of alternating rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from experiments.augmentations import affine

BATCHES = 200  # per round


def in_turn(layers: Sequence[keras.Layer]) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function that applies layers one after another."""

    def apply(images: tf.Tensor) -> tf.Tensor:
        for layer in layers:
            images = layer(images, training=True)
        return images

    return tf.function(apply)


def milliseconds(apply: Callable[[tf.Tensor], tf.Tensor], images: tf.Tensor) -> float:
    """CPU time of a batch."""
    started = time.process_time()
    for _ in range(BATCHES):
        apply(images)
    return 1000 * (time.process_time() - started) / BATCHES


def main() -> None:
    """Measures images of 28 and of 96 pixels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    tf.config.threading.set_intra_op_parallelism_threads(2)
    print("| side, pixels | one affine layer, ms | four Keras layers, ms | ratio |")
    print("|---|---|---|---|")
    for side in (28, 96):
        images = tf.constant(np.random.default_rng(0).uniform(0, 255, (128, side, side, 1)).astype("float32"))
        ours = in_turn([affine(rotation=16, translation=1.5, zoom=0.08, shear=0.15, fill_mode="constant")])
        options = {"fill_mode": "constant"}
        theirs = in_turn(
            [
                keras.layers.RandomRotation(16 / 360, **options),
                keras.layers.RandomTranslation(1.5 / side, 1.5 / side, **options),
                keras.layers.RandomZoom(0.08, 0.08, **options),
                keras.layers.RandomShear(0.15, 0.0, **options),
            ]
        )
        for apply in (ours, theirs):
            apply(images)  # traces it
        pairs = [(milliseconds(ours, images), milliseconds(theirs, images)) for _ in range(rounds)]
        one, four = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        print(f"| {side} | {one:.2f} | {four:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
