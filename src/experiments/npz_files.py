"""Reads images and labels from .npz files, whatever common names their arrays have."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments import images
from experiments.dataset import LabelledImages, check_arrays
from experiments.errors import ExperimentError

#: The usual names of the arrays.
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
#: The words of which names of arrays and folders are made.
_WORDS = {
    "train": {"train", "training"},
    "validation": {"val", "valid", "validation"},
    "test": {"test", "testing"},
    "x": {"x", "image", "images", "data"},
    "y": {"y", "label", "labels", "target", "targets"},
}
MEANING = {word: meaning for meaning, words in _WORDS.items() for word in words}


def _names(file: Path) -> list[str]:
    """The names of the arrays in an .npz file."""
    if not file.is_file():
        raise ExperimentError(
            f"data.path: there is no file {images.shown(file)}.",
            advice=f"Give an .npz file with the arrays {', '.join(ARRAYS)}.",
        )
    with _refuse_corrupt(file), file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        return list(archive.files)


def read_arrays(file: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Reads arrays of a file by name.

    Raises:
        ExperimentError: the file is corrupt.
    """
    # Opened here, because NumPy leaves a corrupt file open.
    with _refuse_corrupt(file), file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        return [archive[name] for name in names]


@contextlib.contextmanager
def _refuse_corrupt(file: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a corrupt file can make NumPy, zipfile and zlib raise almost anything
        if str(error).startswith("Object arrays"):
            raise ExperimentError(
                f"data.path: {images.shown(file)} holds an array of Python objects instead of numbers.",
                advice="Images must have one size: np.stack(list(images)) makes one array of them.",
            ) from error
        raise ExperimentError(
            f"data.path: {images.shown(file)} is not an .npz file or is corrupt ({type(error).__name__}: {error}).",
            advice="Write it again with numpy.savez_compressed.",
        ) from error


def read(file: Path) -> dict[str, LabelledImages]:
    """Reads and checks the images and labels of a file.

    Returns:
        `train` and, if the file has them, `test` and `validation`.

    Raises:
        ExperimentError: the file is missing or corrupt, or its arrays have unknown names, wrong shapes or values.
    """
    names = _names(file)
    found: dict[tuple[str, str], str] = {}
    for name in names:
        meanings = [MEANING.get(word) for word in name.lower().split("_")]
        kinds = [meaning for meaning in meanings if meaning in ("x", "y")]
        splits = [meaning for meaning in meanings if meaning in ("train", "validation", "test")] or ["train"]
        if len(kinds) == len(splits) == 1 and None not in meanings:
            slot = (str(splits[0]), str(kinds[0]))
            if slot in found:
                raise ExperimentError(
                    f"data.path: {file} holds {found[slot]} and {name}, which both could be {slot[1]}_{slot[0]}.",
                    advice=f"Keep one of them, or name the arrays {', '.join(ARRAYS)}.",
                )
            found[slot] = name
    if not found and names and all(re.fullmatch(r"arr_\d+", name) for name in names):
        found = _unnamed(file, names)
    present = dict.fromkeys(["train", *(split for split, _ in found)])
    wanted = {(split, kind): f"{kind}_{split}" for split in present for kind in ("x", "y")}
    if lacking := [name for slot, name in wanted.items() if slot not in found]:
        raise ExperimentError(
            f"data.path: {file} lacks {', '.join(lacking)}; it holds {', '.join(names) or 'nothing'}.",
            advice=f"Name its arrays {', '.join(ARRAYS)}.",
        )
    arrays = dict(zip(found.values(), read_arrays(file, list(found.values())), strict=True))
    return {
        split: check_arrays(
            arrays[found[split, "x"]],
            arrays[found[split, "y"]],
            f"data.path={file}: {found[split, 'x']}",
            f"data.path={file}: {found[split, 'y']}",
        )
        for split, kind in found
        if kind == "x"
    }


def _unnamed(file: Path, names: Sequence[str]) -> dict[tuple[str, str], str]:
    """Finds the images and labels among arrays that `numpy.savez` was given without names, by their shapes."""
    arrays = dict(zip(names, read_arrays(file, names), strict=True))
    images_of = [name for name in names if arrays[name].ndim > 2]
    labels_of = [name for name in names if name not in images_of]
    if [len(arrays[name]) for name in images_of] != [len(arrays[name]) for name in labels_of] or len(images_of) > 2:
        return {}
    pairs = zip(("train", "test"), images_of, labels_of, strict=False)
    return {(split, kind): name for split, *pair in pairs for kind, name in zip(("x", "y"), pair, strict=True)}
