"""Augmentation layers beside those of Keras, which change raw pixels while a model is trained."""

import math
from typing import Annotated, Any, Literal

import keras
from keras import ops
from pydantic import Field

_Size = Annotated[float, Field(ge=0)]
_Fraction = Annotated[float, Field(ge=0, lt=1)]
_FillMode = Literal["constant", "nearest", "wrap", "reflect"]


def affine(
    *, rotation: _Size, translation: _Size, zoom: _Fraction, shear: _Size, fill_mode: _FillMode
) -> "RandomAffine":
    """Builds a layer that rotates, shears, zooms and shifts every training image by random amounts.

    Args:
        rotation: largest angle in degrees, in either direction.
        translation: largest shift in pixels, in each of the four directions.
        zoom: largest change of width and of height, each by itself, as a fraction; 0.08 is from 0.92 to 1.08.
        shear: largest shift of a pixel per pixel of distance from the image's middle row.
        fill_mode: what lies outside of an image: black for `constant`, else as in `keras.ops.image.affine_transform`.
    """
    return RandomAffine(rotation, translation, zoom, shear, fill_mode)


def elastic(*, displacement: _Size, points: Annotated[int, Field(ge=2)]) -> "RandomElastic":
    """Builds a layer that distorts every training image smoothly.

    `keras.layers.RandomElasticTransform` is no choice: in a batch of unknown size it puts the first image, distorted,
    in the place of others (Keras 3.15).

    Args:
        displacement: largest displacement of a control point in pixels, in each of the four directions.
        points: control points per side; between them, displacements are interpolated with cubic splines.
    """
    return RandomElastic(displacement, points)


def gaussian_noise(*, stddev: _Size) -> "GaussianNoise":
    """Builds a layer that adds normally distributed noise to every pixel; results stay within 0 to 255.

    Args:
        stddev: standard deviation of the noise, of pixels from 0 to 255; `keras.layers.GaussianNoise` takes at most 1.
    """
    return GaussianNoise(stddev)


class RandomAffine(keras.Layer):
    """Moves images by one random affine map each, so that every pixel is interpolated once.

    The map takes a place in the new image to the one it is read from, around the image's center.
    """

    def __init__(self, rotation: float, translation: float, zoom: float, shear: float, fill_mode: str) -> None:
        super().__init__(dtype="float32")  # half precision cannot tell the places in an image apart
        self.rotation = rotation
        self.translation = translation
        self.zoom = zoom
        self.shear = shear
        self.fill_mode = fill_mode
        self.generator = keras.random.SeedGenerator()

    def call(self, images: Any, training: bool = False) -> Any:
        """Moves images of shape (images, height, width, channels)."""
        if not training:
            return images
        number, height, width = ops.shape(images)[:3]
        maps = self.random_maps(number, height, width)
        return ops.image.affine_transform(images, maps, fill_mode=self.fill_mode, data_format="channels_last")

    def random_maps(self, number: int, height: int, width: int) -> Any:
        """Draws maps in the form of `keras.ops.image.affine_transform`, of shape (number, 8)."""
        draws = keras.random.uniform((6, number), -1, 1, seed=self.generator)
        angle, shear = draws[0] * math.radians(self.rotation), draws[1] * self.shear
        zoom_x, zoom_y = 1 + draws[2] * self.zoom, 1 + draws[3] * self.zoom
        cos, sin = ops.cos(angle), ops.sin(angle)
        # Zooms, then shears, then rotates.
        xx, xy = cos * zoom_x, (cos * shear - sin) * zoom_y
        yx, yy = sin * zoom_x, (sin * shear + cos) * zoom_y
        center_x, center_y = (width - 1) / 2, (height - 1) / 2
        shift_x = center_x - xx * center_x - xy * center_y + draws[4] * self.translation
        shift_y = center_y - yx * center_x - yy * center_y + draws[5] * self.translation
        nothing = ops.zeros_like(xx)
        return ops.stack([xx, xy, shift_x, yx, yy, shift_y, nothing, nothing], axis=1)


class RandomElastic(keras.Layer):
    """Reads every pixel of an image from a place nearby that differs smoothly from pixel to pixel."""

    def __init__(self, displacement: float, points: int) -> None:
        super().__init__(dtype="float32")
        self.displacement = displacement
        self.points = points
        self.generator = keras.random.SeedGenerator()

    def call(self, images: Any, training: bool = False) -> Any:
        """Distorts images of shape (images, height, width, channels)."""
        if not training:
            return images
        number, height, width, channels = ops.shape(images)
        shape = (number, self.points, self.points, 2)
        moves = keras.random.uniform(shape, -self.displacement, self.displacement, seed=self.generator)
        moves = ops.image.resize(moves, (height, width), interpolation="bicubic", data_format="channels_last")
        rows = ops.clip(ops.arange(height, dtype="float32")[:, None] + moves[..., 0], 0, height - 1)
        columns = ops.clip(ops.arange(width, dtype="float32") + moves[..., 1], 0, width - 1)
        top, left = ops.floor(rows), ops.floor(columns)
        pixels = ops.reshape(images, (number, height * width, channels))
        found = 0.0
        for down, across in ((0, 0), (0, 1), (1, 0), (1, 1)):
            row, column = ops.minimum(top + down, height - 1), ops.minimum(left + across, width - 1)
            places = ops.reshape(ops.cast(row * width + column, "int32"), (number, height * width, 1))
            weight = (1 - ops.abs(rows - top - down)) * (1 - ops.abs(columns - left - across))
            read = ops.reshape(ops.take_along_axis(pixels, places, axis=1), (number, height, width, channels))
            found += weight[..., None] * read
        return found


class GaussianNoise(keras.Layer):
    """Adds normally distributed noise to every pixel."""

    def __init__(self, stddev: float) -> None:
        super().__init__(dtype="float32")
        self.stddev = stddev
        self.generator = keras.random.SeedGenerator()

    def call(self, images: Any, training: bool = False) -> Any:
        """Adds noise to raw pixels."""
        if not training:
            return images
        noise = keras.random.normal(ops.shape(images), stddev=self.stddev, seed=self.generator)
        return ops.clip(images + noise, 0, 255)
