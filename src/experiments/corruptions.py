"""The 15 corruptions of MNIST-C, made from any gray 28 x 28 images.

The kinds and their parameters are those of Mu and Gilmer 2019, https://arxiv.org/abs/1906.02337. The published images
were drawn by other random numbers, and their motion blur by ImageMagick, so results agree on average, not image by
image. The paper gives no parameters of the two lines; those here are of full brightness and about a pixel wide.

Every corruption takes images of shape (images, 28, 28) with values from 0 to 1, and a random generator; it returns
float arrays of that shape whose values `corrupted` limits to 0 to 1.
"""

from collections.abc import Callable, Mapping

import numpy as np
from scipy import ndimage
from skimage.draw import line_aa
from skimage.feature import canny
from skimage.util import random_noise

SIZE = 28  # pixels, height and width
_CENTER = (SIZE - 1) / 2
_PLASMA_SIZE = 32  # pixels: the smallest power of two that covers an image


def corrupted(name: str, images: np.ndarray, seed: int) -> np.ndarray:
    """Images with one corruption.

    Args:
        name: one of `CORRUPTIONS`.
        images: uint8 of shape (images, 28, 28, 1).
        seed: with equal images and an equal seed, the result is equal, whatever other corruptions are made.

    Returns:
        uint8 of the same shape.
    """
    generator = np.random.default_rng([seed, list(CORRUPTIONS).index(name)])
    changed = CORRUPTIONS[name](images[..., 0] / 255, generator)
    return np.rint(np.clip(changed, 0, 1) * 255).astype(np.uint8)[..., None]


def shot_noise(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Poisson noise of 3 photons at full brightness."""
    return generator.poisson(3 * images) / 3


def impulse_noise(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Salt and pepper on 17 % of the pixels."""
    return random_noise(images, mode="s&p", amount=0.17, rng=generator)


def glass_blur(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Pixels swapped with random neighbors up to 1 pixel away, twice, between two blurs of 0.7 pixels."""
    blurred = _blurred(images, 0.7)
    every = np.arange(len(images))
    for _ in range(2):
        for row in range(SIZE - 2, 0, -1):
            for column in range(SIZE - 2, 0, -1):
                rows, columns = np.array([[row], [column]]) + generator.integers(-1, 2, (2, len(images)))
                here = blurred[:, row, column].copy()
                blurred[:, row, column] = blurred[every, rows, columns]
                blurred[every, rows, columns] = here
    return _blurred(blurred, 0.7)


def motion_blur(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Half a Gaussian of 3 pixels, cut at 10, along a line at a random angle within 45 degrees of the horizontal."""
    angles = np.deg2rad(generator.uniform(-45, 45, len(images)))
    distances = np.arange(11)
    weights = np.exp(-((distances / 3) ** 2) / 2)
    every, places = np.arange(len(images))[:, None, None], np.arange(SIZE)
    blurred = np.zeros_like(images)
    for distance, weight in zip(distances, weights / weights.sum(), strict=True):
        down, right = (np.rint(distance * part(angles)).astype(int)[:, None] for part in (np.sin, np.cos))
        rows, columns = ((places + shift).clip(0, SIZE - 1) for shift in (down, right))
        blurred += weight * images[every, rows[:, :, None], columns[:, None, :]]
    return blurred


def shear(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Sheared horizontally by 0.4 to a random side."""
    return _transformed(images, generator, lambda side: np.array([[1, 0], [0.4 * side, 1]]))


def scale(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Shrunk to 70 %."""
    return _transformed(images, generator, lambda side: np.eye(2) / 0.7)


def rotate(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Rotated by 0.4 radians to a random side."""
    cosine, sine = np.cos(0.4), np.sin(0.4)
    return _transformed(images, generator, lambda side: np.array([[cosine, side * sine], [-side * sine, cosine]]))


def brightness(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Brighter by 0.5."""
    return images + 0.5


def translate(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Shifted by 3 pixels vertically and horizontally, each to a random side."""
    shifts = 3 * generator.choice([-1, 1], (len(images), 2))
    return np.stack([ndimage.shift(image, shift, order=0) for image, shift in zip(images, shifts, strict=True)])


def stripe(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Inverted in the columns 0 to 6 and 21 to 27."""
    outer = np.abs(np.arange(SIZE) - _CENTER) > SIZE / 4
    return np.where(outer, 1 - images, images)


def fog(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Plasma of strength 3, whose roughness falls by 1.4 from one scale to the next."""
    brightest = images.max(axis=(1, 2), keepdims=True)
    foggy = images + 3 * _plasma(len(images), 1.4, generator)[:, :SIZE, :SIZE]
    return foggy * brightest / (brightest + 3)


def spatter(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Mud: where noise of mean 0.65 and deviation 0.3, blurred by 1 pixel, exceeds 0.65; blurred by 1.5 pixels."""
    drops = _blurred(generator.normal(0.65, 0.3, images.shape), 1) > 0.65
    mud = _blurred(drops.astype(float), 1.5)
    mud[mud < 0.8] = 0
    red, green, blue = 63 / 255, 42 / 255, 20 / 255
    return images * (1 - mud) + mud * (0.2125 * red + 0.7154 * green + 0.0721 * blue)


def dotted_line(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A straight line across the image between random heights, every other two pixels of it."""
    ends = generator.integers(2, SIZE - 2, (len(images), 2))
    changed = images.copy()
    for image, (left, right) in zip(changed, ends, strict=True):
        rows, columns, values = line_aa(left, 0, right, SIZE - 1)
        drawn = columns % 4 < 2
        _brighten(image, rows[drawn], columns[drawn], values[drawn])
    return changed


def zigzag(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A line across the image between random heights that swings 2 pixels to either side, a turn every 2 pixels."""
    ends = generator.integers(4, SIZE - 4, (len(images), 2))
    corners = np.append(np.arange(0, SIZE - 1, 2), SIZE - 1)
    swings = np.where(np.arange(len(corners)) % 2, 2, -2)
    changed = images.copy()
    for image, (left, right) in zip(changed, ends, strict=True):
        heights = np.rint(np.interp(corners, [0, SIZE - 1], [left, right]) + swings).astype(int)
        for start in range(len(corners) - 1):
            _brighten(image, *line_aa(heights[start], corners[start], heights[start + 1], corners[start + 1]))
    return changed


def canny_edges(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The edges that Canny's detector finds, white on black."""
    return np.stack([canny(image) for image in images]).astype(float)


#: Name -> corruption, in the order of the paper.
CORRUPTIONS: Mapping[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    function.__name__: function
    for function in (
        shot_noise, impulse_noise, glass_blur, motion_blur, shear, scale, rotate, brightness, translate, stripe, fog,
        spatter, dotted_line, zigzag, canny_edges,
    )
}  # fmt: skip


def _blurred(images: np.ndarray, deviation: float) -> np.ndarray:
    return ndimage.gaussian_filter(images, (0, deviation, deviation), mode="nearest")


def _transformed(images: np.ndarray, generator: np.random.Generator, matrix: Callable[[int], np.ndarray]) -> np.ndarray:
    """Images whose pixel p is read at `matrix(side) @ p`, from the center, with a random side, -1 or 1, of each."""
    center = np.full(2, _CENTER)
    matrices = {side: matrix(side) for side in (-1, 1)}
    sides = generator.choice([-1, 1], len(images))
    return np.stack(
        [
            ndimage.affine_transform(image, matrices[side], center - matrices[side] @ center, order=1)
            for image, side in zip(images, sides, strict=True)
        ]
    )


def _brighten(image: np.ndarray, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
    """Draws pixels where they are brighter than the image, leaving out those beyond its edge."""
    inside = (rows >= 0) & (rows < SIZE)
    np.maximum.at(image, (rows[inside], columns[inside]), values[inside])


def _plasma(number: int, decay: float, generator: np.random.Generator) -> np.ndarray:
    """Clouds by the diamond-square method, from 0 to 1, periodic, of shape (number, 32, 32).

    Args:
        number: of clouds.
        decay: what the random offsets are divided by from one scale to the next.
        generator: of the offsets.
    """
    cloud = np.zeros((number, _PLASMA_SIZE, _PLASMA_SIZE))
    step, offset = _PLASMA_SIZE, 100.0

    def around(mean: np.ndarray) -> np.ndarray:
        return mean + offset * generator.uniform(-1, 1, mean.shape)

    while step >= 2:
        half = step // 2
        corners = cloud[:, ::step, ::step]
        beside, below = np.roll(corners, -1, axis=2), np.roll(corners, -1, axis=1)
        middles = around((corners + beside + below + np.roll(below, -1, axis=2)) / 4)
        cloud[:, half::step, half::step] = middles
        cloud[:, ::step, half::step] = around((corners + beside + middles + np.roll(middles, 1, axis=1)) / 4)
        cloud[:, half::step, ::step] = around((corners + below + middles + np.roll(middles, 1, axis=2)) / 4)
        step, offset = half, offset / decay
    cloud -= cloud.min(axis=(1, 2), keepdims=True)
    return cloud / cloud.max(axis=(1, 2), keepdims=True)
