"""The one reader of image files: from a file of any kind to the raw pixels that a model takes."""

import base64
import io
import warnings
from collections.abc import Sequence
from glob import glob
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from experiments.errors import ExperimentError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_BOX = 20  # pixels that a digit of MNIST may be wide or high, of 28
_FAINTEST = 25  # grey levels between paper and ink; less is no ink
_NOISE = 0.15  # of the strongest ink: grain of paper, traces of compression


class NotAnImage(ExperimentError):
    """A file that no image for a model can be made from; the reason goes on where its name ends."""


def files(words: Sequence[str]) -> list[Path]:
    """The files that a user names, each once.

    Args:
        words: files, folders (with all images in them and in their folders), or patterns such as `scans/*.png`.

    Raises:
        ExperimentError: there is no such file, a folder has no image, or a pattern fits nothing.
    """
    found: dict[Path, None] = {}
    for word in words:
        path = Path(word)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not inside:
                raise ExperimentError(f"{word}: there is no image in this folder.", advice=f"It takes {_KINDS}.")
        elif path.is_file():
            inside = [path]
        else:
            inside = [Path(name) for name in sorted(glob(word, recursive=True)) if Path(name).is_file()]
            if not inside:
                raise ExperimentError(f"{word}: there is no such file.", given=path.name, allowed=_neighbours(path))
        found |= dict.fromkeys(inside)
    return list(found)


_KINDS = "PNG, JPEG, BMP, GIF, WebP and TIFF"


def _neighbours(path: Path) -> list[str]:
    return [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []


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
        reason = "is empty" if file.stat().st_size == 0 else f"is none of {_KINDS}"
        raise NotAnImage(reason) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise NotAnImage(f"has more than {Image.MAX_IMAGE_PIXELS:,} pixels, the most that are read") from error
    except Exception as error:  # damaged images can make Pillow raise almost anything
        raise NotAnImage(f"cannot be read: {error}") from error
    if image.mode.startswith("I;16"):  # Pillow would cut 16-bit pixels at 255 instead of scaling them
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise NotAnImage(f"has pixels of 32 bits (Pillow's mode {image.mode}), which have no range to scale from")
    return image


def on_paper(image: Image.Image, paper: str = "white") -> Image.Image:
    """Composites what is transparent onto a colour; an opaque image stays as it is."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, paper), image).convert("RGB")


def _contrasting_paper(image: Image.Image) -> str:
    """Black below light ink on transparent ground, else white."""
    pixels = np.asarray(image.convert("RGBA"))
    ink = pixels[pixels[..., 3] > 127]
    return "black" if ink.size and ink[:, :3].mean() > 127 else "white"


def as_mnist(image: Image.Image) -> np.ndarray:
    """A digit as MNIST has it: light ink on black, in a box of 20 x 20 pixels, by its centre of mass.

    After Yann LeCun, Corinna Cortes and Christopher Burges, http://yann.lecun.com/exdb/mnist: digits keep their
    proportions, are smoothed by the reduction, and lie with their centre of mass in the middle of 28 x 28 pixels.

    Args:
        image: dark ink on light paper or the other way round, of any size.

    Returns:
        uint8 of shape (28, 28, 1).

    Raises:
        NotAnImage: there is nothing on it.
    """
    grey = np.asarray(on_paper(image, _contrasting_paper(image)).convert("L"), np.float64)
    edge = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    difference = grey - np.median(edge)
    ink = np.abs(np.clip(difference, 0, None) if difference.max() > -difference.min() else np.clip(difference, None, 0))
    if ink.max() < _FAINTEST:
        raise NotAnImage("has nothing on it")
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
    # Far from the middle of the digit its centre of mass would push it over the edge.
    top, left = (
        int(np.clip(round(14 - centre), 0, 28 - side)) for centre, side in zip(middle, digit.shape, strict=True)
    )
    placed[top : top + digit.shape[0], left : left + digit.shape[1]] = digit
    return np.rint(255 * placed).astype(np.uint8)[..., None]


def resized(image: Image.Image, shape: tuple[int, ...], *, invert: bool = False) -> np.ndarray:
    """Converts an image to the pixels of `data=folder`: on white paper, its proportions not kept.

    Args:
        image: of any size and colour mode.
        shape: height, width and channels; 1 channel is grey, 3 are colour.
        invert: exchange dark and light.

    Returns:
        uint8 of `shape`.
    """
    height, width, channels = shape
    image = on_paper(image).convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).reshape(shape)
    return 255 - pixels if invert else pixels


def as_it_is(image: Image.Image, shape: tuple[int, ...], *, invert: bool = False) -> np.ndarray:
    """Converts an image that has the right size already, as `resized` does.

    Raises:
        NotAnImage: it has another size.
    """
    height, width, _ = shape
    if image.size != (width, height):
        raise NotAnImage(f"has {image.size[0]} x {image.size[1]} pixels, and the model takes {width} x {height}")
    return resized(image, shape, invert=invert)


def data_uri(pixels: np.ndarray) -> str:
    """Raw pixels, uint8 (height, width, channels), as a PNG in the text of a page."""
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(axis=-1) if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
