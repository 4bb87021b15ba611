"""The corruptions of MNIST-C: their bits, their ranges, and what each does to an image."""

from hashlib import sha256

import numpy as np
import pytest

from experiments.corruptions import CORRUPTIONS, corrupted

#: SHA-256, first 12 digits, of the first 10 test digits, with seed 0.
DIGESTS = {
    "shot_noise": "fc5bb14a027e",
    "impulse_noise": "9ebde16e155f",
    "glass_blur": "0ccf1479165f",
    "motion_blur": "c15489719c41",
    "shear": "3ebffc2f53da",
    "scale": "31937a387cd7",
    "rotate": "a26a5ea12c26",
    "brightness": "063f5e0b37a2",
    "translate": "84c16b67fda7",
    "stripe": "3a2065f70d1f",
    "fog": "f9d030ae1209",
    "spatter": "a39642683a4d",
    "dotted_line": "405c88d437f8",
    "zigzag": "ff761aee549d",
    "canny_edges": "d942580e3b06",
}


@pytest.fixture(scope="module")
def images(digits):
    with np.load(digits) as arrays:
        found = arrays["x_test"][:10, ..., None]
    found.flags.writeable = False
    return found


def test_there_are_fifteen():
    assert len(CORRUPTIONS) == 15 and list(DIGESTS) == list(CORRUPTIONS)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_equal_seeds_make_equal_images(name, images):
    changed = corrupted(name, images, 0)
    assert (changed.dtype, changed.shape) == (np.uint8, images.shape)
    assert not np.array_equal(changed, images)
    assert sha256(changed.tobytes()).hexdigest()[:12] == DIGESTS[name]
    assert np.array_equal(corrupted(name, images, 0), changed)
    random = name not in ("scale", "brightness", "stripe", "canny_edges")
    assert np.array_equal(corrupted(name, images, 1), changed) is not random


def test_brightness_adds_half_of_the_range(images):
    assert np.abs(corrupted("brightness", images, 0) - np.minimum(images + 127.5, 255)).max() <= 0.5


def test_stripes_invert_seven_columns_on_either_side(images):
    changed = corrupted("stripe", images, 0)
    assert np.array_equal(changed[:, :, 7:21], images[:, :, 7:21])
    outer = [*range(7), *range(21, 28)]
    assert np.array_equal(changed[:, :, outer], 255 - images[:, :, outer])


def test_a_shift_is_of_three_pixels_on_both_axes(images):
    for before, after in zip(images[..., 0], corrupted("translate", images, 0)[..., 0], strict=True):
        padded = np.pad(before, 3)
        shifted = [padded[3 - down : 31 - down, 3 - right : 31 - right] for down in (-3, 3) for right in (-3, 3)]
        assert any(np.array_equal(after, each) for each in shifted)


def test_salt_and_pepper_is_on_a_sixth_of_the_pixels():
    gray = np.full((20, 28, 28, 1), 100, np.uint8)
    changed = corrupted("impulse_noise", gray, 0)
    assert set(np.unique(changed)) == {0, 100, 255}
    assert (changed != 100).mean() == pytest.approx(0.17, abs=0.01)


def test_shot_noise_keeps_the_mean_and_has_three_photons():
    gray = np.full((20, 28, 28, 1), 51, np.uint8)  # a fifth
    changed = corrupted("shot_noise", gray, 0)
    assert set(np.unique(changed)) == {0, 85, 170, 255}
    assert changed.mean() == pytest.approx(51, abs=1)


def test_a_scaled_bar_is_seventy_percent_as_long():
    bar = np.zeros((1, 28, 28, 1), np.uint8)
    bar[0, 4:24, 13:15] = 255
    changed = corrupted("scale", bar, 0)[0, ..., 0]
    assert (changed.max(axis=1) > 127).sum() == 14


@pytest.mark.parametrize(("name", "center"), [("rotate", 0.4), ("shear", 0.4)])
def test_a_bar_leans_to_either_side(name, center):
    bars = np.zeros((40, 28, 28, 1), np.uint8)
    bars[:, 4:24, 13:15] = 255
    slopes = []
    for image in corrupted(name, bars, 0)[..., 0]:
        rows, columns = np.nonzero(image > 100)
        slopes.append(np.polyfit(rows, columns, 1)[0])
    expected = np.tan(center) if name == "rotate" else center
    assert np.abs(slopes) == pytest.approx(expected, abs=0.05)
    assert 10 < np.sum(np.array(slopes) > 0) < 30


@pytest.mark.parametrize("name", ["dotted_line", "zigzag"])
def test_lines_cross_the_image_and_darken_nothing(name, images):
    changed = corrupted(name, images, 0)
    assert (changed >= images).all()
    black = corrupted(name, np.zeros_like(images), 0)
    touched = (black > 0).any(axis=(1, 3))
    assert touched[:, [0, 1]].any(axis=1).all() and touched[:, 24:].any(axis=1).all()
    assert (touched.sum(axis=1) >= (13 if name == "dotted_line" else 28)).all()


@pytest.mark.parametrize("name", ["glass_blur", "motion_blur"])
def test_blur_moves_light_and_loses_none(name):
    dot = np.zeros((10, 28, 28, 1), np.uint8)
    dot[:, 14, 14] = 255
    changed = corrupted(name, dot, 0)
    assert changed.sum(axis=(1, 2, 3), dtype=int) == pytest.approx(255, abs=12)  # rounded to whole values
    assert changed.max() < 100


def test_fog_is_bright_and_spatter_is_mud():
    black = np.zeros((10, 28, 28, 1), np.uint8)
    half = np.full_like(black, 200)
    fog = corrupted("fog", half, 0)
    assert fog.min() < 100 and fog.max() > 180 and (fog[0] != fog[1]).any()
    mud = corrupted("spatter", black, 0)
    assert 0.1 < (mud > 0).mean() < 0.9 and mud.max() in (45, 46)
