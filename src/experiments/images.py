"""Reads image files and converts them to the raw pixels that a model takes."""

import base64
import hashlib
import io
import json
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from glob import escape, glob
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import psutil
from PIL import Image, ImageOps, UnidentifiedImageError

from experiments.errors import ExperimentError
from experiments.stored_images import Images, stored

_log = logging.getLogger("experiments")

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_OF_THE_SYSTEM = ("thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin")  # lower case; beside hidden files
_BOX = 20  # width and height in pixels, of 28, that an MNIST digit is fitted into
FAINTEST = 25  # gray levels between paper and ink; a smaller difference is not ink
_MOST_NAMED = 5  # files in a message
_NOISE = 0.15  # fraction of the strongest ink below which it is paper grain or a compression artifact


class NotAnImage(ExperimentError):
    """A file that cannot be read as an image; the message completes a sentence that begins with its name."""


def files(words: Sequence[str]) -> list[Path]:
    """Lists the image files that a user names, each once.

    Args:
        words: files, folders (all images in them and their sub-folders), or patterns such as `scans/*.png`.

    Raises:
        ExperimentError: there is no such file, a folder has no images, or a pattern matches nothing.
    """
    found: dict[Path, None] = {}
    for word in words:
        path = Path(word)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not inside:
                raise ExperimentError(
                    f"{word}: there is no image in this folder.", advice=f"Images are {_KINDS} files."
                )
        elif path.is_file():
            inside = [path]
        else:
            pattern = os.path.join(escape(str(path.parent)), path.name) if path.parent.is_dir() else word
            inside = [Path(name) for name in sorted(glob(pattern, recursive=True)) if Path(name).is_file()]
            if not inside:
                raise ExperimentError(f"{word}: there is no such file.", given=path.name, allowed=_siblings(path))
        found |= dict.fromkeys(inside)
    return list(found)


_KINDS = "PNG, JPEG, BMP, GIF, WebP or TIFF"


def _siblings(path: Path) -> list[str]:
    return [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []


def visible(folder: Path) -> list[Path]:
    """What a folder holds, sorted by name, without hidden files and those that an operating system leaves behind."""
    names = (name for name in os.listdir(folder) if not name.startswith(".") and name.lower() not in _OF_THE_SYSTEM)
    return [folder / name for name in sorted(names)]


def files_below(folder: Path) -> Iterator[Path]:
    """All visible files in a folder and its sub-folders, sorted by their path within it."""
    for entry in visible(folder):
        if not entry.is_dir():
            yield entry
        elif not entry.is_symlink():  # which may lead back to a folder above
            yield from files_below(entry)


def shown(path: Path | str) -> str:
    """A path as text that can be printed and stored: bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read(file: Path) -> Image.Image:
    """Reads an image file as a person sees it: rotated as its EXIF data says, with at most 8 bits per channel.

    Training, prediction and the page to draw on all read images here, so that a model always sees the same pixels.

    Raises:
        NotAnImage: the file is not an image, is cut short, is too large, or has 32 bits per channel.
    """
    try:
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            Image.open(file) as opened,
        ):
            image = ImageOps.exif_transpose(opened)
    except UnidentifiedImageError as error:
        reason = "is empty" if file.stat().st_size == 0 else f"is not a {_KINDS} image"
        raise NotAnImage(reason) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise NotAnImage(f"has more than {Image.MAX_IMAGE_PIXELS:,} pixels, which is the limit") from error
    except Exception as error:  # corrupt images can make Pillow raise almost anything
        raise NotAnImage(f"cannot be read: {error}") from error
    if image.mode.startswith("I;16"):  # Pillow would cut 16-bit pixels at 255 instead of scaling them
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise NotAnImage(f"has pixels of 32 bits (Pillow's mode {image.mode}), whose range of values is unknown")
    return image


def composited(image: Image.Image, background: str = "white") -> Image.Image:
    """Composites a transparent image onto a background color; returns an opaque image unchanged."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")


def _contrasting_background(image: Image.Image) -> str:
    """Black if the ink on a transparent background is light, else white."""
    pixels = np.asarray(image.convert("RGBA"))
    ink = pixels[pixels[..., 3] > 127]
    return "black" if ink.size and ink[:, :3].mean() > 127 else "white"


def as_mnist(image: Image.Image) -> np.ndarray:
    """Prepares a digit as in MNIST: light ink on black, scaled to fit 20 x 20 pixels, centered by its center of mass.

    As described by LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist: digits keep their aspect ratio, are
    anti-aliased, and have their center of mass in the middle of 28 x 28 pixels.

    Args:
        image: dark on light or light on dark, of any size.

    Returns:
        uint8 of shape (28, 28, 1).

    Raises:
        NotAnImage: the image is blank.
    """
    gray = np.asarray(composited(image, _contrasting_background(image)).convert("L"), np.float64)
    edge = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    difference = gray - np.median(edge)
    ink = np.abs(np.clip(difference, 0, None) if difference.max() > -difference.min() else np.clip(difference, None, 0))
    if ink.max() < FAINTEST:
        raise NotAnImage("is blank")
    ink = np.where(ink < _NOISE * ink.max(), 0, ink) / ink.max()
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    cropped = Image.fromarray(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32))
    scale = _BOX / max(cropped.size)
    width, height = (max(1, round(side * scale)) for side in cropped.size)
    digit = np.clip(np.asarray(cropped.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3)), 0, None)
    digit = digit / digit.max()
    across, down = (digit.sum(axis=axis) for axis in (0, 1))
    middle = [float((mass * (np.arange(len(mass)) + 0.5)).sum() / mass.sum()) for mass in (down, across)]
    placed = np.zeros((28, 28))
    # A center of mass far from the middle of the digit would push it over the edge.
    top, left = (
        int(np.clip(round(14 - centre), 0, 28 - side)) for centre, side in zip(middle, digit.shape, strict=True)
    )
    placed[top : top + digit.shape[0], left : left + digit.shape[1]] = digit
    return np.rint(255 * placed).astype(np.uint8)[..., None]


def resized(
    image: Image.Image,
    shape: tuple[int, ...],
    *,
    invert: bool = False,
    background: str = "white",
    resize: str = "stretch",
) -> np.ndarray:
    """Resizes an image as `data=folder` does.

    Args:
        image: of any size and color mode.
        shape: height, width and channels; 1 channel for grayscale, 3 for RGB.
        invert: whether to swap dark and light.
        background: the color that transparent pixels are composited onto, and that `pad` adds.
        resize: what to do with another aspect ratio: `stretch` to the new one, `crop` what is too long on both sides,
            or `pad` what is too short.

    Returns:
        uint8 of `shape`.
    """
    height, width, channels = shape
    image = composited(image, background).convert("L" if channels == 1 else "RGB")
    if resize == "crop":
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    elif resize == "pad":
        image = ImageOps.pad(image, (width, height), Image.Resampling.BILINEAR, background)
    else:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image).reshape(shape)
    return 255 - pixels if invert else pixels


def as_it_is(
    image: Image.Image, shape: tuple[int, ...], *, invert: bool = False, background: str = "white"
) -> np.ndarray:
    """Converts an image of the right size to pixels, as `resized` does.

    Raises:
        NotAnImage: the image has a different size.
    """
    height, width, _ = shape
    if image.size != (width, height):
        raise NotAnImage(f"has {image.size[0]} x {image.size[1]} pixels, but the model takes {width} x {height}")
    return resized(image, shape, invert=invert, background=background)


def read_all(
    files: Sequence[Path],
    shape: tuple[int, ...],
    *,
    invert: bool,
    background: str,
    resize: str,
    memory_mb: float | None = None,
) -> Images:
    """Reads image files and converts them as `resized` does.

    Args:
        files: in the order of the images.
        shape: height, width and channels.
        invert: as for `resized`.
        background: as for `resized`.
        resize: as for `resized`.
        memory_mb: megabytes; images that take more are not held in memory, but decoded once into a file of the cache
            folder. None means half of the free memory.

    Returns:
        uint8 of shape (files, height, width, channels).

    Raises:
        ExperimentError: names the files that cannot be used, and why; or the images cannot be stored.
    """
    how: Any = {"shape": shape, "invert": invert, "background": background, "resize": resize}
    size = len(files) * math.prod(shape)
    allowed = psutil.virtual_memory().available / 2 if memory_mb is None else memory_mb * 1e6
    if size > allowed:
        limit = "half of the free memory" if memory_mb is None else f"data.memory_mb={memory_mb:g}"
        return stored(
            f"images-{_digest(files, how)}.uint8",
            (len(files), *shape),
            lambda done: _decoded(files[done:], **how),
            f"{len(files):,} images take {size / 1e6:,.0f} MB, more than {limit}",
        )
    pixels = np.empty((len(files), *shape), np.uint8)
    for position, image in enumerate(_decoded(files, **how)):
        pixels[position] = image
    return pixels


def _digest(files: Sequence[Path], how: Mapping[str, Any]) -> str:
    """Hash of the contents of files, and of all that decides which pixels are made of them."""
    digest = hashlib.sha256(json.dumps([how, PIL.__version__]).encode() + Path(__file__).read_bytes())
    for file in files:
        with suppress(OSError), file.open("rb") as stream:  # what cannot be read is named when it is decoded
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def _decoded(
    files: Sequence[Path], shape: tuple[int, ...], *, invert: bool, background: str, resize: str
) -> Iterator[np.ndarray]:
    """The pixels of one file after another; in the end names all that cannot be used."""
    unreadable, invisible = [], 0
    for file in files:
        try:
            image = read(file)
            pixels = resized(image, shape, invert=invert, background=background, resize=resize)
        except NotAnImage as error:
            unreadable.append(f"{shown(file)} {error}")
            continue
        invisible += image.has_transparency_data and int(np.ptp(pixels)) < FAINTEST
        yield pixels
    if unreadable:
        more = len(unreadable) - _MOST_NAMED
        first = "; ".join(unreadable[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
        many = f"{len(unreadable)} files cannot be used: " if len(unreadable) > 1 else ""
        raise ExperimentError(
            f"{many}{first}.", advice="Delete or repair what cannot be read, or take it out of the data set."
        )
    if invisible:
        other = "black" if background == "white" else "white"
        _log.warning(
            "%d of %d images are a single color once they are composited onto %s. Try data.background=%s.",
            invisible, len(files), background, other,
        )  # fmt: skip


def data_uri(pixels: np.ndarray) -> str:
    """Encodes raw pixels, uint8 of shape (height, width, channels), as a PNG data URI."""
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(axis=-1) if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
