"""Augmentation layers of the project's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from experiments.augmentations import affine, elastic, gaussian_noise

STRONG = {"rotation": 30, "translation": 3, "zoom": 0.2, "shear": 0.3, "fill_mode": "constant"}


@pytest.mark.parametrize(("fill_mode", "of_scipy"), [("constant", "grid-constant"), ("nearest", "nearest")])
def test_images_are_moved_as_scipy_does(fill_mode, of_scipy):
    layer = affine(**STRONG | {"fill_mode": fill_mode})
    images = np.random.default_rng(0).uniform(0, 255, (8, 28, 20, 2)).astype("float32")
    state = layer.generator.state.numpy()
    maps = np.asarray(layer.random_maps(8, 28, 20), np.float64)
    layer.generator.state.assign(state)
    moved = np.asarray(layer(images, training=True))
    for image, new, (xx, xy, shift_x, yx, yy, shift_y, *_) in zip(images, moved, maps, strict=True):
        for channel in range(2):
            expected = ndimage.affine_transform(
                image[..., channel], [[yy, yx], [xy, xx]], [shift_y, shift_x], order=1, mode=of_scipy
            )
            np.testing.assert_allclose(new[..., channel], expected, atol=1e-4 * 255)


def test_every_map_keeps_within_its_limits_and_the_center_in_place():
    layer = affine(**STRONG)
    xx, xy, shift_x, yx, yy, shift_y, *_ = np.asarray(layer.random_maps(2000, 28, 20), np.float64).T
    assert np.abs(np.degrees(np.arctan2(yx, xx))).max() == pytest.approx(30, abs=0.1)
    assert np.hypot(xx, yx).min() == pytest.approx(0.8, abs=0.01) and np.hypot(xx, yx).max() == pytest.approx(
        1.2, abs=0.01
    )
    x, y = xx * 9.5 + xy * 13.5 + shift_x - 9.5, yx * 9.5 + yy * 13.5 + shift_y - 13.5
    for moved in (x, y):
        assert (moved.min(), moved.max()) == pytest.approx((-3, 3), abs=0.02)
    area = xx * yy - xy * yx  # shear and rotation leave it
    assert area.min() > 0.8**2 - 1e-6 and area.max() < 1.2**2 + 1e-6


def test_nothing_moves_without_size_or_without_training():
    images = np.random.default_rng(0).uniform(0, 255, (3, 9, 9, 1)).astype("float32")
    still = affine(rotation=0, translation=0, zoom=0, shear=0, fill_mode="constant")
    np.testing.assert_allclose(np.asarray(still(images, training=True)), images, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(affine(**STRONG)(images)), images)


def test_noise_has_its_standard_deviation_and_stays_within_the_range_of_pixels():
    layer = gaussian_noise(stddev=20)
    noise = np.asarray(layer(np.full((4, 50, 50, 1), 128, "float32"), training=True)) - 128
    assert noise.mean() == pytest.approx(0, abs=1) and noise.std() == pytest.approx(20, rel=0.05)
    white = np.asarray(layer(np.full((1, 50, 50, 1), 255, "float32"), training=True))
    assert white.max() == 255 and white.min() > 150
    assert np.array_equal(layer(np.ones((1, 5, 5, 1), "float32")), np.ones((1, 5, 5, 1)))


def test_an_elastic_distortion_reads_pixels_nearby_and_moves_every_image_by_itself():
    rows, columns = np.mgrid[:20, :16].astype("float32")
    images = np.stack([np.stack([rows, columns], -1) + 100 * number for number in range(6)])
    moves = np.asarray(elastic(displacement=2, points=4)(images, training=True)) - images
    inside = moves[:, 4:-4, 4:-4]
    assert 0.5 < np.abs(inside).max() < 3  # a spline may pass its points by a little
    assert np.abs(np.diff(inside, axis=1)).max() < 1.5
    assert len({tuple(move.ravel().round(3)) for move in inside}) == 6
    assert np.abs(inside[..., 0] - inside[..., 1]).max() > 0.5
    still = np.asarray(elastic(displacement=0, points=4)(images, training=True))
    np.testing.assert_allclose(still, images, atol=1e-4)


def test_the_elastic_layer_of_keras_mixes_images_up():
    """Once this fails, a configuration may name it again."""
    batches = tf.data.Dataset.from_tensor_slices(np.stack([np.full((9, 9, 1), level, "float32") for level in (0, 9)]))
    layer = keras.layers.RandomElasticTransform((1.0, 1.0))
    (moved,) = batches.batch(2).map(lambda images: layer(images, training=True))
    assert np.all(moved == 0)
